"""Train and evaluate the face detector: `python -m fmd_tf.train_detector --data-dir DIR`.

Rerunning the same command goes on where an interrupted run stopped.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import keras

from fmd_tf.checkpoints import (
    BestModel,
    RequireFinite,
    RunFolder,
    SaveState,
    TrainingState,
    require_space,
)
from fmd_tf.command import find_folder, locked_folders, run_training, weights_at_hand
from fmd_tf.config import NO_WEIGHTS, DetectorConfig
from fmd_tf.detector import (
    DetectorCard,
    build_detector,
    face_loss,
    freeze_first_layers,
    load_detector,
    save_detector,
)
from fmd_tf.detector_metrics import average_precision, choose_threshold
from fmd_tf.detector_pipeline import train_views, views_per_epoch
from fmd_tf.devices import select_device
from fmd_tf.errors import command_line
from fmd_tf.evaluate import write_problems
from fmd_tf.evaluate_detector import (
    REPORT_FILES,
    Contender,
    find_all,
    load_peer,
    report,
    trained_contender,
    whole_photos,
    write_report,
)
from fmd_tf.input_pipeline import steps_per_epoch
from fmd_tf.splits import (
    Split,
    SplitError,
    choose_split,
    group_photos,
    groups_of_split,
    save_split,
    split_digests,
)
from fmd_tf.voc import Annotation, Folder, read_folder

BEST_DETECTOR = "best_detector.keras"
_MONITOR = "val_ap50"


@command_line
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the process' exit code."""
    return run_training(
        train_and_evaluate,
        DetectorConfig,
        argv,
        command="train_detector",
        description="Train and evaluate a face detector.",
    )


def train_and_evaluate(config: DetectorConfig) -> dict:
    """Train a detector, choose its threshold on validation photos, score it once on the test.

    Args:
        config: The run.

    Returns:
        What `results/detector/metrics/detector.json` holds.

    Raises:
        ValueError: A subclass for each kind of unusable input, with a message for the user.
    """
    select_device(config.device)
    with locked_folders(config.checkpoint_dir, config.results_dir):
        return _train_and_evaluate(config)


def _train_and_evaluate(config: DetectorConfig) -> dict:
    run = RunFolder(config.checkpoint_dir, BEST_DETECTOR)
    (weights,) = weights_at_hand([config.weights], config, run, build_detector)
    config = replace(config, weights=weights)
    peer = load_peer(config.peer)
    folder = read_folder(find_folder(config), config.class_names, config.skip_invalid)
    groups = group_photos(folder.annotations, config.group_distance)
    split = _choose_split(config, folder, groups)
    parts = {name: _select(folder, getattr(split, name)) for name in ("train", "val", "test")}
    for name, part in parts.items():
        if getattr(split, name) and not any(each.faces for each in part):
            raise SplitError(
                f"--skip-invalid leaves no photo with all its faces in the part {name!r}; mend the "
                "annotations, or give another --seed"
            )
        print(f"{name}: {len(part)} photos, {sum(len(each.faces) for each in part)} faces")
    begins = config.overwrite or not run.has_state()
    require_space(build_detector(NO_WEIGHTS), config.checkpoint_dir, num_runs=int(begins))
    run.open(_identity(config, parts["train"], parts["val"]), config.overwrite)
    # Only now: a run that is refused must leave the results of the one before as they are.
    _begin_results(config, run, folder, split, groups)
    _train(config, run, parts["train"], parts["val"], split)
    trained = _finish(config, run.best_model, parts["val"])
    tested = "test" if parts["test"] else "val"
    if tested == "val":
        print("No test part: the figures below are of the validation photos, and flattering.")
    figures = report({"trained": trained, **peer}, parts[tested], config.class_names, groups)
    print(f"Best detector: {run.best_model}")
    write_report(config.results_dir / "metrics", asdict(config), figures)
    return figures


def _choose_split(config: DetectorConfig, folder: Folder, groups: Mapping[str, int]) -> Split:
    """Split as the classifier does: one seed gives both the same test photos."""
    index = {name: number for number, name in enumerate(folder.class_names)}
    return choose_split(
        {
            each.photo.name: [index[face.label] for face in each.faces]
            for each in folder.annotations
        },
        groups,
        (config.val_fraction, config.test_fraction),
        config.seed,
        config.split_file,
    )


def _select(folder: Folder, names: Sequence[str]) -> list[Annotation]:
    wanted = set(names)
    return [each for each in whole_photos(folder.annotations) if each.photo.name in wanted]


def _begin_results(
    config: DetectorConfig, run: RunFolder, folder: Folder, split: Split, groups: Mapping[str, int]
) -> None:
    """Write what is known before a training, and remove the figures of the one before."""
    results = config.results_dir / "metrics"
    if not run.has_state():
        for name in REPORT_FILES:
            (results / name).unlink(missing_ok=True)
    write_problems(folder, config.results_dir)
    save_split(split, groups_of_split(config.split_file, groups), results / "split.json")


def _train(
    config: DetectorConfig,
    run: RunFolder,
    train: Sequence[Annotation],
    val: Sequence[Annotation],
    split: Split,
) -> None:
    """Train a detector, or go on with it, up to its best checkpoint."""
    state = run.latest()
    if state and state.done:
        return
    keras.utils.set_random_seed(config.seed)
    model = _build(config, state)
    train = [annotation for annotation in train if annotation.faces]
    steps = steps_per_epoch(views_per_epoch(train), config.batch_size)
    _compile(model, config, steps)
    first_epoch = 0
    if state:
        run.history = list(state.history)
        first_epoch = state.epoch + 1
        model.load_weights(state.weights)
        print(f"Going on at epoch {first_epoch + 1}", flush=True)
    model.fit(
        train_views(
            train,
            config.class_names,
            config.image_size,
            config.view_size,
            config.batch_size,
            config.seed,
            config.balance,
            first_epoch,
        ),
        steps_per_epoch=steps,
        initial_epoch=first_epoch,
        epochs=config.epochs,
        callbacks=_callbacks(config, model, run, val, split, state),
        shuffle=False,  # The data set shuffles by itself.
        verbose=1 if sys.stdout.isatty() else 2,
    )


def _callbacks(
    config: DetectorConfig,
    model: keras.Model,
    run: RunFolder,
    val: Sequence[Annotation],
    split: Split,
    state: TrainingState | None,
) -> list[keras.callbacks.Callback]:
    """Validate, keep the best detector, log, and save the state last."""
    best = BestModel(lambda epoch, logs: _save(config, model, split, epoch, logs), _MONITOR)
    return [
        RequireFinite(),
        _Validate(config.image_size, val, config.class_names),
        best,
        keras.callbacks.TensorBoard(str(run.path / "tensorboard"), write_graph=False),
        SaveState(run, "detector", config.epochs, {"best_model": best}, state),
    ]


def _build(config: DetectorConfig, state: TrainingState | None) -> keras.Model:
    """Build the detector; pretrained first layers stay as they are. A state has all weights."""
    model = build_detector(config.weights, is_loaded=state is None)
    if config.weights != NO_WEIGHTS:
        freeze_first_layers(model)
    return model


def _compile(model: keras.Model, config: DetectorConfig, steps: int) -> None:
    """Compile with AdamW under a cosine, and make the optimizer's variables."""
    warm_up = min(200, steps * config.epochs // 4)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps * config.epochs - warm_up, warmup_target=config.lr, warmup_steps=warm_up
    )
    optimizer = keras.optimizers.AdamW(rate, weight_decay=config.weight_decay, clipnorm=10.0)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    model.compile(optimizer=optimizer, loss=face_loss)
    model.optimizer.build(model.trainable_variables)


class _Validate(keras.callbacks.Callback):
    """Add the average precision on validation photos to the epoch's figures.

    Args:
        image_size: See `DetectorCard`.
        annotations: Validation photos.
        class_names: Names of the classes.
    """

    def __init__(
        self, image_size: int, annotations: Sequence[Annotation], class_names: Sequence[str]
    ):
        super().__init__()
        self._class_names = class_names
        self._card = DetectorCard(image_size)
        self._annotations = annotations

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Find the faces of all validation photos."""
        detector = trained_contender(self.model, self._card)
        found = find_all(detector, self._annotations, self._class_names)
        if logs is not None:
            logs[_MONITOR] = average_precision(found)


def _save(
    config: DetectorConfig, model: keras.Model, split: Split, epoch: int, logs: Mapping[str, float]
) -> None:
    figures = {name: float(value) for name, value in logs.items()}
    training = {"epoch": epoch, "seed": config.seed, "split": split_digests(split), **figures}
    card = DetectorCard(config.image_size, training=training)
    save_detector(model, card, config.checkpoint_dir / BEST_DETECTOR)


def _finish(config: DetectorConfig, path: Path, val: Sequence[Annotation]) -> Contender:
    """Choose the threshold on validation photos, and keep it in the card."""
    model, card = load_detector(path)
    trained = trained_contender(model, card)
    found = find_all(trained, val, config.class_names)
    threshold = choose_threshold(found, config.precision)
    if threshold is None:
        threshold = DetectorCard(config.image_size).threshold
        print(f"No threshold has a precision of {config.precision}; it is {threshold:.3f}")
    else:
        print(f"Threshold {threshold:.3f}: precision {config.precision} on the validation photos")
    save_detector(model, replace(card, threshold=threshold), path)
    return replace(trained, threshold=threshold)


def _identity(
    config: DetectorConfig, train: Sequence[Annotation], val: Sequence[Annotation]
) -> dict:
    """Return what must stay the same for a run to go on."""
    settings = asdict(config)
    for name in ("checkpoint_dir", "results_dir", "overwrite", "device", "peer", "precision"):
        del settings[name]
    digest = hashlib.sha256()
    for each in (*train, *val):
        faces = [[face.label, face.box] for face in each.faces]
        digest.update(json.dumps([each.photo.name, faces]).encode())
        digest.update(each.photo.read_bytes())
    return {**settings, "data": digest.hexdigest()[:16]}


if __name__ == "__main__":
    sys.exit(main())
