"""Two classifiers as one: the mean of their logits, in every form that a classifier has."""

from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest

from fmd_tf import CLASS_NAMES
from fmd_tf.calibration import rescale_logits
from fmd_tf.distill import load_teacher
from fmd_tf.ensemble import join_models
from fmd_tf.freezing import fold_batch_norm
from fmd_tf.gradcam import grad_cam
from fmd_tf.model import (
    ModelCard,
    backbones,
    build_model,
    load_model,
    logits_model,
    save_model,
    weighted_layers,
)
from tests.serving import faces

pytestmark = pytest.mark.usefixtures("shallow_backbone")
SIZE = 42
CARD = ModelCard(CLASS_NAMES, SIZE, multi_view=True, training={"split": {"test": "abc"}})
# Dark to bright, as the mean over noise is the same for all images.
IMAGES = faces(4, shape=(SIZE, SIZE)) * np.linspace(0, 1, 4, dtype=np.float32)[:, None, None, None]


def _member(weights: str, seed: int) -> keras.Model:
    """A classifier with random weights whose answers depend on the image."""
    keras.utils.set_random_seed(seed)
    model = build_model("mobilenet", SIZE, 3, weights, multi_view=True, is_loaded=False)
    generator = np.random.default_rng(seed)
    for layer in weighted_layers(model).values():
        if isinstance(layer, keras.layers.BatchNormalization):
            # Of a small variance, so that the image is not lost on the way through the layers.
            ranges = ((0.8, 1.2), (-0.2, 0.2), (-0.1, 0.1), (0.01, 0.02))
            layer.set_weights([generator.uniform(*each, layer.gamma.shape) for each in ranges])
    return model


def _logits(model: keras.Model) -> np.ndarray:
    return logits_model(model).predict(IMAGES, verbose=0)


@pytest.fixture(scope="module", params=["centerface", "imagenet"])
def members(request: pytest.FixtureRequest) -> list[keras.Model]:
    """Two of different networks, and two whose layers may have the same names."""
    return [_member(request.param, 0), _member("imagenet", 1)]


@pytest.fixture(scope="module")
def joined(members: list[keras.Model]) -> keras.Model:
    return join_models((members[0], CARD), (members[1], CARD))[0]


def test_its_logits_are_the_mean(members: list[keras.Model], joined: keras.Model):
    first, second = map(_logits, members)
    assert np.abs(first - second).max() > 0.1
    expected = (first + second) / 2
    assert np.ptp(expected, axis=0).max() > 0.1
    np.testing.assert_allclose(_logits(joined), expected, rtol=1e-3, atol=1e-4)


def test_what_is_made_of_a_classifier_is_made_of_it(joined: keras.Model, tmp_path: Path):
    expected = _logits(joined)
    folded = fold_batch_norm(joined)
    layers = [layer for each in backbones(folded) for layer in each.layers]
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in layers)
    np.testing.assert_allclose(_logits(folded), expected, rtol=1e-3, atol=1e-3)
    heat = grad_cam(joined, IMAGES, np.zeros(len(IMAGES), int))
    assert heat.shape == (len(IMAGES), SIZE, SIZE)
    training = {"split": {"test": "abc"}, "temperature": 1.0}
    save_model(joined, replace(CARD, training=training), tmp_path / "j.keras")
    np.testing.assert_allclose(_logits(load_model(tmp_path / "j.keras")[0]), expected, atol=1e-5)
    # It may teach in its turn, of one view; of an image that is one colour all views are alike.
    teacher = load_teacher(tmp_path / "j.keras", CLASS_NAMES, 0.2, True, {"test": "abc"})
    flat = np.full((1, SIZE, SIZE, 3), 90, np.float32)
    found = teacher.logits(flat)
    np.testing.assert_allclose(found, logits_model(joined)(flat), rtol=1e-2, atol=1e-2)


def test_what_was_added_for_rare_classes_is_not_added_twice():
    offsets = [0.0, 0.4, 2.0]
    card = replace(
        CARD, training={**CARD.training, "temperature": 0.5, "logit_offsets": offsets, "epoch": 3}
    )
    members = [_member("centerface", seed) for seed in (0, 1)]
    expected = sum(map(_logits, members)) / 2
    for model in members:
        rescale_logits(model, 1.0, np.array(offsets))
    joined, found = join_models((members[0], card), (members[1], card))
    np.testing.assert_allclose(_logits(joined), expected, rtol=1e-3, atol=1e-4)
    # So that the ensemble gets its own.
    assert found.training == {**CARD.training, "epoch": 3, "teacher": card.training}
