"""One photo to its labelled faces: a detector and a classifier put together."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fmd_tf.backends import Backend
from fmd_tf.detect import DEFAULT_DETECTOR, DetectorError, FaceDetector, load_face_detector
from fmd_tf.photos import Photo
from fmd_tf.records import LabelledFace, label_faces


class Labeller:
    """Finds and classifies the faces of one photo after another.

    Args:
        backend: The classifier.
        detector: One of `detect.DETECTOR_NAMES`.
        detector_model: File of the trained detector. By default the one that the classifier was
            exported with, or else `detect.DEFAULT_DETECTOR`.
        confidence_threshold: Least probability of the likeliest class, else a face is uncertain.
        face_threshold: Least score of a face; None takes the detector's own.
        detector_size: Pixels that the longer side of a photo is scaled to for the trained
            detector; None takes its own.

    Raises:
        DetectorError: There is no such detector, or it has no such setting.
        ValueError: Its file is no detector (`fmd_tf.model.ModelError`).
    """

    def __init__(
        self,
        backend: Backend,
        detector: str = "trained",
        detector_model: Path | None = None,
        confidence_threshold: float = 0.5,
        face_threshold: float | None = None,
        detector_size: int | None = None,
    ) -> None:
        self._backend = backend
        self._confidence_threshold = confidence_threshold
        self._face_threshold = face_threshold or 0.0
        self._is_crop = detector == "none"
        self.detector_file = _detector_file(backend, detector, detector_model)
        self._find = self._load(detector, face_threshold, detector_size)

    def _load(
        self, detector: str, threshold: float | None, image_size: int | None
    ) -> FaceDetector | None:
        if image_size and detector != "trained":
            raise DetectorError(
                f"--detector-size: --detector {detector} has no such setting; leave it out"
            )
        if image_size and self.detector_file is None:
            raise DetectorError(
                "--detector-size is for a trained detector's file; export with it, or give the "
                "file with --detector-model"
            )
        if detector == "trained" and self.detector_file is None:
            return None
        return load_face_detector(detector, self.detector_file, threshold, image_size)

    def __call__(self, photo: Photo, path: Path | None = None) -> list[LabelledFace]:
        """Label one photo.

        Args:
            photo: The photo.
            path: Its file, for boxes that lie beside it.

        Returns:
            Its faces; none is an answer too.

        Raises:
            PhotoError: There is no answer for this photo.
            ServingError: The server does not answer.
        """
        if self._is_crop:
            boxes, scores = _whole(photo), np.ones(1, np.float32)
            predictions = [self._backend.classify_crop(photo)]
        elif self._find is None:
            boxes, scores, predictions = self._backend.find_faces(photo)
        else:
            boxes, scores = _inside(photo, *self._find(photo.pixels, path))
            sure = scores >= self._face_threshold
            boxes, scores = boxes[sure], scores[sure]
            predictions = self._backend.classify_faces(photo, boxes)
        faces = label_faces(boxes, scores, predictions, self._confidence_threshold)
        return [face for face in faces if face.face_score >= self._face_threshold]


def _detector_file(backend: Backend, detector: str, chosen: Path | None) -> Path | None:
    """Return the trained detector's file, None where the export finds faces by itself."""
    if detector != "trained":
        if chosen:
            raise DetectorError(f"--detector-model: --detector {detector} has no file")
        return None
    return chosen or (None if backend.finds_faces else DEFAULT_DETECTOR)


def _whole(photo: Photo) -> np.ndarray:
    return np.array([[0, 0, photo.width, photo.height]], np.float32)


def _inside(photo: Photo, boxes: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Clip boxes to the photo, as the signature `faces` does, and drop those outside."""
    limits = np.array([photo.width, photo.height] * 2, np.float32)
    clipped = np.clip(boxes, 0, limits)
    kept = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    return clipped[kept], scores[kept]
