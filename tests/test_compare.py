from pathlib import Path

import numpy as np
import pytest

from fmd_tf.compare import main
from fmd_tf.evaluate import write_report
from fmd_tf.metrics import Predictions

NAMES = ("a", "b")


def _results(
    folder: Path,
    predicted: list[int],
    photos: str = "wxyz",
    labels: tuple[int, ...] = (0, 0, 0, 1),
    groups: tuple[int, ...] = (0, 1, 2, 3),
) -> Path:
    """A results folder of four faces of classes a, a, a, b in four photos."""
    folder.mkdir()
    probabilities = np.where(np.eye(2, dtype=bool)[predicted], 0.75, 0.25).astype(np.float32)
    boxes = np.tile([0, 0, 20, 20], (4, 1))
    predictions = Predictions(
        probabilities, np.array(labels), boxes, tuple(photos), np.array(groups)
    )
    write_report(folder, predictions, NAMES, num_bootstrap=2)
    return folder


def test_rows_and_differences(tmp_path: Path, capsys):
    base = _results(tmp_path / "base", [0, 0, 1, 1])
    better = _results(tmp_path / "better", [0, 0, 0, 1])
    assert main([str(base), str(better)]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    # base: a 2/3 recall, f1 2*2/(3+2) = 0.8; b f1 2*1/(1+2) = 0.667; macro 0.733
    assert rows[2][:4] == [f"| {base}", "0.7500", "", "0.7333"]
    assert rows[3][:2] == [f"| {better}", "1.0000"]
    low, high = (float(value) for value in rows[3][2].split(" to "))
    assert 0 <= low < high <= 1
    # ECE: all of confidence 0.75, of which 3/4 are right.
    assert [row[6] for row in rows[2:]] == ["0.000", "0.250"]


@pytest.mark.parametrize("other", [{"photos": "wxyq"}, {"labels": (0, 0, 1, 1)}])
def test_other_faces_and_mended_labels_are_refused(tmp_path: Path, capsys, other: dict):
    base = _results(tmp_path / "base", [0, 0, 1, 1])
    folder = _results(tmp_path / "other", [0, 0, 1, 1], **other)
    assert main([str(base), str(folder)]) == 2
    assert "is of other faces, labels or classes" in capsys.readouterr().err


def test_the_same_answers_do_not_differ_however_photos_are_grouped(tmp_path: Path, capsys):
    base = _results(tmp_path / "base", [0, 0, 1, 1])
    other = _results(tmp_path / "other", [0, 0, 1, 1], groups=(0, 0, 2, 3))
    assert main([str(base), str(other)]) == 0
    assert capsys.readouterr().out.count("+0.000 to +0.000") == 2


def test_a_folder_without_predictions_is_named(tmp_path: Path, capsys):
    base = _results(tmp_path / "base", [0, 0, 1, 1])
    assert main([str(base), str(tmp_path / "none")]) == 2
    assert "none/metrics/predictions.csv" in capsys.readouterr().err
