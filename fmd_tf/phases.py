"""The two phases of training: the head on frozen features, then fine-tuning of everything.

A head trained first keeps the pretrained features from being distorted by the gradients of a
random one (Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution", arXiv:2202.10054). The frozen features are computed once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from fmd_tf import input_pipeline
from fmd_tf.augment import build_augmentation
from fmd_tf.checkpoints import (
    LOSS,
    MONITOR,
    BestModel,
    RequireFinite,
    RunFolder,
    SaveState,
    TrainingState,
)
from fmd_tf.distill import DistilledModel, Teacher
from fmd_tf.input_pipeline import Crops
from fmd_tf.model import features_model, freeze_batch_norm, head_model, logits_model
from fmd_tf.row_file import RowFile, Rows

HEAD, FINE_TUNE = "head", "fine_tune"
_AVERAGED_EPOCHS = 1.5
_FEWEST_OF_A_CLASS = 10
_CHUNK = 8192
SaveBest = Callable[[str, int, Mapping[str, float]], None]


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; the fields are explained in `config.TrainConfig`."""

    num_classes: int
    epochs: int
    head_epochs: int
    batch_size: int
    lr: float
    head_lr: float
    weight_decay: float
    label_smoothing: float
    balance: float
    scheduler: str
    patience: int
    ema: float
    learns_batch_norm: bool
    seed: int


@dataclass(frozen=True)
class Teaching:
    """What a student learns besides the labels.

    Attributes:
        teacher: The teacher.
        train: uint8 [num_faces, size, size, 3], the training faces at the teacher's size.
        val: Likewise the validation faces.
    """

    teacher: Teacher
    train: Rows
    val: Rows


def train_model(
    model: keras.Model,
    train: Crops,
    val: Crops,
    recipe: Recipe,
    run: RunFolder,
    save_best: SaveBest,
    teaching: Teaching | None = None,
) -> None:
    """Train the model in place, going on from the run's last saved epoch.

    Args:
        model: From `model.build_model`, built in the scope and dtype policy to train under.
        train: Faces to learn from.
        val: Faces that learning rate, stopping and the choice of the best epoch look at: at their
            macro-F1, or at their loss where a class has fewer than 10 of them.
        recipe: Settings.
        run: Opened folder of the run; receives state, log and history.
        save_best: Called with phase, epoch and figures when validation is the best so far: by
            macro-F1, or by the loss where there is a teacher or a class has few faces; the model
            then holds the weights to keep.
        teaching: What fine-tuning learns besides the labels.
    """
    state = run.latest()
    run.history = list(state.history) if state else []
    if recipe.head_epochs and (state is None or state.phase == HEAD):
        head = head_model(model)
        _compile(head, recipe, recipe.head_lr, recipe.head_epochs, len(train))
        if state is None or not state.done:
            features = [_features(model, part.images, recipe.batch_size) for part in (train, val)]
            data = [(rows, part.labels) for rows, part in zip(features, (train, val), strict=True)]
            # With a teacher the head's loss, without one, is not that of fine-tuning.
            monitor = MONITOR if teaching else _monitor(val.labels)
            _fit(head, HEAD, data[0], data[1], recipe, recipe.head_epochs, run, save_best, monitor)
            state = run.latest()
        else:
            head.load_weights(state.weights)
            # As Keras does when training ends: on goes the average.
            head.optimizer.finalize_variable_values(head.trainable_variables)
    _fine_tune(model, train, val, recipe, run, save_best, teaching)


def _fine_tune(
    model: keras.Model,
    train: Crops,
    val: Crops,
    recipe: Recipe,
    run: RunFolder,
    save_best: SaveBest,
    teaching: Teaching | None,
) -> None:
    """Train all weights but those of batch norm, on augmented crops."""
    state = run.latest()
    if state and state.phase == FINE_TUNE and state.done:
        return
    if not recipe.learns_batch_norm:
        freeze_batch_norm(model)
    images = (teaching.train, teaching.val) if teaching else (train.images, val.images)
    augmented = _augmented(model, images[0].shape[1], recipe.seed, teaching)
    _compile(augmented, recipe, recipe.lr, recipe.epochs, len(train))
    _fit(
        augmented,
        FINE_TUNE,
        (images[0], train.labels),
        (images[1], val.labels),
        recipe,
        recipe.epochs,
        run,
        save_best,
        LOSS if teaching else _monitor(val.labels),
    )


def _augmented(
    model: keras.Model, image_size: int, seed: int, teaching: Teaching | None
) -> keras.Model:
    """Put the augmentation before the model, and its teacher beside it."""
    augmentation = build_augmentation(image_size, seed)
    if teaching:
        return DistilledModel(logits_model(model), augmentation, teaching.teacher)
    image = keras.Input((image_size, image_size, 3))
    return keras.Sequential([image, augmentation, logits_model(model)])


def _features(model: keras.Model, images: Rows, batch_size: int) -> RowFile:
    """Compute the pooled features of all crops once: float32 [num_faces, depth], on disk."""
    print(f"Computing frozen features of {len(images)} faces", flush=True)
    frozen = features_model(model)
    rows = RowFile(frozen.output.shape[1:], np.float32)
    for start in range(0, len(images), _CHUNK):
        chosen = range(start, min(start + _CHUNK, len(images)))
        batches = input_pipeline.eval_dataset(images, batch_size, chosen=chosen)
        features = frozen.predict(batches, verbose=_verbosity())
        rows.append(np.asarray(features, np.float32))
    return rows


def _compile(model: keras.Model, recipe: Recipe, lr: float, epochs: int, num_faces: int) -> None:
    """Compile with AdamW and smoothed cross-entropy, and make the optimizer's variables."""
    steps = input_pipeline.steps_per_epoch(num_faces, recipe.batch_size)
    rate: float | keras.optimizers.schedules.LearningRateSchedule = lr
    if recipe.scheduler == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(
            0.0, steps * epochs, warmup_target=lr, warmup_steps=min(steps, 100)
        )
    optimizer = keras.optimizers.AdamW(
        rate,
        weight_decay=recipe.weight_decay,
        use_ema=recipe.ema > 0,
        # Of a few photos an epoch is a step or two, and a longer average would be of the start.
        ema_momentum=min(recipe.ema, max(0.0, 1.0 - 1.0 / (_AVERAGED_EPOCHS * steps))),
        ema_overwrite_frequency=None,
    )
    # Biases and the scales of normalisation only lose accuracy by decay.
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=recipe.label_smoothing
        ),
        metrics=["accuracy", keras.metrics.F1Score(average="macro", name="macro_f1")],
    )
    # Saved states are loaded into these variables, so they must be there before training.
    model.optimizer.build(model.trainable_variables)
    if not tf.distribute.has_strategy():  # With one, Keras does it.
        _build_metrics(model, recipe.num_classes)


def _build_metrics(model: keras.Model, num_classes: int) -> None:
    """Make the metrics' variables: made in the first step, they have TensorFlow trace it twice."""
    nothing = np.zeros((1, num_classes), np.float32)
    model.compute_metrics(None, nothing, nothing)
    model.reset_metrics()


def _monitor(labels: np.ndarray) -> str:
    """Return what chooses among epochs: macro-F1, or the loss where a class has few faces.

    One of a handful of rare faces more or less makes macro-F1 jump.

    Args:
        labels: int [num_faces], of the validation faces.
    """
    counts = np.bincount(labels)
    return MONITOR if min(counts[counts > 0], default=0) >= _FEWEST_OF_A_CLASS else LOSS


def _fit(
    model: keras.Model,
    phase: str,
    train: tuple[Rows, np.ndarray],
    val: tuple[Rows, np.ndarray],
    recipe: Recipe,
    epochs: int,
    run: RunFolder,
    save_best: SaveBest,
    monitor: str,
) -> None:
    """Run the epochs of a phase that the run does not have yet."""
    state = run.latest()
    restored = state if state and state.phase == phase else None
    first_epoch = 0
    if restored:
        first_epoch = restored.epoch + 1
        model.load_weights(restored.weights)
        print(f"Going on with phase {phase} at epoch {first_epoch + 1}", flush=True)
    batch_size, val_batch_size = (
        _divisible_batch_size(len(rows), recipe.batch_size) for rows, _ in (train, val)
    )
    steps = input_pipeline.steps_per_epoch(len(train[0]), batch_size)
    kept = _kept_callbacks(recipe, phase, state, save_best, monitor)
    model.fit(
        _train_batches(train, recipe, batch_size, first_epoch),
        validation_data=input_pipeline.eval_dataset(
            val[0], val_batch_size, val[1], recipe.num_classes
        ),
        steps_per_epoch=steps,
        initial_epoch=first_epoch,
        epochs=epochs,
        callbacks=[
            _Reseed(recipe.seed),
            RequireFinite(),
            *kept.values(),
            *_plain_callbacks(recipe, phase, steps, run),
            *([_Average()] if recipe.ema else []),
            SaveState(run, phase, epochs, kept, restored),
        ],
        shuffle=False,  # The data set shuffles by itself.
        verbose=_verbosity(),
    )


class _WarmUp(keras.callbacks.Callback):
    """Raise the learning rate over the first epoch, before Adam's moments mean anything.

    At full rate the first steps undo what pretraining and the head phase have learnt. A
    schedule would do the same but rules out ReduceLROnPlateau.
    """

    def __init__(self, lr: float, steps: int):
        super().__init__()
        self._lr = lr
        self._steps = steps
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Note the epoch."""
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        """Set the rate of a step of the first epoch."""
        if self._epoch == 0:
            self.model.optimizer.learning_rate = self._lr * min(1.0, (batch + 1) / self._steps)


class _Average(keras.callbacks.Callback):
    """Validate and keep the moving average of the weights; train on with the weights themselves.

    A few hundred faces and a high rate make single steps noisy; their average is not (Polyak and
    Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging"). It must come after
    the callbacks that look at the model when an epoch ends, and before the state is saved.
    """

    def __init__(self) -> None:
        super().__init__()
        self._weights: list[np.ndarray] = []

    def on_test_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Put the average into the model."""
        trained = self.model.trainable_variables
        self._weights = [keras.ops.convert_to_numpy(weight) for weight in trained]
        self.model.optimizer.finalize_variable_values(trained)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Put the weights back."""
        for variable, weight in zip(self.model.trainable_variables, self._weights, strict=True):
            variable.assign(weight)


class _Reseed(keras.callbacks.Callback):
    """Make dropout and augmentation depend on the seed and the epoch alone.

    Keras does not save the state of random generators with the weights; set anew each epoch,
    they are the same in a run that was interrupted.
    """

    def __init__(self, seed: int):
        super().__init__()
        self._seed = seed

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Set all generators; each step of an epoch advances the second number by one."""
        states = [each for each in self.model.variables if each.name == "seed_generator_state"]
        for index, state in enumerate(states):
            state.assign([self._seed + index, epoch << 20])


def _divisible_batch_size(num_faces: int, batch_size: int) -> int:
    """Return the largest batch size up to `batch_size` that all devices can share.

    Keras averages the first batch over the devices, so it must divide evenly, and no device
    may be left without a face of the last batch. With one device any size will do.
    """
    devices = tf.distribute.get_strategy().num_replicas_in_sync
    for size in range(min(batch_size, num_faces), devices - 1, -1):
        remainder = num_faces % size
        if size % devices == 0 and (remainder == 0 or remainder >= devices):
            return size
    return batch_size


def _train_batches(
    train: tuple[Rows, np.ndarray], recipe: Recipe, batch_size: int, first_epoch: int
) -> tf.data.Dataset:
    options = tf.data.Options()
    # A mirrored strategy splits each batch; sharding the source would drop faces.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return input_pipeline.train_dataset(
        *train,
        num_classes=recipe.num_classes,
        batch_size=batch_size,
        seed=recipe.seed,
        balance=recipe.balance,
        first_epoch=first_epoch,
    ).with_options(options)


def _plain_callbacks(
    recipe: Recipe, phase: str, steps: int, run: RunFolder
) -> list[keras.callbacks.Callback]:
    """Make the callbacks that have nothing to remember."""
    log = keras.callbacks.TensorBoard(str(run.path / "tensorboard" / phase), write_graph=False)
    warm_up = phase == FINE_TUNE and recipe.scheduler == "plateau"
    return [log, *([_WarmUp(recipe.lr, steps)] if warm_up else [])]


def _kept_callbacks(
    recipe: Recipe,
    phase: str,
    state: TrainingState | None,
    save_best: SaveBest,
    monitor: str,
) -> dict[str, keras.callbacks.Callback]:
    """Make the callbacks that watch validation; the best is that of all phases that watch alike.

    With a teacher that is the loss, which says how well its answers are met: a student that stops
    where macro-F1 jumps in its first epochs has learnt little.
    """
    watch = {"monitor": monitor, "mode": "min" if monitor == LOSS else "max"}
    best = BestModel(lambda epoch, logs: save_best(phase, epoch, logs), monitor)
    if state and state.callbacks["best_model"]["monitor"] == monitor:
        best.best = state.callbacks["best_model"]["best"]
    callbacks: dict[str, keras.callbacks.Callback] = {
        "early_stopping": keras.callbacks.EarlyStopping(patience=recipe.patience, **watch),
        "best_model": best,
    }
    if recipe.scheduler == "plateau":
        plateau = keras.callbacks.ReduceLROnPlateau(
            factor=0.3, patience=max(1, recipe.patience // 3), min_lr=1e-6, verbose=1, **watch
        )
        callbacks = {"plateau": plateau, **callbacks}
    return callbacks


def _verbosity() -> int:
    """Show a moving bar to a person, and a line an epoch in a log file."""
    return 1 if sys.stdout.isatty() else 2
