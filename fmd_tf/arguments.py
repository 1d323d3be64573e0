"""Types of command-line arguments that say in one line what they expect."""

from __future__ import annotations

import argparse
from collections.abc import Callable


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
