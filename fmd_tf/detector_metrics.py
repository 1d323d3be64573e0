"""Measures of face detection: average precision, recall by size and class, precision.

Contract: boxes are float [number, 4] pixels as in `fmd_tf.boxes`. No TensorFlow here.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fmd_tf.boxes import overlaps
from fmd_tf.metrics import SIZE_EDGES, draw_groups, interval

SIZES = ((0, 24), (24, 48), (48, 10**6))
"""Classes of the shorter box side in pixels: from, up to but without."""
RECALL_OVERLAP = 0.4
"""Intersection over union from which on a face counts as found."""
THRESHOLDS = tuple(round(0.05 * number, 2) for number in range(1, 20))
"""Face scores that `by_threshold` counts at."""
PRECISIONS = (0.9, 0.85)
"""At which `at_precision` compares detectors."""
_NUM_BOOTSTRAP = 1000


@dataclass(frozen=True)
class PhotoFaces:
    """What was found in a photo beside what is there.

    Attributes:
        photo: File name.
        boxes: float [num_found, 4].
        scores: float [num_found].
        true_boxes: float [num_faces, 4].
        labels: int [num_faces], class of each true face.
        found_labels: int [num_found], class given to each found face; None without classifier.
    """

    photo: str
    boxes: np.ndarray
    scores: np.ndarray
    true_boxes: np.ndarray
    labels: np.ndarray
    found_labels: np.ndarray | None = None

    def at_least(self, threshold: float) -> PhotoFaces:
        """Return the faces found with at least this score."""
        keep = self.scores >= threshold
        labels = None if self.found_labels is None else self.found_labels[keep]
        return PhotoFaces(
            self.photo, self.boxes[keep], self.scores[keep], self.true_boxes, self.labels, labels
        )


def match(faces: PhotoFaces, min_overlap: float) -> np.ndarray:
    """Give each found face, best score first, the free true face that it overlaps most.

    Args:
        faces: One photo.
        min_overlap: Least intersection over union of a pair.

    Returns:
        int [num_found], index of the true face, or -1.
    """
    matched = np.full(len(faces.boxes), -1)
    pairs = overlaps(faces.boxes.astype(float), faces.true_boxes.astype(float))
    for found in np.argsort(-faces.scores, kind="stable"):
        if pairs.shape[1] and pairs[found].max() >= min_overlap:
            matched[found] = pairs[found].argmax()
            pairs[:, matched[found]] = -1.0
    return matched


def average_precision(photos: Sequence[PhotoFaces]) -> float:
    """Compute COCO's average precision at an intersection over union of 0.5, with pycocotools.

    Args:
        photos: Found faces should reach down to scores near 0.

    Returns:
        0 to 1; 0 where nothing was found or nothing is there.
    """
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number, faces in enumerate(photos, start=1):
        for box in faces.true_boxes:
            truth.append(_coco(number, box) | {"id": len(truth) + 1, "iscrowd": 0})
        for box, score in zip(faces.boxes, faces.scores, strict=True):
            found.append(_coco(number, box) | {"score": float(score)})
    if not truth or not found:
        return 0.0
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number} for number in range(1, len(photos) + 1)],
        "categories": [{"id": 1}],
        "annotations": truth,
    }
    with redirect_stdout(io.StringIO()):  # pycocotools prints its progress.
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
        evaluation.params.iouThrs = np.array([0.5])
        evaluation.params.maxDets = [1, 10, 500]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][0, :, 0, 0, -1]
    return float(precision[precision > -1].mean())


def _coco(photo: int, box: np.ndarray) -> dict[str, Any]:
    """Describe a box as COCO does: x, y, width, height."""
    xmin, ymin, xmax, ymax = (float(value) for value in box)
    size = [xmax - xmin, ymax - ymin]
    return {
        "image_id": photo,
        "category_id": 1,
        "bbox": [xmin, ymin, *size],
        "area": size[0] * size[1],
    }


def choose_threshold(photos: Sequence[PhotoFaces], precision: float = 0.9) -> float | None:
    """Return the least score at which the faces found still have this precision.

    Args:
        photos: Validation photos, never the test's.
        precision: Wanted part of the found faces that are faces.

    Returns:
        A score; None where no score gives that precision.
    """
    return _least_score(*_scored(photos, RECALL_OVERLAP), precision)


def _least_score(scores: np.ndarray, right: np.ndarray, precision: float) -> float | None:
    order = np.argsort(-scores, kind="stable")
    precisions = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    enough = np.flatnonzero(precisions >= precision)
    return float(scores[order][enough[-1]]) if len(enough) else None


def at_precision(
    photos: Sequence[PhotoFaces],
    class_names: Sequence[str],
    min_overlap: float,
    groups: Mapping[str, int],
) -> list[dict[str, Any]]:
    """Read what is found at each of `PRECISIONS` off the curve of these photos.

    So detectors are compared where they err alike, as average precision does. The threshold is
    that of these photos, and one for use is of others, see `choose_threshold`.

    Args:
        photos: Found faces of all scores.
        class_names: Names of the classes.
        min_overlap: Intersection over union that counts as found.
        groups: See `summarize`.

    Returns:
        A JSON-like record for each: `at`, the precision, `threshold`, the least score that gives
        it, and what `summarize` returns there; without these where no score does.
    """
    scores, right = _scored(photos, min_overlap)
    records: list[dict[str, Any]] = []
    for precision in PRECISIONS:
        threshold = _least_score(scores, right, precision)
        record: dict[str, Any] = {"at": precision, "threshold": threshold}
        if threshold is not None:
            found = [faces.at_least(threshold) for faces in photos]
            record |= summarize(found, class_names, min_overlap, groups)
        records.append(record)
    return records


def by_threshold(photos: Sequence[PhotoFaces], min_overlap: float) -> list[dict[str, Any]]:
    """Count what is found at each of `THRESHOLDS`, as `summarize` does at one.

    Args:
        photos: Found faces of all scores.
        min_overlap: Intersection over union that counts as found.

    Returns:
        JSON-like records with `threshold`, `recall` and `precision`; a figure of nothing is None.
    """
    # The best score takes a face, so those below a threshold change nothing above it.
    scores, right = _scored(photos, min_overlap)
    num_faces = sum(len(faces.labels) for faces in photos)
    records = []
    for threshold in THRESHOLDS:
        num_found = int((scores >= threshold).sum())
        num_hits = int(right[scores >= threshold].sum())
        records.append(
            {
                "threshold": threshold,
                "recall": num_hits / num_faces if num_faces else None,
                "precision": num_hits / num_found if num_found else None,
            }
        )
    return records


def _match_right(faces: PhotoFaces, min_overlap: float) -> np.ndarray:
    """Match, with -1 too where the photo has labels of found faces and one is wrong."""
    matched = match(faces, min_overlap)
    if faces.found_labels is not None:
        found = np.flatnonzero(matched >= 0)
        wrong = faces.found_labels[found] != faces.labels[matched[found]]
        matched[found[wrong]] = -1
    return matched


def _scored(photos: Sequence[PhotoFaces], min_overlap: float) -> tuple[np.ndarray, np.ndarray]:
    """Return of all found faces the scores, and whether they are right: float and bool [number]."""
    right = [_match_right(faces, min_overlap) >= 0 for faces in photos]
    scores = [faces.scores for faces in photos]
    return np.concatenate([np.zeros(0), *scores]), np.concatenate([np.zeros(0, bool), *right])


def summarize(
    photos: Sequence[PhotoFaces],
    class_names: Sequence[str],
    min_overlap: float,
    groups: Mapping[str, int],
) -> dict[str, Any]:
    """Count what was found, of which size and class, with 95 % intervals.

    Where the photos hold labels of found faces, a face counts as found only if its label is
    right too, and precision is the part of the found faces that are faces of their label.

    Args:
        photos: Faces above the threshold only.
        class_names: Names of the classes.
        min_overlap: Intersection over union that counts as found.
        groups: Group of each photo by file name; the bootstrap draws whole groups.

    Returns:
        JSON-like: `faces`, `found`, `recall`, `precision`, and `by_size` and `by_class`, each
        with `faces`, `found` and `recall`; `faces_10px` has these and `by_class` of the faces of
        at least 10 px, as the classes have not the same share of smaller ones. With each recall
        stands `recall_95`, with the precision `precision_95`, its interval. A figure of nothing
        is None.
    """
    hits, sizes, labels, num_found = [], [], [], []
    for faces in photos:
        matched = _match_right(faces, min_overlap)
        hits.append(np.isin(np.arange(len(faces.labels)), matched))
        sizes.append((faces.true_boxes[:, 2:] - faces.true_boxes[:, :2]).min(axis=1))
        labels.append(faces.labels)
        num_found.append(len(matched))
    counts = _GroupCounts(hits, num_found, [groups[faces.photo] for faces in photos])
    size, label = (np.concatenate([[], *parts]) for parts in (sizes, labels))
    everyone, large = np.ones(len(size), bool), size >= SIZE_EDGES[0]

    def by_class(chosen: np.ndarray) -> dict[str, Any]:
        return {
            name: counts.recall(chosen & (label == index)) for index, name in enumerate(class_names)
        }

    return {
        **counts.recall(everyone),
        **counts.precision(),
        "by_size": {
            f"{low} to {high - 1} px" if high < 10**6 else f"{low} px and more": counts.recall(
                (size >= low) & (size < high)
            )
            for low, high in SIZES
        },
        "by_class": by_class(everyone),
        "faces_10px": {**counts.recall(large), "by_class": by_class(large)},
    }


class _GroupCounts:
    """Counts by group of photos, for figures and for the bootstrap of their intervals.

    Args:
        hits: For each photo bool [num_faces], whether a face was found.
        num_found: For each photo the number of found boxes.
        groups: The group of each photo.
    """

    def __init__(
        self, hits: Sequence[np.ndarray], num_found: Sequence[int], groups: Sequence[int]
    ) -> None:
        numbers = np.unique(np.array(groups, int), return_inverse=True)[1]
        self._num_groups = len(set(groups))
        self._hit = np.concatenate([np.zeros(0, bool), *hits])
        self._group_of_face = np.repeat(numbers, [len(hit) for hit in hits])
        self._num_found = np.bincount(numbers, num_found, self._num_groups)
        # Drawn from one group, all samples are the same, which is no certainty.
        several = self._num_groups > 1
        self._drawn = draw_groups(self._num_groups, _NUM_BOOTSTRAP, 0) if several else None

    def recall(self, chosen: np.ndarray) -> dict[str, Any]:
        """Return the figures of the faces for which `chosen`, bool [num_faces], is true."""
        found = self._by_group(chosen & self._hit)
        recall, limits = self._ratio(found, self._by_group(chosen))
        return {
            "faces": int(chosen.sum()),
            "found": int(found.sum()),
            "recall": recall,
            "recall_95": limits,
        }

    def precision(self) -> dict[str, Any]:
        """Return the part of the found boxes that are hits."""
        precision, limits = self._ratio(self._by_group(self._hit), self._num_found)
        return {"precision": precision, "precision_95": limits}

    def _by_group(self, faces: np.ndarray) -> np.ndarray:
        return np.bincount(self._group_of_face[faces], minlength=self._num_groups)

    def _ratio(
        self, part: np.ndarray, whole: np.ndarray
    ) -> tuple[float | None, list[float] | None]:
        """Return the ratio of two sums over groups, and its interval; None where there is none."""
        if not whole.sum():
            return None, None
        ratio = float(part.sum() / whole.sum())
        if self._drawn is None:
            return ratio, None
        wholes = self._drawn @ whole
        # A sample without any says nothing.
        samples = (self._drawn @ part)[wholes > 0] / wholes[wholes > 0]
        return ratio, interval(samples)
