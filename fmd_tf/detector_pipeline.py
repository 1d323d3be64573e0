"""Photos to training views and targets of the face detector.

Contract: a photo is uint8 RGB [height, width, 3], boxes are pixels as in `fmd_tf.boxes`. A view
is a square cut out of a scaled photo, float32 [size, size, 3], RGB 0-255. Its target is float32
[size / 4, size / 4, 7]: the heat (1 at the centre of a face, falling to its sides, as a
Gaussian), the box of the cell's face in pixels of the view (4), the cell's weight for the box
(0 where there is no face), and its weight for the heat (0 where a face is cut off or too small
to tell). Views are drawn statelessly from seed, epoch and step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from fmd_tf.detector import STRIDE
from fmd_tf.input_pipeline import decode_photo, run_ahead, sampling_weights, scale_image
from fmd_tf.voc import Annotation

MIN_VISIBLE_SIZE = 4.0
"""Faces with a shorter side of fewer pixels in the view are neither face nor background."""
_SCALES = (0.5, 1.6)
# The part of a box that is trained, and the Gaussian's width, as in TTFNet (arXiv:1909.00700).
_CENTRAL_PART = 0.54
_SIGMAS = 6.0


def train_views(
    annotations: Sequence[Annotation],
    class_names: Sequence[str],
    image_size: int,
    view_size: int,
    batch_size: int,
    seed: int,
    balance: float = 0.5,
    first_epoch: int = 0,
) -> tf.data.Dataset:
    """Make endless training batches that depend only on the seed and the epoch.

    An epoch has as many views as there are faces, at the most 16 a photo; each is placed about
    a face drawn by its class, so that small crowds and rare classes are seen alike.

    Args:
        annotations: Photos with their faces; photos without faces are left out.
        class_names: Names of the classes.
        image_size: Pixels that the longer side of a photo is scaled to, times a random scale
            from 0.5 to 1.6.
        view_size: Side of the views in pixels.
        batch_size: Views a batch; the remainder of an epoch is a smaller batch.
        seed: Seed of the draws.
        balance: See `input_pipeline.sampling_weights`.
        first_epoch: Epoch to start at.

    Returns:
        Batches (views, targets), without end; `steps_per_epoch` of them make an epoch.
    """
    draws = _draws(annotations, class_names, balance)
    num_views = views_per_epoch(annotations)

    def make_view(face: tf.Tensor, key: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        photo_index = draws["photo_of_face"][face]
        photo = decode_photo(tf.io.read_file(draws["files"][photo_index]))
        boxes, weights = draws["boxes"][photo_index], draws["weights"][photo_index]
        view, boxes = cut_view(photo, boxes, draws["box_of_face"][face], image_size, view_size, key)
        return view, draw_target(boxes, weights, view_size)

    def epoch_views(epoch: tf.Tensor) -> tf.data.Dataset:
        base = tf.cast(seed, tf.int64)
        faces = tf.random.stateless_categorical(
            draws["logits"][None], num_views, tf.stack([base, epoch * 2**32])
        )[0]
        # The first 2**32 numbers after an epoch's are the keys of its views.
        places = epoch * 2**32 + tf.range(1, num_views + 1, dtype=tf.int64)
        keys = tf.stack([tf.fill([num_views], base), places], axis=1)
        views = tf.data.Dataset.from_tensor_slices((faces, keys))
        return views.map(make_view, tf.data.AUTOTUNE).batch(batch_size)

    epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int32).max)
    return run_ahead(epochs.flat_map(epoch_views))


def views_per_epoch(annotations: Sequence[Annotation]) -> int:
    """Return the number of views of an epoch: one a face, at the most 16 a photo."""
    return sum(min(16, len(annotation.faces)) for annotation in annotations)


def _draws(
    annotations: Sequence[Annotation], class_names: Sequence[str], balance: float
) -> dict[str, tf.Tensor]:
    """Put files, boxes and weights where a graph can pick them by number."""
    index = {name: number for number, name in enumerate(class_names)}
    faces = [(photo, face) for photo, each in enumerate(annotations) for face in each.faces]
    labels = np.array([index[face.label] for _, face in faces])
    photo_of_face = np.array([photo for photo, _ in faces])
    weights = sampling_weights(labels, len(class_names), balance)
    # A crowd's faces are all in one view: seeing each of 100 in turn would be seeing it 100 times.
    crowd = np.bincount(photo_of_face)[photo_of_face]
    lengths = [len(each.faces) for each in annotations]
    boxes = np.array([face.box for _, face in faces], np.float32)
    return {
        "files": tf.constant([str(each.photo) for each in annotations]),
        "photo_of_face": tf.constant(photo_of_face),
        "box_of_face": tf.constant(np.concatenate([np.arange(length) for length in lengths])),
        "logits": tf.constant(np.log(weights / np.maximum(crowd / 16, 1.0)), tf.float32),
        "boxes": tf.RaggedTensor.from_row_lengths(boxes, lengths),
        "weights": tf.RaggedTensor.from_row_lengths(
            (weights / weights.mean()).astype(np.float32), lengths
        ),
    }


def cut_view(
    photo: tf.Tensor,
    boxes: tf.Tensor,
    chosen: tf.Tensor,
    image_size: int,
    view_size: int,
    key: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Cut a random view that shows one face, mirror half of them, and change the colours.

    Args:
        photo: uint8 [height, width, 3].
        boxes: float32 [num_faces, 4] pixels of the photo.
        chosen: Index of the box that the view shows.
        image_size: See `train_views`.
        view_size: Side of the view in pixels.
        key: int64 [2], seed of the draws.

    Returns:
        The view, and all boxes in its pixels; they may lie outside.
    """
    keys = tf.random.experimental.stateless_split(key, 4)
    size = tf.cast(tf.shape(photo)[:2], tf.float32)[::-1]
    low, high = np.log(_SCALES)
    scale = tf.exp(tf.random.stateless_uniform([], keys[0], low, high))
    scale *= image_size / tf.reduce_max(size)
    side = view_size / scale
    start = _place(boxes[chosen], side, size, keys[1])
    view = _cut(photo, start, side, scale, view_size)
    boxes = (boxes - tf.tile(start, [2])) * scale
    flipped = tf.random.stateless_uniform([], keys[2]) < 0.5
    mirrored = boxes * [-1.0, 1.0, -1.0, 1.0] + [view_size, 0.0, view_size, 0.0]
    boxes = tf.where(flipped, tf.gather(mirrored, [2, 1, 0, 3], axis=1), boxes)
    view = tf.where(flipped, view[:, ::-1], view)
    return _change_colors(view, keys[3]), boxes


def _place(box: tf.Tensor, side: tf.Tensor, size: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """Draw the view's first x and y: about the face, and inside the photo where it can be."""
    low = tf.where(side < size, tf.maximum(box[2:] - side, 0.0), size - side)
    high = tf.where(side < size, tf.minimum(box[:2], size - side), 0.0)
    # A face larger than the view has low above high: the view then lies inside the face.
    return tf.round(low + (high - low) * tf.random.stateless_uniform([2], key))


def _cut(
    photo: tf.Tensor, start: tf.Tensor, side: tf.Tensor, scale: tf.Tensor, view_size: int
) -> tf.Tensor:
    """Cut and scale the part of a view that lies in the photo; the rest is black."""
    height, width = tf.unstack(tf.shape(photo)[:2])
    first = tf.cast(tf.maximum(start, 0.0), tf.int32)
    last = tf.cast(tf.math.ceil(start + side), tf.int32)
    part = photo[first[1] : tf.minimum(last[1], height), first[0] : tf.minimum(last[0], width)]
    scaled = tf.cast(tf.round(tf.cast(tf.shape(part)[:2], tf.float32) * scale), tf.int32)
    scaled = tf.clip_by_value(scaled, 1, view_size)
    part = scale_image(part, scaled)
    offset = tf.cast(tf.round(tf.maximum(-start, 0.0) * scale), tf.int32)
    offset = tf.minimum(offset, view_size - scaled[::-1])
    return tf.image.pad_to_bounding_box(part, offset[1], offset[0], view_size, view_size)


def _change_colors(view: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """Change brightness, contrast, saturation and hue, as light and cameras do."""
    keys = tf.random.experimental.stateless_split(key, 4)
    view = tf.image.stateless_random_brightness(view / 255.0, 0.2, keys[0])
    view = tf.image.stateless_random_contrast(view, 0.7, 1.3, keys[1])
    view = tf.image.stateless_random_saturation(tf.clip_by_value(view, 0.0, 1.0), 0.5, 1.5, keys[2])
    view = tf.image.stateless_random_hue(view, 0.04, keys[3])
    return tf.clip_by_value(view, 0.0, 1.0) * 255.0


def draw_target(boxes: tf.Tensor, weights: tf.Tensor, view_size: int) -> tf.Tensor:
    """Draw the target of a view.

    A face is a positive where at least 60 % of it can be seen, at 4 pixels or more.

    Args:
        boxes: float32 [num_faces, 4], pixels of the view; may lie outside.
        weights: float32 [num_faces], weight of the heat of each face.
        view_size: Side of the view in pixels.

    Returns:
        float32 [view_size / 4, view_size / 4, 7], see the module's contract.
    """
    cells = view_size // STRIDE
    visible = tf.clip_by_value(boxes, 0.0, float(view_size))
    sides, shown = boxes[:, 2:] - boxes[:, :2], visible[:, 2:] - visible[:, :2]
    whole = tf.reduce_prod(shown, axis=1) >= 0.6 * tf.reduce_prod(sides, axis=1)
    positive = whole & (tf.reduce_min(shown, axis=1) >= MIN_VISIBLE_SIZE)
    # Where Gaussians are equal the first wins: the smaller face, which has fewer cells.
    order = tf.argsort(tf.reduce_prod(sides, axis=1))
    visible, positive, weights = (
        tf.gather(values, order) for values in (visible, positive, weights)
    )
    heat = _gaussians(visible, cells) * tf.cast(positive, tf.float32)[:, None, None]
    owner = tf.argmax(heat, axis=0)
    highest = tf.reduce_max(heat, axis=0)
    share = highest / tf.maximum(tf.gather(tf.reduce_sum(heat, axis=[1, 2]), owner), 1e-6)
    unclear = tf.reduce_any(_inside(visible, cells) & ~positive[:, None, None], axis=0)
    background = tf.where(unclear, 0.0, 1.0)
    heat_weight = tf.where(highest > 0.0, tf.gather(weights, owner), background)
    # A box without a size has no ratio of sides, and 0 times NaN is NaN.
    boxes = tf.where(highest[..., None] > 0.0, tf.gather(visible, owner), [0.0, 0.0, 1.0, 1.0])
    planes = [highest[..., None], boxes, share[..., None]]
    return tf.concat([*planes, heat_weight[..., None]], axis=-1)


def _gaussians(boxes: tf.Tensor, cells: int) -> tf.Tensor:
    """Return [num_faces, cells, cells]: 1 in the cell of each centre, 0 beyond its central part."""
    center = tf.floor((boxes[:, :2] + boxes[:, 2:]) / (2.0 * STRIDE))
    center = tf.minimum(center, cells - 1.0)
    reach = _CENTRAL_PART * (boxes[:, 2:] - boxes[:, :2]) / STRIDE
    axis = tf.range(cells, dtype=tf.float32)
    profiles = []
    for dimension in (0, 1):
        distance = tf.abs(axis[None] - center[:, dimension, None])
        extent = tf.maximum(reach[:, dimension, None], 1e-3)
        profile = tf.exp(-0.5 * tf.square(distance * _SIGMAS / extent))
        profiles.append(tf.where(distance <= extent / 2.0, profile, 0.0))
    return profiles[1][:, :, None] * profiles[0][:, None, :]


def _inside(boxes: tf.Tensor, cells: int) -> tf.Tensor:
    """Return bool [num_faces, cells, cells]: which cells a box touches."""
    first = STRIDE * tf.range(cells, dtype=tf.float32)
    x = (first < boxes[:, 2:3]) & (first + STRIDE > boxes[:, 0:1])
    y = (first < boxes[:, 3:4]) & (first + STRIDE > boxes[:, 1:2])
    return y[:, :, None] & x[:, None, :]
