"""Measure on this machine: `python -m fmd_tf.benchmark serving|input|train|infer|photo`.

Every figure stands beside its limit or its peer of the same run. `--output FILE` keeps the figures
as JSON, with versions, commit, processor and load; `report FILE ...` shows such files again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fmd_tf import CLASS_NAMES
from fmd_tf.arguments import at_least, duration, make_parser
from fmd_tf.benchmark_infer import benchmark_infer, format_infer
from fmd_tf.benchmark_input import benchmark_input, format_input
from fmd_tf.benchmark_photo import benchmark_photo, format_photo
from fmd_tf.benchmark_serving import BenchmarkError, benchmark_serving, format_serving
from fmd_tf.benchmark_train import benchmark_train, format_train
from fmd_tf.config import IMAGENET
from fmd_tf.errors import command_line
from fmd_tf.model import MODEL_NAMES
from fmd_tf.provenance import provenance
from fmd_tf.publish import require_writable, write_text

Measure = Callable[..., dict[str, Any]]
_FORMATS = {
    "serving": format_serving,
    "input": format_input,
    "train": format_train,
    "infer": format_infer,
    "photo": format_photo,
}


@command_line
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the process' exit code."""
    options = vars(_parser().parse_args(argv))
    run: Callable[..., None] = options.pop("run")
    run(**options)
    return 0


def _measure(measure: Measure, output: Path | None, **options: Any) -> None:
    """Measure, keep and show."""
    if output:
        require_writable(output.parent)
    load_before = _load_average()
    figures = measure(**options)
    figures |= {**provenance(), "load_average": [load_before, _load_average()]}
    if output:
        write_text(output, json.dumps(figures, indent=2) + "\n")
    print(format_report(figures))


def _load_average() -> list[float]:
    """Return the system's load over 1, 5 and 15 minutes; Windows has none."""
    return list(os.getloadavg()) if hasattr(os, "getloadavg") else []


def _report(files: Sequence[Path]) -> None:
    """Show what was kept."""
    for path in files:
        try:
            print(f"{format_report(json.loads(path.read_text()))}\n")
        except (KeyError, TypeError, ValueError) as error:
            raise BenchmarkError(f"{path} holds no figures of this command ({error!r})") from error


def format_report(figures: dict[str, Any]) -> str:
    """Return the figures of a command as Markdown, and below what they were measured with."""
    load = " to ".join(f"{each[0]:.1f}" for each in figures["load_average"] if each)
    return (
        f"{_FORMATS[figures['command']](figures)}\n\n{figures['cores']} cores of "
        f"{figures['processor']}, TensorFlow {figures['versions']['tensorflow']}, commit "
        f"{figures['commit']}; load average {load or 'unknown'}."
    )


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("benchmark", "Measure.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serving(commands.add_parser("serving", help="the server beside the bare session"))
    _add_input(commands.add_parser("input", help="photos to crops to batches"))
    _add_train(commands.add_parser("train", help="a step of fine-tuning, and the input's share"))
    _add_infer(commands.add_parser("infer", help="the formats of a classifier side by side"))
    _add_photo(commands.add_parser("photo", help="from a photo to labelled faces"))
    for command in commands.choices.values():
        command.add_argument("--output", type=Path, help="write the figures as JSON")
    report = commands.add_parser("report", help="show files of figures again")
    report.set_defaults(run=_report)
    report.add_argument("files", type=Path, nargs="+", help="written by --output")
    return parser


def _add_serving(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_measure, measure=benchmark_serving)
    add = parser.add_argument
    add("--model-dir", type=Path, default=Path("savedmodel/face_mask"), help="folder of versions")
    add("--clients", type=at_least(1), nargs="+", default=[1, 4, 16], help="how many at a time")
    add("--seconds", type=duration, default=20.0, help="for each number of clients and each way")
    add("--image", type=Path, help="face crop to send (default: a drawn JPEG of 160 x 160)")


def _add_input(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_measure, measure=benchmark_input)
    _add_crops(parser)


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_measure, measure=benchmark_train)
    _add_crops(parser)
    add = parser.add_argument
    add("--model-name", choices=MODEL_NAMES, default="mobilenet", help="backbone")
    # A step's time is that between the ends of two.
    add("--steps", type=at_least(2), default=10, help="steps of a turn")
    add("--weights", nargs="+", help="what a run begins from, as train takes it")
    add(
        "--peer-epochs",
        type=at_least(0),
        default=0,
        help="whole runs too: epochs of the peer (0: none)",
    )
    add("--peer-weights", default=IMAGENET, help="the same for the peer's ResNet50")


def _add_crops(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data-dir", type=Path, required=True, help="VOC folder")
    add("--class-names", nargs="+", default=list(CLASS_NAMES), help="names of the classes")
    add("--image-size", type=at_least(32), default=112, help="side of the crops in pixels")
    add("--batch-size", type=at_least(1), default=32, help="faces a step")
    add("--rounds", type=at_least(1), default=5, help="rounds that the medians are of")


def _add_infer(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_measure, measure=benchmark_infer)
    add = parser.add_argument
    add("--model", dest="model_path", type=Path, required=True, help="best_model.keras")
    add("--data-dir", type=Path, required=True, help="VOC folder")
    add("--split-file", type=Path, help="split.json: calibrate on train, compare on test")
    add("--rounds", type=at_least(1), default=7, help="rounds that the medians are of")


def _add_photo(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_measure, measure=benchmark_photo)
    add = parser.add_argument
    add("--model-dir", type=Path, default=Path("savedmodel/face_mask"), help="folder of versions")
    add("--data-dir", type=Path, required=True, help="VOC folder that photos are taken from")
    add("--class-names", nargs="+", default=list(CLASS_NAMES), help="names of the classes")
    add("--rounds", type=at_least(1), default=30, help="calls of each kind of photo")


if __name__ == "__main__":
    sys.exit(main())
