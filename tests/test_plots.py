from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from fmd_tf import plots
from fmd_tf.metrics import Predictions

NAMES = ("with_mask", "without_mask", "mask_weared_incorrect")


@pytest.fixture(scope="module")
def predictions() -> Predictions:
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet([2.0, 1.0, 0.3], 60).astype(np.float32)
    boxes = np.tile([0, 0, 20, 30], (60, 1))
    return Predictions(
        probabilities, generator.integers(0, 3, 60), boxes, ("p.png",) * 60, np.arange(60)
    )


def _history(epochs: int) -> list[dict]:
    names = ("loss", "accuracy", "macro_f1", "val_loss", "val_accuracy", "val_macro_f1")
    return [
        {
            "phase": "head" if epoch < 2 else "fine_tune",
            "epoch": epoch,
            "learning_rate": 1e-3,
            **dict.fromkeys(names, 0.1 * epoch),
        }
        for epoch in range(epochs)
    ]


_DETECTOR = {
    "detection": {
        "recall": 0.8,
        "precision": 0.6,
        "by_threshold": [
            {"threshold": 0.1, "recall": 0.9, "precision": 0.4},
            {"threshold": 0.55, "recall": 0.5, "precision": 1.0},
            {"threshold": 0.9, "recall": 0.0, "precision": None},
        ],
    }
}


def _saved(figure: Figure, path: Path) -> np.ndarray:
    plots.save_figure(figure, path)
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_every_plot_is_a_picture_with_something_on_it(predictions: Predictions, tmp_path: Path):
    images = np.random.default_rng(1).integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
    figures = [
        plots.plot_history(_history(5), ("fine_tune", 3)),
        plots.plot_history(_history(1), ("head", 0)),
        plots.plot_confusion(np.arange(9).reshape(3, 3), NAMES),
        plots.plot_reliability(predictions),
        plots.plot_mistakes(predictions, images, NAMES),
        plots.plot_precision_recall({"trained": _DETECTOR}),
    ]
    for index, figure in enumerate(figures):
        pixels = _saved(figure, tmp_path / f"{index}.png")
        assert min(pixels.shape[:2]) > 300
        assert pixels.std() > 10
    assert len(list(tmp_path.iterdir())) == len(figures)


def test_the_epoch_that_was_kept_is_marked_wherever_macro_f1_is_best():
    figure = plots.plot_history(_history(5), ("fine_tune", 3))
    for axis in figure.axes[:3]:
        (mark,) = [line for line in axis.lines if line.get_marker() == "o"]
        assert list(mark.get_xdata()) == [4] and list(mark.get_ydata()) == [pytest.approx(0.3)]


def test_a_figure_of_nothing_is_no_point_of_a_curve():
    axis = plots.plot_precision_recall({"trained": _DETECTOR}).axes[0]
    curve, dot = axis.lines
    assert list(curve.get_xdata()) == [0.9, 0.5] and list(curve.get_ydata()) == [0.4, 1.0]
    assert list(dot.get_xdata()) == [0.8] and list(dot.get_ydata()) == [0.6]
    assert [text.get_text() for text in axis.texts] == ["0.1"]


def test_mistakes_are_the_surest_first(predictions: Predictions):
    images = np.zeros((60, 8, 8, 3), np.uint8)
    figure = plots.plot_mistakes(predictions, images, NAMES, most=4)
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    confidences = [float(title.split("\n")[1].split()[-1]) for title in titles]
    wrong = predictions.confidences[predictions.predicted != predictions.labels]
    assert confidences == [round(float(each), 2) for each in np.sort(wrong)[::-1][:4]]


def test_no_mistakes_is_a_picture_too(predictions: Predictions, tmp_path: Path):
    right = predictions.where(predictions.predicted == predictions.labels)
    figure = plots.plot_mistakes(right, np.zeros((len(right.labels), 8, 8, 3), np.uint8), NAMES)
    assert _saved(figure, tmp_path / "none.png").std() > 0
