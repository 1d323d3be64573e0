import json

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

from fmd_tf.metrics import (
    Predictions,
    color_contrasts,
    compute_metrics,
    format_summary,
    paired_differences,
)

NAMES = ("a", "b", "c")


def _predictions(labels, predicted, confidence=0.9, groups=None, side=20) -> Predictions:
    """Predictions whose first choice is `predicted` with the given confidence."""
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    count = len(labels)
    confidence = np.broadcast_to(confidence, count)
    probabilities = np.repeat((1 - confidence)[:, None] / 2, 3, axis=1)
    probabilities[np.arange(count), predicted] = confidence
    boxes = np.zeros((count, 4), int)
    boxes[:, 2] = np.broadcast_to(side, count)
    boxes[:, 3] = 100
    groups = np.arange(count) if groups is None else np.asarray(groups)
    return Predictions(
        probabilities, labels, boxes, tuple(f"{i}.png" for i in range(count)), groups
    )


def test_figures_worked_out_by_hand():
    # confusion (rows true):  a: 3 1 0   b: 1 2 0   c: 1 0 1
    # accuracy 6/9; recall a 3/4, b 2/3, c 1/2; precision a 3/5, b 2/3, c 1/1
    # f1 a 2*3/(4+5)=2/3, b 2*2/(3+3)=2/3, c 2*1/(2+1)=2/3
    labels = [0, 0, 0, 0, 1, 1, 1, 2, 2]
    predicted = [0, 0, 0, 1, 0, 1, 1, 0, 2]
    figures = compute_metrics(_predictions(labels, predicted), NAMES)["all_faces"]
    assert figures["accuracy"] == pytest.approx(6 / 9)
    assert figures["macro_recall"] == pytest.approx((3 / 4 + 2 / 3 + 1 / 2) / 3)
    assert figures["macro_precision"] == pytest.approx((3 / 5 + 2 / 3 + 1) / 3)
    assert figures["macro_f1"] == pytest.approx(2 / 3)
    assert figures["per_class"]["c"] == {
        "precision": 1.0,
        "recall": 0.5,
        "f1": pytest.approx(2 / 3),
        "support": 2,
    }


def test_agrees_with_scikit_learn():
    generator = np.random.default_rng(0)
    labels = generator.choice(3, 200, p=[0.8, 0.17, 0.03])
    predicted = np.where(generator.random(200) < 0.8, labels, generator.integers(0, 3, 200))
    figures = compute_metrics(_predictions(labels, predicted), NAMES)["all_faces"]
    for name, score in (("f1", f1_score), ("recall", recall_score), ("precision", precision_score)):
        assert figures[f"macro_{name}"] == pytest.approx(score(labels, predicted, average="macro"))


def test_calibration_error_worked_out_by_hand():
    # Two faces at confidence 0.9, one right: |1/2 - 0.9| = 0.4, weight 2/3.
    # One face at confidence 0.6, right: |1 - 0.6| = 0.4, weight 1/3. Together 0.4.
    predictions = _predictions([0, 1, 2], [0, 0, 2], [0.9, 0.9, 0.6])
    error = compute_metrics(predictions, NAMES)["all_faces"]["calibration_error"]
    assert error == pytest.approx(0.4)


def test_interval_of_independent_faces_is_the_binomial_one():
    # 400 faces, 320 right: standard error sqrt(.8*.2/400) = 0.02, so 0.8 -+ 0.0392.
    labels = np.zeros(400, int)
    predicted = (np.arange(400) % 5 == 0).astype(int)
    metrics = compute_metrics(_predictions(labels, predicted), NAMES, num_bootstrap=4000)
    low, high = metrics["all_faces"]["intervals_95"]["accuracy"]
    assert low == pytest.approx(0.8 - 0.0392, abs=0.006)
    assert high == pytest.approx(0.8 + 0.0392, abs=0.006)


def test_faces_that_fail_together_widen_the_interval():
    labels = np.zeros(400, int)
    predicted = (np.arange(400) < 80).astype(int)
    alone = compute_metrics(_predictions(labels, predicted), NAMES)
    together = compute_metrics(_predictions(labels, predicted, groups=np.arange(400) // 20), NAMES)
    widths = [
        np.diff(metrics["all_faces"]["intervals_95"]["accuracy"])[0]
        for metrics in (alone, together)
    ]
    # Twenty faces a group that are right or wrong as one: about sqrt(20) = 4.5 times as wide.
    assert 3.5 < widths[1] / widths[0] < 5.5


def test_of_one_group_nothing_is_certain():
    """A fixed camera's photos are one group: all samples of it are the same."""
    alone = _predictions([0, 1, 2, 0], [0, 1, 1, 0], groups=np.zeros(4, int))
    metrics = compute_metrics(alone, NAMES)
    assert metrics["all_faces"]["intervals_95"] == {}
    assert paired_differences(alone, alone, 3) == {}
    lines = format_summary(metrics, NAMES).splitlines()
    assert next(line.split() for line in lines if "accuracy" in line) == ["accuracy", "0.7500"]


def test_samples_without_a_face_of_a_class_say_nothing_of_its_recall():
    """One face of the second class, found: in a third of the samples it is not drawn."""
    chances = np.array([[0.9, 0.1]] * 5 + [[0.1, 0.9]], np.float32)
    boxes = np.tile([0, 0, 20, 20], (6, 1))
    names = ("a", "b", "c")
    chances = np.concatenate([chances, np.zeros((6, 1), np.float32)], axis=1)
    labels = np.array([0] * 5 + [1])
    predictions = Predictions(chances, labels, boxes, tuple("uvwxyz"), np.arange(6))
    metrics = compute_metrics(predictions, names)
    intervals = metrics["all_faces"]["intervals_95"]["recall"]
    assert intervals == {"a": [1.0, 1.0], "b": [1.0, 1.0], "c": None}


def test_seed_fixes_the_intervals():
    predictions = _predictions([0, 1, 2, 0, 1, 2], [0, 1, 1, 0, 0, 2])
    assert compute_metrics(predictions, NAMES, seed=1) == compute_metrics(
        predictions, NAMES, seed=1
    )


def test_small_faces_are_reported_apart():
    predictions = _predictions([0, 0, 1], [1, 0, 1], side=[9, 10, 64])
    metrics = compute_metrics(predictions, NAMES)
    assert metrics["all_faces"]["num_faces"] == 3
    assert metrics["faces_10px"]["num_faces"] == 2
    assert metrics["faces_10px"]["accuracy"] == 1.0
    slices = {part["pixels"]: part["num_faces"] for part in metrics["by_size"]}
    assert slices == {
        "under 10": 1,
        "10 to under 20": 1,
        "20 to under 32": 0,
        "32 to under 64": 0,
        "64 and more": 1,
    }


def test_a_series_has_figures_of_its_own():
    # 21 faces of one group in 21 photos, all right; 2 faces of another group, both wrong.
    photos = tuple(f"{i}.png" for i in range(23))
    predictions = Predictions(
        probabilities=np.eye(3, dtype=np.float32)[[0] * 21 + [1] * 2],
        labels=np.zeros(23, int),
        boxes=np.tile([0, 0, 30, 30], (23, 1)),
        photos=photos,
        groups=np.array([7] * 21 + [8] * 2),
    )
    metrics = compute_metrics(predictions, NAMES)
    assert (metrics["series"]["num_faces"], metrics["series"]["accuracy"]) == (21, 1.0)
    assert (metrics["no_series"]["num_faces"], metrics["no_series"]["accuracy"]) == (2, 0.0)
    assert "series" not in compute_metrics(predictions.where(np.arange(23) > 10), NAMES)


def test_color_contrast_sees_colour_and_not_brightness():
    images = np.full((3, 20, 20, 3), 100, np.uint8)
    images[1, 10:] = 60  # darker below, as grey
    images[2, 10:] = (100, 100, 200)  # blue below
    # Chroma of a difference of 100 in blue: 100 * (0.5, -0.081312), a length of 50.66.
    np.testing.assert_allclose(color_contrasts(images), [0, 0, 50.66], atol=0.01)


def test_slices_by_colour():
    predictions = _predictions([0, 1, 1], [0, 1, 0])
    metrics = compute_metrics(predictions, NAMES, contrasts=np.array([1.0, 9.0, 25.0]))
    counts = {part["contrast"]: part["num_faces"] for part in metrics["by_color"]}
    assert counts == {
        "under 4": 1,
        "4 to under 8": 0,
        "8 to under 12": 1,
        "12 to under 20": 0,
        "20 and more": 1,
    }
    assert "difference in colour" in format_summary(metrics, NAMES)


def test_a_class_without_faces_is_named_and_json_is_finite():
    metrics = compute_metrics(_predictions([0, 0], [0, 0], side=5), NAMES)
    assert metrics["all_faces"]["classes_without_faces"] == ["b", "c"]
    assert metrics["all_faces"]["macro_f1"] == 1.0
    json.dumps(metrics, allow_nan=False)
    assert metrics["faces_10px"]["accuracy"] is None
    assert metrics["faces_10px"]["macro_f1"] is None


def test_a_class_that_is_only_predicted_counts_in_macro_f1():
    # Of class a 2 of 3 are found, F1 = 2 * 2 / (3 + 2) = 0.8; of class b none is there, F1 = 0.
    part = compute_metrics(_predictions([0, 0, 0], [0, 0, 1]), NAMES)["all_faces"]
    assert abs(part["macro_f1"] - f1_score([0, 0, 0], [0, 0, 1], average="macro")) < 1e-12
    assert abs(part["macro_f1"] - 0.4) < 1e-12


def test_summary_names_every_class():
    text = format_summary(compute_metrics(_predictions([0, 1, 2], [0, 1, 1]), NAMES), NAMES)
    assert "accuracy      0.6667" in text
    assert all(f"\n  {name} " in text for name in NAMES)


def test_paired_differences_are_of_the_same_faces():
    # Of 6 faces, each a group, the first is right 3 times and the second 5 times.
    first = _predictions([0, 1, 2, 0, 1, 2], [0, 1, 2, 1, 2, 0])
    second = _predictions([0, 1, 2, 0, 1, 2], [0, 1, 2, 0, 1, 0])
    low, high = paired_differences(first, second, 3)["accuracy"]
    assert low <= 2 / 6 <= high
    # A drawn sample can hold no face that only the first has right.
    assert low >= 0
    assert paired_differences(first, first, 3)["macro_f1"] == [0.0, 0.0]
