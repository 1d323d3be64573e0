"""Time an exported model from the bytes of a photo to labelled faces.

The peer is decoding the same bytes, without which nothing can be faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from fmd_tf import CLASS_NAMES
from fmd_tf.benchmark_serving import BenchmarkError
from fmd_tf.publish import version_folder
from fmd_tf.voc import read_folder

SIZES = ((640, 480), (1920, 1080))
"""Width and height in pixels that photos are scaled to."""
_CROWDS = {"few": 1, "many": 20}
"""Faces of the photos, or as near as there is one."""
_WARM_UPS = 3


def benchmark_photo(
    model_dir: Path,
    data_dir: Path,
    class_names: Sequence[str] = CLASS_NAMES,
    rounds: int = 30,
) -> dict[str, Any]:
    """Measure the signature `photo` on photos of two sizes with few and with many faces.

    Args:
        model_dir: Folder of the versions of an export with a detector.
        data_dir: VOC folder, photos of which are scaled to `SIZES`.
        class_names: Names of the classes in the folder.
        rounds: Calls of each kind of photo, which take turns.

    Returns:
        JSON-like: `rows`, each with size, faces found, and milliseconds.

    Raises:
        BenchmarkError: The export has no signature `photo`.
    """
    version = version_folder(model_dir)
    signatures = tf.saved_model.load(str(version)).signatures
    if "photo" not in signatures:
        raise BenchmarkError(f"{version} finds no faces; export it with --detector FILE")
    annotations = read_folder(data_dir, class_names, skip_invalid=True).annotations
    crowds = {
        crowd: min(annotations, key=lambda each: abs(len(each.faces) - number)).photo
        for crowd, number in _CROWDS.items()
    }
    cases = [
        {"width": width, "height": height, "crowd": crowd, "bytes": _encode(photo, width, height)}
        for width, height in SIZES
        for crowd, photo in crowds.items()
    ]
    return {"command": "photo", "model": str(version), "rounds": rounds} | _measure(
        cases, signatures["photo"], rounds
    )


def _encode(photo: Path, width: int, height: int) -> bytes:
    pixels = tf.io.decode_image(photo.read_bytes(), channels=3, expand_animations=False)
    scaled = tf.image.resize(pixels, (height, width), antialias=True)
    return tf.io.encode_jpeg(tf.saturate_cast(tf.round(scaled), tf.uint8), quality=90).numpy()


def _measure(cases: list[dict], label: Callable[..., Any], rounds: int) -> dict[str, Any]:
    """Let all kinds of photos take turns."""
    times: list[list[tuple[float, float]]] = [[] for _ in cases]
    for turn in range(_WARM_UPS + rounds):
        for case, measured in zip(cases, times, strict=True):
            labelled = _time(lambda data: label(image_bytes=data)["boxes"].numpy(), case["bytes"])
            decoded = _time(lambda data: tf.io.decode_jpeg(data).numpy(), case["bytes"])
            if turn >= _WARM_UPS:
                measured.append((labelled, decoded))
    rows = []
    for case, measured in zip(cases, times, strict=True):
        labelled, decoded = np.array(measured).T
        found = len(label(image_bytes=tf.constant(case["bytes"]))["boxes"])
        rows.append(
            {
                **{name: case[name] for name in ("width", "height", "crowd")},
                "faces": found,
                "p50_ms": float(np.median(labelled)),
                "p95_ms": float(np.percentile(labelled, 95)),
                "decode_p50_ms": float(np.median(decoded)),
            }
        )
    return {"rows": rows}


def _time(call: Callable[[tf.Tensor], Any], data: bytes) -> float:
    start = time.perf_counter()
    call(tf.constant(data))
    return 1000 * (time.perf_counter() - start)


def format_photo(report: dict[str, Any]) -> str:
    """Return the figures as a Markdown table."""
    lines = [
        "| photo | faces found | p50, ms | p95, ms | photos/s | decoding alone, ms | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['width']} x {row['height']}, {row['crowd']} faces | {row['faces']} "
        f"| {row['p50_ms']:.0f} | {row['p95_ms']:.0f} | {1000 / row['p50_ms']:.1f} "
        f"| {row['decode_p50_ms']:.1f} | {row['p50_ms'] / row['decode_p50_ms']:.0f} |"
        for row in report["rows"]
    ]
    return "\n".join(lines)
