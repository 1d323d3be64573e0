import numpy as np
import pytest

from fmd_tf.detector_metrics import (
    PRECISIONS,
    PhotoFaces,
    at_precision,
    average_precision,
    by_threshold,
    choose_threshold,
    match,
    summarize,
)

NAMES = ("with_mask", "without_mask")


GROUPS = {"photo.png": 0, "copy.png": 0, "other.png": 1}


def _photo(found, true, labels=None, found_labels=None, name="photo.png"):
    boxes = np.array([each[:4] for each in found], float).reshape(-1, 4)
    scores = np.array([each[4] for each in found], float)
    true_boxes = np.array(true, float).reshape(-1, 4)
    labels = np.zeros(len(true_boxes), int) if labels is None else np.array(labels)
    return PhotoFaces(name, boxes, scores, true_boxes, labels, found_labels)


def test_the_best_score_takes_the_face_and_a_double_gets_none():
    faces = _photo(
        [(0, 0, 10, 9, 0.5), (0, 0, 10, 10, 0.9), (50, 50, 60, 60, 0.8)], [[0, 0, 10, 10]]
    )
    assert match(faces, 0.5).tolist() == [-1, 0, -1]


def test_match_of_nothing():
    assert match(_photo([], [[0, 0, 1, 1]]), 0.5).tolist() == []
    assert match(_photo([(0, 0, 1, 1, 0.5)], []), 0.5).tolist() == [-1]


def test_average_precision_by_hand():
    # Scores 0.9 right, 0.8 wrong, 0.7 right, of two faces: precision 1 up to recall 0.5,
    # 2/3 beyond. COCO reads it at 101 recalls, 51 of them up to 0.5: (51 + 50 * 2/3) / 101.
    found = [(0, 0, 10, 10, 0.9), (80, 80, 90, 90, 0.8), (20, 20, 30, 30, 0.7)]
    photos = [_photo(found, [[0, 0, 10, 10], [20, 20, 30, 30]])]
    assert average_precision(photos) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert average_precision([_photo([], [[0, 0, 1, 1]])]) == 0.0
    assert average_precision([_photo([(0, 0, 1, 1, 0.9)], [])]) == 0.0


def test_average_precision_counts_crowds_of_more_than_a_hundred():
    boxes = [[20 * column, 0, 20 * column + 10, 10] for column in range(150)]
    assert average_precision([_photo([(*box, 0.9) for box in boxes], boxes)]) == pytest.approx(1.0)


def test_the_threshold_keeps_the_precision():
    # By falling score: right, right, wrong, right -> precisions 1, 1, 2/3, 3/4.
    found = [(0, 0, 9, 9, 0.9), (20, 0, 29, 9, 0.8), (99, 9, 101, 11, 0.7), (40, 0, 49, 9, 0.6)]
    photos = [_photo(found, [[0, 0, 9, 9], [20, 0, 29, 9], [40, 0, 49, 9]])]
    assert choose_threshold(photos, 0.9) == 0.8
    assert choose_threshold(photos, 0.75) == 0.6
    assert choose_threshold([_photo([(0, 0, 1, 1, 0.9)], [])], 0.9) is None


def test_summary_by_size_and_class():
    true = [[0, 0, 9, 10], [20, 0, 50, 30], [60, 0, 120, 60]]
    found = [(0, 0, 9, 10, 0.9), (60, 0, 120, 60, 0.8), (200, 200, 210, 210, 0.7)]
    figures = summarize([_photo(found, true, [0, 1, 1])], NAMES, 0.4, GROUPS)
    assert (figures["faces"], figures["found"]) == (3, 2)
    assert figures["precision"] == pytest.approx(2 / 3)
    assert [each["recall"] for each in figures["by_size"].values()] == [1.0, 0.0, 1.0]
    without = figures["by_class"]["without_mask"]
    assert (without["faces"], without["found"], without["recall"]) == (2, 1, 0.5)
    large = figures["faces_10px"]
    assert (large["faces"], large["found"], large["by_class"]["with_mask"]["faces"]) == (2, 1, 0)
    assert large["by_class"]["without_mask"]["recall"] == 0.5


def test_with_labels_a_face_must_be_of_the_right_class_too():
    true = [[0, 0, 10, 10], [20, 0, 30, 10]]
    found = [(0, 0, 10, 10, 0.9), (20, 0, 30, 10, 0.8)]
    figures = summarize([_photo(found, true, [0, 1], np.array([0, 0]))], NAMES, 0.3, GROUPS)
    assert figures["recall"] == 0.5 and figures["precision"] == 0.5


def test_figures_of_nothing_are_none():
    figures = summarize([_photo([], [])], NAMES, 0.4, GROUPS)
    assert figures["recall"] is None and figures["precision"] is None
    assert summarize([], NAMES, 0.4, GROUPS)["recall_95"] is None


def test_what_is_found_where_no_face_is_counts_against_the_precision():
    nobody = _photo([(0, 0, 10, 10, 0.9)], [], found_labels=np.array([0]))
    face = _photo([(0, 0, 10, 10, 0.9)], [[0, 0, 10, 10]], [1], np.array([1]))
    figures = summarize([nobody, face], NAMES, 0.3, GROUPS)
    assert figures["recall"] == 1.0 and figures["precision"] == 0.5


def test_intervals_draw_whole_groups():
    box = [0, 0, 10, 10]
    found = _photo([(*box, 0.9)], [box])
    # Of two groups, one of them found, samples are of both or of one alone: recall 1, 0.5 or 0.
    other = _photo([(50, 50, 60, 60, 0.9)], [box], name="other.png")
    figures = summarize([found, other], NAMES, 0.4, GROUPS)
    assert (figures["recall"], figures["recall_95"]) == (0.5, [0.0, 1.0])
    assert (figures["precision"], figures["precision_95"]) == (0.5, [0.0, 1.0])
    # Two photos of one group are drawn together or not at all: of one group nothing is certain.
    copy = _photo([], [box], name="copy.png")
    figures = summarize([found, copy], NAMES, 0.4, GROUPS)
    assert (figures["recall"], figures["recall_95"]) == (0.5, None)
    assert (figures["precision"], figures["precision_95"]) == (1.0, None)


def test_a_sample_without_a_face_says_nothing_of_recall():
    box = [0, 0, 10, 10]
    photos = [_photo([(*box, 0.9)], [box]), _photo([], [], name="other.png")]
    assert summarize(photos, NAMES, 0.4, GROUPS)["recall_95"] == [1.0, 1.0]


def test_recall_at_a_precision_by_hand():
    # By falling score: right, right, wrong, right -> precisions 1, 1, 2/3, 3/4.
    found = [(0, 0, 9, 9, 0.9), (20, 0, 29, 9, 0.8), (99, 9, 101, 11, 0.7), (40, 0, 49, 9, 0.6)]
    true = [[0, 0, 9, 9], [20, 0, 29, 9], [40, 0, 49, 9]]
    photos = [_photo(found, true), _photo([], [], name="other.png")]
    for record, precision in zip(at_precision(photos, NAMES, 0.5, GROUPS), PRECISIONS, strict=True):
        assert (record["at"], record["threshold"]) == (precision, 0.8)
        assert (record["recall"], record["precision"]) == (2 / 3, 1.0)
    nothing = [_photo([(0, 0, 1, 1, 0.9)], [])]
    assert at_precision(nothing, NAMES, 0.5, GROUPS)[1] == {"at": 0.85, "threshold": None}


def test_figures_at_each_threshold_by_hand():
    # The second face found is of another label; the last is where none is.
    found = [(0, 0, 9, 9, 0.9), (20, 0, 29, 9, 0.62), (99, 9, 101, 11, 0.3)]
    true = [[0, 0, 9, 9], [20, 0, 29, 9]]
    rows = {row["threshold"]: row for row in by_threshold([_photo(found, true)], 0.5)}
    assert rows[0.95] == {"threshold": 0.95, "recall": 0.0, "precision": None}
    assert rows[0.65] == {"threshold": 0.65, "recall": 0.5, "precision": 1.0}
    assert rows[0.6] == {"threshold": 0.6, "recall": 1.0, "precision": 1.0}
    assert rows[0.3] == {"threshold": 0.3, "recall": 1.0, "precision": 2 / 3}
    labelled = _photo(found, true, labels=[0, 0], found_labels=np.array([0, 1, 0]))
    assert by_threshold([labelled], 0.5)[11] == {
        "threshold": 0.6,
        "recall": 0.5,
        "precision": 0.5,
    }
    assert by_threshold([_photo([], [])], 0.5)[0]["recall"] is None
