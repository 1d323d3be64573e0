"""Time an epoch of fine-tuning, and say how much of it is waiting for the input.

The limit is the same steps on one batch that is in memory already: what an epoch takes longer
than that is the input's share. On request the whole run follows, beside a peer's
(`fmd_tf.benchmark_recipe`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fmd_tf import CLASS_NAMES
from fmd_tf.augment import build_augmentation
from fmd_tf.benchmark_recipe import benchmark_recipe, format_recipe
from fmd_tf.benchmark_serving import BenchmarkError
from fmd_tf.config import IMAGENET, TrainConfig
from fmd_tf.devices import precision_policy
from fmd_tf.face_mask_dataset import load_photos
from fmd_tf.input_pipeline import load_crops, train_dataset
from fmd_tf.model import (
    build_model,
    dtype_policy,
    freeze_batch_norm,
    is_depthwise,
    logits_model,
)

_BALANCE = 0.5


def benchmark_train(
    data_dir: Path,
    model_name: str = "mobilenet",
    image_size: int = 112,
    batch_size: int = 32,
    steps: int = 10,
    rounds: int = 5,
    class_names: Sequence[str] = CLASS_NAMES,
    weights: Sequence[str] | None = None,
    peer_epochs: int = 0,
    peer_weights: str = IMAGENET,
) -> dict[str, Any]:
    """Measure steps of fine-tuning on the pipeline's batches and on one batch in memory, in turns.

    The network is that of the weights, which are random in these steps: they cost the same.

    Args:
        data_dir: VOC folder.
        model_name: Backbone.
        image_size: Side of the crops in pixels.
        batch_size: Faces a step.
        steps: Steps of a turn.
        rounds: Turns of each that the medians are of.
        class_names: Names of the classes in the folder.
        weights: As `train --weights`; the whole run begins from them, the steps are the first's.
        peer_epochs: Epochs of the peer; 0 leaves out both whole runs.
        peer_weights: What the peer begins from.

    Returns:
        JSON-like: milliseconds a step of both, and the input's share of the first; "recipe", what
        `benchmark_recipe` returns, or None.

    Raises:
        AnnotationError: Something in the folder is invalid.
        BenchmarkError: The folder has no faces.
        ModelError: Weights cannot be loaded.
    """
    photos, _ = load_photos(data_dir, class_names)
    crops = load_crops(photos, image_size)
    if not len(crops):
        raise BenchmarkError(f"{data_dir} holds no faces")
    policy = precision_policy("auto", is_depthwise(model_name))
    config = TrainConfig(model_name=model_name, weights=tuple(weights) if weights else None)
    model = _compiled(model_name, image_size, len(class_names), config.begins_from[0], policy)
    batches = train_dataset(
        crops.images, crops.labels, len(class_names), batch_size, seed=0, balance=_BALANCE
    )
    in_memory = batches.take(1).cache().repeat()
    milliseconds: dict[str, list[float]] = {"pipeline": [], "memory": []}
    for turn in range(1 + rounds):
        for name, data in (("pipeline", batches), ("memory", in_memory)):
            spent = _time(model, data, steps)
            if turn:
                milliseconds[name].append(spent)
    pipeline, memory = (median(values) for values in milliseconds.values())
    recipe = None
    if peer_epochs:
        recipe = benchmark_recipe(
            data_dir, peer_epochs, model_name, image_size, weights, peer_weights, class_names
        )
    return {
        "command": "train",
        "model_name": model_name,
        "image_size": image_size,
        "batch_size": batch_size,
        "policy": policy,
        "steps": steps,
        "rounds": rounds,
        "step_ms": pipeline,
        "memory_step_ms": memory,
        "input_share": 1 - memory / pipeline,
        "faces_per_second": 1000 * batch_size / pipeline,
        "recipe": recipe,
    }


def _compiled(
    model_name: str, image_size: int, num_classes: int, weights: str, policy: str
) -> keras.Model:
    """Build what fine-tuning trains: the augmentation and the model up to its logits."""
    with dtype_policy(policy):
        model = build_model(
            model_name,
            image_size,
            num_classes,
            weights,
            multi_view=True,
            all_views=False,
            is_loaded=False,
        )
        freeze_batch_norm(model)
        augmented = keras.Sequential(
            [
                keras.Input((image_size, image_size, 3)),
                build_augmentation(image_size, seed=0),
                logits_model(model),
            ]
        )
    augmented.compile(
        optimizer=keras.optimizers.AdamW(1e-5),
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
    )
    return augmented


def _time(model: keras.Model, data: tf.data.Dataset, steps: int) -> float:
    """Return the median milliseconds from the end of a step to the end of the next."""
    clock = _Clock()
    model.fit(data, steps_per_epoch=steps, callbacks=[clock], verbose=0, shuffle=False)
    # The first step waits for the input to start, which an epoch does once.
    return float(1000 * np.median(np.diff(clock.ends)))


class _Clock(keras.callbacks.Callback):
    """Note when each step ends."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.ends.append(time.perf_counter())


def format_train(report: dict[str, Any]) -> str:
    """Return the figures as a Markdown table."""
    return "\n".join(
        [
            f"{report['model_name']} at {report['image_size']} px, {report['policy']}, "
            f"{report['batch_size']} faces a step:",
            "",
            "| ms a step | on a batch in memory | input's share | faces/s |",
            "| --- | --- | --- | --- |",
            f"| {report['step_ms']:.0f} | {report['memory_step_ms']:.0f} "
            f"| {report['input_share']:.1%} | {report['faces_per_second']:.0f} |",
            *(["", format_recipe(report["recipe"])] if report["recipe"] else []),
        ]
    )
