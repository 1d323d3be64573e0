"""Time this project's training to a macro-F1, beside a common recipe's.

The peer is what many face-mask projects do: ResNet50 at 224 pixels, all of it trained from the
first step by Adam at 1e-3, each face read by decoding its photo anew, faces drawn as they come.
Both learn from the same faces and are validated on the same ones.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fmd_tf import CLASS_NAMES
from fmd_tf.checkpoints import MONITOR, RunFolder
from fmd_tf.config import IMAGENET, TrainConfig
from fmd_tf.input_pipeline import crop_faces, decode_photo, run_ahead
from fmd_tf.model import build_model, logits_model
from fmd_tf.train import train_and_evaluate
from fmd_tf.voc import Annotation, read_folder

_PEER_MODEL, _PEER_SIZE, _PEER_RATE, _PEER_BATCH = "resnet50", 224, 1e-3, 32
_SHUFFLED = 10_000
Curve = list[tuple[float, float]]


def benchmark_recipe(
    data_dir: Path,
    peer_epochs: int = 3,
    model_name: str = "mobilenet",
    image_size: int = 112,
    weights: Sequence[str] | None = None,
    peer_weights: str = IMAGENET,
    class_names: Sequence[str] = CLASS_NAMES,
    seed: int = 0,
) -> dict[str, Any]:
    """Train both ways from nothing, this project's first, and compare the time to the macro-F1.

    Args:
        data_dir: VOC folder.
        peer_epochs: Epochs of the peer; it may get better after them.
        model_name: Backbone of this project's run.
        image_size: Side of its crops in pixels.
        weights: Of its backbone, as `train --weights`.
        peer_weights: Of the peer's ResNet50.
        class_names: Names of the classes in the folder.
        seed: Of the split, and of both trainings.

    Returns:
        JSON-like: "target", the best validation macro-F1 of the peer; for "own" and "peer" the
        "curve" of (seconds since the start, validation macro-F1), an epoch a pair, the "best",
        and "seconds" to the target, None where it is not reached; the "ratio" of those.

    Raises:
        AnnotationError: Something in the folder is invalid.
        ModelError: Weights cannot be loaded.
    """
    with tempfile.TemporaryDirectory(prefix="fmd_tf-") as name:
        folder = Path(name)
        config = TrainConfig(
            data_dir=data_dir,
            class_names=tuple(class_names),
            seed=seed,
            model_name=model_name,
            image_size=image_size,
            weights=tuple(weights) if weights else None,
            checkpoint_dir=folder / "checkpoints",
            results_dir=folder / "results",
            export_dir=folder / "savedmodel",
        )
        own = _own_curve(config)
        split = json.loads((folder / "results/metrics/split.json").read_text(encoding="utf-8"))
    annotations = {each.photo.name: each for each in read_folder(data_dir, class_names).annotations}
    parts = [[annotations[photo] for photo in split[part]] for part in ("train", "val")]
    peer = _peer_curve(parts[0], parts[1], class_names, peer_weights, peer_epochs, seed)
    target = max(value for _, value in peer)
    sides = {"own": _side(own, target), "peer": _side(peer, target)}
    reached = sides["own"]["seconds"]
    return {
        "model_name": model_name,
        "image_size": image_size,
        "seed": seed,
        "target": target,
        **sides,
        "ratio": reached and reached / sides["peer"]["seconds"],
    }


def _side(curve: Curve, target: float) -> dict[str, Any]:
    """Say when a curve first reaches the target."""
    reached = [seconds for seconds, value in curve if value >= target]
    return {
        "curve": curve,
        "best": max(value for _, value in curve),
        "seconds": reached[0] if reached else None,
    }


def _own_curve(config: TrainConfig) -> Curve:
    """Train as `python -m fmd_tf.train` does.

    The run notes what each epoch took, of the teacher and then of the model; all else (cutting the
    crops, features, evaluation, export) is counted as if it came before the first, so that no
    point is too early.
    """
    started = time.perf_counter()
    train_and_evaluate(config)
    total = time.perf_counter() - started
    epochs = RunFolder(config.checkpoint_dir).epochs(config.trains_teacher)
    seconds = [record["seconds"] for record in epochs]
    ends = total - sum(seconds) + np.cumsum(seconds)
    values = [record[MONITOR] for record in epochs]
    return [(float(end), value) for end, value in zip(ends, values, strict=True)]


def _peer_curve(
    train: Sequence[Annotation],
    val: Sequence[Annotation],
    class_names: Sequence[str],
    weights: str,
    epochs: int,
    seed: int,
) -> Curve:
    """Train as the peer does."""
    started = time.perf_counter()
    keras.utils.set_random_seed(seed)
    model = logits_model(build_model(_PEER_MODEL, _PEER_SIZE, len(class_names), weights))
    model.compile(
        optimizer=keras.optimizers.Adam(_PEER_RATE),
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.F1Score(average="macro", name="macro_f1")],
    )
    clock = _Clock(started)
    model.fit(
        _batches(_face_by_face(train, class_names).shuffle(_SHUFFLED, seed=seed)),
        validation_data=_batches(_face_by_face(val, class_names)),
        epochs=epochs,
        callbacks=[clock],
        shuffle=False,  # The data set shuffles by itself.
        verbose=2,
    )
    return clock.curve


def _face_by_face(annotations: Sequence[Annotation], class_names: Sequence[str]) -> tf.data.Dataset:
    """List (path of the photo, box, one-hot label), an element a face."""
    faces = [(str(each.photo), face) for each in annotations for face in each.faces]
    labels = [class_names.index(face.label) for _, face in faces]
    return tf.data.Dataset.from_tensor_slices(
        (
            [path for path, _ in faces],
            np.array([face.box for _, face in faces], np.float32),
            np.eye(len(class_names), dtype=np.float32)[labels],
        )
    )


def _batches(faces: tf.data.Dataset) -> tf.data.Dataset:
    return run_ahead(faces.map(_load, tf.data.AUTOTUNE).batch(_PEER_BATCH))


def _load(path: tf.Tensor, box: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Decode the photo for this one face."""
    photo = decode_photo(tf.io.read_file(path))
    return crop_faces(photo, box[None], _PEER_SIZE)[0], label


class _Clock(keras.callbacks.Callback):
    """Note when each epoch ends, and its validation macro-F1."""

    def __init__(self, started: float) -> None:
        super().__init__()
        self._started = started
        self.curve: Curve = []

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        self.curve.append((time.perf_counter() - self._started, float((logs or {})[MONITOR])))


def format_recipe(report: Mapping[str, Any]) -> str:
    """Return the figures as a Markdown table."""
    own, peer = report["own"], report["peer"]
    lines = [
        f"Seconds to the peer's best validation macro-F1, {report['target']:.3f}:",
        "",
        "| recipe | epochs | best macro-F1 | s to the target | ratio |",
        "| --- | --- | --- | --- | --- |",
    ]
    name = f"{report['model_name']} at {report['image_size']} px, this project's"
    for title, side, ratio in (
        (f"{_PEER_MODEL} at {_PEER_SIZE} px, all layers at once", peer, 1.0),
        (name, own, report["ratio"]),
    ):
        seconds = "not reached" if side["seconds"] is None else f"{side['seconds']:.0f}"
        shown = "" if ratio is None else f"{ratio:.2f}"
        lines.append(
            f"| {title} | {len(side['curve'])} | {side['best']:.3f} | {seconds} | {shown} |"
        )
    return "\n".join(lines)
