import keras
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from fmd_tf.calibration import fit_temperature, rarity_offsets, rescale_logits


def _drawn(temperature: float, count: int = 40_000) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from the chances they have at a temperature."""
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 2, (count, 3))
    chances = softmax(logits / temperature, axis=1)
    labels = (generator.random((count, 1)) > chances.cumsum(axis=1)).sum(axis=1)
    return logits, np.minimum(labels, 2)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_that_labels_were_drawn_at_is_found(temperature):
    assert fit_temperature(*_drawn(temperature)) == pytest.approx(temperature, rel=0.03)


def test_few_faces_that_are_all_right_make_it_a_little_surer():
    """The lowest temperature would fit them best, and of a few faces that means nothing."""
    assert 0.5 < fit_temperature(np.eye(3), np.arange(3)) < 1.0
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, int)) == pytest.approx(1.0, abs=1e-4)


def test_few_faces_are_trusted_less_than_many():
    """Over many draws of twenty faces, the answers to others are better than without a prior."""
    logits, labels = _drawn(0.5)
    others, their_labels = logits[20_000:], labels[20_000:]

    def surprise(temperature: float) -> float:
        chances = log_softmax(others / temperature, axis=1)
        return -float(chances[np.arange(len(others)), their_labels].mean())

    ours, plain = [], []
    for start in range(0, 2000, 20):
        few = slice(start, start + 20)
        ours.append(surprise(fit_temperature(logits[few], labels[few])))
        candidates = np.geomspace(0.05, 20, 200)
        fits = [
            log_softmax(logits[few] / each, axis=1)[np.arange(20), labels[few]].sum()
            for each in candidates
        ]
        plain.append(surprise(candidates[np.argmax(fits)]))
    assert np.mean(ours) < np.mean(plain)


def test_it_stays_within_bounds():
    logits, wrong = np.tile(np.eye(3) * 50, (9, 1)), np.tile([1, 2, 0], 9)
    assert fit_temperature(logits, wrong) == pytest.approx(20, rel=0.01)


def _model() -> keras.Model:
    features = keras.Input((4,))
    logits = keras.layers.Dense(3, name="logits")(features)
    return keras.Model(features, keras.layers.Softmax()(logits))


def test_a_model_keeps_its_labels_and_gets_surer():
    model = _model()
    inputs = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    before = model.predict(inputs, verbose=0)
    rescale_logits(model, 0.5, np.zeros(3))
    after = model.predict(inputs, verbose=0)
    # Logits twice as large: chances squared, over their sum.
    assert after == pytest.approx(before**2 / (before**2).sum(axis=1, keepdims=True), rel=1e-4)


def test_rarer_classes_are_favoured_as_if_all_were_equally_frequent():
    model = _model()
    inputs = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    before = model.predict(inputs, verbose=0)
    counts = np.array([100, 50, 2])
    rescale_logits(model, 1.0, rarity_offsets(counts, 1.0))
    expected = before / counts
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.predict(inputs, verbose=0), expected, rtol=1e-4)


def test_offsets_follow_their_strength_and_favour_no_class_that_was_never_seen():
    assert rarity_offsets(np.array([8, 2, 1]), 0.5) == pytest.approx(np.log([1, 2, 8**0.5]))
    assert rarity_offsets(np.array([8, 2, 0]), 0.5) == pytest.approx(np.log([1, 2, 1]))
    assert not rarity_offsets(np.array([8, 2, 1]), 0.0).any()
