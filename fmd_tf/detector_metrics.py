"""Measures of face detection: average precision, recall by size and class, precision.

Contract: boxes are float [number, 4] pixels as in `fmd_tf.boxes`. No TensorFlow here.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fmd_tf.boxes import overlaps

SIZES = ((0, 24), (24, 48), (48, 10**6))
"""Classes of the shorter box side in pixels: from, up to but without."""


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


def average_precision(photos: Sequence[PhotoFaces], overlap: float = 0.5) -> float:
    """Compute COCO's average precision at one overlap, with pycocotools.

    Args:
        photos: Found faces should reach down to scores near 0.
        overlap: Intersection over union that counts as found; default 0.5.

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
        evaluation.params.iouThrs = np.array([overlap])
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


def choose_threshold(
    photos: Sequence[PhotoFaces], precision: float = 0.9, min_overlap: float = 0.4
) -> float | None:
    """Return the least score at which the faces found still have this precision.

    Args:
        photos: Validation photos, never the test's.
        precision: Wanted part of the found faces that are faces.
        min_overlap: Intersection over union that counts as found.

    Returns:
        A score; None where no score gives that precision.
    """
    scores = np.concatenate([np.zeros(0), *(faces.scores for faces in photos)])
    right = np.concatenate(
        [np.zeros(0, bool), *(match(faces, min_overlap) >= 0 for faces in photos)]
    )
    order = np.argsort(-scores, kind="stable")
    precisions = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    enough = np.flatnonzero(precisions >= precision)
    return float(scores[order][enough[-1]]) if len(enough) else None


def summarize(
    photos: Sequence[PhotoFaces], class_names: Sequence[str], min_overlap: float
) -> dict[str, Any]:
    """Count what was found, of which size and class.

    Where the photos hold labels of found faces, a face counts as found only if its label is
    right too, and precision is the part of the found faces that are faces of their label.

    Args:
        photos: Faces above the threshold only.
        class_names: Names of the classes.
        min_overlap: Intersection over union that counts as found.

    Returns:
        JSON-like: `faces`, `found`, `recall`, `precision`, and `by_size` and `by_class`, each
        with `faces`, `found` and `recall`. A figure of nothing is None.
    """
    hits, sizes, labels, num_found = [], [], [], 0
    for faces in photos:
        matched = match(faces, min_overlap)
        hit = np.zeros(len(faces.labels), bool)
        for found, true in enumerate(matched):
            if true >= 0:
                labels_found = faces.found_labels
                hit[true] = labels_found is None or labels_found[found] == faces.labels[true]
        hits.append(hit)
        sizes.append((faces.true_boxes[:, 2:] - faces.true_boxes[:, :2]).min(axis=1))
        labels.append(faces.labels)
        num_found += len(matched)
    hit, size, label = (np.concatenate([[], *parts]) for parts in (hits, sizes, labels))
    hit = hit.astype(bool)
    return {
        **_recall(hit),
        "precision": float(hit.sum() / num_found) if num_found else None,
        "by_size": {
            f"{low} to {high - 1} px" if high < 10**6 else f"{low} px and more": _recall(
                hit[(size >= low) & (size < high)]
            )
            for low, high in SIZES
        },
        "by_class": {name: _recall(hit[label == index]) for index, name in enumerate(class_names)},
    }


def _recall(hit: np.ndarray) -> dict[str, Any]:
    recall = float(hit.mean()) if len(hit) else None
    return {"faces": len(hit), "found": int(hit.sum()), "recall": recall}
