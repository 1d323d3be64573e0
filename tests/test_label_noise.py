import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmd_tf.evaluate import write_report
from fmd_tf.label_noise import main
from fmd_tf.metrics import Predictions
from tests.conftest import add_photo, make_voc_dir

NAMES = ("with_mask", "without_mask", "mask_weared_incorrect")
BOXES = ((0, 0, 20, 20), (20, 0, 26, 20), (40, 0, 60, 20), (60, 0, 80, 20))


def _run(folder: Path, sure: float) -> Path:
    """Faces of one photo: two right, of them one last; a tiny mistake; one of `sure`."""
    folder.mkdir()
    rows = [(sure, "with_mask"), (0.95, "with_mask"), (0.7, "without_mask"), (0.9, "with_mask")]
    probabilities = np.array(
        [[p, 1 - p, 0] if name == "with_mask" else [1 - p, p, 0] for p, name in rows], np.float32
    )
    predictions = Predictions(
        probabilities, np.array([1, 1, 1, 0]), np.array(BOXES), ("a.png",) * 4, np.zeros(4, int)
    )
    order = np.array([3, 1, 0, 2]) if sure > 0.95 else np.arange(4)
    write_report(folder, predictions.where(order), NAMES, num_bootstrap=2)
    return folder / "metrics" / "predictions.csv"


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    faces = [("without_mask", box) for box in BOXES[:3]] + [("with_mask", BOXES[3])]
    folder = make_voc_dir(tmp_path)
    add_photo(folder, "a", size=(80, 20), faces=faces)
    return folder


def _call(tmp_path: Path, data_dir: Path, *flags: str) -> tuple[int, Path]:
    tables = [tmp_path / name / "metrics" / "predictions.csv" for name in ("one", "two")]
    paths = [str(path) for path in tables if path.is_file()]
    out = tmp_path / "out"
    argv = ["--data-dir", str(data_dir), "--predictions", *paths, "--results-dir", str(out)]
    return main([*argv, *flags]), out / "metrics"


def test_a_label_that_every_run_contradicts_is_suspect(tmp_path: Path, data_dir: Path):
    _run(tmp_path / "one", 0.97)
    _run(tmp_path / "two", 0.93)
    code, folder = _call(tmp_path, data_dir, "--confidence", "0.9")
    assert code == 0
    summary = json.loads((folder / "label_noise.json").read_text())
    # The second mistake is as sure, 0.95 in both runs, and 6 pixels wide.
    assert summary["num_suspects"] == 2
    assert summary["mistakes"] == {"suspect": 2}
    assert summary["with_all"]["all_faces"]["accuracy"] == 0.5
    assert summary["without_wrong_and_suspect_labels"]["all_faces"]["accuracy"] == 1.0
    with Image.open(folder / "mistakes_sorted.png") as picture:
        assert picture.width > 100
    with (folder / "mistakes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["xmin"], row["verdict"], row["kind"], row["confidence"]) for row in rows] == [
        ("0", "", "suspect", "0.950"),
        ("20", "", "suspect", "0.950"),
    ]


def test_what_one_run_doubts_is_no_suspect(tmp_path: Path, data_dir: Path):
    _run(tmp_path / "one", 0.97)
    _run(tmp_path / "two", 0.93)
    _, folder = _call(tmp_path, data_dir, "--confidence", "0.94")
    summary = json.loads((folder / "label_noise.json").read_text())
    assert summary["mistakes"] == {"wrong": 1, "suspect": 1}


def test_a_persons_verdict_goes_first(tmp_path: Path, data_dir: Path):
    _run(tmp_path / "one", 0.97)
    verdicts = tmp_path / "verdicts.csv"
    verdicts.write_text("photo,xmin,ymin,xmax,ymax,verdict\na.png,0,0,20,20,hand\n")
    _, folder = _call(tmp_path, data_dir, "--confidence", "0.99", "--verdicts", str(verdicts))
    summary = json.loads((folder / "label_noise.json").read_text())
    assert summary["mistakes"] == {"hand": 1, "tiny": 1}
    assert (summary["num_wrong_labels"], summary["with_all"]["all_faces"]["num_faces"]) == (0, 4)
    assert summary["without_wrong_and_suspect_labels"]["all_faces"]["num_faces"] == 4
    verdicts.write_text(verdicts.read_text().replace("hand", "label"))
    _, folder = _call(tmp_path, data_dir, "--confidence", "0.99", "--verdicts", str(verdicts))
    summary = json.loads((folder / "label_noise.json").read_text())
    assert summary["num_wrong_labels"] == 1
    assert summary["without_wrong_and_suspect_labels"]["all_faces"]["num_faces"] == 3


def test_verdicts_stay_where_they_were_filled_in(tmp_path: Path, data_dir: Path, capsys):
    _run(tmp_path / "one", 0.97)
    table = tmp_path / "out" / "metrics" / "mistakes.csv"
    assert _call(tmp_path, data_dir)[0] == 0
    said = table.read_text().replace("0,0,20,20,,suspect,", "0,0,20,20,hand,suspect,")
    # As a spreadsheet saves it.
    table.write_text(said, encoding="utf-8-sig")
    # Nothing is written before all is read.
    assert _call(tmp_path, tmp_path / "none")[0] == 2
    assert table.read_text(encoding="utf-8-sig") == said
    assert _call(tmp_path, data_dir, "--confidence", "0.8")[0] == 0
    summary = json.loads((table.parent / "label_noise.json").read_text())
    assert summary["mistakes"] == {"hand": 1, "suspect": 1}
    # A model that is right there does not take the verdict away.
    predictions = tmp_path / "one" / "metrics" / "predictions.csv"
    right = predictions.read_text().replace("0.970000,0.030000", "0.030000,0.970000")
    predictions.write_text(right)
    assert _call(tmp_path, data_dir)[0] == 0
    assert "a.png,0,0,20,20,hand,hand,without_mask,without_mask,0.970" in table.read_text()
    assert json.loads((table.parent / "label_noise.json").read_text())["mistakes"] == {"suspect": 1}
    table.write_text(table.read_text().replace("a.png,0,0,20,20", "b.png,0,0,20,20"))
    assert _call(tmp_path, data_dir)[0] == 2
    assert "has verdicts on faces that the predictions are not of" in capsys.readouterr().err


def test_names_with_commas_and_dollars_come_back(tmp_path: Path, data_dir: Path):
    name = "door, 1 $a_$.png"
    (data_dir / "images" / "a.png").rename(data_dir / "images" / name)
    xml = data_dir / "annotations" / "a.xml"
    xml.write_text(xml.read_text().replace("a.png", name))
    table = _run(tmp_path / "one", 0.97)
    table.write_text(table.read_text().replace("a.png", f'"{name}"'))
    assert _call(tmp_path, data_dir)[0] == 0
    verdicts = tmp_path / "out" / "metrics" / "mistakes.csv"
    verdicts.rename(tmp_path / "verdicts.csv")
    code, folder = _call(tmp_path, data_dir, "--verdicts", str(tmp_path / "verdicts.csv"))
    with (folder / "mistakes.csv").open() as file:
        assert [row["photo"] for row in csv.DictReader(file)] == [name, name]
    assert code == 0


def test_no_mistakes_are_a_result_too(tmp_path: Path, data_dir: Path):
    table = _run(tmp_path / "one", 0.97)
    rows = table.read_text().splitlines()
    right = [row for row in rows[1:] if row.split(",")[6] == row.split(",")[7]]
    table.write_text("\n".join([rows[0], *right]))
    code, folder = _call(tmp_path, data_dir)
    assert code == 0
    assert len((folder / "mistakes.csv").read_text().splitlines()) == 1
    assert (folder / "mistakes_sorted.png").is_file()


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda path: path.write_text("photo\n"), "expected a predictions.csv of fmd_tf"),
        (lambda path: path.write_text(path.read_text().replace("a.png", "b.png")), "other faces"),
    ],
)
def test_unusable_tables_are_named(spoil, expected, tmp_path: Path, data_dir: Path, capsys):
    _run(tmp_path / "one", 0.97)
    spoil(_run(tmp_path / "two", 0.93))
    assert _call(tmp_path, data_dir)[0] == 2
    assert expected in capsys.readouterr().err


def test_unusable_verdicts_are_named(tmp_path: Path, data_dir: Path, capsys):
    _run(tmp_path / "one", 0.97)
    (tmp_path / "v.csv").write_text("photo,verdict\na.png,hand\n")
    assert _call(tmp_path, data_dir, "--verdicts", str(tmp_path / "v.csv"))[0] == 2
    assert "v.csv: expected a CSV with the columns photo, xmin" in capsys.readouterr().err
