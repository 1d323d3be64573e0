import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest

from fmd_tf.checkpoints import (
    LOSS,
    MONITOR,
    BestModel,
    CheckpointError,
    RequireFinite,
    RunFolder,
    SaveState,
    TrainingError,
)


def _open(path: Path, overwrite: bool = False, **identity: object) -> RunFolder:
    run = RunFolder(path)
    run.open({"lr": 0.1, "seed": 0, **identity}, overwrite)
    return run


def test_the_same_run_goes_on(tmp_path: Path):
    run = _open(tmp_path / "run")
    (run.path / "state-head-000").mkdir()
    run.best_model.write_text("best")
    _open(tmp_path / "run")
    assert (run.path / "state-head-000").is_dir() and run.best_model.read_text() == "best"


def test_a_model_without_its_run_is_not_written_over(tmp_path: Path):
    run = RunFolder(tmp_path)
    run.best_model.write_text("of elsewhere")
    for finished in (False, True):  # The second one's states were deleted, to make room.
        with pytest.raises(CheckpointError, match=r"best_model\.keras is of another run"):
            _open(tmp_path)
        if not finished:
            _open(tmp_path, overwrite=True)
            run.best_model.write_text("of this run")
            _open(tmp_path)  # Killed before its first state.
            (tmp_path / "exported.txt").write_text("savedmodel/1")
    run.best_model.unlink()
    _open(tmp_path)
    assert not (tmp_path / "exported.txt").exists()  # What comes must be exported too.


def test_another_run_is_refused_with_the_difference(tmp_path: Path):
    run = _open(tmp_path / "run")
    (run.path / "state-head-000").mkdir()
    with pytest.raises(CheckpointError, match=r"holds a run with lr 0.1 \(now 0.2\)"):
        _open(tmp_path / "run", lr=0.2)


def test_a_run_without_an_epoch_gives_way(tmp_path: Path):
    """Weights that could not be downloaded, then the same command with a file of them."""
    _open(tmp_path / "run")
    _open(tmp_path / "run", lr=0.2)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["lr"] == 0.2


def test_overwrite_discards_the_old_run_and_nothing_else(tmp_path: Path):
    run = _open(tmp_path / "run")
    (run.path / "state-head-000").mkdir()
    run.best_model.write_text("old")
    (run.path / "notes.txt").write_text("mine")
    _open(tmp_path / "run", overwrite=True, lr=0.2)
    assert sorted(path.name for path in run.path.iterdir()) == ["notes.txt", "run.json"]


@pytest.mark.parametrize(
    ("settings", "is_its_own"),
    [
        ({"weights": ["centerface", "imagenet"]}, True),
        ({"weights": ["none"], "self_distill": True}, True),
        ({"weights": ["none"]}, False),
    ],
)
def test_overwrite_discards_the_teacher_that_was_trained_with_it(
    tmp_path: Path, settings: dict, is_its_own: bool
):
    run = _open(tmp_path / "run", **settings)
    teacher = _open(run.teacher.path)
    (teacher.path / "state-head-000").mkdir()
    teacher.best_model.write_text("old")
    _open(tmp_path / "run", overwrite=True, weights=["none"])
    assert teacher.has_state() == teacher.best_model.exists() == (not is_its_own)


class _Model:
    """Stands for a Keras model in callbacks that are driven by hand."""

    stop_training = False

    def __init__(self, learning_rate: float = 1.0):
        self.optimizer = keras.optimizers.SGD(learning_rate)

    def save_weights(self, path: Path) -> None:
        Path(path).write_text("weights")


def _drive(run: RunFolder, values: list[float], epochs: int) -> tuple[dict, _Model]:
    """Show the callbacks a list of figures, going on from the run's state."""
    state = run.latest()
    run.history = list(state.history) if state else []
    callbacks = {
        "plateau": keras.callbacks.ReduceLROnPlateau(MONITOR, 0.1, patience=2, mode="max"),
        "early_stopping": keras.callbacks.EarlyStopping(MONITOR, patience=4, mode="max"),
        "best_model": BestModel(lambda epoch, logs: None),
    }
    saver = SaveState(run, "head", epochs, callbacks, state)
    model = _Model(state.history[-1]["lr_after"] if state else 1.0)
    every = [*callbacks.values(), saver]
    for callback in every:
        callback.set_model(model)
        callback.on_train_begin()
    for epoch in range(state.epoch + 1 if state else 0, len(values)):
        logs = {MONITOR: values[epoch]}
        for callback in every[:-1]:
            callback.on_epoch_end(epoch, logs)
        saver.on_epoch_begin(epoch)
        saver.on_epoch_end(epoch, {**logs, "lr_after": float(model.optimizer.learning_rate)})
        if model.stop_training:
            break
    return callbacks, model


# The best is at epoch 1. Two epochs without a better one lower the rate, at epochs 3 and 5;
# four stop the training, at epoch 5.
VALUES = [0.5, 0.7, 0.6, 0.65, 0.6, 0.6, 0.9]


@pytest.mark.parametrize("killed_after", [1, 2, 3, 4, 5])
def test_waiting_and_best_survive_a_kill(tmp_path: Path, killed_after: int):
    run = _open(tmp_path / "run")
    _drive(run, VALUES[:killed_after], epochs=7)
    callbacks, model = _drive(RunFolder(run.path), VALUES, epochs=7)
    state = run.latest()
    assert (state.epoch, state.done) == (5, True)
    assert callbacks["best_model"].best_epoch == 1
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01)
    assert [record["epoch"] for record in state.history] == list(range(6))


def test_only_the_latest_state_is_kept_and_the_log_is_whole(tmp_path: Path):
    run = _open(tmp_path / "run")
    _drive(run, VALUES[:3], epochs=3)
    assert [path.name for path in run.path.glob("state-*")] == ["state-head-002"]
    assert len((run.path / "training_log.csv").read_text().splitlines()) == 4
    assert run.latest().done


def test_a_half_written_state_is_ignored(tmp_path: Path):
    run = _open(tmp_path / "run")
    _drive(run, VALUES[:2], epochs=7)
    partial = run.path / ".state-head-002"
    partial.mkdir()
    (partial / "state.json").write_text('{"phase": "he')
    assert run.latest().epoch == 1
    _drive(run, VALUES[:3], epochs=7)
    assert run.latest().epoch == 2


def test_a_kill_while_an_old_state_is_removed_leaves_the_new_one(tmp_path: Path, monkeypatch):
    """Of a folder that is being removed, `state.json` may be gone and the weights still there."""
    run = _open(tmp_path / "run")
    _drive(run, VALUES[:1], epochs=7)
    remove = shutil.rmtree

    def killed(path, ignore_errors=False):
        if not ignore_errors:
            (Path(path) / "state.json").unlink()
            raise KeyboardInterrupt
        remove(path, ignore_errors=True)

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        _drive(run, VALUES[:2], epochs=7)
    monkeypatch.undo()
    assert RunFolder(run.path).latest().epoch == 1
    _drive(RunFolder(run.path), VALUES[:3], epochs=7)
    assert sorted(path.name for path in run.path.glob("*state*")) == ["state-head-002"]
    assert not (run.path / ".removed").exists()


def test_two_states_after_a_kill_between_writing_and_dropping(tmp_path: Path):
    run = _open(tmp_path / "run")
    _drive(run, VALUES[:2], epochs=7)
    older = run.path / "state-head-000"
    older.mkdir()
    values = json.loads((run.path / "state-head-001" / "state.json").read_text())
    values |= {"epoch": 0, "history": values["history"][:1]}
    (older / "state.json").write_text(json.dumps(values))
    assert run.latest().epoch == 1


def test_best_model_saves_only_what_is_better():
    saved = []
    callback = BestModel(lambda epoch, logs: saved.append(epoch))
    for epoch, value in enumerate([0.5, 0.4, 0.5, np.float32(0.6)]):
        callback.on_epoch_end(epoch, {MONITOR: value})
    assert saved == [0, 3]


def test_of_a_loss_less_is_better():
    saved = []
    callback = BestModel(lambda epoch, logs: saved.append(epoch), LOSS)
    for epoch, value in enumerate([0.5, 0.6, 0.5, np.float32(0.4)]):
        callback.on_epoch_end(epoch, {LOSS: value})
    assert saved == [0, 3]


def test_of_equal_epochs_that_with_the_lower_loss_is_kept():
    saved = []
    callback = BestModel(lambda epoch, logs: saved.append(epoch))
    for epoch, (value, loss) in enumerate([(1.0, 0.5), (1.0, 0.6), (1.0, 0.4), (0.9, 0.1)]):
        callback.on_epoch_end(epoch, {MONITOR: value, LOSS: loss})
    assert saved == [0, 2]


def test_a_loss_that_is_no_number_ends_the_training():
    RequireFinite().on_epoch_end(0, {"loss": 1.5})
    with pytest.raises(TrainingError, match=r"the loss of epoch 3 is nan.*smaller --lr"):
        RequireFinite().on_epoch_end(2, {"loss": float("nan")})
