"""Photo files to pixels for prediction: decoded as in training, upright, or a reason why not.

Contract: pixels are uint8 RGB [height, width, 3] of the upright photo, and boxes anywhere in
prediction are pixels of it.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image, UnidentifiedImageError

from fmd_tf.errors import UserError
from fmd_tf.exif import read_orientation, turn_upright
from fmd_tf.input_pipeline import decode_upright
from fmd_tf.voc import MAX_PIXELS, OTHER_SUFFIXES, PHOTO_SUFFIXES, misread_kind

# What TensorFlow decodes, and then what it does not, but someone may expect to be read: those
# are reported as unreadable instead of being passed over in silence.
_DECODED = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
_EXPECTED = "expected JPEG, PNG, WebP, BMP or GIF"


class PhotoError(UserError):
    """One photo cannot be read, or its faces cannot be had; the others can."""


@dataclass(frozen=True)
class Photo:
    """One decoded photo.

    Attributes:
        pixels: uint8 RGB [height, width, 3], upright.
        data: The encoded photo, where decoding it without regard to EXIF gives `pixels`.
        file: The encoded photo, where an export's signature `photo` decodes it to `pixels`.
    """

    pixels: np.ndarray
    data: bytes | None = None
    file: bytes | None = None

    @property
    def width(self) -> int:
        """Pixels."""
        return self.pixels.shape[1]

    @property
    def height(self) -> int:
        """Pixels."""
        return self.pixels.shape[0]

    def encoded(self, small: bool = False) -> bytes:
        """Return bytes that every signature of an export decodes to `pixels`.

        Args:
            small: Compress them, for a network; it takes many times as long.
        """
        if self.data:
            return self.data
        if small:
            return tf.io.encode_png(self.pixels, compression=1).numpy()
        file = io.BytesIO()
        Image.fromarray(self.pixels).save(file, "BMP")
        return file.getvalue()


_ENCODED = [tf.TensorSpec([], tf.string)]
_decode = tf.function(decode_upright, input_signature=_ENCODED)
_orientation = tf.function(read_orientation, input_signature=_ENCODED)


def read_photo(path: Path) -> Photo:
    """Read and decode one photo; of an animated GIF the first frame.

    Args:
        path: The file.

    Returns:
        The photo, upright.

    Raises:
        PhotoError: It is missing, no image, damaged, of a kind that TensorFlow does not decode, or
            of more than `voc.MAX_PIXELS` pixels.
    """
    try:
        form, is_misread = _check_header(path)
        data = path.read_bytes()
    except OSError as error:
        raise PhotoError(f"cannot be read ({error.strerror or error})") from error
    if is_misread:
        return Photo(_decode_by_pillow(data))
    try:
        pixels = _decode(data).numpy()
    except tf.errors.OpError as error:
        raise PhotoError(f"damaged or cut off ({_reason(error)})") from error
    if form == "GIF":  # Servers refuse it.
        return Photo(pixels)
    # The other signatures decode without EXIF.
    return Photo(pixels, data if _orientation(data).numpy() == 1 else None, data)


def _check_header(path: Path) -> tuple[str, bool]:
    """Return the format, and whether TensorFlow misreads it; refuse what would not decode.

    What would decode into too much memory is refused too.
    """
    if path.stat().st_size == 0:
        raise PhotoError("the file is empty")
    try:
        with warnings.catch_warnings():
            # Pillow warns of odd metadata and of large photos; the latter are refused below.
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                form = image.format or "unknown"
                frames = getattr(image, "n_frames", 1) if form == "GIF" else 1
                pixels = image.width * image.height
                is_misread = misread_kind(image) is not None
    except UnidentifiedImageError as error:
        with path.open("rb") as file:
            # ISO base media files have their kind there (ISO/IEC 14496-12): telephones' photos.
            if file.read(8)[4:] == b"ftyp":
                raise PhotoError(f"{_EXPECTED}, got HEIC, AVIF or a video") from error
        raise PhotoError(f"not an image of a known kind; {_EXPECTED}") from error
    except Image.DecompressionBombError as error:
        raise PhotoError(f"far too large; expected at most {MAX_PIXELS} pixels") from error
    except OSError:
        raise
    # What Pillow raises for damaged files is not documented, and depends on the format.
    except Exception as error:
        raise PhotoError(f"damaged ({str(error) or type(error).__name__})") from error
    if form not in _DECODED and form != "MPO":
        raise PhotoError(f"{_EXPECTED}, got {form}; convert it first")
    # TensorFlow decodes all frames of a GIF before it returns the first.
    if pixels * frames > MAX_PIXELS:
        raise PhotoError(f"{pixels * frames} pixels; expected at most {MAX_PIXELS} pixels")
    return form, is_misread


def _decode_by_pillow(data: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(image.convert("RGB"))
    except Exception as error:  # As in `_check_header`.
        raise PhotoError(f"damaged or cut off ({error})") from error
    # Not by Pillow, which fails where another tag is damaged.
    return np.asarray(turn_upright(pixels, _orientation(data)))


def _reason(error: tf.errors.OpError) -> str:
    """Return what the decoder says: the line before the name of its node, after a traceback."""
    lines = [line.strip() for line in str(error.message or "").splitlines() if line.strip()]
    said = [line for line, following in pairwise(lines) if following.startswith("[[{{node")]
    return (said or lines or ["no reason given"])[0][:150]


def find_photos(folder: Path, leave_out: Path | None = None) -> list[Path]:
    """List the photos of a folder and of the folders in it.

    Args:
        folder: Where to look. Hidden files and folders are passed over.
        leave_out: A folder that is not looked into: where pictures are written.

    Returns:
        Files by their names' endings, sorted, so that a second run meets them in the same order;
        and folders that cannot be searched, which are then reported as photos that cannot be read.
    """
    return sorted(_walk(folder, leave_out.resolve() if leave_out else None))


def _walk(folder: Path, leave_out: Path | None) -> Iterator[Path]:
    suffixes = (*PHOTO_SUFFIXES, *OTHER_SUFFIXES)
    closed: list[Path] = []
    met = {folder.resolve(), leave_out}
    for parent, folders, names in os.walk(
        folder, onerror=lambda error: closed.append(Path(error.filename)), followlinks=True
    ):
        real = {name: (Path(parent) / name).resolve() for name in folders}
        # A link may lead back to where it is found.
        folders[:] = [
            name for name in folders if not name.startswith(".") and real[name] not in met
        ]
        met.update(real[name] for name in folders)
        for name in names:
            if name.lower().endswith(suffixes) and not name.startswith("."):
                yield Path(parent) / name
    yield from closed
