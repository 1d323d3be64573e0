"""Figures of a classifier from its predictions: NumPy only.

Every figure comes with what makes it honest: all faces and those of at least 10 px apart,
intervals that know that faces of one group are not independent, and slices by size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from fmd_tf.input_pipeline import Crops
    from fmd_tf.row_file import Rows

SIZE_EDGES = (10, 20, 32, 64)
"""Shorter box sides, in pixels, at which the slices by size begin."""

CONTRAST_EDGES = (4, 8, 12, 20)
"""Differences in colour between the halves of a face at which the slices by colour begin."""

SERIES_PHOTOS = 20
"""A group of at least so many photos is a series, with figures of its own.

In the Kaggle data near-duplicates make groups of two or three photos, and the selfies of two
people one of 184.
"""

NUM_BINS = 15
Face = tuple[str, int, int, int, int]
"""A face by its photo's name and its box."""


@dataclass(frozen=True)
class Predictions:
    """What a model said about faces, row `i` of every field belonging to face `i`.

    Attributes:
        probabilities: float32 [num_faces, num_classes], rows summing to 1.
        labels: int [num_faces].
        boxes: int [num_faces, 4], pixels of the photo.
        photos: File name of each face's photo.
        groups: int [num_faces].
    """

    probabilities: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    photos: tuple[str, ...]
    groups: np.ndarray

    @classmethod
    def from_crops(cls, crops: Crops, probabilities: np.ndarray) -> Predictions:
        """Join probabilities, float [num_faces, num_classes], with the faces they are of."""
        return cls(probabilities, crops.labels, crops.boxes, crops.photos, crops.groups)

    @property
    def predicted(self) -> np.ndarray:
        """The most probable class of each face: int [num_faces]."""
        return self.probabilities.argmax(axis=1)

    @property
    def confidences(self) -> np.ndarray:
        """The probability of the predicted class: float [num_faces]."""
        return self.probabilities.max(axis=1)

    @property
    def short_sides(self) -> np.ndarray:
        """The shorter box sides in pixels: int [num_faces]."""
        return (self.boxes[:, 2:] - self.boxes[:, :2]).min(axis=1)

    @property
    def faces(self) -> list[Face]:
        """The photo and the box of each face, which tell it from all others."""
        return [
            (photo, int(box[0]), int(box[1]), int(box[2]), int(box[3]))
            for photo, box in zip(self.photos, self.boxes, strict=True)
        ]

    def have_faces_of(self, other: Predictions) -> bool:
        """Tell whether these are of the same faces with the same labels, in the same order."""
        return self.faces == other.faces and np.array_equal(self.labels, other.labels)

    def in_order(self) -> Predictions:
        """Return the faces in the order of photos and boxes: folds leave them in any."""
        faces = self.faces
        return self.where(np.array(sorted(range(len(faces)), key=faces.__getitem__), int))

    def where(self, keep: np.ndarray) -> Predictions:
        """Return the faces for which `keep`, bool [num_faces], is true, or at those indices."""
        return Predictions(
            probabilities=self.probabilities[keep],
            labels=self.labels[keep],
            boxes=self.boxes[keep],
            photos=tuple(np.array(self.photos, dtype=object)[keep]),
            groups=self.groups[keep],
        )


def compute_metrics(
    predictions: Predictions,
    class_names: Sequence[str],
    num_bootstrap: int = 1000,
    seed: int = 0,
    contrasts: np.ndarray | None = None,
) -> dict[str, Any]:
    """Compute all figures.

    Args:
        predictions: At least one face.
        class_names: Names of the classes, in order.
        num_bootstrap: Number of bootstrap samples for the intervals.
        seed: Seed of the bootstrap.
        contrasts: float [num_faces] of `color_contrasts`, for the slices by colour.

    Returns:
        JSON-like: "all_faces" and "faces_10px" as of `summarize`, "series" and "no_series"
        likewise where there is a series of photos, "by_size", a list of slices by the shorter
        box side, and "by_color" by `contrasts`. Undefined figures are None.
    """
    large = predictions.where(predictions.short_sides >= SIZE_EDGES[0])
    parts = {"all_faces": predictions, "faces_10px": large}
    series = in_series(predictions)
    if series.any():
        parts |= {"series": predictions.where(series), "no_series": predictions.where(~series)}
    metrics: dict[str, Any] = {
        name: summarize(part, class_names, num_bootstrap, seed) for name, part in parts.items()
    }
    sizes = _slices(predictions, class_names, predictions.short_sides, SIZE_EDGES, "pixels")
    metrics["by_size"] = sizes
    if contrasts is not None:
        metrics["by_color"] = _slices(
            predictions, class_names, contrasts, CONTRAST_EDGES, "contrast"
        )
    return metrics


def in_series(predictions: Predictions) -> np.ndarray:
    """Tell which faces are of a group of at least `SERIES_PHOTOS` photos: bool [num_faces]."""
    pairs = set(zip(predictions.groups.tolist(), predictions.photos, strict=True))
    counts = Counter(group for group, _ in pairs)
    return np.array([counts[group] >= SERIES_PHOTOS for group in predictions.groups.tolist()])


def color_contrasts(images: Rows) -> np.ndarray:
    """Measure how much the colour of a face's lower half differs from that of its upper half.

    It is small for bare faces, and for masks of the colour of skin; it is large for other masks,
    and for bare faces with something before the mouth. Brightness is left out, as light from
    above changes it: the distance is that of chroma (ITU-R BT.601), averaged over the middle of
    each half.

    Args:
        images: uint8 [num_faces, size, size, 3], RGB.

    Returns:
        float64 [num_faces], in steps of 0-255.
    """
    starts = range(0, len(images), _CHUNK)
    parts = [_half_differences(images[start : start + _CHUNK]) for start in starts]
    chroma = np.concatenate(parts) @ np.array(_CHROMA_FROM_RGB).T
    return np.linalg.norm(chroma, axis=1)


def _half_differences(images: np.ndarray) -> np.ndarray:
    """Return what the upper half's colour has more than the lower's: float64 [num_faces, 3]."""
    size = images.shape[1]
    left, right = size // 4, size * 3 // 4
    upper = images[:, size // 5 : size * 9 // 20, left:right].mean(axis=(1, 2))
    lower = images[:, size * 11 // 20 : size * 17 // 20, left:right].mean(axis=(1, 2))
    return upper - lower


def summarize(
    predictions: Predictions, class_names: Sequence[str], num_bootstrap: int, seed: int
) -> dict[str, Any]:
    """Compute the figures of one set of faces.

    Macro figures are means over the classes that some face has or is predicted to have, as in
    scikit-learn; classes that no face has are named in "classes_without_faces".

    Args:
        predictions: The faces; may be none.
        class_names: Names of the classes, in order.
        num_bootstrap: Number of bootstrap samples for the intervals.
        seed: Seed of the bootstrap.

    Returns:
        num_faces, accuracy, macro_precision, macro_recall, macro_f1, per_class (precision,
        recall, f1, support), intervals_95, calibration_error, classes_without_faces, confusion
        (faces by true class, in rows, and predicted class).
    """
    confusion = confusion_matrix(predictions.labels, predictions.predicted, len(class_names))
    figures = _figures(confusion)
    support = figures["support"]
    return {
        "num_faces": len(predictions.labels),
        **{name: _number(figures[name]) for name in _OVERALL},
        "per_class": {
            name: {
                **{figure: _number(figures[figure][i]) for figure in _PER_CLASS},
                "support": int(support[i]),
            }
            for i, name in enumerate(class_names)
        },
        "intervals_95": _intervals(predictions, class_names, num_bootstrap, seed),
        "calibration_error": _number(calibration_error(predictions)),
        "classes_without_faces": [
            name for name, count in zip(class_names, support, strict=True) if count == 0
        ],
        "confusion": confusion.tolist(),
    }


_PARTS = {
    "all_faces": "all faces",
    "faces_10px": "faces of 10 px and more",
    "series": f"faces of series of {SERIES_PHOTOS} photos and more",
    "no_series": "all other faces",
}
_CHUNK = 1024
_CHROMA_FROM_RGB = ((-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_OVERALL = ("accuracy", "macro_precision", "macro_recall", "macro_f1")
_PER_CLASS = ("precision", "recall", "f1")


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Count faces by true class (rows) and predicted class (columns): int [C, C]."""
    cells = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def _figures(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Compute figures from confusion matrices [..., C, C], whatever comes before."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    actual, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)
    precision = hits / np.maximum(predicted, 1)
    recall = hits / np.maximum(actual, 1)
    f1 = 2 * hits / np.maximum(actual + predicted, 1)
    total = confusion.sum(axis=(-2, -1))
    some = np.where(total > 0, total, np.nan)  # Of no faces, overall figures are undefined.
    # A class that is neither there nor predicted says nothing, as in scikit-learn.
    met = (actual + predicted > 0).sum(axis=-1)
    num_classes = np.where(met > 0, met, np.nan)
    return {
        "accuracy": hits.sum(axis=-1) / some,
        "macro_precision": precision.sum(axis=-1) / num_classes,
        "macro_recall": recall.sum(axis=-1) / num_classes,
        "macro_f1": f1.sum(axis=-1) / num_classes,
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "support": actual,
    }


def _number(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)


def _intervals(
    predictions: Predictions, class_names: Sequence[str], num_bootstrap: int, seed: int
) -> dict[str, Any]:
    """Return 95 % percentile intervals by a bootstrap that draws whole groups.

    Faces of one photo are alike, so drawing single faces would give intervals that are too
    narrow (cluster bootstrap; Field & Welsh 2007, "Bootstrapping clustered data").
    """
    # Drawn from one group, all samples are the same, which is no certainty.
    if len(np.unique(predictions.groups)) < 2:
        return {}
    figures = _bootstrap(predictions, len(class_names), num_bootstrap, seed)
    overall = {name: interval(figures[name]) for name in _OVERALL}
    # A sample without a face of the class says nothing of its recall.
    samples = [figures["recall"][figures["support"][:, i] > 0, i] for i in range(len(class_names))]
    recalls = {
        name: interval(values) if len(values) else None
        for name, values in zip(class_names, samples, strict=True)
    }
    return {**overall, "recall": recalls}


def paired_differences(
    first: Predictions,
    second: Predictions,
    num_classes: int,
) -> dict[str, list[float]]:
    """Return 95 % intervals of what the second's figures have more than the first's.

    Both are drawn together: what is hard for one is hard for the other, so the interval of the
    difference is much narrower than those of the figures.

    Args:
        first: Predictions of some faces.
        second: Predictions of the same faces, in the same order; drawn by the first's groups.
        num_classes: Number of classes.

    Returns:
        The interval (low, high) of each overall figure; none of fewer than two groups.
    """
    if len(np.unique(first.groups)) < 2:
        return {}
    second = replace(second, groups=first.groups)
    drawn = [_bootstrap(each, num_classes, 1000, 0) for each in (first, second)]
    return {name: interval(drawn[1][name] - drawn[0][name]) for name in _OVERALL}


def _bootstrap(
    predictions: Predictions, num_classes: int, num_bootstrap: int, seed: int
) -> dict[str, np.ndarray]:
    """Compute the figures of samples that draw whole groups."""
    _, groups = np.unique(predictions.groups, return_inverse=True)
    num_groups = groups.max() + 1
    cells = predictions.labels * num_classes + predictions.predicted
    counts = np.bincount(groups * num_classes**2 + cells, minlength=num_groups * num_classes**2)
    drawn = draw_groups(num_groups, num_bootstrap, seed)
    confusion = drawn @ counts.reshape(num_groups, num_classes**2)
    return _figures(confusion.reshape(-1, num_classes, num_classes))


def draw_groups(num_groups: int, num_bootstrap: int, seed: int) -> np.ndarray:
    """Draw bootstrap samples of whole groups.

    Args:
        num_groups: Number of groups, at least 1.
        num_bootstrap: Number of samples, each of as many groups.
        seed: Seed of the draws.

    Returns:
        int [num_bootstrap, num_groups], how often a sample has each group.
    """
    generator = np.random.default_rng(seed)
    return generator.multinomial(num_groups, np.full(num_groups, 1 / num_groups), num_bootstrap)


def interval(values: np.ndarray) -> list[float]:
    """Return the 95 % percentile interval, [low, high], of a figure's bootstrap samples."""
    return [float(value) for value in np.percentile(values, [2.5, 97.5])]


def calibration_bins(predictions: Predictions) -> dict[str, np.ndarray]:
    """Sort faces into equal bins of confidence.

    Returns:
        Per non-empty bin: "count", mean "confidence" and "accuracy", and its index "bin" of
        `NUM_BINS`.
    """
    confidences = predictions.confidences.astype(np.float64)
    bins = np.minimum((confidences * NUM_BINS).astype(int), NUM_BINS - 1)
    hits = (predictions.predicted == predictions.labels).astype(np.float64)
    count = np.bincount(bins, minlength=NUM_BINS)
    used = np.flatnonzero(count)
    return {
        "bin": used,
        "count": count[used],
        "confidence": np.bincount(bins, confidences, NUM_BINS)[used] / count[used],
        "accuracy": np.bincount(bins, hits, NUM_BINS)[used] / count[used],
    }


def calibration_error(predictions: Predictions) -> float:
    """Return the expected calibration error of the predicted class, NaN for no faces.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599, section 2.
    """
    if not len(predictions.labels):
        return float("nan")
    bins = calibration_bins(predictions)
    gaps = np.abs(bins["accuracy"] - bins["confidence"])
    return float(np.average(gaps, weights=bins["count"]))


def _slices(
    predictions: Predictions,
    class_names: Sequence[str],
    values: np.ndarray,
    edges: Sequence[int],
    key: str,
) -> list[dict[str, Any]]:
    """Compute accuracy, macro-F1 and recalls of slices by a value of each face."""
    slices = []
    for low, high in pairwise((0, *edges, np.inf)):
        part = predictions.where((values >= low) & (values < high))
        confusion = confusion_matrix(part.labels, part.predicted, len(class_names))
        figures = _figures(confusion)
        support = figures["support"]
        slices.append(
            {
                key: _range_name(low, high),
                "num_faces": len(part.labels),
                "accuracy": _number(figures["accuracy"]),
                "macro_f1": _number(figures["macro_f1"]),
                "recall": {
                    name: _number(figures["recall"][i]) if support[i] else None
                    for i, name in enumerate(class_names)
                },
                "support": dict(zip(class_names, support.tolist(), strict=True)),
            }
        )
    return slices


def _range_name(low: float, high: float) -> str:
    if low == 0:
        return f"under {high}"
    return f"{low} and more" if high == np.inf else f"{low} to under {high}"


def format_summary(metrics: dict[str, Any], class_names: Sequence[str]) -> str:
    """Write the figures as a table for the console.

    Args:
        metrics: From `compute_metrics`.
        class_names: Names of the classes, in order.
    """
    width = max(12, *(len(name) for name in class_names))
    lines = []
    for key, title in _PARTS.items():
        if key not in metrics:
            continue
        part = metrics[key]
        lines.append(f"\n{title}: {part['num_faces']}")
        if not part["num_faces"]:
            continue
        for name in ("accuracy", "macro_f1"):
            limits = part["intervals_95"].get(name)
            span = "  (95 %: {:.3f} to {:.3f})".format(*limits) if limits else ""
            lines.append(f"  {name:<{width}}  {part[name]:.4f}{span}")
        lines.append(f"  {'calibration':<{width}}  {part['calibration_error']:.4f}")
        lines.append(f"  {'class':<{width}}  precision  recall      f1   faces")
        for name in class_names:
            row = part["per_class"][name]
            figures = "  ".join(f"{row[figure]:8.3f}" for figure in _PER_CLASS)
            lines.append(f"  {name:<{width}} {figures}  {row['support']:6d}")
    lines += _format_slices("shorter side in pixels", metrics["by_size"], "pixels")
    if "by_color" in metrics:
        title = "difference in colour between the halves of the face"
        lines += _format_slices(title, metrics["by_color"], "contrast")
    return "\n".join(lines)


def _format_slices(title: str, slices: Sequence[dict[str, Any]], key: str) -> list[str]:
    lines = [f"\nby {title}"]
    for part in slices:
        accuracy = "-" if part["accuracy"] is None else f"{part['accuracy']:.3f}"
        recalls = ", ".join(
            f"{name} {'-' if value is None else f'{value:.2f}'} ({part['support'][name]})"
            for name, value in part["recall"].items()
        )
        lines.append(f"  {part[key]:<14} {part['num_faces']:5d} faces  accuracy {accuracy}")
        lines.append(f"    recall: {recalls}")
    return lines
