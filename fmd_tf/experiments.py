"""Changes to the recipe that are being compared; what does not help will not stay."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

ACTIVE: set[str] = set()
"""Names of the experiments of this run, set once by the trainer."""

NAMES = (
    "area",
    "batch_norm",
    "bicubic",
    "color",
    "erasing",
    "focal",
    "grayscale",
    "hue",
    "lanczos3",
    "logit_adjustment",
    "mixup",
    "cutmix",
    "no_low_resolution",
    "stem_stride",
    "top_half",
)


def resize_method() -> str:
    """Return the filter that crops are resized with."""
    return next(iter(ACTIVE & {"area", "bicubic", "lanczos3"}), "bilinear")


def more_augmentation(seed: int) -> list[keras.layers.Layer]:
    """Return layers that are added to the augmentation."""
    layers = keras.layers
    made = {
        "color": lambda: [
            layers.RandomColorJitter(
                value_range=(0, 255),
                hue_factor=0.08,
                saturation_factor=(0.3, 0.7),
                seed=seed,
                dtype="float32",
            )
        ],
        "hue": lambda: [
            layers.RandomHue(0.5, value_range=(0, 255), seed=seed, dtype="float32"),
        ],
        "grayscale": lambda: [layers.RandomGrayscale(0.2, seed=seed, dtype="float32")],
        "erasing": lambda: [
            layers.RandomErasing(
                factor=0.5, scale=(0.02, 0.2), value_range=(0, 255), seed=seed, dtype="float32"
            )
        ],
    }
    return [layer for name, make in made.items() if name in ACTIVE for layer in make()]


def make_loss(labels: np.ndarray, num_classes: int, smoothing: float) -> keras.losses.Loss:
    """Return the loss on logits."""
    if "focal" in ACTIVE:
        return keras.losses.CategoricalFocalCrossentropy(
            from_logits=True, label_smoothing=smoothing
        )
    plain = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing)
    if "logit_adjustment" not in ACTIVE:
        return plain
    counts = np.bincount(labels, minlength=num_classes)
    prior = np.log(counts / counts.sum()).astype(np.float32)

    class Adjusted(keras.losses.Loss):
        def call(self, y_true: object, y_pred: object) -> object:
            return keras.losses.categorical_crossentropy(
                y_true, y_pred + prior, from_logits=True, label_smoothing=smoothing
            )

    return Adjusted()


def mix(images: tf.Tensor, labels: tf.Tensor, seed: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Mix the faces of a batch with one another."""
    images = tf.cast(images, tf.float32)
    if images.shape.rank != 4 or not ACTIVE & {"mixup", "cutmix"}:
        return images, labels
    batch = tf.shape(images)[0]
    if "mixup" in ACTIVE:
        # Beta(0.2, 0.2) from two gamma draws.
        gammas = tf.random.gamma([2, batch], 0.2, seed=seed) + 1e-6
        part = gammas[0] / (gammas[0] + gammas[1])
        part = tf.maximum(part, 1 - part)
        weight = part[:, None, None, None]
        mixed = weight * images + (1 - weight) * tf.reverse(images, [0])
    else:
        side = tf.cast(images.shape[1], tf.float32)
        used = tf.cast(tf.random.uniform([batch, 1], seed=seed) < 0.5, tf.float32)
        low = tf.random.uniform([batch, 2], seed=seed + 1) * side * 0.8
        length = tf.random.uniform([batch, 1], 0.1, 0.5, seed=seed + 2) * side * used
        pixel = tf.range(side)[None]
        rows = tf.cast((pixel >= low[:, :1]) & (pixel < low[:, :1] + length), tf.float32)
        columns = tf.cast((pixel >= low[:, 1:]) & (pixel < low[:, 1:] + length), tf.float32)
        mask = (rows[:, :, None] * columns[:, None, :])[..., None]
        mixed = images * (1 - mask) + tf.reverse(images, [0]) * mask
        part = 1 - tf.reduce_mean(mask, axis=[1, 2, 3])
    return mixed, part[:, None] * labels + (1 - part[:, None]) * tf.reverse(labels, [0])


def change_backbone(model: keras.Model) -> keras.Model:
    """Let the first convolution keep the resolution."""
    if "stem_stride" not in ACTIVE:
        return model
    config = model.get_config()
    for layer in config["layers"]:
        if layer["config"]["name"] == "Conv1":
            layer["config"]["strides"] = (1, 1)
    changed = keras.Model.from_config(config)
    changed.set_weights(model.get_weights())
    return changed
