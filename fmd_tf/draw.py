"""Photos with boxes and labels drawn on them.

Colours are Okabe and Ito's (2008, "Color Universal Design"), which people tell apart whatever
their colour vision; text says the same again. Small photos are enlarged, so that a label beside a
face of a few pixels can be read, and labels give way to each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fmd_tf import UNCERTAIN
from fmd_tf.boxes import touch
from fmd_tf.publish import replacing
from fmd_tf.records import LabelledFace

Color = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]

_COLORS: tuple[Color, ...] = (
    (86, 180, 233),  # sky blue
    (213, 94, 0),  # vermilion
    (240, 228, 66),  # yellow
    (0, 158, 115),  # bluish green
    (204, 121, 167),  # reddish purple
    (0, 114, 178),  # blue
    (230, 159, 0),  # orange
)
_GREY: Color = (190, 190, 190)
_BLACK: Color = (0, 0, 0)
_WHITE: Color = (255, 255, 255)
# Pixels of the longer side below which a picture is enlarged, and above which it is shrunk.
_SMALL, _LARGE = 1600, 8000
_SMALL_FRAME = 640
_MAX_ENLARGEMENT = 4


def class_color(name: str, class_names: Sequence[str]) -> Color:
    """Return the colour of a label: by the class's place, grey for uncertain ones."""
    if name == UNCERTAIN or name not in class_names:
        return _GREY
    return _COLORS[list(class_names).index(name) % len(_COLORS)]


def enlargement(width: int, height: int, small: int = _SMALL) -> float:
    """Return the factor by which a picture is scaled: whole for small ones, under 1 for huge.

    Args:
        width: Pixels.
        height: Pixels.
        small: Pixels of the longer side that a small picture is brought near to.
    """
    longest = max(width, height)
    if longest > _LARGE:
        return _LARGE / longest
    return float(max(1, min(_MAX_ENLARGEMENT, small // longest)))


def draw_faces(
    pixels: np.ndarray,
    faces: Sequence[LabelledFace],
    note: str | None = None,
    is_frame: bool = False,
) -> Image.Image:
    """Draw boxes and labels.

    Args:
        pixels: uint8 RGB [height, width, 3].
        faces: What to draw, boxes in pixels of the photo.
        note: A line for the corner, for example frames per second.
        is_frame: Of a video: all frames must have one size, and there are many. So there is no line
            below that says which colour is which label and how many there are, and only frames
            with a longer side of at most 320 pixels are enlarged.

    Returns:
        The picture, `enlargement` times as large as the photo.
    """
    small = _SMALL_FRAME if is_frame else _SMALL
    scale = enlargement(pixels.shape[1], pixels.shape[0], small)
    photo = _resize(Image.fromarray(pixels), scale)
    font = _font(photo.size)
    canvas = photo if is_frame else _with_legend(photo, faces, font)
    boxes = [_scaled(face, scale) for face in faces]
    draw = ImageDraw.Draw(canvas)
    for face, box in zip(faces, boxes, strict=True):
        _draw_box(draw, box, _color(face), line=max(2, int(font.size) // 7))
    _draw_labels(draw, photo.size, faces, boxes, font)
    if note:
        _write(draw, (4, 4), note, font, _WHITE)
    return canvas


def save_picture(picture: Image.Image, path: Path) -> None:
    """Save a picture as JPEG, written beside and renamed; folders are made.

    Args:
        picture: RGB.
        path: File name ending in `.jpg`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        picture.save(partial, "JPEG", quality=92)


def _resize(photo: Image.Image, scale: float) -> Image.Image:
    if scale == 1.0:
        return photo
    sides = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    return photo.resize(sides, Image.Resampling.BICUBIC)


def _font(size: tuple[int, int]) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, at a size that goes with the picture's.

    Matplotlib brings it; unlike Pillow's own font it has Greek and Cyrillic letters and accents.
    """
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(file, max(14, min(48, max(size) // 70)))


def _color(face: LabelledFace) -> Color:
    return class_color(face.label, list(face.probabilities))


def _scaled(face: LabelledFace, scale: float) -> Rectangle:
    xmin, ymin, xmax, ymax = (value * scale for value in face.box)
    return xmin, ymin, max(xmax - 1, xmin), max(ymax - 1, ymin)


def _draw_box(draw: ImageDraw.ImageDraw, box: Rectangle, color: Color, line: int) -> None:
    """Draw around the face, not over it, with a dark rim that stands out on bright photos."""
    for reach, fill, width in ((line + 1, _BLACK, line + 2), (line, color, line)):
        outer = (box[0] - reach, box[1] - reach, box[2] + reach, box[3] + reach)
        draw.rectangle(outer, outline=fill, width=width)


def _draw_labels(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    faces: Sequence[LabelledFace],
    boxes: Sequence[Rectangle],
    font: ImageFont.FreeTypeFont,
) -> None:
    """Write the surest faces' labels first; where there is no room, only the percentage."""
    taken: list[Rectangle] = []
    order = sorted(range(len(faces)), key=lambda index: -faces[index].face_score)
    for index in order:
        for text in _texts(faces[index]):
            place = _find_place(boxes[index], _text_size(text, font), size, taken, boxes)
            if place:
                taken.append(place)
                _write(draw, place[:2], text, font, _color(faces[index]))
                break


def _texts(face: LabelledFace) -> tuple[str, str]:
    # Rounded down, so that no face below the threshold seems to be at it.
    percent = f"{int(100 * face.confidence)}%"
    number = "" if face.track is None else f"{face.track} "
    return f"{number}{face.label} {percent}", percent


def _text_size(text: str, font: ImageFont.FreeTypeFont) -> tuple[float, float]:
    return font.getlength(text) + 6, font.size * 1.25


def _find_place(
    box: Rectangle,
    text: tuple[float, float],
    size: tuple[int, int],
    taken: Sequence[Rectangle],
    boxes: Sequence[Rectangle],
) -> Rectangle | None:
    """Return room for a label beside its box: over no other label, and rather over no face."""
    width, height = text
    gap = height / 4
    above, below = box[1] - height - gap, box[3] + gap
    places = [
        (box[0], above),
        (box[0], below),
        (box[2] - width, above),
        (box[2] - width, below),
        (box[2] + gap, box[1]),
        (box[0] - width - gap, box[1]),
    ]
    inside = [
        (min(max(x, 0), size[0] - width), min(max(y, 0), size[1] - height)) for x, y in places
    ]
    rooms = [(x, y, x + width, y + height) for x, y in inside]
    free = [room for room in rooms if not any(touch(room, each) for each in taken)]
    clear = [room for room in free if not any(touch(room, each) for each in boxes)]
    return next(iter([*clear, *free]), None)


def _write(
    draw: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: str,
    font: ImageFont.FreeTypeFont,
    color: Color,
) -> None:
    """Write black text, which all colours here are bright enough for but the dark blue."""
    width, height = _text_size(text, font)
    x, y = corner
    draw.rectangle((x, y, x + width, y + height), fill=color, outline=_BLACK)
    ink = _BLACK if sum(color) > 300 else _WHITE
    draw.text((x + 3, y + height / 2), text, fill=ink, font=font, anchor="lm")


def _with_legend(
    photo: Image.Image, faces: Sequence[LabelledFace], font: ImageFont.FreeTypeFont
) -> Image.Image:
    """Add a line below the photo: each label's colour, name and number of faces."""
    counts = Counter(face.label for face in faces)
    colors = {face.label: _color(face) for face in faces}
    entries = [(f"{label}: {counts[label]}", colors[label]) for label in sorted(counts)]
    entries = entries or [("no face found", _GREY)]
    height = int(font.size * 1.25) + 8
    rows = _rows(entries, photo.width, font)
    canvas = Image.new("RGB", (photo.width, photo.height + height * len(rows)), _WHITE)
    canvas.paste(photo)
    draw = ImageDraw.Draw(canvas)
    for number, row in enumerate(rows):
        for x, text, color in row:
            _write(draw, (x, photo.height + number * height + 4), text, font, color)
    return canvas


def _rows(
    entries: Sequence[tuple[str, Color]], width: int, font: ImageFont.FreeTypeFont
) -> list[list[tuple[float, str, Color]]]:
    """Set entries side by side, in as many rows as the width needs."""
    rows: list[list[tuple[float, str, Color]]] = [[]]
    x = 4.0
    for text, color in entries:
        length = _text_size(text, font)[0]
        if rows[-1] and x + length > width:
            rows.append([])
            x = 4.0
        rows[-1].append((x, text, color))
        x += length + 8
    return rows
