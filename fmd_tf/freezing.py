"""Models made fast where they only answer: batch norm folded away, weights as constants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from fmd_tf.model import weighted_layers

_CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)


def freeze(call: Callable[..., Any], *signature: tf.TensorSpec) -> Callable[..., Any]:
    """Make the weights constants: a third less processor time, and sessions load it.

    Args:
        call: TensorFlow operations, Keras models and what `outside_graph` returned.
        signature: Shapes and dtypes of its arguments.

    Returns:
        The same function as it is now, whatever becomes of the weights. It takes tensors by
        position and returns a list of tensors.
    """
    traced = tf.function(call, input_signature=signature).get_concrete_function()
    frozen = convert_variables_to_constants_v2(traced)
    # What a graph asks of Python goes with the graph that was traced.
    frozen.traced = traced
    return frozen


def outside_graph(
    predict: Callable[[np.ndarray], np.ndarray], shape: Sequence[int | None]
) -> Callable[..., tf.Tensor]:
    """Let a graph ask another runtime, where it would call a Keras model.

    Args:
        predict: From float32 images [batch, height, width, 3] to float32.
        shape: Of what it returns, None where it varies.

    Returns:
        A function to be called as a model; only in the process that made it.
    """

    def call(images: tf.Tensor, training: bool = False) -> tf.Tensor:
        return tf.ensure_shape(tf.numpy_function(predict, [images], tf.float32), shape)

    return call


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """Copy a model for inference, its batch norm made part of the convolutions before it.

    TensorFlow folds it into weights of a graph by itself, but not into those of depthwise
    convolutions: without this a fifth of MobileNetV2's time goes there.

    Args:
        model: A functional model; models in it are copied too. What a convolution gives to batch
            norm it gives to nothing else, as in Keras' applications.

    Returns:
        A model that answers as it does in inference, to rounding.
    """
    layers = weighted_layers(model)
    norms = {
        str(PurePosixPath(path).with_name(layer.input._keras_history.operation.name)): layer
        for path, layer in layers.items()
        if _is_foldable(layer)
    }
    # Cloning knows layers by name alone; the members of an ensemble that share names are alike.
    followed = {PurePosixPath(path).name for path in norms}
    dropped = {norm.name for norm in norms.values()}

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        bias = {"use_bias": True} if layer.name in followed else {}
        return type(layer).from_config({**layer.get_config(), **bias})

    def call(layer: keras.layers.Layer, image: Any, *args: Any, **kwargs: Any) -> Any:
        return image if layer.name in dropped else layer(image, *args, **kwargs)

    # A model of the same layers is not compiled, so its loss need not be copied.
    bare = keras.Model(model.input, model.output, name=model.name)
    folded = keras.models.clone_model(
        bare, clone_function=clone, call_function=call, recursive=True
    )
    for path, layer in weighted_layers(folded).items():
        source, norm = layers[path], norms.get(path)
        layer.set_weights(_folded_weights(source, norm) if norm else source.get_weights())
    return folded


def _is_foldable(layer: keras.layers.Layer) -> bool:
    """Tell whether it is batch norm right after a convolution."""
    if not (isinstance(layer, keras.layers.BatchNormalization) and layer.scale and layer.center):
        return False
    before = layer.input._keras_history.operation
    return isinstance(before, _CONVOLUTIONS) and before.activation is keras.activations.linear


def _folded_weights(
    convolution: keras.layers.Layer, norm: keras.layers.BatchNormalization
) -> list[tf.Tensor]:
    """Return kernel and bias of a convolution that does what the norm did after it."""
    factor = norm.gamma / tf.sqrt(norm.moving_variance + norm.epsilon)
    bias = convolution.bias if convolution.use_bias else 0.0
    is_depthwise = isinstance(convolution, keras.layers.DepthwiseConv2D)
    # A depthwise kernel has the output channels of each input channel on an axis of their own.
    shape = convolution.kernel.shape[2:] if is_depthwise else [-1]
    kernel = convolution.kernel * tf.reshape(factor, shape)
    return [kernel, norm.beta + (bias - norm.moving_mean) * factor]
