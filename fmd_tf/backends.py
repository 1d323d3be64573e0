"""Who classifies the faces of a photo: a `.keras` file, a LiteRT export, a SavedModel, a server.

Contract: all cut the same crops (`fmd_tf.input_pipeline.crop_faces` with the model's own padding,
shape and size, boxes clipped to the photo) and so give the same answer, LiteRT to what its weights
of fewer bits lose. Exports and servers may find the faces too, where a detector was exported with
the classifier.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

import numpy as np
import tensorflow as tf

from fmd_tf.client import Client, Prediction, ServingError
from fmd_tf.detect import FaceDetector, trained_detector
from fmd_tf.errors import UserError, first_line
from fmd_tf.formats import Predictor, litert_folder, load_format, load_litert_detector
from fmd_tf.freezing import fold_batch_norm, freeze, outside_graph
from fmd_tf.input_pipeline import crop_faces
from fmd_tf.model import ModelCard, load_model
from fmd_tf.model_card import read_cards
from fmd_tf.photos import Photo, PhotoError
from fmd_tf.publish import version_folder
from fmd_tf.voc import MAX_PIXELS

_FACES, _CROPS, _PHOTO = "faces", "serving_default", "photo"
# <server>/v1/models/<name>, with or without /versions/<number> or /labels/<label>.
_MODEL_URL = re.compile(
    r"(?P<url>.*?)/v1/models/(?P<model_name>[^/:]+)"
    r"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?/?"
)

Found = tuple[np.ndarray, np.ndarray, list[Prediction]]


class BackendError(UserError):
    """There is no such model, or it is of another kind."""


class Backend(Protocol):
    """Classifies faces."""

    finds_faces: bool
    version: str | None
    """That a server has loaded; None of files."""

    def classify_faces(self, photo: Photo, boxes: np.ndarray) -> list[Prediction]:
        """Classify the faces in these boxes.

        Args:
            photo: The photo.
            boxes: float32 [num_faces, 4], pixels, each with an area inside the photo.

        Returns:
            A prediction for each box, in their order.

        Raises:
            PhotoError: A server or SavedModel refuses this photo.
            ServingError: A server does not answer.
        """

    def classify_crop(self, photo: Photo) -> Prediction:
        """Classify a photo that is one face crop; raises as `classify_faces`."""

    def find_faces(self, photo: Photo) -> Found:
        """Find and classify, where `finds_faces`; raises as `classify_faces`.

        Returns:
            Boxes float32 [num_faces, 4], face scores float32 [num_faces], and predictions.
        """

    def close(self) -> None:
        """Let go of what the backend holds."""


def load_backend(model: str, batch_size: int = 32) -> Backend:
    """Load a model or reach its server, and check that it is one of this project.

    Args:
        model: A `.keras` file of a training; the folder of a LiteRT export, or the file in it;
            that of a SavedModel, or of its versions, of which the newest is taken; or the URL of a
            server, such as http://127.0.0.1:8501 or
            http://127.0.0.1:8501/v1/models/face_mask/versions/3.
        batch_size: Faces of a photo that are classified at a time; default 32.

    Returns:
        The backend.

    Raises:
        BackendError: It cannot be loaded, or is no classifier of this project.
        ServingError: The server does not answer.
        ValueError: A `.keras` file is not usable (`fmd_tf.model.ModelError`), or the package of
            LiteRT is missing (`fmd_tf.formats.FormatError`).
    """
    if model.startswith(("http://", "https://")):
        return _Server(model, batch_size)
    path = Path(model)
    if folder := litert_folder(path):
        return _load_litert(folder, batch_size)
    if path.is_dir():
        return _SavedModel(path, batch_size)
    classifier, card = load_model(path)
    return _Local(
        card, partial(face_classifier, fold_batch_norm(classifier), card), None, batch_size
    )


def _load_litert(folder: Path, batch_size: int) -> _Local:
    """Load a folder of `fmd_tf.formats`, with its detector where it has one."""
    try:
        card, detector_card = read_cards(folder)
        size, num_classes = card.image_size, len(card.class_names)
        predict = load_format("litert", folder)
        _require_answer(predict, (1, size, size, 3), (1, num_classes))
        classifier = outside_graph(predict, [None, num_classes])
        detector = None
        if detector_card:
            find = load_litert_detector(folder)
            _require_answer(find, (1, 32, 64, 3), (1, 8, 16, 5))
            network = outside_graph(find, [1, None, None, 5])
            detector = trained_detector(network, detector_card)
    except UserError:
        raise
    # What a damaged file raises is not documented.
    except Exception as error:
        raise BackendError(
            f"{folder} cannot be loaded as a LiteRT export ({first_line(error)})"
        ) from error
    classify = partial(face_classifier, classifier, card)
    return _Local(card, classify, detector, batch_size)


def _require_answer(predict: Predictor, question: tuple[int, ...], answer: tuple[int, ...]) -> None:
    """Fail where a file is not of its card: while photos are labelled it would be too late."""
    found = predict(np.zeros(question, np.float32)).shape
    if found != answer:
        raise ValueError(f"expected an answer of shape {answer} as its card says, got {found}")


def _batches(boxes: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(boxes), batch_size):
        yield boxes[start : start + batch_size]


FaceClassifier = Callable[[np.ndarray, np.ndarray], np.ndarray]


def face_classifier(
    model: Callable[..., tf.Tensor], card: ModelCard, padding: float
) -> FaceClassifier:
    """Join cropping and classifier to one graph.

    Args:
        model: The classifier, or what is called as it is.
        card: Its card.
        padding: See `input_pipeline.crop_faces`; 0 where a photo is a crop already.

    Returns:
        The function from a photo, uint8 [height, width, 3], and boxes, [num_faces, 4] pixels, to
        probabilities, float32 [num_faces, num_classes].
    """

    def graph(pixels: tf.Tensor, boxes: tf.Tensor) -> list[tf.Tensor]:
        crops = crop_faces(pixels, boxes, card.image_size, padding, card.square)
        return [model(tf.cast(crops, tf.float32), training=False)]

    made = freeze(graph, tf.TensorSpec([None, None, 3], tf.uint8), tf.TensorSpec([None, 4]))

    def classify(pixels: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        if not len(boxes):
            return np.zeros((0, len(card.class_names)), np.float32)
        (rows,) = made(tf.constant(pixels), tf.constant(boxes, tf.float32))
        return rows.numpy()

    return classify


class _Local:
    """What runs in this process on crops that are cut here.

    Args:
        card: Of the classifier.
        make_classifier: Makes it for a padding.
        detector: Exported with it; None if it finds no faces.
        batch_size: Faces of a photo that are classified at a time.
    """

    version: str | None = None

    def __init__(
        self,
        card: ModelCard,
        make_classifier: Callable[..., FaceClassifier],
        detector: FaceDetector | None,
        batch_size: int,
    ) -> None:
        self._card, self._make_classifier = card, make_classifier
        self._detector, self._batch_size = detector, batch_size
        self.finds_faces = detector is not None

    # Made when they are first called: a run needs one of them, and each takes a second or two.
    @cached_property
    def _faces(self) -> FaceClassifier:
        return self._make_classifier(padding=self._card.padding)

    @cached_property
    def _crop(self) -> FaceClassifier:
        """Classify as the signature `serving_default`: the whole image without padding."""
        return self._make_classifier(padding=0.0)

    def _classify(
        self, classify: FaceClassifier, pixels: np.ndarray, boxes: np.ndarray
    ) -> list[Prediction]:
        rows = classify(pixels, boxes)
        return [_prediction(self._card.class_names, row) for row in rows]

    def classify_faces(self, photo: Photo, boxes: np.ndarray) -> list[Prediction]:
        _require_pixels(boxes, self._card, self._card.padding)
        return [
            prediction
            for batch in _batches(boxes, self._batch_size)
            for prediction in self._classify(self._faces, photo.pixels, batch)
        ]

    def classify_crop(self, photo: Photo) -> Prediction:
        whole = np.array([[0, 0, photo.width, photo.height]], np.float32)
        _require_pixels(whole, self._card, 0.0)
        return self._classify(self._crop, photo.pixels, whole)[0]

    def find_faces(self, photo: Photo) -> Found:
        if self._detector is None:
            raise BackendError("this classifier finds no faces")
        boxes, scores = self._detector(photo.pixels)
        return boxes, scores, self.classify_faces(photo, boxes)

    def close(self) -> None:
        pass


def _require_pixels(boxes: np.ndarray, card: ModelCard, padding: float) -> None:
    """Refuse faces that would not fit into memory: a long stripe becomes a large square."""
    sides = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64) * (1 + 2 * padding)
    if card.square:
        sides = np.repeat(sides.max(axis=1, keepdims=True), 2, axis=1)
    for width, height in sides[sides.prod(axis=1) > MAX_PIXELS][:1]:
        raise PhotoError(
            f"a face of {width:.0f}x{height:.0f} pixels with its surroundings; expected at most "
            f"{MAX_PIXELS} pixels"
        )


def _prediction(class_names: tuple[str, ...], row: np.ndarray) -> Prediction:
    best = int(row.argmax())
    probabilities = dict(zip(class_names, map(float, row), strict=True))
    return Prediction(class_names[best], float(row[best]), probabilities)


class _SavedModel:
    """A SavedModel of `fmd_tf.export`, run by its signatures."""

    version: str | None = None

    def __init__(self, path: Path, batch_size: int) -> None:
        folder = version_folder(path)
        try:
            # The functions live as long as the object that was loaded.
            self._loaded = tf.saved_model.load(str(folder))
        # What a damaged file raises is not documented.
        except Exception as error:
            raise BackendError(
                f"{folder} cannot be loaded as a SavedModel ({first_line(error)})"
            ) from error
        self._signatures = self._loaded.signatures
        _require_signatures(self._signatures, str(folder))
        self._batch_size = batch_size
        self.finds_faces = _PHOTO in self._signatures

    def _run(self, signature: str, **inputs: Any) -> dict[str, np.ndarray]:
        try:
            outputs = self._signatures[signature](**inputs)
        except tf.errors.InvalidArgumentError as error:
            raise PhotoError(f"refused by the model ({_asserted(error)})") from error
        return {name: value.numpy() for name, value in outputs.items()}

    def classify_faces(self, photo: Photo, boxes: np.ndarray) -> list[Prediction]:
        image_bytes = tf.constant(photo.encoded())
        return [
            prediction
            for batch in _batches(boxes, self._batch_size)
            for prediction in _predictions(
                self._run(_FACES, image_bytes=image_bytes, boxes=tf.constant(batch, tf.float32))
            )
        ]

    def classify_crop(self, photo: Photo) -> Prediction:
        return _predictions(self._run(_CROPS, image_bytes=tf.constant([photo.encoded()])))[0]

    def find_faces(self, photo: Photo) -> Found:
        outputs = self._run(_PHOTO, image_bytes=tf.constant(photo.file or photo.encoded()))
        return outputs["boxes"], outputs["face_scores"], _predictions(outputs)

    def close(self) -> None:
        pass


def _require_signatures(signatures: Mapping[str, object], place: str) -> None:
    if not {_FACES, _CROPS} <= set(signatures):
        found = ", ".join(name for name in sorted(signatures) if not name.startswith("__"))
        raise BackendError(
            f"{place}: expected a model with the signatures {_FACES} and {_CROPS}, got "
            f"{found or 'none'}; export one with python -m fmd_tf.export"
        )


def _predictions(outputs: Mapping[str, np.ndarray]) -> list[Prediction]:
    rows = zip(
        outputs["label"],
        outputs["score"],
        outputs["class_names"],
        outputs["probabilities"],
        strict=True,
    )
    return [
        Prediction(
            label.decode(),
            float(score),
            {name.decode(): float(chance) for name, chance in zip(names, chances, strict=True)},
        )
        for label, score, names, chances in rows
    ]


def _asserted(error: tf.errors.OpError) -> str:
    """Return what the graph's own checks say, without the names of nodes."""
    message = str(error.message or "")
    said = re.search(r"assertion failed: \[(.*)", message)
    if not said:
        return message.splitlines()[0][:150]
    parts = re.split(r"\[\[\{\{node|\[Op:", said.group(1))
    return parts[0].replace("] [", " ").strip(" ]\t")[:200]


class _Server:
    """TF Serving or `fmd_tf.serve`, over REST."""

    version: str | None

    def __init__(self, url: str, batch_size: int) -> None:
        self._client = _client(url, batch_size)
        try:
            self.version, signatures = _served(self._client, url)
            _require_signatures(signatures, url)
        except ValueError:
            self._client.close()
            raise
        self.finds_faces = _PHOTO in signatures

    def classify_faces(self, photo: Photo, boxes: np.ndarray) -> list[Prediction]:
        try:
            return self._client.predict_faces(photo.encoded(small=True), boxes)
        except ServingError as error:
            raise _of_photo(error) from error

    def classify_crop(self, photo: Photo) -> Prediction:
        try:
            return self._client.predict_bytes([photo.encoded(small=True)])[0]
        except ServingError as error:
            raise _of_photo(error) from error

    def find_faces(self, photo: Photo) -> Found:
        try:
            return self._client.predict_photo(photo.file or photo.encoded(small=True))
        except ServingError as error:
            raise _of_photo(error) from error

    def close(self) -> None:
        self._client.close()


def _served(client: Client, url: str) -> tuple[str, Mapping[str, object]]:
    """Return the version that a server has loaded, and its signatures."""
    try:
        answer = client.metadata()
        signatures = answer["metadata"]["signature_def"]["signature_def"]
        return str(answer["model_spec"]["version"]), signatures
    except ServingError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise BackendError(f"{url} answers, but not as TF Serving's REST API does") from error


def _client(url: str, batch_size: int) -> Client:
    """Split a model's URL as TF Serving spells it; of a bare server, take the default name."""
    match = _MODEL_URL.fullmatch(url)
    if not match:
        return Client(url, batch_size=batch_size)
    parts = match.groupdict()
    version = int(parts["version"]) if parts["version"] else None
    # The client quotes them again.
    name, label = unquote(parts["model_name"]), parts["label"] and unquote(parts["label"])
    return Client(parts["url"], name, version, label, batch_size=batch_size)


def _of_photo(error: ServingError) -> ValueError:
    """Tell a photo that the server refuses from a server that does not work."""
    return PhotoError(str(error)) if error.status in (400, 413) else error
