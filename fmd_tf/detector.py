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

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import keras
import tensorflow as tf

from fmd_tf.centerface import FINEST, Network, load_weights
from fmd_tf.config import CENTERFACE, IMAGENET, NO_WEIGHTS
from fmd_tf.freezing import fold_batch_norm
from fmd_tf.input_pipeline import scale_image
from fmd_tf.model import load_backbone, read_archive, weighted_layers, write_archive

STRIDE = 4
COARSEST_STRIDE = 32
MAX_FACES = 500
LARGE_FACE = 64
"""Shorter side, in pixels of the photo at full size, of faces that are found at half of it too."""
BOX_LOSS = 2.0
# The share of faces is small, so the first predictions should be small too (Lin et al. 2017,
# "Focal Loss for Dense Object Detection", arXiv:1708.02002).
_FIRST_LOGIT = -4.6
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


def build_detector(weights: str = CENTERFACE, is_loaded: bool = True) -> keras.Model:
    """Build the detector.

    The kind of its weights settles its activation: MobileNetV2's are for one that ends at 6.

    Args:
        weights: "centerface" (its published ones, downloaded), "imagenet" (of Keras' MobileNetV2,
            downloaded by Keras), "none" (random), or the path of a file of the one (`.onnx`)
            or the other (`.weights.h5`).
        is_loaded: False leaves the network for these weights at random ones; default True.

    Returns:
        A functional model for photos of any size, see the module's contract.

    Raises:
        ModelError: Weights that cannot be had.
    """
    is_imagenet = weights == IMAGENET or weights.endswith(".weights.h5")
    photo = keras.Input((None, None, 3), name="photo", dtype="float32")
    network = Network("relu6" if is_imagenet else "relu")
    x = keras.layers.Rescaling(1 / 255, name="scale")(photo)
    x = network.merge(network.extract(x))
    score = _predict(x, 1, _FIRST_LOGIT, "score")
    distances = _predict(x, 4, 1.0, "distances")
    output = keras.layers.Concatenate(name="faces", dtype="float32")([score, distances])
    model = keras.Model(photo, output, name="detector")
    if is_loaded and is_imagenet:
        _load_mobilenet(network.layers, weights)
    elif is_loaded and weights != NO_WEIGHTS:
        heads = [model.get_layer(name) for name in ("score", "distances")]
        load_weights([*network.layers, *heads], weights)
    return model


def _predict(x: keras.KerasTensor, channels: int, first: float, name: str) -> keras.KerasTensor:
    """Predict in each cell, close to `first` before training: exp of a large value explodes."""
    return keras.layers.Conv2D(
        channels,
        1,
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
        bias_initializer=keras.initializers.Constant(first),
        name=name,
    )(x)


def _load_mobilenet(layers: Sequence[keras.layers.Layer], weights: str) -> None:
    """Load ImageNet's weights of MobileNetV2, batch norm made part of them, but for the last."""
    folded = fold_batch_norm(load_backbone("mobilenet", None, weights))
    arrays = [layer.get_weights() for layer in weighted_layers(folded).values()][:-1]
    # They are for values of -1 to 1, and here 0 to 1 come in.
    kernel, bias = arrays[0]
    arrays[0] = [2.0 * kernel, bias - kernel.sum(axis=(0, 1, 2))]
    for layer, values in zip(layers, arrays, strict=False):
        layer.set_weights(values)


def freeze_first_layers(model: keras.Model) -> None:
    """Leave the layers up to the finest feature as they are; recompile afterwards.

    Their edges and colours need no training, and without their gradients, which are those of the
    largest maps, a step takes four fifths of the time.

    Args:
        model: From `build_detector`.
    """
    for layer in model.layers[: model.layers.index(model.get_layer(FINEST))]:
        layer.trainable = False


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
        model: From `build_detector`, or anything callable like it.
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


def load_detector(
    path: Path | str, image_size: int | None = None
) -> tuple[keras.Model, DetectorCard]:
    """Load a detector and its card.

    Args:
        path: A file that `save_detector` wrote.
        image_size: Look at photos at another size than it was trained for, see `DetectorCard`.

    Returns:
        The detector, not compiled, and its card.

    Raises:
        ModelError: There is no such file, or it is not a detector of this project.
    """
    model, card = read_archive(
        Path(path), "detector", DetectorCard, "python -m fmd_tf.train_detector"
    )
    return model, replace(card, image_size=image_size or card.image_size)
