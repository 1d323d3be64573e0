"""Photo to face boxes.

Contract: a detector is called with a photo, uint8 RGB [height, width, 3], and returns boxes,
float32 [num_faces, 4], pixels of the photo as in `fmd_tf.boxes`, and scores, float32
[num_faces], 0-1. No face is an answer: both are empty then.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import tensorflow as tf

from fmd_tf.detector import DetectorCard, find_faces, load_detector
from fmd_tf.errors import UserError, install_command
from fmd_tf.freezing import freeze
from fmd_tf.photos import PhotoError
from fmd_tf.voc import AnnotationError, photo_name, read_boxes

DETECTOR_NAMES = ("trained", "mtcnn", "voc", "none")
DEFAULT_DETECTOR = Path("checkpoints/detector/best_detector.keras")

Faces = tuple[np.ndarray, np.ndarray]


class DetectorError(UserError):
    """A detector cannot be had."""


class FaceDetector(Protocol):
    """Finds the faces of one photo."""

    def __call__(self, photo: np.ndarray, path: Path | None = None) -> Faces:
        """Find the faces.

        Args:
            photo: uint8 RGB [height, width, 3], upright.
            path: Where the photo comes from; for boxes that lie beside it.

        Returns:
            Boxes float32 [num_faces, 4] and scores float32 [num_faces].

        Raises:
            PhotoError: There is no answer for this photo.
        """


def load_face_detector(
    name: str,
    model: Path | None = None,
    threshold: float | None = None,
    image_size: int | None = None,
) -> FaceDetector | None:
    """Make a detector ready.

    Args:
        name: One of `DETECTOR_NAMES`.
        model: File of the trained detector; None takes `DEFAULT_DETECTOR`.
        threshold: Least score of a face for the trained detector; None takes its own.
        image_size: Size at which it looks at photos, see `DetectorCard`; None takes its own.

    Returns:
        The detector; None for "none", where a photo is one face crop.

    Raises:
        DetectorError: The name is unknown, or a package is missing.
        ValueError: The file is no detector (`fmd_tf.model.ModelError`).
    """
    makers: dict[str, Callable[[], FaceDetector | None]] = {
        "trained": lambda: _load_trained(model or DEFAULT_DETECTOR, threshold, image_size),
        "mtcnn": _load_mtcnn,
        "voc": lambda: _annotated,
        "none": lambda: None,
    }
    if name not in makers:
        raise DetectorError(f"expected a detector of {', '.join(makers)}, got {name!r}")
    return makers[name]()


def _load_trained(path: Path, threshold: float | None, image_size: int | None) -> FaceDetector:
    """Load the trained detector."""
    if not path.is_file():
        raise DetectorError(
            f"no detector {path}; train one with python -m fmd_tf.train_detector, or choose "
            "--detector mtcnn, voc or none"
        )
    return trained_detector(*load_detector(path, image_size), threshold)


def trained_detector(
    model: Callable[..., tf.Tensor],
    card: DetectorCard,
    threshold: float | None = None,
) -> FaceDetector:
    """Wrap a model of `fmd_tf.detector`, as it is now, in one graph for photos of any size.

    Args:
        model: The detector, or what is called as it is.
        card: Its card.
        threshold: Least face score; None takes the card's.
    """
    find = freeze(
        lambda photo: find_faces(model, card, photo, threshold),
        tf.TensorSpec([None, None, 3], tf.uint8),
    )

    def detect(photo: np.ndarray, path: Path | None = None) -> Faces:
        boxes, scores = find(tf.constant(photo))
        return boxes.numpy(), scores.numpy()

    return detect


def _load_mtcnn() -> FaceDetector:
    """Wrap MTCNN (Zhang et al. 2016, arXiv:1604.02878) of the package `mtcnn`."""
    try:
        from mtcnn import MTCNN
    except ImportError as error:
        raise DetectorError(
            f"--detector mtcnn needs the package mtcnn ({error}); install it with "
            f"{install_command('mtcnn')}"
        ) from error
    network = MTCNN()

    def detect(photo: np.ndarray, path: Path | None = None) -> Faces:
        faces = network.detect_faces(photo)
        # The face box has its corner and size in whole pixels.
        corners = np.array([face["box"] for face in faces], np.float32).reshape(-1, 4)
        scores = np.array([face["confidence"] for face in faces], np.float32)
        return np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:]], axis=1), scores

    return detect


def _is_of_another(xml: Path, photo: Path) -> bool:
    """Tell whether an annotation names another photo that is there."""
    named = photo_name(xml)
    return named not in (None, photo.name) and (photo.parent / str(named)).is_file()


def _annotated(photo: np.ndarray, path: Path | None = None) -> Faces:
    """Take the boxes of the Pascal VOC file that belongs to the photo, with scores of 1."""
    if path is None:
        raise PhotoError("boxes from VOC XML need a photo file; choose another --detector")
    beside = path.with_suffix(".xml")
    annotations = path.absolute().parent.parent / "annotations"
    names = (beside.name, f"{path.name}.xml")
    candidates = [folder / name for name in names for folder in (path.parent, annotations)]
    there = [each for each in candidates if each.is_file()]
    # Another photo may differ in its ending alone.
    of_others = [each for each in there if _is_of_another(each, path)]
    xml = next((each for each in there if each not in of_others), None)
    if xml is None and of_others:
        raise PhotoError(f"{of_others[0].name} is of another photo; name it {path.name}.xml")
    if xml is None:
        raise PhotoError(f"no annotation {beside.name} beside it or in ../annotations")
    height, width = photo.shape[:2]
    try:
        boxes = read_boxes(xml, width, height)
    except AnnotationError as error:
        raise PhotoError(str(error.problems[0])) from error
    return np.array(boxes, np.float32).reshape(-1, 4), np.ones(len(boxes), np.float32)
