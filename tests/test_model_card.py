import numpy as np

from fmd_tf import CLASS_NAMES
from fmd_tf.detector import DetectorCard
from fmd_tf.metrics import Predictions, compute_metrics
from fmd_tf.model import ModelCard
from fmd_tf.model_card import format_model_card

NAMES = ("mask", "none")


def _report() -> dict:
    """Four faces, one of them taken for the other class, all of 20 px."""
    boxes = np.tile(np.array([[0, 0, 20, 20]]), (4, 1))
    chances = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]], np.float32)
    labels = np.array([0, 0, 1, 1])
    predictions = Predictions(chances, labels, boxes, ("a",) * 4, np.arange(4))
    return {"part": "test", "seconds": 600.0, **compute_metrics(predictions, NAMES)}


def test_the_card_tells_the_models_own_figures():
    text = format_model_card(ModelCard(NAMES, 32, training={"report": _report()}))
    assert "| all (4) | 0.750" in text
    # Two of three answers `mask` are right; one of two faces without is found.
    assert "| `mask` | 2 | 0.667 | 1.000 |" in text
    assert "| `none` | 2 | 1.000 | 0.500 |" in text
    assert "Its epochs took 10 minutes." in text
    assert "Faces are found by" not in text


def test_figures_of_nothing_are_dashes():
    text = format_model_card(ModelCard(NAMES, 32, training={"report": _report()}))
    assert "| 64 and more | 0 | - |" in text


def test_a_model_without_figures_says_so():
    card = ModelCard(NAMES, 32, training={"val_macro_f1": 0.9})
    assert "was never scored" in format_model_card(card)
    assert "0.9" not in format_model_card(card)


def test_what_is_known_of_kaggles_data_is_told_of_its_classes_only():
    own = format_model_card(ModelCard(NAMES, 32))
    assert "Kaggle" not in own and "mask_weared_incorrect" not in own and "## Licences" in own
    text = format_model_card(ModelCard(CLASS_NAMES, 32))
    assert "reference data (CC0 there)" in text and "mask_weared_incorrect` is rare" in text


def test_the_detector_is_named():
    detector = DetectorCard(640, threshold=0.4, training={"val_ap50": 0.885})
    text = format_model_card(ModelCard(NAMES, 32), detector)
    assert "detector at 640 px, with a score of at least 0.40" in text and "0.885" in text


def test_an_ensemble_says_so():
    alone, both = ({"report": _report()}, {"report": _report(), "teacher": {"seed": 0}})
    texts = [format_model_card(ModelCard(NAMES, 32, training=each)) for each in (alone, both)]
    assert [text.count("Two networks answer together") for text in texts] == [0, 1]


def test_recall_by_colour_is_told_where_it_is_known():
    report = _report()
    assert "lower half" not in format_model_card(ModelCard(NAMES, 32, training={"report": report}))
    slices = {"contrast": "under 4", "recall": {"mask": None, "none": 0.5}}
    report["by_color"] = [{**slices, "support": {"mask": 0, "none": 2}}]
    text = format_model_card(ModelCard(NAMES, 32, training={"report": report}))
    assert "| difference | `mask` | `none` |\n| --- | --- | --- |" in text
    assert "| under 4 | - (0) | 0.500 (2) |" in text
