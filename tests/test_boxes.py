import numpy as np

from fmd_tf import boxes


def test_clip_keeps_the_part_inside_the_photo():
    assert boxes.clip((-3, 5, 45, 20), width=40, height=30) == (0, 5, 40, 20)


def test_clip_of_a_box_outside_is_empty():
    assert boxes.is_empty(boxes.clip((50, 5, 60, 9), width=40, height=30))


def test_inverted_and_flat_boxes_are_empty():
    assert boxes.is_empty((5, 5, 5, 9))
    assert boxes.is_empty((9, 5, 5, 9))
    assert not boxes.is_empty((4, 5, 5, 6))


def test_boxes_side_by_side_do_not_touch():
    assert not boxes.touch((0, 0, 2, 2), (2, 0, 4, 2))
    assert not boxes.touch((0, 0, 2, 2), (0, 2, 2, 4))
    assert boxes.touch((0, 0, 2, 2), (1, 1, 4, 4))
    assert boxes.touch((0, 0, 9, 9), (4, 4, 5, 5))


def test_overlaps():
    # 2 x 2 boxes shifted by one: 2 common of 6; the same; apart.
    first = np.array([[0, 0, 2, 2]])
    second = np.array([[1, 0, 3, 2], [0, 0, 2, 2], [5, 5, 6, 6]])
    np.testing.assert_allclose(boxes.overlaps(first, second), [[1 / 3, 1, 0]])
