"""Grad-CAM: where in a crop the model looked.

Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", arXiv:1610.02391.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import matplotlib
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from fmd_tf.metrics import Predictions
from fmd_tf.model import HEAD_LAYERS, view_size
from fmd_tf.plots import plot_grid
from fmd_tf.row_file import Rows

_SHOWN = 3


def grad_cam(model: keras.Model, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Compute heat maps of what speaks for a class.

    Of a classifier with several views the map is that of the first, the middle of the crop; the
    map is 0 beyond it.

    Args:
        model: A classifier of `fmd_tf.model`.
        images: uint8 or float [num_faces, size, size, 3], RGB 0-255.
        classes: int [num_faces], the class each map is of.

    Returns:
        float32 [num_faces, size, size], 0 to 1.
    """
    to_maps = keras.Model(model.input, model.get_layer("pool").input)
    # As a graph: a plain call would keep the outputs of all layers, of all views, till its end.
    maps = tf.convert_to_tensor(to_maps.predict_on_batch(np.asarray(images, np.float32)))
    multi_view = len(maps) > len(images)
    maps = maps[: len(images)]
    with tf.GradientTape() as tape:
        tape.watch(maps)
        x = maps
        for name in ("pool", *HEAD_LAYERS):
            x = model.get_layer(name)(x, **({"training": False} if "dropout" in name else {}))
        chosen = tf.gather(x, classes, batch_dims=1)
    weights = tf.reduce_mean(tape.gradient(chosen, maps), axis=(1, 2), keepdims=True)
    heat = tf.nn.relu(tf.reduce_sum(weights * maps, axis=-1, keepdims=True))
    heat /= tf.reduce_max(heat, axis=(1, 2), keepdims=True) + 1e-9
    size = images.shape[1]
    seen = view_size(size, multi_view)
    heat = tf.image.resize(heat, [seen, seen])
    return tf.image.resize_with_crop_or_pad(heat, size, size)[..., 0].numpy()


def plot_grad_cam(
    model: keras.Model,
    images: Rows,
    predictions: Predictions,
    class_names: Sequence[str],
) -> Figure:
    """Show crops beside their heat maps: of each class at most 3 right and 3 wrong predictions.

    Args:
        model: A classifier of `fmd_tf.model`.
        images: uint8 [num_faces, size, size, 3], crops of the faces.
        predictions: What the model said about them.
        class_names: Names of the classes, in order.
    """
    right = predictions.predicted == predictions.labels
    rows: list[int] = []
    for label in range(len(class_names)):
        for kind in (right, ~right):
            found = np.flatnonzero(kind & (predictions.labels == label))
            found = found[np.argsort(-predictions.short_sides[found], kind="stable")]
            rows += found[:_SHOWN].tolist()
    heat = grad_cam(model, images[rows], predictions.predicted[rows])
    colors = matplotlib.colormaps["inferno"](heat)[..., :3] * 255
    overlays = np.round(0.5 * images[rows] + 0.5 * colors).astype(np.uint8)
    pictures, titles = [], []
    for row, overlay in zip(rows, overlays, strict=True):
        pictures += [images[row], overlay]
        titles += [
            f"true: {class_names[predictions.labels[row]]}",
            f"{class_names[predictions.predicted[row]]} {predictions.confidences[row]:.2f}",
        ]
    return plot_grid(pictures, titles, columns=6)
