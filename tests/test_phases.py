"""Real training on a few crops: it learns, and a killed run ends like an undisturbed one."""

from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest

from fmd_tf import phases
from fmd_tf.checkpoints import RunFolder
from fmd_tf.distill import Teacher
from fmd_tf.input_pipeline import Crops
from fmd_tf.model import build_model, dtype_policy, features_model
from fmd_tf.phases import FINE_TUNE, HEAD, Recipe, Teaching, _Average, train_model
from fmd_tf.row_file import RowFile
from tests.backbone import shallow_mobilenet

pytestmark = pytest.mark.usefixtures("shallow_backbone")
RECIPE = Recipe(
    num_classes=3,
    epochs=3,
    head_epochs=2,
    batch_size=8,
    lr=1e-3,
    head_lr=1e-2,
    weight_decay=1e-2,
    label_smoothing=0.1,
    balance=0.5,
    scheduler="plateau",
    ema=0.9,
    learns_batch_norm=False,
    patience=6,
    seed=0,
)


def _crops(count: int, seed: int) -> Crops:
    """Crops whose class is their brightest colour."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int32) % 3
    images = generator.integers(0, 120, (count, 32, 32, 3), dtype=np.uint8)
    images[np.arange(count), :, :, labels] += 100
    boxes = np.tile(np.array([[0, 0, 20, 20]], np.int32), (count, 1))
    return Crops(images, labels, boxes, ("a.png",) * count, np.zeros(count, np.int64), {})


class _KilledError(Exception):
    """Stands for kill -9: it comes right after a state is on disk."""


class _KilledRun(RunFolder):
    """A run that is killed after its n-th saved state."""

    left = 0

    def save(self, state, model):
        super().save(state, model)
        self.left -= 1
        if self.left == 0:
            raise _KilledError


def _train(
    path: Path,
    weights: str,
    killed_after: int = 0,
    teaching: Teaching | None = None,
    recipe: Recipe = RECIPE,
) -> tuple[list[dict], list, keras.Model]:
    run = _KilledRun(path)
    run.left = killed_after
    run.open({})
    keras.utils.set_random_seed(0)
    model = build_model("mobilenet", 32, 3, weights)
    best: list[tuple[str, int]] = []
    train_model(
        model,
        _crops(24, 0),
        _crops(9, 1),
        recipe,
        run,
        lambda phase, epoch, logs: best.append((phase, epoch)),
        teaching,
    )
    return run.history, best, model


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "mobilenet.weights.h5"
    keras.utils.set_random_seed(1)
    shallow_mobilenet((None, None, 3), "backbone").save_weights(path)
    return str(path)


@pytest.fixture(scope="module")
def undisturbed(weights: str, tmp_path_factory: pytest.TempPathFactory):
    return _train(tmp_path_factory.mktemp("undisturbed"), weights)


def test_both_phases_run_and_report_every_figure(undisturbed):
    history, best, _ = undisturbed
    assert [record["phase"] for record in history] == [HEAD] * 2 + [FINE_TUNE] * 3
    assert best
    for record in history:
        for name in ("loss", "accuracy", "macro_f1", "learning_rate", "seconds"):
            assert np.isfinite(record[name])
        assert 0 <= record["val_macro_f1"] <= 1


def test_a_run_killed_after_every_epoch_ends_like_an_undisturbed_one(
    undisturbed, weights: str, tmp_path: Path
):
    for _ in undisturbed[0][:-1]:
        with pytest.raises(_KilledError):
            _train(tmp_path, weights, killed_after=1)
    finished = _train(tmp_path, weights)
    _require_same(finished, undisturbed)
    again, best, _ = _train(tmp_path, weights)
    assert again == finished[0]
    assert best == []


def test_batch_norm_of_pretrained_weights_stays_without_a_head_phase_too(weights, tmp_path):
    recipe = replace(RECIPE, head_epochs=0, epochs=1)
    model = _train(tmp_path, weights, recipe=recipe)[2]
    names = [variable.name for variable in model.trainable_variables]
    assert "kernel" in names
    assert not {"gamma", "beta"} & {*names}


def test_macro_f1_chooses_where_it_does_not_jump():
    assert phases._monitor(np.repeat([0, 1, 2], [90, 50, 10])) == "val_macro_f1"
    assert phases._monitor(np.repeat([0, 1, 2], [90, 50, 9])) == "val_loss"
    assert phases._monitor(np.repeat([0, 2], [90, 50])) == "val_macro_f1"


def _require_same(run: tuple, other: tuple) -> None:
    for record, expected in zip(run[0], other[0], strict=True):
        assert {**record, "seconds": 0} == pytest.approx({**expected, "seconds": 0}, abs=1e-5)
    for left, right in zip(run[2].get_weights(), other[2].get_weights(), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)


def test_a_killed_student_ends_like_an_undisturbed_one(weights: str, tmp_path: Path):
    """Its teacher says that dark crops are of the first class; killed while fine-tuning."""

    def teach(images):
        dark = 100.0 - keras.ops.mean(images, axis=(1, 2, 3))
        return keras.ops.stack([dark, -dark, 0.0 * dark], axis=-1) / 10.0

    train, val = (
        np.repeat(np.repeat(crops.images, 2, axis=1), 2, axis=2)
        for crops in (_crops(24, 0), _crops(9, 1))
    )
    teaching = Teaching(Teacher(teach, 64), train, val)
    undisturbed = _train(tmp_path / "undisturbed", weights, teaching=teaching)
    losses = [each["val_loss"] for each in undisturbed[0] if each["phase"] == FINE_TUNE]
    # However well the head alone did, the best is an epoch that the teacher had a say in.
    assert undisturbed[1][-1] == (FINE_TUNE, int(np.argmin(losses)))
    with pytest.raises(_KilledError):
        _train(tmp_path / "killed", weights, killed_after=4, teaching=teaching)
    _require_same(_train(tmp_path / "killed", weights, teaching=teaching), undisturbed)


def test_half_precision_with_loss_scaling_trains(tmp_path: Path):
    """What older GPUs do: float16 with a scaled loss, and the rate still follows the plan."""
    run = RunFolder(tmp_path)
    run.open({})
    with dtype_policy("mixed_float16"):
        model = build_model("mobilenet", 32, 3, "none")
        recipe = replace(RECIPE, epochs=1, head_epochs=0)
        train_model(model, _crops(24, 0), _crops(9, 1), recipe, run, lambda *figures: None)
    (record,) = run.history
    assert np.isfinite(record["loss"])
    assert record["learning_rate"] == pytest.approx(recipe.lr)


def test_the_average_is_validated_and_training_goes_on_from_the_weights():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    optimizer = keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.5)
    model.compile(optimizer=optimizer, loss="mse")
    weight = model.trainable_variables[0]
    weight.assign([[4.0]])
    optimizer.build([weight])
    average = _Average()
    average.set_model(model)
    # Two steps of 1 times 2 lead from 4 to 2 and 0. The average begins at 2 and becomes 1.
    for _ in range(2):
        optimizer.apply([keras.ops.array([[2.0]])])
    average.on_test_begin()
    assert weight.numpy() == 1.0
    average.on_epoch_end(0)
    assert weight.numpy() == 0.0


def test_features_leave_no_crops_in_memory(monkeypatch: pytest.MonkeyPatch):
    """TensorFlow keeps the arrays that a data set was made of: whole chunks would pile up."""
    monkeypatch.setattr(phases, "_CHUNK", 8)
    images = RowFile((32, 32, 3), np.uint8)
    images.append(np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8))
    most_read, read = [], RowFile.__getitem__

    def note(self: RowFile, key: object) -> np.ndarray:
        rows = read(self, key)
        most_read.append(len(rows))
        return rows

    monkeypatch.setattr(RowFile, "__getitem__", note)
    model = build_model("mobilenet", 32, 3, "none")
    features = phases._features(model, images, batch_size=4)
    assert most_read == [4] * 5
    monkeypatch.undo()
    expected = features_model(model).predict(np.asarray(images), verbose=0)
    np.testing.assert_allclose(np.asarray(features), expected, atol=1e-5)
