"""Measure on this machine: `python -m fmd_tf.benchmark serving|infer`.

Every figure stands beside its limit or its peer of the same run. `--output FILE` keeps the figures
as JSON, with versions, commit, processor and load.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fmd_tf.benchmark_infer import benchmark_infer, format_infer
from fmd_tf.benchmark_serving import BenchmarkError, benchmark_serving, format_serving
from fmd_tf.checkpoints import write_text
from fmd_tf.model import ModelError
from fmd_tf.provenance import provenance
from fmd_tf.splits import SplitError
from fmd_tf.voc import AnnotationError

_USER_ERRORS = (AnnotationError, BenchmarkError, ModelError, OSError, SplitError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the process' exit code."""
    options = vars(_parser().parse_args(argv))
    measure: Callable[..., dict[str, Any]] = options.pop("measure")
    describe: Callable[[dict[str, Any]], str] = options.pop("describe")
    output: Path | None = options.pop("output")
    load_before = os.getloadavg()
    try:
        report = measure(**options)
        report |= {**provenance(), "load_average": [list(load_before), list(os.getloadavg())]}
        if output:
            output.parent.mkdir(parents=True, exist_ok=True)
            write_text(output, json.dumps(report, indent=2) + "\n")
    except _USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    load = [f"{average[0]:.1f}" for average in report["load_average"]]
    print(
        f"{describe(report)}\n{report['cores']} cores, {report['processor']}; load average "
        + " to ".join(load)
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fmd_tf.benchmark", description="Measure.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serving(commands.add_parser("serving", help="the server beside the bare session"))
    _add_infer(commands.add_parser("infer", help="the formats of a classifier side by side"))
    for command in commands.choices.values():
        command.add_argument("--output", type=Path, help="write the figures as JSON")
    return parser


def _add_serving(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(measure=benchmark_serving, describe=format_serving)
    add = parser.add_argument
    add("--model-dir", type=Path, default=Path("savedmodel/face_mask"), help="folder of versions")
    add("--clients", type=int, nargs="+", default=[1, 4, 16], help="how many at a time")
    add("--seconds", type=float, default=20.0, help="for each number of clients and each way")
    add("--image", type=Path, help="face crop to send (default: a drawn JPEG of 160 x 160)")


def _add_infer(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(measure=benchmark_infer, describe=format_infer)
    add = parser.add_argument
    add("--model", dest="model_path", type=Path, required=True, help="best_model.keras")
    add("--data-dir", type=Path, required=True, help="VOC folder")
    add("--split-file", type=Path, help="split.json: calibrate on train, compare on test")
    add("--rounds", type=int, default=7, help="rounds that the medians are of")


if __name__ == "__main__":
    sys.exit(main())
