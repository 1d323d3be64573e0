import argparse
from collections.abc import Callable

import pytest

from fmd_tf.arguments import at_least, duration, fraction


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
