"""Versions of a SavedModel, loaded as TF Serving loads them and swapped while requests run.

A version is loaded into a session of its own (`tf.compat.v1.saved_model.load`), replays its
warm-up requests, and is served only then. A replaced one is closed by the last request on it.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.framework.types_pb2 import DataType
from tensorflow.core.protobuf.config_pb2 import CallableOptions
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef
from tensorflow.python.framework import errors_impl
from tensorflow_serving.apis import get_model_metadata_pb2, prediction_log_pb2

from fmd_tf.errors import UserError
from fmd_tf.publish import versions
from fmd_tf.rest import RestError, cut

_log = logging.getLogger(__name__)
_DEFAULT_SIGNATURE = "serving_default"
_WARMUP = Path("assets.extra/tf_serving_warmup_requests")
AVAILABLE, LOADING, ENDED = "AVAILABLE", "LOADING", "END"

Tensors = dict[str, np.ndarray]


class ServableError(UserError):
    """There is nothing to serve."""


@dataclass(frozen=True)
class Signature:
    """One signature: types of its inputs by name, and the call that runs it."""

    inputs: Mapping[str, str]
    run: Callable[[Tensors], Tensors]


class Servable:
    """One loaded version.

    Args:
        path: Folder of the version.
    """

    def __init__(self, path: Path) -> None:
        self.version = int(path.name)
        self.fingerprint = fingerprint(path)
        self._session = _open_session(path)
        self._definitions = _load(self._session, path)
        self.signatures = {
            name: _signature(self._session, definition)
            for name, definition in self._definitions.items()
        }
        self._users = 1
        self._lock = threading.Lock()

    def signature(self, name: str) -> Signature:
        """Return a signature; an empty name means the default one.

        Raises:
            RestError: There is none of that name.
        """
        name = name or _DEFAULT_SIGNATURE
        if name not in self.signatures:
            message = f'Serving signature name: "{cut(name)}" not found in signature def'
            raise RestError("INVALID_ARGUMENT", message)
        return self.signatures[name]

    def warm_up(self, path: Path) -> int:
        """Replay the warm-up requests of a version's folder; return how many there were."""
        file = path / _WARMUP
        if not file.is_file():
            return 0
        records = list(tf.data.TFRecordDataset(str(file)).as_numpy_iterator())
        for record in records:
            log = prediction_log_pb2.PredictionLog.FromString(record)
            request = log.predict_log.request
            signature = self.signature(request.model_spec.signature_name)
            signature.run({name: tf.make_ndarray(value) for name, value in request.inputs.items()})
        return len(records)

    def metadata(self, model_name: str) -> dict:
        """Return the answer to a metadata request."""
        signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=self._definitions)
        return {
            "model_spec": {
                "name": model_name,
                "signature_name": "",
                "version": str(self.version),
            },
            "metadata": {
                "signature_def": json_format.MessageToDict(
                    signatures,
                    preserving_proto_field_name=True,
                    always_print_fields_with_no_presence=True,
                )
            },
        }

    def acquire(self) -> bool:
        """Count a request in; False where the version is closed already."""
        with self._lock:
            if self._users == 0:
                return False
            self._users += 1
            return True

    def release(self) -> None:
        """Count a request out, or the owner at last; whoever is the last closes the session."""
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last:
            self._session.close()
            _log.info("version %d unloaded", self.version)


def fingerprint(path: Path) -> list[tuple[str, int, int, int]]:
    """Return what changes when a version is written anew, or goes on being copied."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    states = [(str(file), file.stat()) for file in files]
    return [(name, each.st_ino, each.st_mtime_ns, each.st_size) for name, each in states]


def _open_session(path: Path) -> tf.compat.v1.Session:
    config = tf.compat.v1.ConfigProto()
    config.gpu_options.allow_growth = True
    return tf.compat.v1.Session(graph=tf.Graph(), config=config)


def _load(session: tf.compat.v1.Session, path: Path) -> dict[str, SignatureDef]:
    try:
        with session.graph.as_default():
            meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], str(path))
    except BaseException:
        session.close()
        raise
    names = [name for name in meta_graph.signature_def if not name.startswith("__")]
    return {name: meta_graph.signature_def[name] for name in names}


def _signature(session: tf.compat.v1.Session, definition: SignatureDef) -> Signature:
    """Bind a signature.

    Shapes are left to the graph, as in TF Serving: it is the callable made from options that does
    not compare them with the signature, and Keras relies on it too (`tf.keras.backend`, TF 1).
    """
    inputs, outputs = sorted(definition.inputs), sorted(definition.outputs)
    options = CallableOptions(
        feed=[definition.inputs[name].name for name in inputs],
        fetch=[definition.outputs[name].name for name in outputs],
    )
    call = session._make_callable_from_options(options)

    def run(tensors: Tensors) -> Tensors:
        try:
            values = call(*[tensors[name] for name in inputs])
        except tf.errors.OpError as error:
            raise _rest_error(error) from error
        return {name: np.asarray(value) for name, value in zip(outputs, values, strict=True)}

    types = {name: DataType.Name(definition.inputs[name].dtype) for name in inputs}
    return Signature(types, run)


def _rest_error(error: tf.errors.OpError) -> RestError:
    """Keep TensorFlow's code and message, without Python's heading."""
    code = errors_impl.exception_type_from_error_code(error.error_code).__name__
    message = str(error.message or "").removeprefix("Graph execution error:").strip()
    return RestError(_CODES.get(code, "INTERNAL"), message)


_CODES = {
    "CancelledError": "CANCELLED",
    "InvalidArgumentError": "INVALID_ARGUMENT",
    "DeadlineExceededError": "DEADLINE_EXCEEDED",
    "NotFoundError": "NOT_FOUND",
    "AlreadyExistsError": "ALREADY_EXISTS",
    "PermissionDeniedError": "PERMISSION_DENIED",
    "UnauthenticatedError": "UNAUTHENTICATED",
    "ResourceExhaustedError": "RESOURCE_EXHAUSTED",
    "FailedPreconditionError": "FAILED_PRECONDITION",
    "AbortedError": "ABORTED",
    "OutOfRangeError": "OUT_OF_RANGE",
    "UnimplementedError": "UNIMPLEMENTED",
    "UnavailableError": "UNAVAILABLE",
}


@dataclass(frozen=True)
class VersionStatus:
    """What a status request shows of a version."""

    version: int
    state: str
    error_code: str = "OK"
    error_message: str = ""


class ModelVersions:
    """The versions of one model: a folder, of which the newest, and those with a label, are loaded.

    Args:
        base_dir: Folder of the versions.
        name: Name of the model in paths.
        num_versions: How many of the newest are served; default 1.
        labels: Version numbers by label.
    """

    def __init__(
        self,
        base_dir: Path,
        name: str,
        num_versions: int = 1,
        labels: Mapping[str, int] | None = None,
    ) -> None:
        self.base_dir = Path(base_dir)
        self.name = name
        self._num_versions = num_versions
        self._labels = dict(labels or {})
        self._loaded: dict[int, Servable] = {}
        self._failed: dict[int, tuple[object, str]] = {}
        self._loading: int | None = None
        self._unloaded = False
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def sync(self) -> None:
        """Make what is loaded agree with the folder: new versions in first, then old ones out.

        A version that cannot be loaded is reported once, and tried again when its files change;
        what is loaded stays until there is something to replace it.
        """
        if self._unloaded:
            # Graphs are cycles, which Python may leave lying for many versions, megabytes each.
            gc.collect()
            self._unloaded = False
        found = versions(self.base_dir)
        newest: list[int] = []
        for version in sorted(found, reverse=True):
            if len(newest) < self._num_versions and self._ensure(found[version], version):
                newest.append(version)
        labelled = found.keys() & {*self._labels.values()} - {*newest}
        keep = {*newest, *(each for each in labelled if self._ensure(found[each], each))}
        with self._lock:
            self._failed = {v: why for v, why in self._failed.items() if v in found}
            spare = sorted(set(self._loaded) - keep, reverse=True)
            missing = self._num_versions - len(newest)
            retired = [self._loaded.pop(version) for version in spare[max(missing, 0) :]]
        for servable in retired:
            servable.release()
            self._unloaded = True

    def _ensure(self, path: Path, version: int) -> bool:
        """Load a version unless it is there or known to be broken; tell whether it is served."""
        try:
            seen: object = fingerprint(path)
        except OSError as error:
            seen = str(error)
        loaded = self._loaded.get(version)
        if loaded is not None and loaded.fingerprint == seen:
            return True
        if self._failed.get(version, (None, ""))[0] == seen:
            return loaded is not None
        return self._load(path, version, seen) or loaded is not None

    def _load(self, path: Path, version: int, seen: object) -> bool:
        self._loading = version
        try:
            servable = Servable(path)
            try:
                warmed = servable.warm_up(path)
            except BaseException:
                servable.release()
                raise
        # Whatever a damaged file raises: this version fails and the server goes on.
        except Exception as error:
            message = f"{type(error).__name__}: {error}".splitlines()[0]
            _log.error("version %d cannot be loaded from %s: %s", version, path, message)
            with self._lock:
                self._failed[version] = (seen, message)
            return False
        finally:
            self._loading = None
        with self._lock:
            self._failed.pop(version, None)
            retired: Servable | None = servable
            # Closed meanwhile, there would be nobody left who releases it.
            if not self._stopped.is_set():
                retired = self._loaded.get(version)
                self._loaded[version] = servable
        if retired is not None:
            retired.release()
            self._unloaded = True
        _log.info("version %d loaded, %d warm-up requests", version, warmed)
        return True

    def watch(self, interval: float) -> None:
        """Go on calling `sync` every `interval` seconds until `close`; runs in a thread."""
        while not self._stopped.wait(interval):
            try:
                self.sync()
            except OSError as error:
                _log.error("%s cannot be read: %s", self.base_dir, error)

    def close(self) -> None:
        """Stop watching and unload all versions, each after its last request."""
        self._stopped.set()
        with self._lock:
            retired, self._loaded = list(self._loaded.values()), {}
        for servable in retired:
            servable.release()

    @contextmanager
    def use(self, version: int | None, label: str | None) -> Iterator[Servable]:
        """Hold a version for one request.

        Raises:
            RestError: There is no such version or label.
        """
        servable = self._acquire(version, label)
        try:
            yield servable
        finally:
            servable.release()

    def _acquire(self, version: int | None, label: str | None) -> Servable:
        if label is not None and label not in self._labels:
            message = f"Unrecognized servable version label: {label}"
            raise RestError("INVALID_ARGUMENT", message)
        wanted = self._labels[label] if label is not None else version
        with self._lock:
            number = max(self._loaded, default=None) if wanted is None else wanted
            servable = None if number is None else self._loaded.get(number)
            if servable is not None and servable.acquire():
                return servable
        asked = f"Latest({self.name})" if wanted is None else f"Specific({self.name}, {wanted})"
        raise RestError("NOT_FOUND", f"Servable not found for request: {asked}")

    def status(self, version: int | None = None) -> Sequence[VersionStatus]:
        """Return the state of all versions, or of one, the newest first.

        Raises:
            RestError: There is none.
        """
        with self._lock:
            states = {number: VersionStatus(number, AVAILABLE) for number in self._loaded}
            failed = {
                number: VersionStatus(number, ENDED, "UNKNOWN", message)
                for number, (_, message) in self._failed.items()
            }
        states = {**failed, **states}
        if self._loading is not None:
            states.setdefault(self._loading, VersionStatus(self._loading, LOADING))
        if version is not None:
            states = {number: state for number, state in states.items() if number == version}
        if not states:
            which = "any versions" if version is None else f"version {version}"
            raise RestError("NOT_FOUND", f"Could not find {which} of model {self.name}")
        return [states[number] for number in sorted(states, reverse=True)]
