"""The state of a training run on disk: what lets it go on after `kill -9`.

Keras' own `BackupAndRestore` forgets how long `EarlyStopping` and `ReduceLROnPlateau` have
waited and what their best was. Here one folder an epoch holds the weights, the optimizer, the
random generators, the callbacks and the history; it appears by a rename, so that a run either
has the whole epoch or none of it.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import keras

from fmd_tf.errors import UserError, differences
from fmd_tf.publish import replacing, write_text

MONITOR = "val_macro_f1"
LOSS = "val_loss"
BEST_MODEL = "best_model.keras"
EXPORTED = "exported.txt"
LOCK = ".lock"
"""Held by the one run that writes to the folder."""
_RUN_FILE = "run.json"


class CheckpointError(UserError):
    """The checkpoint folder cannot be used for this run."""


class TrainingError(UserError):
    """A training cannot go on."""


def require_space(model: keras.Model, folder: Path, num_runs: int) -> None:
    """Fail where not all fits that trainings write.

    A state (weights and two moments) and the best model stay of each; the last has a second state
    and model for a moment, and an export, which is written beside the one before.

    Args:
        model: One that is to be trained.
        folder: Where it goes.
        num_runs: Trainings that have not begun.

    Raises:
        CheckpointError: The disk has not enough room.
    """
    needed = 4 * model.count_params() * ((3 + 1) * num_runs + 3 + 1 + 2)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"{folder} has {free / 1e6:.0f} MB free and the run needs {needed / 1e6:.0f} MB; "
            "make room or choose another --checkpoint-dir"
        )


@dataclass(frozen=True)
class TrainingState:
    """Where a run stands after an epoch.

    Attributes:
        phase: Name of the phase, for example "head".
        epoch: Index of the last finished epoch of the phase.
        done: Whether the phase ended with that epoch.
        callbacks: Attributes of the callbacks by callback name.
        history: One record an epoch of all phases so far.
        folder: Where the weights are.
    """

    phase: str
    epoch: int
    done: bool
    callbacks: dict[str, dict[str, Any]]
    history: list[dict[str, Any]]
    folder: Path

    @property
    def weights(self) -> Path:
        """Weights, optimizer and random generators of the trained model."""
        return self.folder / "model.weights.h5"


@dataclass
class RunFolder:
    """A checkpoint folder: identity of the run, its latest state, and the best model."""

    path: Path
    best_name: str = BEST_MODEL
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def teacher(self) -> RunFolder:
        """The run inside this one whose model taught this one's, see `TrainConfig.of_teacher`."""
        return RunFolder(self.path / "teacher")

    @property
    def best_model(self) -> Path:
        """The model that was best on validation faces so far."""
        return self.path / self.best_name

    def identity(self) -> dict[str, Any]:
        """Return the settings of the run that it holds; {} where there is none."""
        run_file = self.path / _RUN_FILE
        return json.loads(run_file.read_text(encoding="utf-8")) if run_file.is_file() else {}

    def open(self, identity: Mapping[str, Any], overwrite: bool = False) -> None:
        """Claim the folder for a run, or go on with the run it holds.

        A run that ended before its first epoch did holds nothing that could be lost, so another
        may take its place: weights that could not be downloaded should not cost a flag. A model
        could be lost: one without a state is of a run whose states were deleted, or was put there.

        Args:
            identity: JSON-like settings that must not change within a run.
            overwrite: Discard another run's state.

        Raises:
            CheckpointError: It holds a run with other settings, or a model of another run.
        """
        exported = self.path / EXPORTED
        wanted = json.loads(json.dumps(identity, default=str))
        if overwrite:
            self._discard()
        found = self.identity()
        if found and self.has_state():
            self._require_same(found, wanted)
        # Killed between its first model and its first state, a run begins anew.
        elif self.best_model.exists() and (found != wanted or exported.exists()):
            raise CheckpointError(
                f"{self.best_model} is of another run, or of one whose states are gone; choose "
                "another --checkpoint-dir, or discard that model with --overwrite"
            )
        else:
            exported.unlink(missing_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / _RUN_FILE, json.dumps(wanted, indent=2))

    def _discard(self) -> None:
        found = self.identity()
        weights = found.get("weights")
        if found.get("self_distill") or (isinstance(weights, list) and len(weights) > 1):
            self.teacher._discard()
        self._remove_states()
        for name in (_RUN_FILE, self.best_name, "training_log.csv", EXPORTED):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.path / "tensorboard", ignore_errors=True)

    def _require_same(self, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        if differing := differences(found, wanted):
            raise CheckpointError(
                f"{self.path} holds a run with {differing}; choose another "
                "--checkpoint-dir, or discard that run with --overwrite"
            )

    def has_state(self) -> bool:
        """Tell whether at least an epoch is done."""
        return any(self.path.glob("state-*"))

    def latest(self) -> TrainingState | None:
        """Return the last whole epoch, or None before the first."""
        states = [self._read(folder) for folder in self.path.glob("state-*") if folder.is_dir()]
        return max(states, key=lambda state: len(state.history), default=None)

    def epochs(self, with_teacher: bool) -> list[dict[str, Any]]:
        """Return a record an epoch so far, of the model's own teacher first where it had one."""
        runs = [self.teacher, self] if with_teacher else [self]
        return [record for run in runs if (state := run.latest()) for record in state.history]

    def _read(self, folder: Path) -> TrainingState:
        values = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return TrainingState(folder=folder, **values)

    def save(self, state: TrainingState, model: keras.Model) -> None:
        """Write a state, then drop the ones before it."""
        partial = self.path / f".{state.folder.name}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        model.save_weights(partial / state.weights.name)
        values = {name: value for name, value in asdict(state).items() if name != "folder"}
        (partial / "state.json").write_text(json.dumps(values), encoding="utf-8")
        partial.replace(state.folder)
        self._remove_states(but=state.folder)
        self._write_log(state.history)

    def _remove_states(self, but: Path | None = None) -> None:
        """Take the name away first: half a state must not look like a whole one."""
        for folder in self.path.glob("state-*"):
            if folder != but:
                removed = self.path / ".removed"
                shutil.rmtree(removed, ignore_errors=True)
                folder.replace(removed)
                shutil.rmtree(removed)

    def _write_log(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write the CSV log anew: appended rows would double an epoch that was killed."""
        with (
            replacing(self.path / "training_log.csv") as partial,
            partial.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, fieldnames=list(history[0]))
            writer.writeheader()
            writer.writerows(history)


class RequireFinite(keras.callbacks.Callback):
    """End a training whose loss is no number any longer; it must come before what saves."""

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Look at the loss.

        Raises:
            TrainingError: It is not finite.
        """
        loss = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss of epoch {epoch + 1} is {loss}: the training has come apart; give a "
                "smaller --lr and --overwrite"
            )


class BestModel(keras.callbacks.Callback):
    """Call `save` whenever an epoch is better than all before it in this run.

    Of epochs that are equal the one with the lower loss is better: with a handful of validation
    faces macro-F1 is 1 again and again, and the first such epoch has learnt the least.

    Args:
        save: Called with the epoch and the epoch's figures.
        monitor: Name of the figure; default macro-F1. More is better, but of `LOSS` less is.
    """

    def __init__(
        self, save: Callable[[int, Mapping[str, float]], None], monitor: str = MONITOR
    ) -> None:
        super().__init__()
        self.monitor = monitor
        self.best: list[float] = []
        """Of the best epoch, what is compared one after the other; empty before the first."""
        self.best_epoch = -1
        self._save = save

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Compare the figures and save."""
        figures = logs or {}
        of_monitor = [] if self.monitor == LOSS else [float(figures[self.monitor])]
        value = [*of_monitor, -float(figures.get(LOSS, 0.0))]
        if value > self.best:
            self.best, self.best_epoch = value, epoch
            self._save(epoch, figures)


_KEPT_ATTRIBUTES = (
    "monitor",
    "wait",
    "best",
    "best_epoch",
    "stopped_epoch",
    "cooldown_counter",
)


class SaveState(keras.callbacks.Callback):
    """Save the run after each epoch; put the other callbacks back where they were.

    It must come last in the list: the others act before it writes, and reset themselves
    before it restores them.

    Args:
        run: Folder of the run.
        phase: Name of the phase.
        epochs: Number of epochs of the phase at the most.
        callbacks: The callbacks whose waiting and best-so-far are kept, by name.
        restore: State to begin from.
    """

    def __init__(
        self,
        run: RunFolder,
        phase: str,
        epochs: int,
        callbacks: Mapping[str, keras.callbacks.Callback],
        restore: TrainingState | None = None,
    ):
        super().__init__()
        self._run = run
        self._phase = phase
        self._epochs = epochs
        self._callbacks = callbacks
        self._restore = restore
        self._started = 0.0

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Give the callbacks their attributes back."""
        for name, attributes in (self._restore.callbacks if self._restore else {}).items():
            for attribute, value in attributes.items():
                setattr(self._callbacks[name], attribute, value)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Start the epoch's clock."""
        self._started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Add the epoch to the history and save everything."""
        figures = {name: float(value) for name, value in (logs or {}).items()}
        # ReduceLROnPlateau reports the rate; with a schedule nobody does.
        rate = keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        figures.setdefault("learning_rate", float(rate))
        seconds = round(time.perf_counter() - self._started, 2)
        self._run.history.append(
            {"phase": self._phase, "epoch": epoch, **figures, "seconds": seconds}
        )
        state = TrainingState(
            phase=self._phase,
            epoch=epoch,
            done=self.model.stop_training or epoch + 1 == self._epochs,
            callbacks={name: _attributes(each) for name, each in self._callbacks.items()},
            history=self._run.history,
            folder=self._run.path / f"state-{self._phase}-{epoch:03d}",
        )
        self._run.save(state, self.model)


def _attributes(callback: keras.callbacks.Callback) -> dict[str, Any]:
    """Return what a callback must not forget, as JSON values."""
    values = {name: getattr(callback, name) for name in _KEPT_ATTRIBUTES if hasattr(callback, name)}
    return {
        name: value if value is None or isinstance(value, int | str | list) else float(value)
        for name, value in values.items()
    }
