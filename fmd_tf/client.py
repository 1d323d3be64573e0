"""Ask a server for predictions: TF Serving or `fmd_tf.serve`, over REST, without TensorFlow.

    with Client("http://127.0.0.1:8501") as client:
        for face in client.predict_faces("photo.jpg", [(10, 20, 60, 80)]):
            print(face.label, face.score)

Pixels are RGB 0-255 and are never scaled here: the model does that. Boxes are pixels of the photo
as in `fmd_tf.boxes`. EXIF rotation is not applied, here as in training, but by `predict_photo`,
whose boxes are those of the upright photo.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import random
import ssl
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
from PIL import Image

from fmd_tf.errors import UserError

_RETRIED = (429, 503)
# What a path may hold as it is (RFC 3986), and what is quoted already.
_UNQUOTED = "/%:@!$&'()*+,;="


class ServingError(UserError):
    """A server refused a request, or could not be reached.

    Attributes:
        status: HTTP status; None where there was no answer.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Prediction:
    """The answer for one face.

    Attributes:
        label: Name of the likeliest class.
        score: Its probability.
        probabilities: Probability of each class by name, in the model's order.
    """

    label: str
    score: float
    probabilities: dict[str, float]


class Client:
    """A client of one model; its methods may be called from several threads.

    Args:
        url: Where the server is, such as "http://127.0.0.1:8501", or "https://host/path" behind a
            proxy. What its path must not hold as it is, such as a space, is quoted.
        model_name: Name of the model; default "face_mask".
        version: Version to ask; None asks the newest.
        label: Version label to ask, instead of a number.
        timeout: Seconds to wait for the server at each attempt; default 60.
        retries: Attempts after the first, where the connection fails or the server answers 429 or
            503; default 4.
        backoff: Seconds before the first retry, doubled for each further one; default 0.1.
        batch_size: Faces a request; default 32.

    Raises:
        ServingError: The URL is none or holds a user's name, or both `version` and `label` are
            given.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8501",
        model_name: str = "face_mask",
        version: int | None = None,
        label: str | None = None,
        timeout: float = 60.0,
        retries: int = 4,
        backoff: float = 0.1,
        batch_size: int = 32,
    ) -> None:
        try:
            self._url = urlsplit(url)
            host = self._url.hostname or ""
            usable = self._url.scheme in ("http", "https") and host and " " not in host
            _ = self._url.port  # It raises where that is no port.
            host.encode("idna")  # As it does where that is no host.
            prefix = quote(self._url.path, safe=_UNQUOTED)  # Or no text.
        except ValueError:
            usable = False
        if "@" in url and (not usable or self._url.username is not None):
            # It may hold a password, which is not for a screen or a log.
            raise ServingError(
                "expected a URL such as http://127.0.0.1:8501, got one with a user name or "
                "password; leave them out, as they would not be sent"
            )
        if not usable:
            raise ServingError(f"expected a URL such as http://127.0.0.1:8501, got {url!r}")
        if version is not None and label is not None:
            raise ServingError("expected a version or a label, got both")
        self._path = _model_path(prefix, model_name, version, label)
        self._timeout = timeout
        self._retries = retries
        self._backoff = backoff
        self._batch_size = batch_size
        self._connections = threading.local()
        self._opened: dict[threading.Thread, http.client.HTTPConnection] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections of all threads; the next call opens new ones."""
        with self._lock:
            for connection in self._opened.values():
                connection.close()

    def predict_files(self, files: Iterable[Path | str]) -> list[Prediction]:
        """Classify image files that each show one face.

        Args:
            files: JPEG, PNG, WebP or BMP files.

        Returns:
            A prediction for each, in their order.

        Raises:
            ServingError: A file cannot be read or the server refuses.
        """
        return self.predict_bytes([_read(file) for file in files])

    def predict_bytes(self, images: Sequence[bytes]) -> list[Prediction]:
        """Classify encoded images that each show one face."""
        predictions: list[Prediction] = []
        for start in range(0, len(images), self._batch_size):
            batch = images[start : start + self._batch_size]
            body = {"instances": [_base64(image) for image in batch]}
            predictions += self._predict(body, len(batch))
        return predictions

    def predict_arrays(self, images: Sequence[np.ndarray] | np.ndarray) -> list[Prediction]:
        """Classify arrays that each show one face.

        Args:
            images: RGB 0-255, each [height, width, 3]. uint8 goes as PNG, which loses nothing;
                floats go as numbers, which is slow: a megabyte for 224 x 224 pixels.

        Returns:
            A prediction for each, in their order.

        Raises:
            ServingError: An array is none of these, or the server refuses.
        """
        arrays = [_require_image(np.asarray(image)) for image in images]
        if all(array.dtype == np.uint8 for array in arrays):
            return self.predict_bytes([_encode(array) for array in arrays])
        predictions: list[Prediction] = []
        for array in arrays:
            body = {"signature_name": "pixels", "instances": [array.tolist()]}
            predictions += self._predict(body, 1)
        return predictions

    def predict_faces(
        self, photo: Path | str | bytes | np.ndarray, boxes: Sequence[Sequence[float]] | np.ndarray
    ) -> list[Prediction]:
        """Classify the faces in one photo.

        Args:
            photo: An image file, its bytes, or uint8 RGB [height, width, 3].
            boxes: Face boxes [num_faces, 4], pixels (xmin, ymin, xmax, ymax).

        Returns:
            A prediction for each box, in their order.

        Raises:
            ServingError: Photo or boxes are unusable, or the server refuses.
        """
        rows = np.asarray(boxes, np.float64)
        if rows.size == 0:
            return []
        if rows.ndim != 2 or rows.shape[1] != 4:
            raise ServingError(f"expected boxes [num_faces, 4], got shape {list(rows.shape)}")
        image = _base64(_photo_bytes(photo))
        predictions: list[Prediction] = []
        for start in range(0, len(rows), self._batch_size):
            batch = rows[start : start + self._batch_size].tolist()
            body = {"signature_name": "faces", "inputs": {"image_bytes": image, "boxes": batch}}
            predictions += self._predict_columns(body, len(batch))
        return predictions

    def predict_photo(
        self, photo: Path | str | bytes | np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, list[Prediction]]:
        """Find and classify the faces in one photo, with the signature `photo`.

        Args:
            photo: An image file, its bytes, or uint8 RGB [height, width, 3].

        Returns:
            Boxes float32 [num_faces, 4] in pixels of the upright photo, face scores float32
            [num_faces], and a prediction for each. There may be none.

        Raises:
            ServingError: The photo is unusable, or the server refuses: it may have no detector.
        """
        inputs = {"image_bytes": _base64(_photo_bytes(photo))}
        body = {"signature_name": "photo", "inputs": inputs}
        columns = self._field(self._request("POST", f"{self._path}:predict", body), "outputs")
        try:
            boxes = np.array(columns.pop("boxes"), np.float32).reshape(-1, 4)
            scores = np.array(columns.pop("face_scores"), np.float32)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ServingError(f"expected boxes and scores, got {str(columns)[:200]}") from error
        return boxes, scores, _require_rows(_rows(columns), len(boxes))

    def status(self) -> list[dict[str, Any]]:
        """Return the state of the model's versions."""
        return self._field(self._request("GET", self._path, None), "model_version_status")

    def metadata(self) -> dict[str, Any]:
        """Return the signatures of the model."""
        return self._request("GET", f"{self._path}/metadata", None)

    def is_ready(self) -> bool:
        """Tell whether a version is served, without waiting for one."""
        try:
            status, body = self._send_anew("GET", self._path, None)
            states = json.loads(body)["model_version_status"] if status == 200 else []
            return any(state.get("state") == "AVAILABLE" for state in states)
        # What is no model server may answer anything.
        except (
            OSError,
            http.client.HTTPException,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
        ):
            return False

    def _predict(self, body: dict[str, Any], expected: int) -> list[Prediction]:
        answer = self._request("POST", f"{self._path}:predict", body)
        rows = self._field(answer, "predictions")
        return _require_rows([_prediction(row) for row in rows], expected)

    def _predict_columns(self, body: dict[str, Any], expected: int) -> list[Prediction]:
        answer = self._request("POST", f"{self._path}:predict", body)
        return _require_rows(_rows(self._field(answer, "outputs")), expected)

    def _field(self, answer: Any, name: str) -> Any:
        """Return what a model server's answer has under a name."""
        if not isinstance(answer, dict) or name not in answer:
            raise ServingError(
                f"{self._url.geturl()} answered without {name!r}: {str(answer)[:200]}; "
                "is it a model server?"
            )
        return answer[name]

    def _request(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        """Send until there is an answer that is no passing trouble."""
        data = None if body is None else json.dumps(body).encode()
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            try:
                status, text = self._send_anew(method, path, data)
            except (OSError, http.client.HTTPException) as error:
                if last:
                    raise self._unreachable(error) from error
            else:
                if status == 200:
                    return self._parse(text)
                if last or status not in _RETRIED:
                    raise ServingError(_error_message(status, text), status)
            time.sleep(self._backoff * 2**attempt * random.uniform(0.5, 1.0))
        raise AssertionError("the last attempt returns or raises")

    def _parse(self, text: bytes) -> Any:
        try:
            return json.loads(text)
        except ValueError as error:
            raise ServingError(
                f"{self._url.geturl()} answered no JSON: {text[:60]!a}; is it a model server?"
            ) from error

    def _unreachable(self, error: Exception) -> ServingError:
        reason = str(error) or type(error).__name__
        return ServingError(
            f"no answer from {self._url.geturl()} after {self._retries + 1} attempts ({reason}); "
            "is the server running, and the port right?"
        )

    def _send(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        """Send once, over this thread's connection."""
        connection = self._connect()
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            raise

    def _send_anew(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        """Send once, and again over a new connection where the server has closed the idle one."""
        idle = self._connect().sock is not None
        try:
            return self._send(method, path, body)
        except (ConnectionError, http.client.HTTPException):
            if not idle:
                raise
            return self._send(method, path, body)

    def _connect(self) -> http.client.HTTPConnection:
        connection = getattr(self._connections, "connection", None)
        if connection is None:
            host, port = str(self._url.hostname), self._url.port
            if self._url.scheme == "https":
                context = ssl.create_default_context()
                connection = http.client.HTTPSConnection(
                    host, port, timeout=self._timeout, context=context
                )
            else:
                connection = http.client.HTTPConnection(host, port, timeout=self._timeout)
            self._connections.connection = connection
            self._keep(connection)
        return connection

    def _keep(self, connection: http.client.HTTPConnection) -> None:
        """Remember a thread's connection, and close those of threads that have ended."""
        with self._lock:
            ended = [thread for thread in self._opened if not thread.is_alive()]
            for thread in ended:
                self._opened.pop(thread).close()
            self._opened[threading.current_thread()] = connection


def _model_path(prefix: str, model_name: str, version: int | None, label: str | None) -> str:
    path = f"{prefix.rstrip('/')}/v1/models/{quote(model_name, safe='')}"
    if version is not None:
        return f"{path}/versions/{version}"
    return path if label is None else f"{path}/labels/{quote(label, safe='')}"


def _read(file: Path | str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise ServingError(f"{file} cannot be read ({error.strerror})") from error


def _photo_bytes(photo: Path | str | bytes | np.ndarray) -> bytes:
    if isinstance(photo, bytes):
        return photo
    if not isinstance(photo, np.ndarray):
        return _read(photo)
    if photo.dtype != np.uint8:
        raise ServingError(f"expected a photo of uint8, got {photo.dtype}")
    return _encode(_require_image(photo))


def _require_image(image: np.ndarray) -> np.ndarray:
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ServingError(f"expected RGB [height, width, 3], got shape {list(image.shape)}")
    return image


def _encode(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _base64(data: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(data).decode()}


def _prediction(row: dict[str, Any]) -> Prediction:
    try:
        probabilities = dict(zip(row["class_names"], row["probabilities"], strict=True))
        return Prediction(row["label"], row["score"], probabilities)
    except (KeyError, TypeError, ValueError) as error:
        raise ServingError(
            "expected label, score, probabilities and class_names in the answer, got "
            f"{str(row)[:200]}; is this a model of fmd_tf.export?"
        ) from error


def _rows(columns: dict[str, Any]) -> list[Prediction]:
    """Turn an answer in columns into a prediction for each face."""
    try:
        values = zip(*columns.values(), strict=True)
        rows = [dict(zip(columns, row, strict=True)) for row in values]
    except (AttributeError, TypeError, ValueError) as error:
        raise ServingError(f"expected columns of faces, got {str(columns)[:200]}") from error
    return [_prediction(row) for row in rows]


def _require_rows(predictions: list[Prediction], expected: int) -> list[Prediction]:
    if len(predictions) != expected:
        raise ServingError(f"expected {expected} predictions, got {len(predictions)}")
    return predictions


def _error_message(status: int, text: bytes) -> str:
    """Return what the server says, which a proxy in between may say in HTML."""
    try:
        reason = json.loads(text)["error"]
    except (ValueError, KeyError, TypeError):
        reason = text[:200].decode("utf-8", "replace").strip()
    return f"the server answered {status}: {reason}"
