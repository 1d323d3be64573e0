"""Figures of a training run and its evaluation, from arrays to PNG files.

Only matplotlib's object interface is used, so that no display and no global state is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from fmd_tf.metrics import NUM_BINS, Predictions, calibration_bins, calibration_error
from fmd_tf.publish import replacing
from fmd_tf.row_file import Rows

_BLUE, _ORANGE, _GRAY = "#0072B2", "#D55E00", "#777777"  # Okabe & Ito: safe for colour-blind eyes.


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, beside and renamed."""
    FigureCanvasAgg(figure)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


def plot_history(history: Sequence[Mapping[str, Any]], kept: tuple[str, int]) -> Figure:
    """Plot loss, accuracy, macro-F1 and learning rate over the epochs of all phases.

    Args:
        history: One record an epoch, as `checkpoints.SaveState` keeps them.
        kept: Phase and epoch whose weights were kept, which is marked.
    """
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2).ravel()
    epochs = np.arange(1, len(history) + 1)
    index = [(record["phase"], record["epoch"]) for record in history].index(kept)
    for axis, name in zip(axes, ("loss", "accuracy", "macro_f1"), strict=False):
        axis.plot(epochs, [record[name] for record in history], color=_BLUE, label="training")
        values = [record[f"val_{name}"] for record in history]
        axis.plot(epochs, values, color=_ORANGE, label="validation", linestyle="--")
        label = f"kept: {values[index]:.3f}"
        axis.plot(epochs[index], values[index], "o", color=_ORANGE, label=label)
        axis.set_title(name.replace("_", "-").replace("f1", "F1"))
        axis.legend()
    axes[3].semilogy(epochs, [record["learning_rate"] for record in history], color=_GRAY)
    axes[3].set_title("learning rate")
    for axis in axes:
        _mark_phases(axis, history)
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    return figure


def _mark_phases(axis: Axes, history: Sequence[Mapping[str, Any]]) -> None:
    """Draw a line where a phase begins, with its name."""
    for index, record in enumerate(history):
        if index == 0 or record["phase"] != history[index - 1]["phase"]:
            axis.axvline(index + 0.5, color=_GRAY, linewidth=0.8, linestyle=":")
            axis.annotate(
                record["phase"].replace("_", "-"),
                (index + 0.55, 0.02),
                xycoords=("data", "axes fraction"),
                color=_GRAY,
                fontsize=8,
            )


def plot_confusion(confusion: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Plot a confusion matrix: counts, and the part of the row in percent.

    Args:
        confusion: int [num_classes, num_classes], true classes in rows.
        class_names: Names of the classes, in order.
    """
    size = 3.2 + 1.1 * len(class_names)
    figure = Figure(figsize=(size + 0.6, size), layout="constrained")
    axis = figure.subplots()
    parts = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    image = axis.imshow(parts, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(confusion.shape):
        axis.text(
            column,
            row,
            f"{confusion[row, column]}\n{100 * parts[row, column]:.1f} %",
            ha="center",
            va="center",
            color="white" if parts[row, column] > 0.5 else "black",
        )
    ticks = range(len(class_names))
    axis.set_xticks(ticks, class_names, rotation=20, ha="right")
    axis.set_yticks(ticks, class_names)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    figure.colorbar(image, ax=axis, shrink=0.8, label="part of the true class")
    return figure


def plot_reliability(predictions: Predictions) -> Figure:
    """Plot how often predictions of some confidence are right, and how many there are."""
    figure = Figure(figsize=(6, 6.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    bins = calibration_bins(predictions)
    centers = (bins["bin"] + 0.5) / NUM_BINS
    upper.bar(centers, bins["accuracy"], 0.9 / NUM_BINS, color=_BLUE, label="right predictions")
    upper.plot(bins["confidence"], bins["confidence"], "o", color=_ORANGE, label="mean confidence")
    upper.plot([0, 1], [0, 1], color=_GRAY, linewidth=0.8)
    upper.set_ylabel("accuracy")
    upper.set_title(f"expected calibration error {calibration_error(predictions):.3f}")
    upper.legend(loc="upper left")
    lower.bar(centers, bins["count"], 0.9 / NUM_BINS, color=_GRAY)
    lower.set_yscale("log")
    lower.yaxis.set_minor_formatter(NullFormatter())
    lower.set_ylabel("faces")
    lower.set_xlabel("confidence of the prediction")
    lower.set_xlim(0, 1)
    return figure


def plot_precision_recall(detectors: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Plot precision over recall of face detectors, with the face scores they are reached at.

    Args:
        detectors: By name what `evaluate_detector.report` has of each.
    """
    figure = Figure(figsize=(7, 6), layout="constrained")
    axis = figure.subplots()
    titles = {"detection": "found", "end_to_end": "found and right"}
    for (name, figures), color in zip(detectors.items(), (_BLUE, _ORANGE), strict=False):
        for (task, title), style in zip(titles.items(), ("-", "--"), strict=True):
            if task in figures:
                _draw_curve(axis, figures[task], f"{name}: {title}", color, style)
    axis.set_xlabel("recall")
    axis.set_ylabel("precision")
    axis.set_title("numbers are the least face score; dots are the threshold in use")
    axis.grid(alpha=0.3)
    axis.legend(loc="lower left")
    return figure


def _draw_curve(axis: Axes, figures: Mapping[str, Any], label: str, color: str, style: str) -> None:
    """Draw the points that have both figures, and the one at the detector's threshold."""
    points = [each for each in figures["by_threshold"] if each["recall"] and each["precision"]]
    recalls, precisions = ([each[key] for each in points] for key in ("recall", "precision"))
    axis.plot(recalls, precisions, style, marker=".", markersize=4, color=color, label=label)
    if figures["recall"] and figures["precision"]:
        axis.plot(figures["recall"], figures["precision"], "o", color=color)
    if style == "-":
        _number_points(axis, points)


def _number_points(axis: Axes, points: Sequence[Mapping[str, Any]]) -> None:
    """Write every second threshold beside its point; of those that give the same, the highest."""
    places = {
        (each["recall"], each["precision"]): each["threshold"]
        for each in points
        if round(100 * each["threshold"]) % 10 == 0
    }
    for place, threshold in places.items():
        axis.annotate(
            f"{threshold:.1f}",
            place,
            xytext=(4, 4),
            textcoords="offset points",
            color=_GRAY,
            fontsize=8,
        )


def plot_mistakes(
    predictions: Predictions, images: Rows, class_names: Sequence[str], most: int = 24
) -> Figure:
    """Show the mistakes that the model was surest of.

    Args:
        predictions: All faces.
        images: uint8 [num_faces, size, size, 3], their crops.
        class_names: Names of the classes, in order.
        most: Number of mistakes shown at the most.
    """
    wrong = np.flatnonzero(predictions.predicted != predictions.labels)
    wrong = wrong[np.argsort(-predictions.confidences[wrong], kind="stable")][:most]
    titles = [
        f"{class_names[predictions.labels[i]]}\n→ {class_names[predictions.predicted[i]]} "
        f"{predictions.confidences[i]:.2f}\n{predictions.photos[i]} "
        f"{predictions.short_sides[i]} px"
        for i in wrong
    ]
    figure = plot_grid([images[i] for i in wrong], titles, columns=6)
    if len(wrong):
        figure.suptitle("true class → predicted class and confidence; photo and shorter side")
    return figure


def plot_grid(images: Sequence[np.ndarray], titles: Sequence[str], columns: int) -> Figure:
    """Show pictures of mistakes with titles in a grid, or say that there are none.

    Args:
        images: uint8 [height, width, 3] each.
        titles: One a picture.
        columns: Number of pictures a row.
    """
    if not len(images):
        figure = Figure(figsize=(4, 2))
        figure.text(0.5, 0.5, "no mistakes", ha="center")
        return figure
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(2.1 * columns, 2.6 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, image, title in zip(axes, images, titles, strict=False):
        axis.imshow(image)
        axis.set_title(title, fontsize=7, parse_math=False)  # File names may have dollar signs.
    return figure
