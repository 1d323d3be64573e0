from pathlib import Path

import numpy as np

from fmd_tf.compare import main
from fmd_tf.evaluate import write_report
from fmd_tf.metrics import Predictions

NAMES = ("a", "b")


def _results(folder: Path, predicted: list[int], photos: str = "wxyz") -> Path:
    """A results folder of four faces of classes a, a, a, b in four photos."""
    folder.mkdir()
    probabilities = np.where(np.eye(2, dtype=bool)[predicted], 0.75, 0.25).astype(np.float32)
    labels, boxes = np.array([0, 0, 0, 1]), np.tile([0, 0, 20, 20], (4, 1))
    predictions = Predictions(probabilities, labels, boxes, tuple(photos), np.arange(4))
    write_report(folder, predictions, NAMES, num_bootstrap=2)
    return folder


def test_rows_and_differences(tmp_path: Path, capsys):
    base = _results(tmp_path / "base", [0, 0, 1, 1])
    better = _results(tmp_path / "better", [0, 0, 0, 1])
    assert main([str(base), str(better)]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    # base: a 2/3 recall, f1 2*2/(3+2) = 0.8; b f1 2*1/(1+2) = 0.667; macro 0.733
    assert rows[2][:4] == ["| base", "0.7500", "", "0.7333"]
    assert rows[3][:2] == ["| better", "1.0000"]
    low, high = (float(value) for value in rows[3][2].split(" to "))
    assert 0 <= low < high <= 1
    # ECE: all of confidence 0.75, of which 3/4 are right.
    assert [row[6] for row in rows[2:]] == ["0.000", "0.250"]


def test_other_faces_are_refused(tmp_path: Path, capsys):
    base = _results(tmp_path / "base", [0, 0, 1, 1])
    other = _results(tmp_path / "other", [0, 0, 1, 1], photos="wxyq")
    assert main([str(base), str(other)]) == 2
    assert "is of other faces or classes" in capsys.readouterr().err


def test_a_folder_without_predictions_is_named(tmp_path: Path, capsys):
    base = _results(tmp_path / "base", [0, 0, 1, 1])
    assert main([str(base), str(tmp_path / "none")]) == 2
    assert "none/metrics/predictions.csv" in capsys.readouterr().err
