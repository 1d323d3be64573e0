"""Random augmentation as Keras layers: float RGB 0-255 [batch, height, width, 3] in and out.

The layers act in training only and run where the model runs. Each keeps the value range, so a
crop can be looked at after any of them.
"""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from fmd_tf import experiments

LOW_RESOLUTIONS = (8, 10, 12, 16, 20, 24, 32, 48)
"""Face sizes in pixels that `LowResolution` simulates; the data's median face has 21."""


def resampling_matrix(size: int, low: int) -> np.ndarray:
    """Return the linear map that shrinks a line of pixels to `low` and enlarges it again.

    Args:
        size: Number of pixels of the line.
        low: Number of pixels in between; `size` or more gives the identity.

    Returns:
        float32 [size, size]; rows sum to 1. Shrinking averages areas, enlarging is linear.
    """
    if low >= size:
        return np.eye(size, dtype=np.float32)
    edges = np.arange(size + 1) * low / size
    cells = np.arange(low)[:, None]
    overlap = np.minimum(edges[1:], cells + 1) - np.maximum(edges[:-1], cells)
    shrink = np.clip(overlap, 0.0, None)
    centers = np.clip((np.arange(size) + 0.5) * low / size - 0.5, 0.0, low - 1.0)
    enlarge = np.clip(1.0 - np.abs(centers[:, None] - np.arange(low)), 0.0, None)
    return (enlarge @ shrink).astype(np.float32)


@keras.saving.register_keras_serializable(package="fmd_tf")
class LowResolution(keras.layers.Layer):
    """Make some crops look as if the face had been only a few pixels wide.

    Shrinking and enlarging are linear, so each crop is multiplied from both sides by a matrix
    drawn from a fixed table: shapes stay static, and the layer compiles under XLA.

    Args:
        probability: Part of the crops that are changed; default 0.3.
        seed: Seed of the draws.
    """

    def __init__(self, probability: float = 0.3, seed: int | None = None, **kwargs: object):
        super().__init__(**kwargs)
        self.probability = probability
        self.seed = seed
        self.generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape: tuple) -> None:
        """Compute the table of matrices for the crop size."""
        size = input_shape[1]
        table = [resampling_matrix(size, low) for low in (*LOW_RESOLUTIONS, size)]
        self.table = np.stack(table)

    def call(self, images: keras.KerasTensor, training: bool = False) -> keras.KerasTensor:
        """Return the images, some of them at low resolution when training."""
        if not training:
            return images
        batch = ops.shape(images)[0]
        changed = keras.random.uniform([batch], seed=self.generator) < self.probability
        drawn = keras.random.randint([batch], 0, len(LOW_RESOLUTIONS), seed=self.generator)
        rows = ops.where(changed, drawn, len(LOW_RESOLUTIONS))
        matrices = ops.take(ops.cast(self.table, images.dtype), rows, axis=0)
        images = ops.einsum("bij,bjwc->biwc", matrices, images)
        return ops.einsum("bij,bhjc->bhic", matrices, images)

    def get_config(self) -> dict:
        """Return the constructor's arguments."""
        return {**super().get_config(), "probability": self.probability, "seed": self.seed}


def build_augmentation(image_size: int, seed: int) -> keras.Sequential:
    """Build the training augmentation.

    Args:
        image_size: Side of the crops in pixels.
        seed: Seed; each layer draws from its own stream.

    Returns:
        Model from float32 [batch, image_size, image_size, 3], RGB 0-255, to the same.
    """
    layers = keras.layers
    low = [LowResolution(seed=seed + 6, dtype="float32")]
    if "no_low_resolution" in experiments.ACTIVE:
        low = []
    return keras.Sequential(
        [
            keras.Input((image_size, image_size, 3)),
            layers.RandomFlip("horizontal", seed=seed, dtype="float32"),
            layers.RandomRotation(0.04, fill_mode="nearest", seed=seed + 1, dtype="float32"),
            layers.RandomTranslation(
                0.08, 0.08, fill_mode="nearest", seed=seed + 2, dtype="float32"
            ),
            layers.RandomZoom((-0.15, 0.15), fill_mode="nearest", seed=seed + 3, dtype="float32"),
            layers.RandomBrightness(0.2, seed=seed + 4, dtype="float32"),
            layers.RandomContrast(0.25, value_range=(0, 255), seed=seed + 5, dtype="float32"),
            *experiments.more_augmentation(seed + 7),
            *low,
        ],
        name="augmentation",
    )
