import argparse
from collections.abc import Callable

import pytest

from fmd_tf.arguments import at_least, duration, fraction, make_parser


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [(at_least(0), "0", 0), (at_least(1), "12", 12), (fraction, "1", 1.0), (duration, "0.5", 0.5)],
)
def test_what_fits(kind: Callable, text: str, value: float):
    assert kind(text) == value


@pytest.mark.parametrize(
    ("kind", "texts", "expected"),
    [
        (at_least(1), ("0", "-3", "1.5", "x", ""), "a whole number of at least 1"),
        (fraction, ("-0.1", "1.1", "nan", "x"), "a number of 0 to 1"),
        (duration, ("0", "1e6", "inf", "nan", "x"), "more than 0 and less than 1000000 seconds"),
    ],
)
def test_what_does_not_fit_is_told(kind: Callable, texts: tuple[str, ...], expected: str):
    for text in texts:
        with pytest.raises(argparse.ArgumentTypeError) as caught:
            kind(text)
        assert str(caught.value) == f"expected {expected}, got {text!r}"


def test_the_help_tells_defaults_that_are_not_told():
    parser = make_parser("x", "Does.")
    (sub,) = [parser.add_subparsers().add_parser("y")]
    for each in (parser, sub):
        each.add_argument("--size", type=int, default=7, help="pixels")
        each.add_argument("--name", default="a", help="name (default: that of the folder)")
        each.add_argument("--file", help="file")
        each.add_argument("--no-page", dest="page", action="store_false", help="no page")
        each.add_argument("--square", action=argparse.BooleanOptionalAction, default=True, help="a")
        lines = " ".join(each.format_help().split())
        assert "pixels (default: 7)" in lines
        assert lines.count("(default: ") == 3
