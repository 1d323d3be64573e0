"""A window for pictures, where the machine has a screen."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import get_backend
from matplotlib.backends import backend_registry
from matplotlib.backends.registry import BackendFilter
from PIL import Image

from fmd_tf.errors import UserError


class WindowError(UserError):
    """There is no screen to show anything on."""


class Window:
    """Shows one picture after another in the same window.

    Raises:
        WindowError: Matplotlib found no screen or no GUI toolkit.
    """

    def __init__(self) -> None:
        interactive = backend_registry.list_builtin(BackendFilter.INTERACTIVE)
        # Asking for the backend makes Matplotlib look for a screen.
        plt.figure("fmd_tf").set_layout_engine("constrained")
        if get_backend().lower() not in [name.lower() for name in interactive]:
            plt.close("all")
            raise WindowError(
                "--visualize needs a screen and a GUI toolkit of Matplotlib (such as tkinter); "
                "use --save-viz DIR instead"
            )
        self._axes = plt.gca()
        self._axes.set_axis_off()
        self._image: Any = None

    @property
    def is_open(self) -> bool:
        """Whether the user has not closed it."""
        return plt.fignum_exists("fmd_tf")

    def show(self, picture: Image.Image, title: str) -> None:
        """Show a picture until a key is pressed; once the window is closed, do nothing."""
        if self.is_open:
            self._put(picture, title)
            plt.waitforbuttonpress()

    def play(self, picture: Image.Image) -> bool:
        """Show a frame and go on; tell whether the window is still open."""
        if self.is_open:
            self._put(picture, "close the window to stop")
            plt.pause(0.001)
        return self.is_open

    def _put(self, picture: Image.Image, title: str) -> None:
        pixels = np.asarray(picture)
        if self._image is None or self._image.get_array().shape != pixels.shape:
            self._axes.clear()
            self._axes.set_axis_off()
            self._image = self._axes.imshow(pixels)
        self._image.set_data(pixels)
        self._axes.set_title(title, parse_math=False)  # Names of files may have dollar signs.
