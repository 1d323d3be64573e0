import gc

import keras
import numpy as np
import pytest
import tensorflow as tf

from fmd_tf.freezing import fold_batch_norm, freeze, outside_graph
from fmd_tf.model import MODEL_NAMES, build_model, features_model, weighted_layers

IMAGES = np.random.default_rng(0).uniform(0, 255, (3, 64, 64, 3)).astype(np.float32)


def learn_statistics(model: keras.Model) -> None:
    """Give batch norm other statistics than the 0 and 1 that it begins with."""
    generator = np.random.default_rng(0)
    for layer in weighted_layers(model).values():
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.gamma.shape
            layer.set_weights([generator.uniform(0.8, 1.2, size) for _ in range(4)])


def count(model: keras.Model, kind: type) -> int:
    return sum(isinstance(layer, kind) for layer in weighted_layers(model).values())


def test_a_graph_asks_another_runtime():
    asked = []

    def predict(images: np.ndarray) -> np.ndarray:
        asked.append(images.shape)
        return images.mean(axis=(1, 2))

    model = outside_graph(predict, [None, 3])
    graph = freeze(lambda images: [2.0 * model(images, training=False)], tf.TensorSpec([None] * 4))
    gc.collect()
    for number in (1, 3):
        (answer,) = graph(tf.constant(IMAGES[:number]))
        assert answer.numpy() == pytest.approx(2 * IMAGES[:number].mean(axis=(1, 2)), rel=1e-5)
    assert asked == [(1, 64, 64, 3), (3, 64, 64, 3)]


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_a_folded_classifier_answers_alike(name: str):
    model = build_model(name, 64, 3, "none")
    learn_statistics(model)
    folded = fold_batch_norm(model)
    assert count(model, keras.layers.BatchNormalization) > 40
    assert count(folded, keras.layers.BatchNormalization) == 0
    # The features, as random weights make the same probabilities of all images.
    expected, found = (features_model(each).predict(IMAGES, verbose=0) for each in (model, folded))
    assert np.abs(expected).max() > 0.5
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_two_outputs_of_each_channel_fold_alike():
    image = keras.Input((8, 8, 3))
    x = keras.layers.DepthwiseConv2D(3, depth_multiplier=2)(image)
    model = keras.Model(image, keras.layers.BatchNormalization()(x))
    learn_statistics(model)
    folded = fold_batch_norm(model)
    assert count(folded, keras.layers.BatchNormalization) == 0
    expected, found = (each(IMAGES[:, :8, :8]).numpy() for each in (model, folded))
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_what_is_no_convolution_keeps_its_batch_norm():
    image = keras.Input((4, 4, 3))
    norm, convolve = keras.layers.BatchNormalization(), keras.layers.Conv2D(2, 3, activation="relu")
    after = keras.layers.BatchNormalization()
    model = keras.Model(image, after(convolve(norm(image))))
    model.compile(loss=lambda true, found: keras.ops.mean(true - found))  # Not to be copied.
    learn_statistics(model)
    folded = fold_batch_norm(model)
    assert count(folded, keras.layers.BatchNormalization) == 2
    image = IMAGES[:, :4, :4]
    assert folded(image).numpy() == pytest.approx(model(image).numpy(), abs=1e-5)


def test_a_frozen_function_keeps_its_weights():
    weight = tf.Variable(2.0)
    double = freeze(lambda x: weight * x, tf.TensorSpec([], tf.float32))
    weight.assign(3.0)
    assert double(tf.constant(4.0))[0].numpy() == 8.0
