"""Time the input: photos to crops in the first epoch, crops to batches in the others.

The limits are decoding alone and a copy by NumPy; the peer is a loader that opens the photo anew
for each face with OpenCV, as many projects do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from fmd_tf import CLASS_NAMES
from fmd_tf.benchmark_infer import time_in_turns
from fmd_tf.benchmark_serving import BenchmarkError
from fmd_tf.errors import install_command
from fmd_tf.face_mask_dataset import load_photos
from fmd_tf.input_pipeline import (
    crop_windows,
    load_crops,
    run_ahead,
    sampling_weights,
    steps_per_epoch,
    train_dataset,
)
from fmd_tf.voc import Annotation

_PADDING = 0.2
_BALANCE = 0.5
_PEERS = {
    "first epoch": "decoding",
    "OpenCV, a face at a time": "first epoch",
    "later epochs": "NumPy copy",
}
Way = Callable[[], object]


def benchmark_input(
    data_dir: Path,
    image_size: int = 112,
    batch_size: int = 32,
    class_names: Sequence[str] = CLASS_NAMES,
    rounds: int = 5,
) -> dict[str, Any]:
    """Measure crops a second of each way, in turns.

    Args:
        data_dir: VOC folder.
        image_size: Side of the crops in pixels.
        batch_size: Crops a step in later epochs.
        class_names: Names of the classes in the folder.
        rounds: Rounds that the medians are of.

    Returns:
        JSON-like: `rows`, each with crops a second, its ratio to another way of the same run, and
        the processor's seconds, of all cores together, for all crops.

    Raises:
        AnnotationError: Something in the folder is invalid.
        BenchmarkError: The folder has no faces, or OpenCV is missing.
    """
    photos, folder = load_photos(data_dir, class_names)
    annotations = [each for each in folder.annotations if each.faces]
    if not annotations:
        raise BenchmarkError(f"{data_dir} holds no faces")
    crops = load_crops(photos, image_size, _PADDING)
    later = iter(
        train_dataset(crops.images, crops.labels, len(class_names), batch_size, 0, _BALANCE)
    )
    steps = steps_per_epoch(len(crops), batch_size)
    weights = sampling_weights(crops.labels, len(class_names), _BALANCE)
    images = np.asarray(crops.images)
    order = np.random.default_rng(0).choice(len(crops), len(crops), p=weights)
    ways: dict[str, Way] = {
        "decoding": lambda: _decode(annotations),
        "first epoch": lambda: load_crops(photos, image_size, _PADDING),
        "OpenCV, a face at a time": _opencv(annotations, image_size),
        "NumPy copy": lambda: _copy(images, order, batch_size),
        "later epochs": lambda: [next(later) for _ in range(steps)],
    }
    times = time_in_turns(ways, rounds)
    rates = {name: 1000 * len(crops) / each["ms"] for name, each in times.items()}
    rows = [
        {
            "way": name,
            "crops_per_second": rate,
            "beside": _PEERS.get(name),
            "ratio": rate / rates[_PEERS[name]] if name in _PEERS else None,
            "processor_seconds": times[name]["cpu_ms"] / 1000,
        }
        for name, rate in rates.items()
    ]
    return {
        "command": "input",
        "data_dir": str(data_dir),
        "photos": len(annotations),
        "faces": len(crops),
        "image_size": image_size,
        "rounds": rounds,
        "rows": rows,
    }


def _decode(annotations: Sequence[Annotation]) -> None:
    """Read and decode each photo once, as fast as TensorFlow does."""

    def decode(path: tf.Tensor) -> tf.Tensor:
        return tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)

    paths = tf.data.Dataset.from_tensor_slices([str(each.photo) for each in annotations])
    for _ in run_ahead(paths.map(decode, tf.data.AUTOTUNE)):
        pass


def _copy(images: np.ndarray, order: np.ndarray, batch_size: int) -> None:
    for start in range(0, len(order), batch_size):
        images[order[start : start + batch_size]]


def _opencv(annotations: Sequence[Annotation], image_size: int) -> Way:
    """Return the loader that opens the photo of each face."""
    try:
        import cv2
    except ImportError as error:
        raise BenchmarkError(
            f"the peer needs OpenCV ({error}); install it with {install_command('video')}"
        ) from error

    def load() -> None:
        for annotation in annotations:
            boxes = np.array([face.box for face in annotation.faces], np.float32)
            windows = crop_windows(tf.constant(boxes), _PADDING, square=True).numpy()
            for xmin, ymin, xmax, ymax in windows.clip(0).astype(int):
                photo = cv2.cvtColor(cv2.imread(str(annotation.photo)), cv2.COLOR_BGR2RGB)
                cv2.resize(
                    photo[ymin:ymax, xmin:xmax],
                    (image_size, image_size),
                    interpolation=cv2.INTER_AREA,
                )

    return load


def format_input(report: dict[str, Any]) -> str:
    """Return the figures as a Markdown table."""
    lines = [
        f"{report['photos']} photos, {report['faces']} faces, crops of {report['image_size']} px:",
        "",
        "| way | crops/s | ratio | to | processor s |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in report["rows"]:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.3f}"
        beside = row["beside"] or ""
        lines.append(
            f"| {row['way']} | {row['crops_per_second']:.0f} | {ratio} | {beside} | "
            f"{row['processor_seconds']:.2f} |"
        )
    return "\n".join(lines)
