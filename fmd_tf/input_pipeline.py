"""Photos to face crops, and crops to batches.

Contract: a photo is uint8 RGB [height, width, 3]; a box is (xmin, ymin, xmax, ymax) in pixels
of its photo, as in `fmd_tf.boxes`; a crop is uint8 RGB [image_size, image_size, 3] with values
0-255. No scaling happens here: it lives inside the model. `crop_faces` is plain TensorFlow, so
that training, prediction and the exported graph cut faces with the same operations.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from fmd_tf.exif import read_orientation, turn_upright
from fmd_tf.row_file import RowFile, Rows


@dataclass(frozen=True)
class Crops:
    """Face crops, row `i` of every field belonging to face `i`.

    Attributes:
        images: uint8 [num_faces, image_size, image_size, 3], RGB 0-255, on disk: indexing reads.
        labels: int32 [num_faces], indices into the class names.
        boxes: int32 [num_faces, 4], pixels of the photo, not padded.
        photos: File name of each face's photo.
        groups: int64 [num_faces], group of the photo: what must not be split.
        group_of_photo: Group of every photo that was read, those without faces too.
    """

    images: RowFile
    labels: np.ndarray
    boxes: np.ndarray
    photos: tuple[str, ...]
    groups: np.ndarray
    group_of_photo: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, photo_names: Collection[str]) -> Crops:
        """Return the faces of these photos, in the order they have here."""
        names = set(photo_names)
        return self._take(np.array([photo in names for photo in self.photos], dtype=bool))

    def at_least(self, min_face_size: int) -> Crops:
        """Return the faces whose shorter box side has at least so many pixels."""
        return self._take((self.boxes[:, 2:] - self.boxes[:, :2]).min(axis=1) >= min_face_size)

    def _take(self, keep: np.ndarray) -> Crops:
        return Crops(
            images=self.images.where(keep),
            labels=self.labels[keep],
            boxes=self.boxes[keep],
            photos=tuple(np.array(self.photos, dtype=object)[keep]),
            groups=self.groups[keep],
            group_of_photo=self.group_of_photo,
        )


def decode_photo(image_bytes: tf.Tensor) -> tf.Tensor:
    """Decode one JPEG, PNG, WebP, BMP or GIF (first frame) in the graph.

    Args:
        image_bytes: Scalar string, the encoded photo. EXIF rotation is not applied.

    Returns:
        uint8 [height, width, 3], RGB.

    Raises:
        tf.errors.InvalidArgumentError: The bytes are not such an image.
    """
    photo = tf.io.decode_image(image_bytes, channels=3, expand_animations=False)
    return tf.ensure_shape(photo, [None, None, 3])


def decode_upright(image_bytes: tf.Tensor) -> tf.Tensor:
    """Decode one photo and turn it as its camera says, in the graph.

    Training photos must be stored upright (`fmd_tf.voc` refuses others), so this is what
    prediction decodes with: on them it is `decode_photo`.

    Args:
        image_bytes: Scalar string, as for `decode_photo`.

    Returns:
        uint8 [height, width, 3], RGB, upright.

    Raises:
        tf.errors.InvalidArgumentError: The bytes are not such an image.
    """
    return turn_upright(decode_photo(image_bytes), read_orientation(image_bytes))


def crop_windows(boxes: tf.Tensor, padding: float, square: bool) -> tf.Tensor:
    """Grow face boxes to the windows that are cut out.

    Args:
        boxes: [num_faces, 4] pixels.
        padding: Part of the box's width and height added on each side.
        square: Grow the shorter side to the longer one, about the same centre, so that the
            face is not squashed and more of its surroundings is seen.

    Returns:
        int32 [num_faces, 4], at least one pixel wide and high; may reach beyond the photo.
    """
    boxes = tf.cast(tf.ensure_shape(boxes, [None, 4]), tf.float32)
    center = (boxes[:, :2] + boxes[:, 2:]) / 2.0
    size = (boxes[:, 2:] - boxes[:, :2]) * (1.0 + 2.0 * padding)
    if square:
        size = tf.repeat(tf.reduce_max(size, axis=1, keepdims=True), 2, axis=1)
    size = tf.maximum(tf.round(size), 1.0)
    start = tf.floor(center - size / 2.0 + 0.5)
    return tf.cast(tf.concat([start, start + size], axis=1), tf.int32)


def crop_faces(
    photo: tf.Tensor,
    boxes: tf.Tensor,
    image_size: int,
    padding: float = 0.2,
    square: bool = True,
) -> tf.Tensor:
    """Cut the faces out of one photo and resize them, with TensorFlow operations only.

    A window that reaches beyond the photo repeats the photo's edge. Resizing is bilinear with
    antialiasing.

    Args:
        photo: uint8 [height, width, 3].
        boxes: [num_faces, 4] pixels; `num_faces` may be 0.
        image_size: Side of the crops in pixels.
        padding: Part of the box's size added on each side.
        square: Cut squares, see `crop_windows`.

    Returns:
        uint8 [num_faces, image_size, image_size, 3].
    """
    return tf.map_fn(
        lambda window: _cut(photo, window, image_size),
        crop_windows(boxes, padding, square),
        fn_output_signature=tf.TensorSpec([image_size, image_size, 3], tf.uint8),
    )


def _cut(photo: tf.Tensor, window: tf.Tensor, image_size: int) -> tf.Tensor:
    """Cut one window out of a photo, repeating the photo's edge beyond it."""
    height, width = tf.unstack(tf.shape(photo)[:2])
    xmin, ymin, xmax, ymax = tf.unstack(window)
    rows = tf.clip_by_value(tf.range(ymin, ymax), 0, height - 1)
    columns = tf.clip_by_value(tf.range(xmin, xmax), 0, width - 1)
    crop = tf.gather(tf.gather(photo, rows, axis=0), columns, axis=1)
    crop = scale_image(crop, tf.constant([image_size, image_size]))
    return tf.cast(tf.round(crop), tf.uint8)


def scale_image(image: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Scale bilinearly, with antialiasing where a side gets smaller.

    Args:
        image: uint8 or float32 [height, width, 3].
        size: int32 [2], the new height and width.

    Returns:
        float32 [*size, 3].
    """
    # Upwards both ways give the same but for rounding, and the plain one takes a third of the time.
    return tf.cond(
        tf.reduce_all(tf.shape(image)[:2] <= size),
        lambda: tf.image.resize(image, size),
        lambda: tf.image.resize(image, size, antialias=True),
    )


def load_crops(
    photos: tf.data.Dataset,
    image_size: int,
    padding: float = 0.2,
    square: bool = True,
) -> Crops:
    """Decode each photo once and keep all its face crops on disk.

    Args:
        photos: The examples of `fmd_tf.face_mask_dataset.load_photos`.
        image_size: Side of the crops in pixels.
        padding: Part of the box's size added on each side.
        square: Cut squares, see `crop_windows`.

    Returns:
        The crops, in the order of the photos and of the faces in them.
    """

    def crop_photo(example: dict) -> dict:
        boxes = example["faces"]["bbox"]
        return {
            "images": crop_faces(example["image"], boxes, image_size, padding, square),
            "labels": tf.cast(example["faces"]["label"], tf.int32),
            "boxes": tf.cast(boxes, tf.int32),
            "photo": example["image/filename"],
            "group": tf.cast(example["group"], tf.int64),
        }

    cropped = run_ahead(photos.map(crop_photo, tf.data.AUTOTUNE))
    return _gather_crops(cropped.as_numpy_iterator(), image_size)


def _gather_crops(cropped: Iterator[dict], image_size: int) -> Crops:
    """Gather the crops of photos; the first, empty rows keep the shapes of no photo."""
    images = RowFile((image_size, image_size, 3), np.uint8)
    labels, boxes = [np.zeros(0, np.int32)], [np.zeros((0, 4), np.int32)]
    groups, photos = [np.zeros(0, np.int64)], list[str]()
    group_of_photo = {}
    for example in cropped:
        num_faces = len(example["labels"])
        images.append(example["images"])
        labels.append(example["labels"])
        boxes.append(example["boxes"])
        groups.append(np.full(num_faces, example["group"], np.int64))
        photos += [example["photo"].decode()] * num_faces
        group_of_photo[example["photo"].decode()] = int(example["group"])
    return Crops(
        images=images,
        labels=np.concatenate(labels),
        boxes=np.concatenate(boxes),
        photos=tuple(photos),
        groups=np.concatenate(groups),
        group_of_photo=group_of_photo,
    )


def sampling_weights(labels: np.ndarray, num_classes: int, balance: float) -> np.ndarray:
    """Return the part of an epoch that each face gets.

    Args:
        labels: int [num_faces].
        num_classes: Number of classes.
        balance: 0 draws faces as they come, 1 draws all classes equally often; 0.5, the square
            root of the class counts, lies between (Mahajan et al. 2018, arXiv:1805.00932).

    Returns:
        float64 [num_faces], summing to 1.
    """
    counts = np.bincount(labels, minlength=num_classes)
    weights = 1.0 / counts[labels].astype(np.float64) ** balance
    return weights / weights.sum()


def train_dataset(
    images: Rows,
    labels: np.ndarray,
    num_classes: int,
    batch_size: int,
    seed: int,
    balance: float = 0.0,
    first_epoch: int = 0,
) -> tf.data.Dataset:
    """Make endless training batches whose order depends only on the seed and the epoch.

    An epoch has as many faces as `images`. Each face appears `floor` or `ceil` of its expected
    number of times (systematic resampling), so with `balance=0` exactly once.

    Args:
        images: [num_faces, ...], crops or features.
        labels: int [num_faces].
        num_classes: Length of the one-hot labels.
        batch_size: Rows a batch; the last batch of an epoch may be smaller.
        seed: Seed of the order.
        balance: See `sampling_weights`.
        first_epoch: Epoch to start at: a resumed run sees the batches it would have seen.

    Returns:
        Batches (rows of `images`, float32 one-hot [batch, num_classes]), without end;
        `steps_per_epoch` of them make an epoch.
    """
    weights = sampling_weights(labels, num_classes, balance)
    with tf.device("CPU"):
        one_hot = tf.one_hot(labels, num_classes)

    def epoch_batches(epoch: tf.Tensor) -> tf.data.Dataset:
        order = _epoch_order(weights, labels, seed, epoch)
        return tf.data.Dataset.from_tensor_slices(order).batch(batch_size)

    epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
    return run_ahead(
        epochs.flat_map(epoch_batches).map(
            lambda rows: (_read_rows(images, rows), tf.gather(one_hot, rows))
        )
    )


def _epoch_order(weights: np.ndarray, labels: np.ndarray, seed: int, epoch: tf.Tensor) -> tf.Tensor:
    """Draw the face indices of one epoch, in random order."""
    num_faces = len(weights)
    seeds = tf.random.experimental.stateless_split([tf.cast(seed, tf.int64), epoch], num=3)
    # Faces in random order within their class, so that each class gets its share.
    within = tf.random.stateless_uniform([num_faces], seeds[0], dtype=tf.float64)
    shuffled = tf.argsort(within + labels)
    borders = tf.cumsum(tf.gather(tf.constant(weights), shuffled))
    offset = tf.random.stateless_uniform([], seeds[1], dtype=tf.float64)
    points = (tf.range(num_faces, dtype=tf.float64) + offset) / num_faces
    drawn = tf.minimum(tf.searchsorted(borders, points, side="right"), num_faces - 1)
    order = tf.argsort(tf.random.stateless_uniform([num_faces], seeds[2], dtype=tf.float64))
    return tf.gather(tf.gather(shuffled, drawn), order)


def steps_per_epoch(num_faces: int, batch_size: int) -> int:
    """Return the number of batches of an epoch, the remainder counted."""
    return -(-num_faces // batch_size)


def eval_dataset(
    images: Rows,
    batch_size: int,
    labels: np.ndarray | None = None,
    num_classes: int = 0,
    chosen: range | None = None,
) -> tf.data.Dataset:
    """Make batches for evaluation: the order is kept and no row is dropped.

    TensorFlow keeps what a data set reads from for as long as the process lives, so of large
    data `chosen` must choose a part, and not `images[start:stop]`.

    Args:
        images: [num_faces, ...], crops or features.
        batch_size: Rows a batch.
        labels: int [num_faces]; without them the batches are images alone.
        num_classes: Length of the one-hot labels.
        chosen: The rows that are wanted; None for all.

    Returns:
        Batches of images, or (images, float32 one-hot labels).
    """
    chosen = range(len(images)) if chosen is None else chosen
    batches = tf.data.Dataset.range(chosen.start, chosen.stop).batch(batch_size)
    if labels is None:
        dataset = batches.map(lambda rows: _read_rows(images, rows))
    else:
        with tf.device("CPU"):
            one_hot = tf.one_hot(labels, num_classes)
        dataset = batches.map(lambda rows: (_read_rows(images, rows), tf.gather(one_hot, rows)))
    return run_ahead(dataset)


def run_ahead(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Prepare elements while others are used, without TensorFlow's tuner of data sets.

    The tuner's thread sleeps for twice as long each time, up to a minute, and an iterator that
    ends may have to wait until it wakes: 689 photos took 2.7 s instead of 1.6 s in half of the
    runs. Without it `tf.data.AUTOTUNE` is the number of cores.

    Args:
        dataset: The last stage of a pipeline.

    Returns:
        The same elements in the same order.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.prefetch(2).with_options(options)


def _read_rows(images: Rows, rows: tf.Tensor) -> tf.Tensor:
    """Read a batch of rows from wherever they are."""
    batch = tf.numpy_function(lambda indices: images[indices], [rows], tf.as_dtype(images.dtype))
    return tf.ensure_shape(batch, [None, *images.shape[1:]])
