import keras
import numpy as np
import tensorflow as tf
from keras.src.trainers.trainer import model_supports_jit

from fmd_tf.augment import LowResolution, build_augmentation, resampling_matrix

IMAGES = np.random.default_rng(0).uniform(0, 255, (6, 32, 32, 3)).astype(np.float32)


def test_resampling_matrix_worked_out_by_hand():
    # Four pixels to two, averages of pairs, and back. Pixel centres of the four lie at
    # -0.25, 0.25, 0.75, 1.25 of the two; the outer ones take the nearest.
    average = [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]
    enlarge = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    np.testing.assert_allclose(resampling_matrix(4, 2), np.array(enlarge) @ average)


def test_resampling_keeps_a_flat_line():
    np.testing.assert_allclose(resampling_matrix(112, 20).sum(axis=1), 1.0, rtol=1e-5)


def test_enough_pixels_change_nothing():
    np.testing.assert_array_equal(resampling_matrix(8, 8), np.eye(8))


def test_low_resolution_changes_the_chosen_part():
    layer = LowResolution(probability=0.5, seed=3)
    images = np.repeat(IMAGES[:1], 400, axis=0)
    changed = np.abs(np.array(layer(images, training=True)) - images).max(axis=(1, 2, 3)) > 1
    # Two of the eight sizes are not smaller than these 32 pixels: 0.5 * 6 / 8 = 0.375.
    assert 0.3 < changed.mean() < 0.45


def test_inactive_outside_training():
    np.testing.assert_array_equal(build_augmentation(32, 0)(IMAGES, training=False), IMAGES)


def test_value_range_is_kept_and_images_change():
    augmented = np.array(build_augmentation(32, 0)(IMAGES, training=True))
    assert augmented.min() >= 0 and augmented.max() <= 255.5
    assert np.abs(augmented - IMAGES).max(axis=(1, 2, 3)).min() > 1


def test_seed_fixes_the_augmentation():
    first, second = (build_augmentation(32, 7)(IMAGES, training=True) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_low_resolution_compiles_under_xla():
    layer = LowResolution(probability=1.0, seed=0)
    layer.build(IMAGES.shape)
    compiled = tf.function(lambda images: layer(images, training=True), jit_compile=True)
    assert compiled(IMAGES).shape == IMAGES.shape


def test_keras_knows_whether_a_training_step_compiles():
    """On a GPU Keras compiles with XLA where every layer says it can: that must be true."""
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            build_augmentation(32, 0),
            keras.layers.GlobalMaxPooling2D(),
            keras.layers.Dense(3),
        ]
    )
    model.compile("sgd", "mse", jit_compile=model_supports_jit(model))
    model.fit(IMAGES, np.zeros((6, 3)), verbose=0)


def test_low_resolution_survives_saving(tmp_path):
    model = keras.Sequential([keras.Input((32, 32, 3)), LowResolution(0.4, seed=5)])
    model.save(tmp_path / "model.keras")
    layer = keras.saving.load_model(tmp_path / "model.keras").layers[-1]
    assert (layer.probability, layer.seed) == (0.4, 5)
