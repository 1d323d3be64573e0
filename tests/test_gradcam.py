import keras
import numpy as np
import pytest

from fmd_tf.gradcam import grad_cam, plot_grad_cam
from fmd_tf.metrics import Predictions
from fmd_tf.model import build_model


def _model() -> keras.Model:
    """A classifier with the layers of `fmd_tf.model` that sees red and green apart.

    The backbone averages 8 x 8 pixels of red and of green; the head answers class 0 by the red
    map and class 1 by the green one.
    """
    image = keras.Input((32, 32, 3), name="image")
    x = keras.layers.Conv2D(2, 8, strides=8, use_bias=False, name="backbone")(image)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.Dropout(0.3, name="head_dropout_1")(x)
    x = keras.layers.Dense(2, activation="relu", name="head_dense")(x)
    x = keras.layers.Dropout(0.3, name="head_dropout_2")(x)
    x = keras.layers.Dense(2, name="logits")(x)
    model = keras.Model(image, keras.layers.Softmax(name="probabilities")(x))
    kernel = np.zeros((8, 8, 3, 2), np.float32)
    kernel[:, :, 0, 0] = kernel[:, :, 1, 1] = 1 / 64
    model.get_layer("backbone").set_weights([kernel])
    for name in ("head_dense", "logits"):
        model.get_layer(name).set_weights([np.eye(2, dtype=np.float32), np.zeros(2)])
    return model


def test_the_map_shows_where_the_class_is():
    images = np.zeros((2, 32, 32, 3), np.uint8)
    images[:, :8, :8, 0] = 200  # Red, top left, speaks for class 0.
    images[:, 24:, 24:, 1] = 200  # Green, bottom right, for class 1.
    heat = grad_cam(_model(), images, np.array([0, 1]))
    assert heat.shape == (2, 32, 32)
    assert heat[0, 2, 2] > 0.9 and heat[0, 29, 29] < 0.1
    assert heat[1, 29, 29] > 0.9 and heat[1, 2, 2] < 0.1


@pytest.mark.usefixtures("shallow_backbone")
def test_the_map_of_several_views_is_that_of_the_middle_one():
    # Of 42 pixels the middle view sees 36, from 3 to 39.
    keras.utils.set_random_seed(0)
    model = build_model("mobilenet", 42, 3, "none", multi_view=True)
    images = np.random.default_rng(0).integers(0, 256, (2, 42, 42, 3), dtype=np.uint8)
    heat = grad_cam(model, images, np.array([0, 1]))
    assert heat.shape == (2, 42, 42)
    assert heat[:, 3:39, 3:39].max() > 0
    heat[:, 3:39, 3:39] = 0
    assert heat.max() == 0


def test_pictures_of_a_real_backbone():
    model = build_model("mobilenet", 32, 3, "none")
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    predictions = Predictions(
        np.array(model(images)),
        np.array([0, 1, 2, 0, 1, 2]),
        np.tile([0, 0, 20, 20], (6, 1)),
        ("a.png",) * 6,
        np.arange(6),
    )
    figure = plot_grad_cam(model, images, predictions, ("a", "b", "c"))
    assert sum(bool(axis.get_title()) for axis in figure.axes) == 12
