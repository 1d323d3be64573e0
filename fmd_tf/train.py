"""Train, evaluate and export a classifier: `python -m fmd_tf.train --data-dir DIR`.

Rerunning the same command goes on where an interrupted run stopped.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path

import keras
import numpy as np

from fmd_tf.calibration import fit_temperature, rarity_offsets, rescale_logits
from fmd_tf.checkpoints import BEST_MODEL, EXPORTED, RunFolder, require_space
from fmd_tf.command import find_folder, locked_folders, run_training, weights_at_hand
from fmd_tf.config import NO_WEIGHTS, ConfigError, TrainConfig
from fmd_tf.devices import make_strategy, precision_policy, select_device
from fmd_tf.distill import Teacher, load_teacher
from fmd_tf.ensemble import join_models
from fmd_tf.errors import command_line
from fmd_tf.evaluate import predict_probabilities, write_problems, write_report
from fmd_tf.export import export_saved_model
from fmd_tf.face_mask_dataset import load_photos
from fmd_tf.input_pipeline import Crops, load_crops
from fmd_tf.metrics import Predictions, format_summary
from fmd_tf.model import (
    ModelCard,
    build_model,
    dtype_policy,
    is_depthwise,
    load_model,
    logits_model,
    save_model,
)
from fmd_tf.phases import Recipe, Teaching, train_model
from fmd_tf.plots import plot_history, save_figure
from fmd_tf.provenance import provenance
from fmd_tf.publish import require_writable, write_text
from fmd_tf.splits import (
    Split,
    choose_split,
    groups_of_split,
    make_folds,
    save_split,
    split_digests,
)
from fmd_tf.voc import Folder

_FEWEST_STEPS = 8
_SMALLEST_BATCH = 4
_CHUNK = 1024
_PARTS = {"train": "train", "val": "validation", "test": "test"}
_RESULTS = (
    *("split.json", "split-fold-*.json", "metrics.json", "predictions.csv", "config.json"),
    *("evaluation.json", "training_history*.*", "confusion_matrix.png", "reliability.png"),
    *("mistakes.png", "gradcam.png"),
)
"""What a training or a scoring leaves, and would be wrong beside the figures of another one."""


@dataclass(frozen=True)
class _Training:
    """One training of a run.

    Attributes:
        fold: Its name among others; "" for the only one.
        split: Its photos.
        run: Its folder.
        teacher: The teacher that was asked for: of folds each its own, which saw no test face.
    """

    fold: str
    split: Split
    run: RunFolder
    teacher: Path | None


@command_line
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the process' exit code."""
    return run_training(
        train_and_evaluate,
        TrainConfig,
        argv,
        command="train",
        description="Train, evaluate and export a face-mask classifier.",
    )


def train_and_evaluate(config: TrainConfig) -> dict:
    """Train a classifier, score it once on the test faces, and export it.

    Args:
        config: The run.

    Returns:
        What `results/metrics/metrics.json` holds.

    Raises:
        ValueError: A subclass for each kind of unusable input, with a message for the user.
    """
    select_device(config.device)
    require_writable(config.export_dir)
    with locked_folders(config.checkpoint_dir, config.results_dir):
        return _train_and_evaluate(config)


def _train_and_evaluate(config: TrainConfig) -> dict:
    build = partial(build_model, config.model_name, config.image_size, 2)
    run = RunFolder(config.checkpoint_dir)
    config = replace(config, weights=weights_at_hand(config.begins_from, config, run, build))
    crops, folder = _load_data(config)
    trainings = _plan(config, crops)
    crops = crops.at_least(config.min_face_size)
    _open(config, crops, trainings)
    # Only now: a run that is refused must leave the results of the one before as they are.
    _begin_results(config, crops, folder, trainings)
    if config.folds:
        report, seconds = _cross_validate(config, crops, trainings)
    else:
        report, seconds = _train_once(config, crops, trainings[0])
    _write_config(config, folder, seconds)
    print(f"Results: {config.results_dir / 'metrics'}")
    print(format_summary(report, config.class_names))
    return report


def _load_data(config: TrainConfig) -> tuple[Crops, Folder]:
    """Read the annotations and cut all faces."""
    crops, folder = _cut(config, config.image_size)
    data_dir = folder.data_dir
    if not len(crops.at_least(config.min_face_size)):
        raise ConfigError(f"{data_dir} holds no faces of at least {config.min_face_size} pixels")
    counts = Counter(config.class_names[label] for label in crops.labels)
    if missing := [name for name in config.class_names if not counts[name]]:
        print(f"No face is {' or '.join(missing)}: the model will not learn what that is")
    print(
        f"{data_dir}: {len(folder.annotations)} photos ({folder.num_without_faces} without "
        f"faces), {len(crops)} faces ({folder.num_clipped} clipped to the photo): "
        + ", ".join(f"{counts[name]} {name}" for name in config.class_names)
    )
    return crops, folder


def _plan(config: TrainConfig, crops: Crops) -> list[_Training]:
    """Return the training that was asked for, or one a fold."""
    groups, labels = crops.group_of_photo, _labels_by_photo(crops)
    val_fraction = config.val_fraction_of(len(crops))
    if not config.folds:
        fractions = (val_fraction, config.test_fraction)
        split = choose_split(labels, groups, fractions, config.seed, config.split_file)
        return [_Training("", split, RunFolder(config.checkpoint_dir), config.distill)]
    splits = make_folds(labels, groups, config.folds, val_fraction, config.seed)
    return [
        _Training(
            fold := f"fold-{index}",
            split,
            RunFolder(config.checkpoint_dir / fold),
            config.distill and config.distill / fold / BEST_MODEL,
        )
        for index, split in enumerate(splits)
    ]


def _cut(config: TrainConfig, image_size: int) -> tuple[Crops, Folder]:
    photos, folder = load_photos(
        find_folder(config),
        config.class_names,
        config.skip_invalid,
        group_distance=config.group_distance,
    )
    return load_crops(photos, image_size, config.padding, config.square), folder


def _cutter(config: TrainConfig, crops: Crops) -> Callable[[int], Crops]:
    """Return the function that cuts all faces at a teacher's size, each size once.

    Args:
        config: The run.
        crops: Those of the size of the run.
    """

    @cache
    def cut(size: int) -> Crops:
        if size == config.image_size:
            return crops
        again = _cut(config, size)[0].at_least(config.min_face_size)
        if again.photos != crops.photos or not np.array_equal(again.boxes, crops.boxes):
            raise ConfigError("the annotations have been changed since the run began; start again")
        return again

    return cut


def _labels_by_photo(crops: Crops) -> dict[str, list[int]]:
    """Return the labels of each photo's faces; the size of faces does not change a split."""
    labels: dict[str, list[int]] = {photo: [] for photo in crops.group_of_photo}
    for photo, label in zip(crops.photos, crops.labels, strict=True):
        labels[photo].append(int(label))
    return labels


def _open(config: TrainConfig, crops: Crops, trainings: Sequence[_Training]) -> None:
    """Claim the folders of all trainings before the first of them begins, or go on with them."""
    for training in trainings:
        _require_faces(config, crops, training.split)
        _require_teacher(config, training)
    runs = [training.run for training in trainings]
    if config.trains_teacher:
        runs += [run.teacher for run in runs]
    num_runs = sum(config.overwrite or not run.has_state() for run in runs)
    require_space(_build(config, is_loaded=False), config.checkpoint_dir, num_runs)
    faces = _digest(crops)
    for training in trainings:
        training.run.open(_identity(config, training, faces), config.overwrite)
        if config.trains_teacher:
            of_teacher = _identity(config.of_teacher(), training, faces)
            training.run.teacher.open(of_teacher, config.overwrite)


def _require_teacher(config: TrainConfig, training: _Training) -> None:
    """Fail before anything is discarded where a teacher may not teach."""
    teacher = training.teacher
    if teacher is None:
        return
    if config.folds and not teacher.is_file():
        raise ConfigError(f"--distill: no {teacher}; expected a training with --folds")
    if teacher.resolve() == training.run.best_model.resolve():
        raise ConfigError(
            f"--distill: {teacher} would be written over by its student; "
            "choose another --checkpoint-dir"
        )
    _load_teacher(teacher, config, training.split)


def _begin_results(
    config: TrainConfig, crops: Crops, folder: Folder, trainings: Sequence[_Training]
) -> None:
    """Write what is known before a training, and remove the figures of the one before."""
    results = config.results_dir / "metrics"
    users = config.split_file and config.split_file.resolve()  # By whatever name of the folder.
    for path in [path for pattern in _RESULTS for path in results.glob(pattern)]:
        if path.resolve() != users:
            path.unlink()
    write_problems(folder, config.results_dir)
    groups = groups_of_split(config.split_file, crops.group_of_photo)
    for training in trainings:
        name = f"split-{training.fold}.json" if training.fold else "split.json"
        save_split(training.split, groups, results / name)


def _train(
    config: TrainConfig, crops: Crops, training: _Training, cut: Callable[[int], Crops]
) -> None:
    """Train one model, its own teacher before it, or go on with them, up to its best checkpoint."""
    split, run, teacher = training.split, training.run, training.teacher
    for name, photos in asdict(split).items():
        labels = crops.select(photos).labels
        counts = np.bincount(labels, minlength=len(config.class_names))
        print(f"{_PARTS[name]}: {len(labels)} faces, by class {counts.tolist()}")
    if config.trains_teacher:
        print("Training twice: first the teacher", flush=True)
        _train_one(config.of_teacher(), crops, split, run.teacher)
        keras.backend.clear_session()
        teacher = run.teacher.best_model
        print("Now the model, which learns the teacher's answers", flush=True)
    teaching = _teaching(teacher, config, split, cut) if teacher else None
    _train_one(config, crops, split, run, teaching)
    if config.is_ensemble:
        _join_once(run)
        _calibrate_once(config, crops.select(split.train), crops.select(split.val), run)


def _train_one(
    config: TrainConfig,
    crops: Crops,
    split: Split,
    run: RunFolder,
    teaching: Teaching | None = None,
) -> None:
    """Train one model in a folder that is open, or go on with it, up to its best checkpoint."""
    train, val = crops.select(split.train), crops.select(split.val)
    keras.utils.set_random_seed(config.seed)
    policy = precision_policy(config.mixed_precision, is_depthwise(config.model_name))
    print(f"Training {config.model_name} at {config.image_size} px, {policy}", flush=True)
    with make_strategy(config.strategy).scope():
        model = _build(config)
        with dtype_policy(policy):
            trained = _build(config, all_views=False)
            trained.set_weights(model.get_weights())
            save_best = _saver(config, model, trained, split, run)
            train_model(trained, train, val, _recipe(config, len(train)), run, save_best, teaching)
    _calibrate_once(config, train, val, run)


def _require_faces(config: TrainConfig, crops: Crops, split: Split) -> None:
    """Fail before the training, not after it, where a part has only faces that are too small."""
    for name, photos in asdict(split).items():
        if photos and not len(crops.select(photos)):
            raise ConfigError(
                f"--min-face-size {config.min_face_size} leaves no face in the part {name!r}; "
                "give a smaller one, or another --seed"
            )


def _teaching(
    path: Path, config: TrainConfig, split: Split, cut: Callable[[int], Crops]
) -> Teaching:
    """Load a teacher, and cut the faces that are learnt from as it wants them."""
    teacher = _load_teacher(path, config, split)
    crops = cut(teacher.image_size)
    return Teaching(teacher, crops.select(split.train).images, crops.select(split.val).images)


def _load_teacher(path: Path, config: TrainConfig, split: Split) -> Teacher:
    return load_teacher(
        path,
        config.class_names,
        config.padding,
        config.square,
        split_digests(split),
        config.mixed_precision,
    )


def _calibrate_once(config: TrainConfig, train: Crops, val: Crops, run: RunFolder) -> None:
    """Set the best model's temperature and offsets, unless an earlier call has."""
    model, card = load_model(run.best_model)
    if "temperature" in card.training:
        return
    logits = predict_probabilities(logits_model(model), val.images, config.batch_size)
    temperature = fit_temperature(logits, val.labels)
    counts = np.bincount(train.labels, minlength=len(config.class_names))
    offsets = rarity_offsets(counts, config.logit_adjustment)
    rescale_logits(model, temperature, offsets)
    training = {**card.training, "temperature": temperature, "logit_offsets": offsets.tolist()}
    save_model(model, replace(card, training=training), run.best_model)
    added = ", ".join(f"{offset:.2f}" for offset in offsets)
    print(
        f"Temperature {temperature:.3f} of validation faces; for rarity, {added} are added",
        flush=True,
    )


def _join_once(run: RunFolder) -> None:
    """Make the best model an ensemble with its teacher, unless an earlier call has."""
    model, card = load_model(run.best_model)
    if "teacher" not in card.training:
        save_model(*join_models(load_model(run.teacher.best_model), (model, card)), run.best_model)


def _build(config: TrainConfig, all_views: bool = True, is_loaded: bool = True) -> keras.Model:
    return build_model(
        config.model_name,
        config.image_size,
        len(config.class_names),
        config.begins_from[-1],
        config.dropout,
        multi_view=config.multi_view,
        all_views=all_views,
        is_loaded=is_loaded,
    )


def _saver(
    config: TrainConfig, model: keras.Model, trained: keras.Model, split: Split, run: RunFolder
) -> Callable[[str, int, Mapping[str, float]], None]:
    """Return the function that keeps the best weights, in float32 and with all views."""

    def save_best(phase: str, epoch: int, logs: Mapping[str, float]) -> None:
        model.set_weights(trained.get_weights())
        figures = {name: float(value) for name, value in logs.items()}
        training = {
            "phase": phase,
            "epoch": epoch,
            "seed": config.seed,
            "split": split_digests(split),
            **figures,
        }
        save_model(model, replace(_card(config), training=training), run.best_model)

    return save_best


def _card(config: TrainConfig) -> ModelCard:
    return ModelCard(
        class_names=config.class_names,
        image_size=config.image_size,
        padding=config.padding,
        square=config.square,
        model_name=config.model_name,
        multi_view=config.multi_view,
    )


def _recipe(config: TrainConfig, num_faces: int) -> Recipe:
    """Return the training settings; a head on random features would learn nothing."""
    is_random = config.begins_from[-1] == NO_WEIGHTS
    # An epoch of one step, of a handful of photos, is over before anything is learnt.
    few = max(_SMALLEST_BATCH, num_faces // _FEWEST_STEPS)
    return Recipe(
        num_classes=len(config.class_names),
        epochs=config.epochs,
        head_epochs=0 if is_random else config.head_epochs,
        batch_size=min(config.batch_size, few),
        lr=config.lr or (1e-3 if is_random else 5e-4),
        head_lr=config.head_lr,
        weight_decay=config.weight_decay,
        label_smoothing=config.label_smoothing,
        balance=config.balance,
        scheduler=config.scheduler,
        patience=config.patience,
        # From random weights batch norm learns, and its statistics are those of the weights.
        ema=0.0 if is_random else config.ema,
        learns_batch_norm=is_random,
        seed=config.seed,
    )


def _digest(crops: Crops) -> hashlib._Hash:
    digest = hashlib.sha256()
    for start in range(0, len(crops), _CHUNK):
        digest.update(crops.images[start : start + _CHUNK].tobytes())
    digest.update(crops.labels.tobytes())
    return digest


def _identity(config: TrainConfig, training: _Training, faces: hashlib._Hash) -> dict:
    """Return what must stay the same for a run to go on: settings, faces and split."""
    settings = asdict(config)
    for name in ("checkpoint_dir", "results_dir", "export_dir", "overwrite", "device"):
        del settings[name]
    digest = faces.copy()
    digest.update(json.dumps(asdict(training.split)).encode())
    if training.teacher:
        digest.update(training.teacher.read_bytes())
    return {**settings, "distill": training.teacher, "data": digest.hexdigest()[:16]}


def _predict(config: TrainConfig, model: keras.Model, crops: Crops) -> Predictions:
    probabilities = predict_probabilities(model, crops.images, config.batch_size)
    return Predictions.from_crops(crops, probabilities)


def _evaluate(config: TrainConfig, crops: Crops, split: Split, model: keras.Model) -> dict:
    """Score the chosen model once: on the test faces, or on validation where there are none."""
    part = "test" if split.test else "val"
    faces = crops.select(getattr(split, part))
    if part == "val":
        print("No test part: the figures below are of the validation faces, and flattering.")
    return write_report(
        config.results_dir,
        _predict(config, model, faces),
        config.class_names,
        crops_images=faces.images,
        model=model,
    )


def _write_history(config: TrainConfig, card: ModelCard, run: RunFolder, name: str) -> None:
    """Write the training curves, with a mark at the epoch that the model is of."""
    history = run.epochs(with_teacher=False)
    path = config.results_dir / "metrics" / f"{name}.json"
    write_text(path, json.dumps(history, indent=1))
    figure = plot_history(history, (card.training["phase"], card.training["epoch"]))
    save_figure(figure, path.with_suffix(".png"))


def _seconds(config: TrainConfig, run: RunFolder) -> float:
    """Return the wall time of all epochs, its own teacher's too, whatever interrupted them."""
    return round(sum(record["seconds"] for record in run.epochs(config.trains_teacher)), 1)


def _with_report(card: ModelCard, report: dict, part: str, seconds: float) -> ModelCard:
    """Return the card with the figures of the model, so that they go where it goes."""
    figures = {"part": part, "seconds": seconds, **report}
    return replace(card, training={**card.training, "report": figures})


def _export_once(model: keras.Model, card: ModelCard, export_dir: Path, run: RunFolder) -> None:
    """Export the best model, unless a rerun finds that it has been."""
    record = run.path / EXPORTED
    version = Path(record.read_text(encoding="utf-8")) if record.is_file() else None
    if version is None or version.parent != export_dir or not version.is_dir():
        version = export_saved_model(model, card, export_dir)
        write_text(record, str(version))
    print(f"Best model: {run.best_model}\nSavedModel: {version}")


def _train_once(config: TrainConfig, crops: Crops, training: _Training) -> tuple[dict, float]:
    """Train, score and export one model; return its report, and seconds trained."""
    split, run = training.split, training.run
    _train(config, crops, training, _cutter(config, crops))
    model, card = load_model(run.best_model)
    report = _evaluate(config, crops, split, model)
    _write_history(config, card, run, "training_history")
    if config.trains_teacher:
        of_teacher = load_model(run.teacher.best_model)[1]
        _write_history(config, of_teacher, run.teacher, "training_history_teacher")
    seconds = _seconds(config, run)
    reported = _with_report(card, report, "test" if split.test else "validation", seconds)
    # Written again it would be another file, and the same command of its student another run.
    if reported != card:
        card = reported
        save_model(model, card, run.best_model)
    _export_once(model, card, config.export_dir, run)
    return report, seconds


def _cross_validate(
    config: TrainConfig, crops: Crops, trainings: Sequence[_Training]
) -> tuple[dict, float]:
    """Train a model a fold; report on pooled predictions of unseen faces, and seconds trained."""
    probabilities = np.zeros((len(crops), len(config.class_names)), np.float32)
    cut = _cutter(config, crops)
    seconds = 0.0
    for index, training in enumerate(trainings):
        print(f"Fold {index + 1} of {len(trainings)}", flush=True)
        _train(config, crops, training, cut)
        test = training.split.test
        model = load_model(training.run.best_model)[0]
        faces = crops.select(test)
        probabilities[np.isin(crops.photos, test)] = _predict(config, model, faces).probabilities
        seconds += _seconds(config, training.run)
        keras.backend.clear_session()
    report = write_report(
        config.results_dir,
        Predictions.from_crops(crops, probabilities),
        config.class_names,
        crops_images=crops.images,
    )
    return report, seconds


def _write_config(config: TrainConfig, folder: Folder, seconds: float) -> None:
    """Keep the settings with what else a reader needs to repeat the run."""
    record = {
        "settings": asdict(config),
        "data_dir": folder.data_dir,
        **provenance(),
        "training_seconds": seconds,
    }
    path = config.results_dir / "metrics" / "config.json"
    write_text(path, json.dumps(record, indent=2, default=str))


if __name__ == "__main__":
    sys.exit(main())
