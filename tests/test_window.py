import matplotlib.pyplot as plt
import pytest
from PIL import Image

from fmd_tf import window
from fmd_tf.window import Window, WindowError


def test_without_a_screen_there_is_no_window():
    with pytest.raises(WindowError, match="--visualize needs a screen"):
        Window()


def test_a_name_with_dollar_signs_is_a_title(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(window, "get_backend", lambda: "tkagg")
    # What a screen would do while it waits.
    monkeypatch.setattr(plt, "waitforbuttonpress", lambda: plt.gcf().canvas.draw())
    shown = Window()
    shown.show(Image.new("RGB", (8, 6)), "$10_$20.jpg")
    assert plt.gca().get_title() == "$10_$20.jpg"
    plt.close("all")
    assert not shown.is_open
