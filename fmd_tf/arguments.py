"""Parsers of command lines, and types of arguments that say in one line what they expect."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

_MIN_DETECTOR_SIZE = 64
"""It looks at half of it too, and 32 px are a cell of its coarsest features."""


class _Formatter(argparse.HelpFormatter):
    """Adds its default to the help of each flag that has one and does not tell it itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_told = not action.help or "default" in action.help
        has_none = action.default in (None, argparse.SUPPRESS, {}) or not action.option_strings
        is_switch = action.nargs == 0 and not isinstance(action, argparse.BooleanOptionalAction)
        if is_told or has_none or is_switch:
            return action.help
        return f"{action.help} (default: %(default)s)"


class _Parser(argparse.ArgumentParser):
    """Makes its subcommands' parsers of its own class, as argparse does, so they tell defaults."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"formatter_class": _Formatter, **settings})


def make_parser(command: str, description: str) -> argparse.ArgumentParser:
    """Return an empty parser, whose help tells defaults by itself.

    Args:
        command: Name of the module that is run.
        description: What it does, for the help.
    """
    return _Parser(prog=f"python -m fmd_tf.{command}", description=description)


def add_detector_size(parser: argparse.ArgumentParser) -> None:
    """Add `--detector-size`."""
    parser.add_argument(
        "--detector-size",
        type=at_least(_MIN_DETECTOR_SIZE),
        metavar="PX",
        help="pixels that a photo's longer side is scaled to for the detector; fewer are faster, "
        "and lose small faces; default: what it was trained for",
    )


def at_least(least: int) -> Callable[[str], int]:
    """Return the type of whole numbers from `least` up."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(
                f"expected a whole number of at least {least}, got {text!r}"
            )
        return number

    return parse


def fraction(text: str) -> float:
    """Return a number of 0 to 1."""
    number = _number(text)
    if not 0.0 <= number <= 1.0:
        raise argparse.ArgumentTypeError(f"expected a number of 0 to 1, got {text!r}")
    return number


def duration(text: str) -> float:
    """Return a time of more than 0 and less than a million seconds."""
    number = _number(text)
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError(
            f"expected more than 0 and less than 1000000 seconds, got {text!r}"
        )
    return number


def _number(text: str) -> float:
    """Return NaN, which lies in no range, for what is no number."""
    try:
        return float(text)
    except ValueError:
        return float("nan")
