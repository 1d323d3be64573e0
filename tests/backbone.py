"""Shallow stand-ins for MobileNetV2 and the detector, for tests of what is done with a network.

TensorFlow takes half a minute to trace a training of the real one, whose 154 layers a test of
folds or of a killed run is not about. The notebook's test trains the real one, as classifier and
as detector, and the tests of `model`, `detector`, `export` and `freezing` build it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import pytest

from fmd_tf import centerface, model

# Layers at strides 4 to 32, and their channels.
_STAGES = {
    "block_3_expand_relu": 16,
    "block_6_expand_relu": 16,
    "block_13_expand_relu": 24,
    "out_relu": 32,
}
_DETECTOR_STAGES = tuple((2, 8, 2, stride) for stride in (1, 2, 2, 2, 1, 2, 1))


def shallow_mobilenet(
    input_shape: tuple[int | None, int | None, int], name: str, **_: Any
) -> keras.Model:
    """Build a network of MobileNetV2's kinds of layers, strides and names, five stages deep."""
    image = keras.Input(input_shape)
    x = _stage(image, keras.layers.Conv2D(8, 3, 2, "same", use_bias=False), "Conv1_relu")
    for stage, channels in _STAGES.items():
        x = _stage(x, keras.layers.DepthwiseConv2D(3, 2, "same", use_bias=False), f"{stage}_dw")
        x = _stage(x, keras.layers.Conv2D(channels, 1, use_bias=False), stage)
    return keras.Model(image, x, name=name)


def _stage(x: keras.KerasTensor, convolution: keras.layers.Layer, name: str) -> keras.KerasTensor:
    x = keras.layers.BatchNormalization(epsilon=1e-3)(convolution(x))
    return keras.layers.ReLU(6.0, name=name)(x)


def make_shallow(patch: pytest.MonkeyPatch) -> None:
    """Let "mobilenet" be the shallow one, also in a file of its weights, and the detector too."""
    shallow = replace(model._BACKBONES["mobilenet"], build=shallow_mobilenet)
    patch.setitem(model._BACKBONES, "mobilenet", shallow)
    patch.setattr(centerface, "_STAGES", _DETECTOR_STAGES)
