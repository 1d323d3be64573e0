"""The orientation that a camera wrote into a photo, read and applied in the graph.

Cameras store the sensor's rows and say in the EXIF tag 0x0112 how to turn them (Exif 2.32, table 6:
values 1 to 8). Plain TensorFlow operations, so that an exported graph turns photos as prediction
does. The tag lies in a JPEG's APP1 segment, where cameras and phones write it, or where programs
that convert photos do: in a PNG's chunk eXIf (before the pixels, as browsers want it), or a WebP's
chunk EXIF.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

_APP1 = 0xE1
_START_OF_SCAN = 0xDA
_EXIF = b"Exif\0\0"
_HEAD_BYTES = 14
_ORIENTATION_TAG = 0x0112
_SHORT = 3
_Segment = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]
# Metadata of one photo has a handful of each; more is a file made to waste time.
_MAX_SEGMENTS = 64
_MAX_ENTRIES = 512


def read_orientation(image_bytes: tf.Tensor) -> tf.Tensor:
    """Read the EXIF orientation of an encoded photo.

    Args:
        image_bytes: Scalar string; anything but a JPEG, PNG or WebP with the tag counts as upright.

    Returns:
        Scalar int32, 1 to 8; 1 where there is no usable tag.
    """
    with tf.name_scope("orientation"):
        tiff = _find_tiff(image_bytes)
        orientation = tf.cond(
            tiff > 0, lambda: _find_tag(image_bytes, tiff), lambda: tf.constant(1, tf.int32)
        )
        known = (orientation >= 1) & (orientation <= 8)
        return tf.where(known, orientation, tf.ones_like(orientation))


def turn_upright(photo: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turn a photo by its EXIF orientation.

    Args:
        photo: [height, width, channels] as stored.
        orientation: Scalar int32, 1 to 8.

    Returns:
        [height, width, channels] as seen; sides are swapped for 5 to 8.
    """

    def has(*values: int) -> tf.Tensor:
        return tf.reduce_any(orientation == list(values))

    photo = tf.cond(orientation >= 5, lambda: tf.transpose(photo, [1, 0, 2]), lambda: photo)
    photo = tf.cond(has(2, 3, 6, 7), lambda: tf.reverse(photo, [1]), lambda: photo)
    return tf.cond(has(3, 4, 7, 8), lambda: tf.reverse(photo, [0]), lambda: photo)


def _bytes(image_bytes: tf.Tensor, start: tf.Tensor, count: int) -> tf.Tensor:
    """Return int32 [count]; bytes beyond the end are 0."""
    start = tf.clip_by_value(start, 0, tf.strings.length(image_bytes))
    part = tf.strings.substr(image_bytes, start, count)
    part = tf.strings.substr(tf.strings.join([part, tf.constant(bytes(count))]), 0, count)
    return tf.cast(tf.ensure_shape(tf.io.decode_raw(part, tf.uint8), [count]), tf.int32)


def _find_tiff(image_bytes: tf.Tensor) -> tf.Tensor:
    """Return where the TIFF header of the EXIF data begins; 0 where there is none."""
    magic = _bytes(image_bytes, tf.constant(0), 12)
    is_jpeg = _equals(magic[:2], b"\xff\xd8")
    is_png = _equals(magic[:8], b"\x89PNG\r\n\x1a\n")
    is_webp = _equals(magic[:4], b"RIFF") & _equals(magic[8:], b"WEBP")
    return tf.case(
        [
            (is_jpeg, lambda: _walk(image_bytes, 2, _jpeg_segment)),
            (is_png, lambda: _walk(image_bytes, 8, _png_chunk)),
            (is_webp, lambda: _walk(image_bytes, 12, _webp_chunk)),
        ],
        default=lambda: tf.constant(0),
    )


def _walk(image_bytes: tf.Tensor, first: int, read: _Segment) -> tf.Tensor:
    """Go from segment to segment, and return where the TIFF header begins, or 0.

    Args:
        image_bytes: Scalar string.
        first: Where the first segment begins.
        read: From the first bytes of a segment, int32 [14], to its length in bytes, to where in it
            the TIFF header begins, 0 where it has none, and to whether no segment follows.
    """
    size = tf.strings.length(image_bytes)

    def step(number: tf.Tensor, start: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, ...]:
        length, offset, is_last = read(_bytes(image_bytes, start, _HEAD_BYTES))
        tiff = tf.where(offset > 0, start + offset, 0)
        # No file is so long; a sum of larger numbers could overflow.
        following = start + tf.where((length < 0) | (length > 2**30), 2**30, length)
        return number + 1, tf.where(is_last, size, following), tiff

    _, _, tiff = tf.while_loop(
        lambda number, start, tiff: (tiff == 0) & (start < size) & (number < _MAX_SEGMENTS),
        step,
        (tf.constant(0), tf.constant(first), tf.constant(0)),
    )
    return tiff


def _jpeg_segment(head: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """A marker, then two bytes of length, themselves counted."""
    length = 2 + head[2] * 256 + head[3]
    is_last = (head[0] != 0xFF) | (head[1] == _START_OF_SCAN) | (length < 4)
    is_exif = (head[1] == _APP1) & _equals(head[4:10], _EXIF)
    return length, tf.where(is_last, 0, tf.where(is_exif, 10, 0)), is_last


def _png_chunk(head: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Four bytes of length, a name, the data, and a checksum."""
    length = 12 + tf.reduce_sum(head[:4] * [2**24, 2**16, 2**8, 1])
    offset = tf.where(_equals(head[4:8], b"eXIf"), 8, 0)
    return length, offset, _equals(head[4:8], b"IDAT")


def _webp_chunk(head: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """A name, four bytes of length, and the data, to an even number; some begin it as JPEG does."""
    length = tf.reduce_sum(head[4:8] * [1, 2**8, 2**16, 2**24])
    offset = tf.where(_equals(head[8:14], _EXIF), 14, 8)
    return (
        8 + length + length % 2,
        tf.where(_equals(head[:4], b"EXIF"), offset, 0),
        tf.constant(False),
    )


def _equals(found: tf.Tensor, expected: bytes) -> tf.Tensor:
    return tf.reduce_all(found == list(expected))


def _find_tag(image_bytes: tf.Tensor, tiff: tf.Tensor) -> tf.Tensor:
    """Return the orientation of the first image file directory; 0 where it has none."""
    header = _bytes(image_bytes, tiff, 8)
    little = (header[0] == ord("I")) & (header[1] == ord("I"))

    def number(parts: tf.Tensor) -> tf.Tensor:
        """Two or four bytes in the file's order; no offset in a photo needs the highest bit."""
        ordered = tf.cond(little, lambda: tf.reverse(parts, [0]), lambda: parts)
        places = [256**place for place in range(parts.shape[0] - 1, -1, -1)]
        return tf.reduce_sum(ordered * tf.constant(places, tf.int32))

    directory = tiff + tf.clip_by_value(number(header[4:8]), 0, 2**24)
    count = tf.minimum(number(_bytes(image_bytes, directory, 2)), _MAX_ENTRIES)

    def step(index: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        entry = _bytes(image_bytes, directory + 2 + 12 * index, 12)
        matches = (number(entry[:2]) == _ORIENTATION_TAG) & (number(entry[2:4]) == _SHORT)
        return index + 1, tf.where(matches, number(entry[8:10]), 0)

    _, orientation = tf.while_loop(
        lambda index, found: (found == 0) & (index < count),
        step,
        (tf.constant(0), tf.constant(0)),
    )
    return orientation
