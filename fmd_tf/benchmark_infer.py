"""Time a classifier in every format that is installed, on faces of a data set.

All formats take turns in each round, so that other work on the machine meets them alike; each
figure is a median over the rounds.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import keras
import numpy as np

from fmd_tf.evaluate import load_faces, select_part
from fmd_tf.export import export_saved_model
from fmd_tf.formats import (
    FORMATS,
    FormatError,
    Predictor,
    compare,
    export_format,
    load_format,
    load_saved_model,
)
from fmd_tf.input_pipeline import Crops
from fmd_tf.model import ModelCard, load_model
from fmd_tf.row_file import Rows

BATCH_SIZES = (1, 32)
_WARM_UPS = 2
# So many calls a round make a single face about as long as a batch.
_CALLS = {1: 10, 32: 1}
_PEER = "savedmodel"


def benchmark_infer(
    model_path: Path,
    data_dir: Path,
    split_file: Path | None = None,
    rounds: int = 7,
) -> dict[str, Any]:
    """Measure time, processor time, size and loss of macro-F1 of each format.

    Args:
        model_path: `.keras` file of a training.
        data_dir: VOC folder.
        split_file: Its split: int8 is calibrated on the training part, and macro-F1 is that of
            the test part; None takes all faces for both.
        rounds: Rounds that the medians are of.

    Returns:
        JSON-like: `rows`, a row a format, in which `missing` says what is not installed.

    Raises:
        ValueError: A subclass for each kind of unusable input, with a message for the user.
    """
    model, card = load_model(model_path)
    crops, _ = load_faces(data_dir, card)
    train = select_part(crops, card, split_file, "train").images
    test = select_part(crops, card, split_file, "test")
    with tempfile.TemporaryDirectory() as folder:
        rows, predictors = _write_all(model, card, train, Path(folder))
        for name, predictor in predictors.items():
            compared = compare(model, predictor, test)
            rows[name]["macro_f1_loss"] = compared.macro_f1_loss
            rows[name]["same_label"] = compared.same_label
        for batch_size in BATCH_SIZES:
            times = _time_all(predictors, test, batch_size, rounds)
            for name, figures in times.items():
                rows[name][f"batch_{batch_size}"] = figures
    return {
        "command": "infer",
        "model": str(model_path),
        "image_size": card.image_size,
        "faces": len(test),
        "rounds": rounds,
        "rows": rows,
    }


def _write_all(
    model: keras.Model, card: ModelCard, crops: Rows, folder: Path
) -> tuple[dict[str, dict], dict[str, Predictor]]:
    """Write and load what can be; a row for every format."""
    rows: dict[str, dict] = {}
    predictors: dict[str, Predictor] = {}

    def add(name: str, predictor: Predictor, path: Path) -> None:
        predictors[name] = predictor
        rows[name] = {"megabytes": _megabytes(path)}

    model.save(folder / "model.keras")
    add(".keras", lambda images: model.predict_on_batch(images), folder / "model.keras")
    model.export(str(folder / "plain"), verbose=False)
    add("savedmodel, variables", _load_plain(folder / "plain"), folder / "plain")
    version = export_saved_model(model, card, folder / "saved")
    add(_PEER, load_saved_model(version), version)
    for name in FORMATS:
        try:
            export_format(name, model, card, folder / name, crops=crops)
            add(name, load_format(name, folder / name), folder / name)
        except FormatError as error:
            rows[name] = {"missing": str(error)}
    return rows, predictors


def _load_plain(folder: Path) -> Predictor:
    """Load what Keras exports by itself, which keeps weights as variables."""
    layer = keras.layers.TFSMLayer(str(folder), call_endpoint="serve")
    return lambda images: np.asarray(layer(images.astype(np.float32)))


def _megabytes(path: Path) -> float:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(each.stat().st_size for each in files if each.is_file()) / 1e6


def _time_all(
    predictors: dict[str, Predictor], test: Crops, batch_size: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Time the formats in turn; milliseconds a call."""
    images = np.resize(test.images, (batch_size, *test.images.shape[1:]))
    calls = {name: partial(predictor, images) for name, predictor in predictors.items()}
    return time_in_turns(calls, rounds, _CALLS[batch_size], _WARM_UPS)


def time_in_turns(
    calls: Mapping[str, Callable[[], Any]], rounds: int, repeats: int = 1, warm_ups: int = 1
) -> dict[str, dict[str, float]]:
    """Time functions in turn, so that other work on the machine meets them alike.

    Args:
        calls: The functions by name.
        rounds: Rounds that the medians are of.
        repeats: Calls of a function in a round.
        warm_ups: Calls of each before the first round.

    Returns:
        By name the medians of the milliseconds of a call: "ms" of the clock, "cpu_ms" of all
        processors together.
    """
    for call in calls.values():
        for _ in range(warm_ups):
            call()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(_time(call, repeats))
    return {name: _medians(values) for name, values in times.items()}


def _time(call: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Return milliseconds of the clock and of all processors, a call."""
    clock, processors = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        call()
    scale = 1000 / repeats
    return (time.perf_counter() - clock) * scale, (time.process_time() - processors) * scale


def _medians(values: Sequence[tuple[float, float]]) -> dict[str, float]:
    clock, processors = zip(*values, strict=True)
    return {"ms": median(clock), "cpu_ms": median(processors)}


def format_infer(report: dict[str, Any]) -> str:
    """Return the figures as a Markdown table; ratios are to the SavedModel of this project."""
    peer = report["rows"][_PEER]
    lines = [
        "| format | MB | ms, 1 face | ratio | ms, 32 faces | ratio | faces/s | processor ms, 32 "
        "| ratio | macro-F1 lost | same label |",
        "| --- " * 11 + "|",
    ]
    for name, row in report["rows"].items():
        if "missing" in row:
            lines.append(f"| {name} | {row['missing']} |" + " |" * 9)
            continue
        one, many = (row[f"batch_{size}"] for size in BATCH_SIZES)
        lines.append(
            f"| {name} | {row['megabytes']:.1f} "
            f"| {one['ms']:.1f} | {one['ms'] / peer['batch_1']['ms']:.2f} "
            f"| {many['ms']:.0f} | {many['ms'] / peer['batch_32']['ms']:.2f} "
            f"| {1000 * BATCH_SIZES[1] / many['ms']:.0f} "
            f"| {many['cpu_ms']:.0f} | {many['cpu_ms'] / peer['batch_32']['cpu_ms']:.2f} "
            f"| {row['macro_f1_loss']:.3f} | {row['same_label']:.1%} |"
        )
    return "\n".join(lines)
