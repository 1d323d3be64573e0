"""The whole run through its entry point, on drawn data with a shallow backbone."""

import csv
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from fmd_tf import checkpoints, evaluate, train
from fmd_tf.model import backbones, load_model
from fmd_tf.publish import locked

pytestmark = pytest.mark.usefixtures("shallow_backbone")
ROOT = Path(__file__).parent.parent
SMALL = [
    *("--model-name", "mobilenet", "--weights", "none", "--image-size", "38"),
    *("--epochs", "2", "--batch-size", "16"),
]
METRICS = {
    "config.json",
    "confusion_matrix.png",
    "gradcam.png",
    "metrics.json",
    "mistakes.png",
    "predictions.csv",
    "reliability.png",
    "split.json",
    "training_history.json",
    "training_history.png",
}


def _arguments(data_dir: Path, folder: Path, *more: str) -> list[str]:
    return [
        *("--data-dir", str(data_dir)),
        *("--checkpoint-dir", str(folder / "checkpoints")),
        *("--results-dir", str(folder / "results")),
        *("--export-dir", str(folder / "savedmodel")),
        *SMALL,
        *more,
    ]


@pytest.fixture(scope="module")
def trained(sample_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert train.main(_arguments(sample_dir, folder)) == 0
    return folder


def test_results_are_complete(trained: Path):
    folder = trained / "results" / "metrics"
    assert {path.name for path in folder.iterdir()} == METRICS
    metrics = json.loads((folder / "metrics.json").read_text())
    split = json.loads((folder / "split.json").read_text())
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == metrics["all_faces"]["num_faces"]
    assert {row["photo"] for row in rows} <= set(split["test"])
    right = np.mean([row["label"] == row["predicted"] for row in rows])
    assert metrics["all_faces"]["accuracy"] == pytest.approx(right)
    config = json.loads((folder / "config.json").read_text())
    assert config["settings"]["epochs"] == 2
    assert config["versions"]["tensorflow"] == tf.__version__
    history = json.loads((folder / "training_history.json").read_text())
    assert [record["epoch"] for record in history] == [0, 1]


def test_the_same_crop_gets_the_same_label_everywhere(trained: Path, sample_dir: Path):
    """In Python and through the SavedModel, loaded in a session as TF Serving does."""
    model, card = load_model(trained / "checkpoints" / "best_model.keras")
    crops = np.random.default_rng(0).integers(0, 256, (7, 38, 38, 3), dtype=np.uint8)
    expected = model.predict(crops, verbose=0)
    encoded = [tf.io.encode_png(crop).numpy() for crop in crops]
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        version = str(trained / "savedmodel" / "1")
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], version)
        signature = loaded.signature_def["serving_default"]
        outputs = session.run(
            {name: info.name for name, info in signature.outputs.items()},
            {signature.inputs["image_bytes"].name: encoded},
        )
    np.testing.assert_allclose(outputs["probabilities"], expected, atol=1e-4)
    assert 0.05 <= card.training["temperature"] <= 20
    names = [card.class_names[row] for row in expected.argmax(axis=1)]
    assert [label.decode() for label in outputs["label"]] == names


def test_evaluation_of_the_saved_model_gives_the_same_figures(trained: Path, sample_dir: Path):
    split_file = trained / "results" / "metrics" / "split.json"
    arguments = [
        *("--model", str(trained / "checkpoints" / "best_model.keras")),
        *("--data-dir", str(sample_dir)),
        *("--results-dir", str(trained / "evaluation")),
    ]
    assert evaluate.main([*arguments, "--split-file", str(split_file)]) == 0
    first, second = (
        json.loads((trained / name / "metrics" / "metrics.json").read_text())
        for name in ("results", "evaluation")
    )
    assert first == second
    assert evaluate.main([*arguments, "--split", "all"]) == 0
    every = json.loads((trained / "evaluation" / "metrics" / "metrics.json").read_text())
    assert every["all_faces"]["num_faces"] > first["all_faces"]["num_faces"]


def test_a_finished_run_is_scored_again_without_training(trained: Path, sample_dir, capsys):
    best = trained / "checkpoints" / "best_model.keras"
    before = best.read_bytes()
    assert train.main(_arguments(sample_dir, trained)) == 0
    assert best.read_bytes() == before  # A student of it that is at work knows it by its bytes.
    assert "Epoch" not in capsys.readouterr().out
    assert [path.name for path in (trained / "savedmodel").iterdir()] == ["1"]


def test_another_configuration_is_refused(trained: Path, sample_dir: Path, capsys):
    assert train.main(_arguments(sample_dir, trained, "--lr", "0.5")) == 2
    assert "holds a run with lr None (now 0.5)" in capsys.readouterr().err


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_split_can_be_read_back(trained: Path, sample_dir: Path, tmp_path: Path, monkeypatch):
    split_file = trained / "results" / "metrics" / "split.json"
    more = ["--split-file", str(split_file), "--seed", "3"]
    monkeypatch.setattr(train, "train_model", _stop)  # It is written before.
    assert train.main(_arguments(sample_dir, tmp_path, *more)) == 130
    again = json.loads((tmp_path / "results" / "metrics" / "split.json").read_text())
    assert again == json.loads(split_file.read_text())


def test_two_runs_do_not_share_a_folder(trained: Path, sample_dir: Path, capsys):
    with locked(trained / "checkpoints" / ".lock"):
        assert train.main(_arguments(sample_dir, trained)) == 2
    assert "another run writes to" in capsys.readouterr().err


def test_a_new_run_removes_the_figures_of_the_one_before_and_nothing_of_the_users(
    sample_dir: Path, tmp_path: Path, trained: Path, monkeypatch
):
    metrics = tmp_path / "results" / "metrics"
    metrics.mkdir(parents=True)
    for name in ("split-mine.json", "notes.png", "evaluation.json", "metrics.json", "gradcam.png"):
        (metrics / name).touch()
    given = metrics / "split-fold-0.json"
    given.write_text((trained / "results" / "metrics" / "split.json").read_text())
    (metrics / "split-fold-1.json").touch()
    monkeypatch.setattr(train, "train_model", _stop)
    monkeypatch.chdir(metrics)
    assert train.main(_arguments(sample_dir, tmp_path, "--split-file", given.name)) == 130
    kept = {path.name for path in metrics.iterdir()}
    assert kept == {"split.json", "split-mine.json", "notes.png", given.name}


def test_two_runs_do_not_share_results(sample_dir: Path, tmp_path: Path, capsys):
    (tmp_path / "results").mkdir()
    with locked(tmp_path / "results" / ".lock"):
        assert train.main(_arguments(sample_dir, tmp_path)) == 2
    assert "another run writes to" in capsys.readouterr().err


def test_a_part_of_small_faces_alone_is_said_before_training(sample_dir, tmp_path, capsys):
    arguments = _arguments(sample_dir, tmp_path, "--min-face-size", "60")
    assert train.main(arguments) == 2
    assert "--min-face-size 60 leaves no face in the part" in capsys.readouterr().err
    assert not (tmp_path / "checkpoints" / "run.json").exists()


FOLDS = ("--folds", "2", "--epochs", "1", "--scheduler", "cosine")


@pytest.fixture(scope="module")
def folded(sample_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-validation, into results of another run."""
    folder = tmp_path_factory.mktemp("folded")
    metrics = folder / "results" / "metrics"
    metrics.mkdir(parents=True)
    for name in ("split.json", "split-fold-2.json", "gradcam.png", "training_history.json"):
        (metrics / name).write_text("of a run before")
    assert train.main(_arguments(sample_dir, folder, *FOLDS)) == 0
    return folder


def test_folds_pool_predictions_of_every_face(folded: Path, sample_dir: Path):
    folder = folded / "results" / "metrics"
    splits = {path.name for path in folder.glob("split*")}
    assert splits == {"split-fold-0.json", "split-fold-1.json"}
    assert not list(folder.glob("gradcam.png")) + list(folder.glob("training_history.*"))
    metrics = json.loads((folder / "metrics.json").read_text())
    xml = [path.read_text() for path in (sample_dir / "annotations").iterdir()]
    assert metrics["all_faces"]["num_faces"] == sum(text.count("<object>") for text in xml)


def test_each_fold_has_its_own_teacher(folded: Path, sample_dir: Path, tmp_path: Path, capsys):
    teachers = folded / "checkpoints"
    itself = tmp_path / "itself"
    assert train.main(_arguments(sample_dir, itself, *FOLDS, "--self-distill")) == 0
    distill = (*FOLDS, "--distill", str(teachers))
    assert train.main(_arguments(sample_dir, tmp_path, *distill)) == 0
    for fold in ("fold-0", "fold-1"):
        record = json.loads((tmp_path / "checkpoints" / fold / "run.json").read_text())
        assert record["distill"] == str(teachers / fold / "best_model.keras")
    figures = [
        json.loads((folder / "results" / "metrics" / "metrics.json").read_text())["all_faces"]
        for folder in (itself, tmp_path)
    ]
    assert figures[0] == figures[1]
    capsys.readouterr()
    assert train.main(_arguments(sample_dir, tmp_path / "other", *distill, "--seed", "5")) == 2
    assert "its --folds and --seed" in capsys.readouterr().err
    nowhere = (*FOLDS, "--distill", str(tmp_path / "x"))
    assert train.main(_arguments(sample_dir, tmp_path / "none", *nowhere)) == 2
    assert "fold-0" in capsys.readouterr().err


def test_all_folds_are_begun_anew_before_the_first_is_trained(
    folded: Path, sample_dir: Path, tmp_path: Path, monkeypatch, capsys
):
    """Else an interrupted run would go on with folds of the one before."""
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(folded / "checkpoints", checkpoints)
    assert train.main(_arguments(sample_dir, tmp_path, *FOLDS, "--lr", "0.5")) == 2
    assert "fold-0 holds a run with lr None (now 0.5)" in capsys.readouterr().err
    monkeypatch.setattr(train, "train_model", _stop)
    assert train.main(_arguments(sample_dir, tmp_path, *FOLDS, "--overwrite")) == 130
    assert not list(checkpoints.glob("fold-*/best_model.keras"))


# A shell that starts the tests in the background lets them, and their children, ignore Ctrl-C.
INTERRUPTIBLE = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
TWO_DEVICES = """
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
"""
MAIN = """
import sys
import pytest
from fmd_tf.train import main
from tests.backbone import make_shallow
make_shallow(pytest.MonkeyPatch())
sys.exit(main(sys.argv[1:]))
"""


def _python(before: str, arguments: list[str]) -> subprocess.Popen:
    """Start a training in a process of its own, after some preparation."""
    command = [sys.executable, "-u", "-c", f"{before}\n{MAIN}", *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, **streams, text=True, cwd=ROOT)


def test_kill_9_and_the_same_command(trained: Path, sample_dir: Path, tmp_path: Path):
    """A process killed while it trains goes on and ends with the figures of `trained`."""
    with _python(INTERRUPTIBLE, _arguments(sample_dir, tmp_path)) as process:
        for line in process.stdout:
            if line.startswith("Epoch 2"):
                process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert train.main(_arguments(sample_dir, tmp_path)) == 0
    first, second = (
        json.loads((folder / "results" / "metrics" / "training_history.json").read_text())
        for folder in (trained, tmp_path)
    )
    for left, right in zip(first, second, strict=True):
        assert {**left, "seconds": 0} == pytest.approx({**right, "seconds": 0}, abs=1e-4)


def test_a_model_that_teaches_itself_is_that_of_two_commands(
    trained: Path, sample_dir: Path, tmp_path: Path, capsys
):
    """Killed in its second training, it goes on without repeating the first."""
    itself, two = tmp_path / "itself", tmp_path / "two"
    with _python(INTERRUPTIBLE, _arguments(sample_dir, itself, "--self-distill")) as process:
        second = False
        for line in process.stdout:
            second |= line.startswith("Now the model")
            if second and line.startswith("Epoch 2"):
                process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert train.main(_arguments(sample_dir, itself, "--self-distill")) == 0
    assert capsys.readouterr().out.count("Epoch") == 1
    teacher = str(trained / "checkpoints" / "best_model.keras")
    assert train.main(_arguments(sample_dir, two, "--distill", teacher)) == 0
    tables = [
        np.genfromtxt(folder / "results" / "metrics" / "predictions.csv", delimiter=",")[1:, -3:]
        for folder in (itself, two)
    ]
    np.testing.assert_allclose(*tables, atol=1e-3)
    seconds = [
        json.loads((folder / "results" / "metrics" / "config.json").read_text())["training_seconds"]
        for folder in (itself, two)
    ]
    assert seconds[0] > seconds[1]  # That of the teacher counts.


def test_two_models_are_kept_as_one(
    trained: Path, sample_dir: Path, tmp_path: Path, monkeypatch, capsys
):
    """Stopped before the two are joined, it goes on, and a finished one is not joined again."""
    arguments = _arguments(sample_dir, tmp_path, "--weights", "none", "none")
    with monkeypatch.context() as patch:
        patch.setattr(train, "join_models", _stop)
        assert train.main(arguments) == 130
    best = tmp_path / "checkpoints" / "best_model.keras"
    assert len(backbones(load_model(best)[0])) == 1
    predictions = tmp_path / "results" / "metrics" / "predictions.csv"
    assert "first the teacher" in capsys.readouterr().out
    tables = []
    for _ in range(2):
        assert train.main(arguments) == 0
        assert "Epoch" not in capsys.readouterr().out
        tables.append(predictions.read_text())
    assert tables[0] == tables[1]
    model, card = load_model(best)
    assert len(backbones(model)) == 2
    assert card.training["temperature"] and card.training["report"]["part"] == "test"
    curves = {path.name for path in predictions.parent.glob("training_history*")}
    names = ("training_history", "training_history_teacher")
    assert curves == {f"{name}.{suffix}" for name in names for suffix in ("json", "png")}
    teacher = load_model(tmp_path / "checkpoints" / "teacher" / "best_model.keras")[1].training
    assert card.training["teacher"] == teacher
    # The first of them is what is trained from its weights alone.
    alone = load_model(trained / "checkpoints" / "best_model.keras")[1].training
    assert teacher["val_loss"] == pytest.approx(alone["val_loss"], abs=1e-3)


def test_another_configuration_is_refused_before_its_teacher_is_trained(
    trained: Path, sample_dir: Path, capsys
):
    assert train.main(_arguments(sample_dir, trained, "--self-distill")) == 2
    assert "holds a run with self_distill False (now True)" in capsys.readouterr().err
    assert not (trained / "checkpoints" / "teacher").exists()


def test_ctrl_c_ends_cleanly(sample_dir: Path, tmp_path: Path):
    with _python(INTERRUPTIBLE, _arguments(sample_dir, tmp_path)) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("Epoch 2"):
                process.send_signal(signal.SIGINT)
    assert process.returncode == 130
    assert "Traceback" not in "".join(lines)
    assert lines[-1] == "Stopped. The same command goes on at the last saved epoch.\n"


def test_ctrl_c_says_how_a_run_that_was_begun_anew_goes_on(
    sample_dir, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(train, "train_and_evaluate", _stop)
    for more, said in (([], "The same command goes"), (["--overwrite"], "without --overwrite")):
        assert train.main(_arguments(sample_dir, tmp_path, *more)) == 130
        assert said in capsys.readouterr().err


def test_too_little_room_is_said_before_anything_is_lost(
    trained: Path, sample_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setattr(
        checkpoints.shutil, "disk_usage", lambda folder: SimpleNamespace(free=500_000)
    )
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    assert train.main(_arguments(sample_dir, trained, "--overwrite")) == 2
    assert "has 0 MB free and the run needs 1 MB" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_mirrored_strategy_on_two_logical_devices(sample_dir: Path, tmp_path: Path):
    more = ("--strategy", "mirrored", "--epochs", "1", "--self-distill")
    arguments = _arguments(sample_dir, tmp_path, *more)
    with _python(TWO_DEVICES, arguments) as process:
        output, _ = process.communicate()
    assert process.returncode == 0, output
    assert (tmp_path / "checkpoints" / "best_model.keras").is_file()
