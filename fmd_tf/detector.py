"""The face detector: one class, anchor-free, one map of stride 4.

Contract: input "photo" float32 [batch, height, width, 3], RGB 0-255, height and width multiples
of 32; output float32 [batch, height / 4, width / 4, 5]: a face logit, and the logarithms of the
distances, in cells, from the cell's centre to the left, top, right and bottom border of its
face. All scaling of values is inside.

The network is that of `fmd_tf.centerface`; heat map and boxes follow TTFNet (Liu et al. 2019,
arXiv:1909.00700). `find_faces` is plain TensorFlow, so that evaluation, prediction and the
exported graph find the same faces.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

import keras
import tensorflow as tf

from fmd_tf.input_pipeline import scale_image
from fmd_tf.model import read_archive, write_archive

STRIDE = 4
COARSEST_STRIDE = 32
MAX_FACES = 500
LARGE_FACE = 64
"""Shorter side, in pixels of the photo at full size, of faces that are found at half of it too."""
BOX_LOSS = 2.0
_NEARNESS_POWER = 4.0


@dataclass(frozen=True)
class DetectorCard:
    """What one must know beside the weights to use a detector.

    Attributes:
        image_size: Pixels that the longer side of a photo is scaled to, up or down.
        threshold: Least face score that is a face, chosen on validation photos.
        max_overlap: Of two faces with a higher intersection over union one is dropped.
        training: Where the detector comes from: seed, epoch, validation figures.
    """

    image_size: int
    threshold: float = 0.3
    max_overlap: float = 0.5
    training: dict = field(default_factory=dict)


def cell_boxes(distances: tf.Tensor) -> tf.Tensor:
    """Turn log distances into boxes.

    Args:
        distances: float32 [..., rows, columns, 4], the model's last four channels.

    Returns:
        float32 [..., rows, columns, 4], xmin, ymin, xmax, ymax in pixels of the model's input.
    """
    rows, columns = tf.unstack(tf.shape(distances)[-3:-1])
    x, y = tf.meshgrid(tf.range(columns), tf.range(rows))
    center = tf.cast(tf.stack([x, y], axis=-1), tf.float32) + 0.5
    # A face is at most as large as the photo; without a limit, exp could overflow in training.
    reach = tf.exp(tf.minimum(distances, 6.0))
    return STRIDE * tf.concat([center - reach[..., :2], center + reach[..., 2:]], axis=-1)


def face_loss(target: tf.Tensor, output: tf.Tensor) -> tf.Tensor:
    """Compute the loss of a batch: focal loss of the heat, CIoU loss of the boxes.

    A face's positive is its centre's cell alone; the closer another cell is to it, the less it
    counts as background (Law and Deng 2018, "CornerNet", arXiv:1808.01244). Both are sums over
    cells by the number of faces in the batch, as crowds would else weigh hundreds of times more
    than portraits.

    Args:
        target: float32 [batch, rows, columns, 7], see `fmd_tf.detector_pipeline`.
        output: float32 [batch, rows, columns, 5], the model's output.

    Returns:
        float32 scalar.
    """
    heat, boxes, share, weight = tf.split(tf.cast(target, tf.float32), [1, 4, 1, 1], axis=-1)
    num_faces = tf.maximum(tf.reduce_sum(share), 1.0)
    center = heat == 1.0
    weight *= tf.where(center, 1.0, tf.pow(1.0 - heat, _NEARNESS_POWER))
    focal = keras.losses.BinaryFocalCrossentropy(from_logits=True, reduction="sum")
    overlap = keras.utils.bounding_boxes.compute_ciou(boxes, cell_boxes(output[..., 1:]), "xyxy")
    box_loss = tf.reduce_sum((1.0 - overlap) * share[..., 0])
    return (focal(center, output[..., :1], sample_weight=weight) + BOX_LOSS * box_loss) / num_faces


def find_faces(
    model: keras.Model, card: DetectorCard, photo: tf.Tensor, threshold: float | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Find the faces of one photo, with TensorFlow operations only.

    It is looked at twice. Large faces are found at half of the size too, at a quarter of the
    cost: of one that fills the photo, a training view never shows more than a part.

    Args:
        model: From `centerface.build_detector`, or anything callable like it.
        card: Its card.
        photo: uint8 [height, width, 3] of any size.
        threshold: Least face score; None takes the card's.

    Returns:
        Boxes float32 [num_faces, 4] in pixels of the photo, within it, as in `fmd_tf.boxes`;
        and scores float32 [num_faces], falling. At most `MAX_FACES`; there may be none.
    """
    least = card.threshold if threshold is None else threshold
    boxes, scores = _look(model, photo, card.image_size, least)
    large, large_scores = _look(model, photo, card.image_size // 2, least)
    size = tf.cast(tf.shape(photo)[:2], tf.float32)
    least_side = LARGE_FACE / card.image_size * tf.reduce_max(size)
    is_large = tf.reduce_all(large[:, 2:] - large[:, :2] >= least_side, axis=1)
    boxes = tf.concat([boxes, tf.boolean_mask(large, is_large)], axis=0)
    scores = tf.concat([scores, tf.boolean_mask(large_scores, is_large)], axis=0)
    kept = tf.image.non_max_suppression(boxes, scores, MAX_FACES, card.max_overlap)
    boxes = tf.gather(boxes, kept)
    boxes = tf.clip_by_value(boxes, 0.0, tf.stack([size[1], size[0], size[1], size[0]]))
    real = tf.reduce_all(boxes[:, 2:] > boxes[:, :2], axis=1)
    return tf.boolean_mask(boxes, real), tf.boolean_mask(tf.gather(scores, kept), real)


def _look(
    model: keras.Model, photo: tf.Tensor, image_size: int, threshold: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Find faces at one size, near doubles included: boxes in pixels of the photo, and scores."""
    scaled = scale_photo(photo, image_size)
    output = tf.cast(model(scaled[None], training=False)[0], tf.float32)
    scores = tf.sigmoid(output[..., 0])
    # A face's cell is higher than its eight neighbours: that drops most doubles cheaply.
    highest = tf.nn.max_pool2d(scores[None, ..., None], 3, 1, "SAME")[0, ..., 0]
    peaks = (scores == highest) & (scores >= threshold)
    boxes = tf.boolean_mask(cell_boxes(output[..., 1:]), peaks)
    # Sides are rounded to the coarsest stride, so each has a scale of its own.
    scale = tf.cast(tf.shape(photo)[:2] / tf.shape(scaled)[:2], tf.float32)
    return boxes * tf.stack([scale[1], scale[0], scale[1], scale[0]]), scores[peaks]


def scale_photo(photo: tf.Tensor, image_size: int) -> tf.Tensor:
    """Scale a photo so that its longer side has `image_size` pixels.

    Args:
        photo: uint8 [height, width, 3].
        image_size: Pixels; both sides are rounded to a multiple of 32, at least 32.

    Returns:
        float32 [height, width, 3], values 0-255.
    """
    size = tf.cast(tf.shape(photo)[:2], tf.float32)
    scaled = size * image_size / tf.reduce_max(size)
    multiple = tf.maximum(tf.round(scaled / COARSEST_STRIDE), 1.0) * COARSEST_STRIDE
    return scale_image(photo, tf.cast(multiple, tf.int32))


def save_detector(model: keras.Model, card: DetectorCard, path: Path) -> None:
    """Save detector and card as one `.keras` file, written beside and renamed.

    Args:
        model: The detector.
        card: Its card.
        path: File name ending in `.keras`; replaced where it exists.
    """
    write_archive(model, "detector", asdict(card), path)


def load_detector(path: Path | str) -> tuple[keras.Model, DetectorCard]:
    """Load a detector and its card.

    Args:
        path: A file that `save_detector` wrote.

    Returns:
        The detector, not compiled, and its card.

    Raises:
        ModelError: There is no such file, or it is not a detector of this project.
    """
    return read_archive(Path(path), "detector", DetectorCard, "python -m fmd_tf.train_detector")
