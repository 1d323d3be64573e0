"""Files and folders that appear whole: written beside, then renamed."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from fmd_tf.errors import UserError

_STALE_SECONDS = 3600
# Names that are no numbers: servers of versions skip them.
_PARTIAL = ".partial-"
_REPLACED = ".replaced-"
_STALE = re.compile(rf"({re.escape(_PARTIAL)}|{re.escape(_REPLACED)}).+-[0-9a-f]{{8}}")
# What TensorFlow and this project write into the folder of a model.
_WRITTEN = re.compile(
    r"assets(\.extra)?|variables|(saved_model|fingerprint)\.pb"
    r"|model\.(tflite|onnx|onnx\.data|xml|bin)|detector\.tflite|model_card\.json"
    r"|detector_card\.json|class_names\.txt|README\.md"
)


class PublishError(UserError):
    """A file or folder cannot be written, or put into place."""


def require_writable(*folders: Path) -> None:
    """Fail now, not after an hour, where a folder cannot be written.

    Raises:
        PublishError: One of the folders cannot be made or written.
    """
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise PublishError(f"{folder} cannot be written ({error.strerror})") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a file to write beside `path`, which takes its place when all went well.

    Args:
        path: The file that appears; replaced where it exists.

    Yields:
        The file to write, with the same ending.
    """
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that no other run gets meanwhile; it ends with the process at the latest.

    Where the file system has no locks, nothing is held.

    Args:
        path: The lock's file, which stays.

    Raises:
        PublishError: Another run has it, or its folder cannot be written.
    """
    require_writable(path.parent)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise PublishError(
            f"another run writes to {path.parent} now ({path.name} is locked); wait until it "
            "has ended, or give this one a place of its own"
        ) from error
    except NotImplementedError:
        pass
    try:
        yield
    finally:
        lock.release()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Hold the lock of a file that is written meanwhile, in a hidden file beside it.

    Args:
        path: The file that is written.

    Raises:
        PublishError: Another run writes it now, or its folder cannot be written.
    """
    lock = path.with_name(f".{path.name}.lock")
    with locked(lock):
        try:
            yield
        finally:
            # While the lock is held: later it could be another run's. filelock gives nobody that of
            # a file which is gone. Windows keeps a file that is open.
            with suppress(OSError):
                lock.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file whole, in UTF-8; what names of files have that is no text is escaped."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def require_free(target: Path, overwrite: bool) -> None:
    """Fail now, not after minutes, where a folder must not be published.

    Args:
        target: Folder that is to appear.
        overwrite: Replace it where it exists.

    Raises:
        PublishError: The target exists, is a file or holds what no export wrote.
    """
    if target.exists() and not overwrite:
        raise PublishError(f"{target} exists already; give another --output, or --overwrite")
    if target.exists() and not target.is_dir():
        raise PublishError(f"{target} is a file, expected a folder; give another --output")
    others = [path.name for path in target.glob("*") if not _WRITTEN.fullmatch(path.name)]
    if others:
        raise PublishError(
            f"{target} holds {min(others)}, which is of no export and would be deleted; give "
            "another --output"
        )


@contextmanager
def publishing(target: Path, overwrite: bool) -> Iterator[Path]:
    """Give a folder to write into, and rename it to `target` when all went well.

    What a killed run left beside it is removed once it is an hour old.

    Args:
        target: Folder that appears.
        overwrite: Replace it where it exists.

    Yields:
        The folder to write into; it does not exist yet.

    Raises:
        PublishError: See `require_free`; or the target cannot be renamed to.
    """
    require_free(target, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(target.parent)
    partial = target.parent / f"{_PARTIAL}{target.name}-{uuid.uuid4().hex[:8]}"
    try:
        yield partial
        _publish(partial, target, overwrite)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def versions(folder: Path) -> dict[int, Path]:
    """Return the folders in a folder that are versions of a model, by number."""
    numbered = [path for path in folder.glob("*") if path.name.isdecimal()]
    return {int(path.name): path for path in numbered if path.is_dir()}


def version_folder(path: Path) -> Path:
    """Return the folder itself, where it is a SavedModel, or the newest version in it.

    Args:
        path: An existing folder.

    Raises:
        UserError: There is none.
    """
    if (path / "saved_model.pb").is_file():
        return path
    found = {
        number: folder
        for number, folder in versions(path).items()
        if (folder / "saved_model.pb").is_file()
    }
    if not found:
        raise UserError(
            f"no SavedModel in {path}; expected {path}/1/saved_model.pb as python -m "
            "fmd_tf.export writes it"
        )
    return found[max(found)]


def _remove_stale(folder: Path) -> None:
    for path in folder.glob(".*"):
        old = _STALE.fullmatch(path.name) and time.time() - path.stat().st_mtime > _STALE_SECONDS
        if old:
            shutil.rmtree(path, ignore_errors=True)


def _publish(partial: Path, target: Path, overwrite: bool) -> None:
    """Rename into place; renaming onto a folder with files in it fails by itself."""
    replaced = target.parent / f"{_REPLACED}{target.name}-{uuid.uuid4().hex[:8]}"
    try:
        if overwrite and target.exists():
            # Renaming keeps the time; one that a kill leaves is to stay an hour from now.
            os.utime(target)
            target.rename(replaced)
        partial.rename(target)
    except OSError as error:
        if replaced.exists():
            replaced.rename(target)
        raise PublishError(f"{target} could not be put into place ({error})") from error
    shutil.rmtree(replaced, ignore_errors=True)
