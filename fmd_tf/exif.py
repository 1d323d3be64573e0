"""The orientation that a camera wrote into a JPEG, read and applied in the graph.

Cameras store the sensor's rows and say in the EXIF tag 0x0112 how to turn them (Exif 2.32, table 6:
values 1 to 8). Plain TensorFlow operations, so that an exported graph turns photos as prediction
does. Only JPEG is looked at: its APP1 segment is where cameras and phones write.
"""

from __future__ import annotations

import tensorflow as tf

_APP1 = 0xE1
_START_OF_SCAN = 0xDA
_ORIENTATION_TAG = 0x0112
_SHORT = 3
# Metadata of one photo has a handful of each; more is a file made to waste time.
_MAX_SEGMENTS = 64
_MAX_ENTRIES = 512


def read_orientation(image_bytes: tf.Tensor) -> tf.Tensor:
    """Read the EXIF orientation of an encoded photo.

    Args:
        image_bytes: Scalar string; anything but a JPEG with the tag counts as upright.

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
    """Return where the TIFF header of the Exif segment begins; 0 where there is none."""

    def step(number: tf.Tensor, start: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, ...]:
        head = _bytes(image_bytes, start, 10)
        length = head[2] * 256 + head[3]
        is_exif = (head[1] == _APP1) & tf.reduce_all(head[4:10] == list(b"Exif\0\0"))
        ends = (head[0] != 0xFF) | (head[1] == _START_OF_SCAN) | (length < 2)
        state = tf.where(ends, -1, tf.where(is_exif, start + 10, 0))
        return number + 1, start + 2 + length, state

    magic = _bytes(image_bytes, tf.constant(0), 2)
    is_jpeg = (magic[0] == 0xFF) & (magic[1] == 0xD8)
    first = tf.where(is_jpeg, 0, -1)
    _, _, tiff = tf.while_loop(
        lambda number, _, state: (state == 0) & (number < _MAX_SEGMENTS),
        step,
        (tf.constant(0), tf.constant(2), first),
    )
    return tf.maximum(tiff, 0)


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
