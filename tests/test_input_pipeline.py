from collections import Counter

import numpy as np
import pytest
import tensorflow as tf

from fmd_tf.face_mask_dataset import load_photos
from fmd_tf.input_pipeline import (
    crop_faces,
    crop_windows,
    eval_dataset,
    load_crops,
    sampling_weights,
    steps_per_epoch,
    train_dataset,
)
from tests.conftest import add_photo


def test_square_window_worked_out_by_hand():
    # Box 10 wide, 20 high about (15, 30); 10 % on each side: 12 x 24; square: 24 x 24.
    assert crop_windows([[10, 20, 20, 40]], 0.1, True).numpy().tolist() == [[3, 18, 27, 42]]


def test_plain_window_keeps_the_shape_of_the_box():
    assert crop_windows([[10, 20, 20, 40]], 0.1, False).numpy().tolist() == [[9, 18, 21, 42]]


def test_window_of_one_pixel():
    assert crop_windows([[5, 5, 6, 6]], 0.0, True).numpy().tolist() == [[5, 5, 6, 6]]


def _gradient(height: int, width: int) -> np.ndarray:
    """A photo whose red is the column, green the row."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns, rows, np.zeros_like(rows)], axis=-1).astype(np.uint8)


def test_crop_of_its_own_size_is_copied():
    photo = _gradient(50, 60)
    crop = crop_faces(photo, [[10, 20, 18, 28]], 8, padding=0.0)[0].numpy()
    np.testing.assert_array_equal(crop, photo[20:28, 10:18])


def test_crop_beyond_the_photo_repeats_its_edge():
    photo = _gradient(20, 20)
    crop = crop_faces(photo, [[-4, 16, 4, 24]], 8, padding=0.0)[0].numpy()
    assert crop[0, :, 0].tolist() == [0, 0, 0, 0, 0, 1, 2, 3]
    assert crop[:, 0, 1].tolist() == [16, 17, 18, 19, 19, 19, 19, 19]


def test_crop_eagerly_and_in_a_dataset():
    photo = _gradient(40, 40)
    boxes = np.array([[3, 4, 20, 18], [0, 0, 1, 1]], np.int32)
    dataset = tf.data.Dataset.from_tensors(photo).map(lambda each: crop_faces(each, boxes, 16))
    np.testing.assert_array_equal(next(iter(dataset)), crop_faces(photo, boxes, 16))


def test_no_faces_give_no_crops():
    assert crop_faces(_gradient(9, 9), np.zeros((0, 4), np.int32), 8).shape == (0, 8, 8, 3)


def test_load_crops_keeps_faces_of_enough_pixels(voc_dir, tmp_path):
    add_photo(
        voc_dir, "two", faces=[("without_mask", (1, 1, 9, 30)), ("with_mask", (5, 5, 20, 20))]
    )
    add_photo(voc_dir, "zero")
    photos, _ = load_photos(voc_dir, tfds_dir=tmp_path / "tfds")
    every = load_crops(photos, 16)
    assert every.photos == ("good.png", "two.png", "two.png")
    assert every.labels.tolist() == [0, 1, 0]
    assert every.images.shape == (3, 16, 16, 3)
    assert set(every.group_of_photo) == {"good.png", "two.png", "zero.png"}
    large = every.at_least(10)  # The second face is 8 px wide.
    assert large.boxes.tolist() == [[2, 3, 12, 13], [5, 5, 20, 20]]
    assert every.select(["two.png"]).labels.tolist() == [1, 0]


def _epoch(labels, balance, batch_size=4, seed=0, first_epoch=0, epochs=1) -> list[int]:
    """Row numbers in the order in which they are drawn."""
    rows = np.arange(len(labels))[:, None]
    dataset = train_dataset(rows, labels, 3, batch_size, seed, balance, first_epoch)
    batches = dataset.take(epochs * steps_per_epoch(len(labels), batch_size))
    return [int(row) for images, _ in batches for row in images.numpy()[:, 0]]


def test_an_epoch_without_balance_has_every_face_once():
    assert sorted(_epoch(np.zeros(10, int), 0.0)) == list(range(10))


def test_epochs_differ_and_a_resumed_run_sees_the_same_order():
    labels = np.array([0] * 9 + [1, 2])
    both = _epoch(labels, 0.5, epochs=2)
    assert both[:11] != both[11:]
    assert _epoch(labels, 0.5, first_epoch=1) == both[11:]
    assert _epoch(labels, 0.5, seed=1) != both[:11]


def test_full_balance_draws_classes_equally_often():
    labels = np.array([0] * 24 + [1] * 4 + [2] * 2)
    counts = Counter(labels[_epoch(labels, 1.0)].tolist())
    assert counts == {0: 10, 1: 10, 2: 10}


def test_square_root_weights_worked_out_by_hand():
    # Counts 16 and 4: weights 1/4 and 1/2 a face, 4 and 2 a class, so 2/3 and 1/3.
    weights = sampling_weights(np.array([0] * 16 + [1] * 4), 2, 0.5)
    np.testing.assert_allclose([weights[:16].sum(), weights[16:].sum()], [2 / 3, 1 / 3])


def test_labels_are_one_hot_and_follow_the_images():
    labels = np.array([2, 0, 1, 1])
    images = np.arange(4, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    batch, one_hot = next(iter(train_dataset(images, labels, 3, 4, seed=0)))
    rows = batch.numpy()[:, 0, 0, 0]
    np.testing.assert_array_equal(one_hot, np.eye(3)[labels[rows]])


def test_evaluation_keeps_order_and_remainder():
    images = np.arange(7, dtype=np.uint8)[:, None]
    batches = [batch.numpy()[:, 0].tolist() for batch in eval_dataset(images, 3)]
    assert batches == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize(("width", "height"), [(20, 20), (32, 7), (50, 12), (60, 60)])
def test_small_and_large_windows_are_scaled_by_one_filter(width: int, height: int):
    photo = np.random.default_rng(0).integers(0, 256, (70, 80, 3), np.uint8)
    window = photo[4 : 4 + height, 5 : 5 + width]
    expected = tf.image.resize(window, [32, 32], antialias=True)
    crop = crop_faces(photo, [[5, 4, 5 + width, 4 + height]], 32, padding=0.0, square=False)[0]
    np.testing.assert_allclose(crop, expected, atol=0.51)


def test_white_stays_white_at_any_scale():
    # A sum of weights a little over 1 would wrap around to black.
    photo = np.full((300, 300, 3), 255, np.uint8)
    boxes = [[0, 0, side, side] for side in range(1, 300, 7)]
    assert crop_faces(photo, boxes, 112, padding=0.0).numpy().min() == 255


def test_no_data_set_is_tuned_by_a_thread_that_sleeps():
    rows, labels = np.arange(4)[:, None], np.zeros(4, int)
    for dataset in (train_dataset(rows, labels, 3, 2, seed=0), eval_dataset(rows, 2)):
        assert dataset.options().autotune.enabled is False
