"""Geometry of pixel boxes.

A box is (xmin, ymin, xmax, ymax) in pixels; the origin is the photo's top left corner, the
first pixel is 0, and the right and lower borders are exclusive: width is `xmax - xmin`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Box = tuple[int, int, int, int]


def clip(box: Box, width: int, height: int) -> Box:
    """Return the part of a box that lies in the photo; of no size where none does.

    Args:
        box: Pixels.
        width: Width of the photo in pixels.
        height: Height of the photo in pixels.
    """
    xmin, ymin, xmax, ymax = box
    return (
        min(max(xmin, 0), width),
        min(max(ymin, 0), height),
        min(max(xmax, 0), width),
        min(max(ymax, 0), height),
    )


def is_empty(box: Box) -> bool:
    """Tell whether a box has no area, or is inverted."""
    xmin, ymin, xmax, ymax = box
    return xmax <= xmin or ymax <= ymin


def touch(first: Sequence[float], second: Sequence[float]) -> bool:
    """Tell whether two boxes share a pixel."""
    return (
        first[0] < second[2]
        and second[0] < first[2]
        and first[1] < second[3]
        and second[1] < first[3]
    )


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the intersection over union of all pairs of boxes.

    Args:
        first: float [n, 4], pixels.
        second: float [m, 4], pixels.

    Returns:
        float [n, m], 0 to 1.
    """
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
    return shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9)
