import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from fmd_tf import CLASS_NAMES, checkpoints, evaluate_detector, train_detector
from fmd_tf.detector import DetectorCard, build_detector, load_detector, save_detector
from fmd_tf.model import ModelCard, build_model, save_model
from fmd_tf.publish import locked
from fmd_tf.voc import read_folder
from tests.conftest import add_photo

pytestmark = pytest.mark.usefixtures("shallow_backbone")


def _arguments(data_dir: Path, folder: Path) -> list[str]:
    settings = {
        "data-dir": data_dir,
        "weights": "none",
        "image-size": 64,
        "view-size": 64,
        "epochs": 2,
        "checkpoint-dir": folder / "checkpoints",
        "results-dir": folder / "results",
    }
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def _history(folder: Path) -> list[dict]:
    (state,) = (folder / "checkpoints").glob("state-*/state.json")
    history = json.loads(state.read_text())["history"]
    kept = ("epoch", "loss", "val_ap50", "learning_rate")
    return [{name: row[name] for name in kept} for row in history]


@pytest.fixture(scope="module")
def trained(sample_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detector")
    assert train_detector.main(_arguments(sample_dir, folder)) == 0
    return folder


def test_a_run_leaves_a_detector_with_a_threshold_and_figures(trained):
    _, card = load_detector(trained / "checkpoints" / "best_detector.keras")
    assert card.image_size == 64 and 0 < card.threshold <= 1
    figures = json.loads((trained / "results" / "metrics" / "detector.json").read_text())
    assert set(figures) == {"settings", "photos", "trained"}
    assert {"threshold", "ap50", "milliseconds", "detection"} == set(figures["trained"])
    assert (trained / "results" / "metrics" / "split.json").is_file()
    assert (trained / "results" / "metrics" / "precision_recall.png").is_file()
    assert [row["epoch"] for row in _history(trained)] == [0, 1]


def test_an_interrupted_run_ends_as_an_undisturbed_one(
    trained, sample_dir, tmp_path, monkeypatch, capsys
):
    save = checkpoints.SaveState.on_epoch_end

    def interrupt(self, epoch, logs=None):
        save(self, epoch, logs)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.SaveState, "on_epoch_end", interrupt)
    assert train_detector.main(_arguments(sample_dir, tmp_path)) == 130
    assert "The same command goes on" in capsys.readouterr().err
    monkeypatch.setattr(checkpoints.SaveState, "on_epoch_end", save)
    assert train_detector.main(_arguments(sample_dir, tmp_path)) == 0
    assert "Going on at epoch 2" in capsys.readouterr().out
    for resumed, undisturbed in zip(_history(tmp_path), _history(trained), strict=True):
        rates = resumed.pop("learning_rate"), undisturbed.pop("learning_rate")
        assert rates[0] == pytest.approx(rates[1], rel=1e-4)
        assert resumed == pytest.approx(undisturbed, rel=0.02, abs=0.02)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_figures_of_another_run_do_not_stay_beside_a_new_split(sample_dir, tmp_path, monkeypatch):
    metrics = tmp_path / "results" / "metrics"
    metrics.mkdir(parents=True)
    for name in ("detector.json", "precision_recall.png", "notes.txt"):
        (metrics / name).touch()
    monkeypatch.setattr(train_detector, "_train", _interrupt)
    assert train_detector.main(_arguments(sample_dir, tmp_path)) == 130
    assert {path.name for path in metrics.iterdir()} == {"notes.txt", "split.json"}


def test_what_is_left_out_is_listed(sample_dir, tmp_path, monkeypatch, capsys):
    data_dir = shutil.copytree(sample_dir, tmp_path / "voc")
    xml = min((data_dir / "annotations").iterdir())
    xml.write_text("<annotation>")
    monkeypatch.setattr(train_detector, "_train", _interrupt)
    assert train_detector.main([*_arguments(data_dir, tmp_path), "--skip-invalid"]) == 130
    assert xml.name in (tmp_path / "results" / "metrics" / "invalid.txt").read_text()
    assert "Left out 1 invalid annotations, listed in " in capsys.readouterr().out


def test_a_finished_run_is_scored_again_and_not_trained(trained, sample_dir, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(train_detector, "report", _interrupt)
        assert train_detector.main(_arguments(sample_dir, trained)) == 130
    assert (trained / "results" / "metrics" / "detector.json").is_file()
    before = _history(trained)
    assert train_detector.main(_arguments(sample_dir, trained)) == 0
    assert "loss" not in capsys.readouterr().out
    assert _history(trained) == before


def test_another_configuration_in_the_same_folder_is_refused(trained, sample_dir, capsys):
    assert train_detector.main([*_arguments(sample_dir, trained), "--seed", "1"]) == 2
    assert "holds a run with" in capsys.readouterr().err


def test_a_saved_detector_is_scored_beside_annotations(trained, sample_dir, tmp_path, capsys):
    arguments = [
        *("--detector", str(trained / "checkpoints" / "best_detector.keras")),
        *("--data-dir", str(sample_dir), "--results-dir", str(tmp_path)),
    ]
    split = ["--split-file", str(trained / "results" / "metrics" / "split.json")]
    assert evaluate_detector.main([*arguments, *split]) == 0
    assert "AP50" in capsys.readouterr().out
    scored = _scored(tmp_path)
    assert scored["trained"]["detection"] == _scored(trained / "results")["trained"]["detection"]
    assert evaluate_detector.main([*arguments, *split, "--detector-size", "96"]) == 0
    assert scored["settings"]["image_size"] == 64
    assert _scored(tmp_path)["settings"]["image_size"] == 96
    assert evaluate_detector.main(arguments) == 2
    assert "--split test needs the --split-file" in capsys.readouterr().err


def _scored(results: Path) -> dict:
    return json.loads((results / "metrics" / "detector.json").read_text())


def test_the_split_and_the_classifier_must_fit(trained, sample_dir, tmp_path, capsys):
    path = trained / "results" / "metrics" / "split.json"
    record = json.loads(path.read_text())
    record["train"], record["test"] = record["test"], record["train"]
    (tmp_path / "swapped.json").write_text(json.dumps(record))
    arguments = [
        *("--detector", str(trained / "checkpoints" / "best_detector.keras")),
        *("--data-dir", str(sample_dir), "--results-dir", str(tmp_path)),
    ]
    swapped = ["--split-file", str(tmp_path / "swapped.json")]
    assert evaluate_detector.main([*arguments, *swapped]) == 2
    assert "is not that of" in capsys.readouterr().err
    card = ModelCard(tuple(reversed(CLASS_NAMES)), 32)
    save_model(build_model("mobilenet", 32, 3, "none"), card, tmp_path / "model.keras")
    model = ["--model", str(tmp_path / "model.keras"), "--split", "all"]
    assert evaluate_detector.main([*arguments, *model]) == 2
    assert "give its classes with --class-names" in capsys.readouterr().err


def test_a_photo_with_a_face_left_out_is_no_background(voc_dir, tmp_path):
    faces = [("with_mask", (2, 3, 12, 13)), ("someone", (20, 3, 30, 13))]
    add_photo(voc_dir, "two", faces=faces)
    folder = read_folder(voc_dir, skip_invalid=True)
    assert len(folder.annotations) == 2
    whole = evaluate_detector.whole_photos(folder.annotations)
    assert [annotation.photo.name for annotation in whole] == ["good.png"]
    # Its split names it nevertheless.
    save_detector(build_detector("none"), DetectorCard(64), tmp_path / "detector.keras")
    split = {"train": [], "val": [], "test": ["good.png", "two.png"]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    figures = evaluate_detector.evaluate(
        tmp_path / "detector.keras",
        voc_dir,
        tmp_path / "results",
        split_file=tmp_path / "split.json",
        skip_invalid=True,
    )
    assert figures["photos"] == 1
    (problem,) = (tmp_path / "results" / "metrics" / "invalid.txt").read_text().splitlines()
    assert "two.xml" in problem and "someone" in problem


def test_too_little_room_is_said_before_anything_is_lost(trained, sample_dir, monkeypatch, capsys):
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    assert train_detector.main([*_arguments(sample_dir, trained), "--overwrite"]) == 2
    assert "has 0 MB free and the run needs" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("folder", ["checkpoints", "results"])
def test_two_runs_do_not_share_a_folder(folder: str, sample_dir, tmp_path, capsys):
    (tmp_path / folder).mkdir()
    with locked(tmp_path / folder / ".lock"):
        assert train_detector.main(_arguments(sample_dir, tmp_path)) == 2
    assert "another run writes to" in capsys.readouterr().err


def test_a_part_without_a_whole_photo_is_said_before_training(voc_dir, tmp_path, capsys):
    for index in range(3):
        faces = [("with_mask", (2, 3, 12, 13)), ("someone", (20, 3, 30, 13))]
        add_photo(voc_dir, f"two{index}", faces=faces)
    assert train_detector.main([*_arguments(voc_dir, tmp_path), "--skip-invalid"]) == 2
    assert "--skip-invalid leaves no photo with all its faces" in capsys.readouterr().err


def test_a_threshold_that_nothing_reaches_is_not_claimed(trained, sample_dir, capsys):
    arguments = [*_arguments(sample_dir, trained), "--precision", "0.9999"]
    assert train_detector.main(arguments) == 0
    assert "No threshold has a precision of 0.9999; it is 0.300" in capsys.readouterr().out
    assert train_detector.main(_arguments(sample_dir, trained)) == 0


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--view-size", "100"], "--view-size: expected a multiple of 32, got 100"),
        (["--weights", "none.weights.h5"], "--weights: no file none.weights.h5"),
        (["--precision", "1"], "--precision: expected more than 0 and less than 1"),
        (["--data-dir", "nowhere"], "nowhere"),
        (["--epochs", "0"], "--epochs: expected at least 1, got 0"),
    ],
)
def test_bad_settings_are_named(sample_dir, tmp_path, capsys, flags, expected):
    assert train_detector.main([*_arguments(sample_dir, tmp_path), *flags]) == 2
    assert expected in capsys.readouterr().err
