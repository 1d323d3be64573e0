import numpy as np
import pytest
import tensorflow as tf

from fmd_tf.detector_pipeline import cut_view, draw_target, train_views, views_per_epoch
from fmd_tf.voc import read_folder

HEAT, BOX, SHARE, WEIGHT = 0, slice(1, 5), 5, 6


def _target(*boxes, weights=None, size=64):
    weights = weights or [1.0] * len(boxes)
    return draw_target(tf.constant(boxes, tf.float32), tf.constant(weights), size).numpy()


def test_a_face_has_its_peak_in_the_cell_of_its_center():
    # Centre 20, 28 px: column 5, row 7. The central part, 0.54 of 16x24 px, is 2.16x3.24 cells:
    # one cell to each side, both ways.
    target = _target([12, 16, 28, 40])
    assert target.shape == (16, 16, 7)
    assert target[7, 5, HEAT] == 1.0
    assert np.argwhere(target[..., HEAT] > 0).min(axis=0).tolist() == [6, 4]
    assert np.argwhere(target[..., HEAT] > 0).max(axis=0).tolist() == [8, 6]
    # Sigma is 16 * 0.54 / 6 / 4 = 0.36 cells: exp(-0.5 / 0.36**2) one cell to the side.
    assert target[7, 6, HEAT] == pytest.approx(np.exp(-0.5 / 0.36**2))
    assert target[7, 6, BOX].tolist() == [12, 16, 28, 40]


def test_each_face_has_the_same_share_of_the_box_loss():
    target = _target([4, 4, 12, 12], [16, 16, 60, 60])
    assert target[..., SHARE].sum() == pytest.approx(2.0)
    assert target[..., SHARE][target[..., HEAT] == 0].max() == 0.0


def test_the_smaller_of_two_faces_about_one_center_wins():
    target = _target([0, 0, 64, 64], [24, 24, 40, 40])
    assert target[8, 8, BOX].tolist() == [24, 24, 40, 40]
    assert target[8, 11, BOX].tolist() == [0, 0, 64, 64]


def test_cut_off_and_tiny_faces_are_neither_face_nor_background():
    # The first shows 4 of 20 columns, the second has 3 px; the third is outside.
    target = _target([-16, 20, 4, 40], [30, 30, 33, 33], [100, 100, 120, 120])
    assert target[..., HEAT].max() == 0.0
    assert target[..., WEIGHT][5:10, 0].tolist() == [0.0] * 5
    assert target[..., WEIGHT][7:9, 7:9].max() == 0.0
    assert target[..., WEIGHT].sum() == 16 * 16 - 5 - 4


def test_a_face_mostly_in_the_view_is_clipped_to_it():
    # 16 of 20 columns can be seen: 80 %.
    target = _target([-4, 20, 16, 40])
    row, column = np.argwhere(target[..., HEAT] == 1.0)[0]
    assert target[row, column, BOX].tolist() == [0, 20, 16, 40]


def test_the_heat_of_a_rare_class_weighs_more():
    target = _target([8, 8, 24, 24], [40, 40, 56, 56], weights=[0.5, 3.0])
    assert target[4, 4, WEIGHT] == 0.5 and target[12, 12, WEIGHT] == 3.0
    assert target[0, 0, WEIGHT] == 1.0


def test_a_view_shows_the_chosen_face_where_its_box_says():
    """A white face on black: what lies in the box is white, whatever scale and place."""
    photo = np.zeros((90, 160, 3), np.uint8)
    photo[30:54, 100:124] = 255
    photo = tf.constant(photo)
    boxes = tf.constant([[100.0, 30.0, 124.0, 54.0], [0.0, 0.0, 5.0, 5.0]])
    graph = tf.function(lambda key: cut_view(photo, boxes, tf.constant(0), 160, 96, key))
    for number in range(20):
        view, moved = graph(tf.constant([7, number], tf.int64))
        assert view.shape == (96, 96, 3)
        xmin, ymin, xmax, ymax = np.round(moved[0].numpy()).astype(int)
        assert 0 <= xmin < xmax <= 96 and 0 <= ymin < ymax <= 96
        inside = view.numpy()[ymin + 2 : ymax - 2, xmin + 2 : xmax - 2].mean()
        outside = view.numpy()[:, : max(xmin - 3, 1)].mean()
        assert inside > outside + 60


def test_views_depend_on_seed_and_epoch_alone(voc_dir):
    annotations = [each for each in read_folder(voc_dir).annotations if each.faces]
    names = ("with_mask", "without_mask", "mask_weared_incorrect")

    def batches(seed, first_epoch, count):
        views = train_views(annotations, names, 64, 64, 2, seed, first_epoch=first_epoch)
        return [view.numpy() for view, _ in views.take(count)]

    steps = -(-views_per_epoch(annotations) // 2)
    whole = batches(0, 0, steps + 1)
    assert np.array_equal(whole[0], batches(0, 0, 1)[0])
    assert np.array_equal(whole[steps], batches(0, 1, 1)[0])
    assert not np.array_equal(whole[0], batches(1, 0, 1)[0])
    assert sum(map(len, whole[:steps])) == views_per_epoch(annotations)
