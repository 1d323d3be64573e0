"""Draws a small labelled data set: faces with, without and with badly worn masks.

It lets anyone try the project in minutes and without a download, and it is what the tests use.
Everything is a pure function of the seed. A model trained on drawings is of no use on people.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from lxml import etree
from PIL import Image, ImageDraw, ImageFilter

from fmd_tf import CLASS_NAMES
from fmd_tf.arguments import at_least, make_parser
from fmd_tf.boxes import Box, touch
from fmd_tf.errors import command_line
from fmd_tf.publish import PublishError, publishing

SAMPLE_DIR = Path("data/sample")
NUM_PHOTOS = 320
_CLASS_SHARES = (0.46, 0.34, 0.20)
_WIDTH, _HEIGHT = 320, 240
_SCALE = 3  # Faces are drawn this much larger and shrunk, which smooths their edges.
_SKINS = ("#f6d3bd", "#e9b48f", "#c98d63", "#9c6544", "#6f452f", "#4a2d20")
_HAIRS = ("#1d1712", "#3b2a1e", "#6b4a2c", "#b98b4e", "#8e8e8e", "#a8452a")
_MASKS = ("#8fd0e0", "#4f86c6", "#f4f4f2", "#26262b", "#e79ab4", "#7fae7a", "#d8b08c")


def write_sample(data_dir: Path | str, num_photos: int = NUM_PHOTOS, seed: int = 0) -> Path:
    """Draw the sample data set, unless it is there already.

    Args:
        data_dir: Folder to make, with `images/` and `annotations/`.
        num_photos: Number of photos, with about three faces each.
        seed: Seed of everything that is drawn.

    Returns:
        The folder.
    """
    data_dir = Path(data_dir)
    if data_dir.is_dir():
        return data_dir
    try:
        with publishing(data_dir, overwrite=False) as partial:
            _draw_all(partial, num_photos, seed)
    except PublishError:
        if not data_dir.is_dir():  # Another command may have drawn it meanwhile.
            raise
    return data_dir


def _draw_all(folder: Path, num_photos: int, seed: int) -> None:
    for name in ("images", "annotations"):
        (folder / name).mkdir(parents=True)
    for index in range(num_photos):
        photo, faces = draw_photo(np.random.default_rng([seed, index]))
        name = f"sample{index}"
        photo.save(folder / "images" / f"{name}.png")
        tree = _annotation(f"{name}.png", faces)
        tree.write(str(folder / "annotations" / f"{name}.xml"), pretty_print=True)


def draw_photo(generator: np.random.Generator) -> tuple[Image.Image, list[tuple[str, Box]]]:
    """Draw one scene of one to six faces.

    Args:
        generator: Source of all that is random.

    Returns:
        The photo, RGB of 320 x 240 pixels, and the class name and box of each face.
    """
    photo = _background(generator)
    faces: list[tuple[str, Box]] = []
    for _ in range(generator.integers(1, 7)):
        height = int(np.exp(generator.uniform(math.log(12), math.log(130))))
        width = round(height * 0.78)
        box = _free_place(generator, width, height, [box for _, box in faces])
        if box is None:
            continue
        label = CLASS_NAMES[int(generator.choice(len(CLASS_NAMES), p=_CLASS_SHARES))]
        face = _draw_face(generator, height, label)
        offset = ((face.width - width) // 2, (face.height - height) // 2)
        photo.paste(face, (box[0] - offset[0], box[1] - offset[1]), face)
        faces.append((label, box))
    photo = photo.filter(ImageFilter.GaussianBlur(generator.uniform(0.0, 0.7)))
    noise = generator.normal(0, generator.uniform(2, 7), (_HEIGHT, _WIDTH, 1))
    pixels = np.clip(np.asarray(photo, float) + noise, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels), faces


def _free_place(
    generator: np.random.Generator, width: int, height: int, taken: Sequence[Box]
) -> Box | None:
    """Find a place where a face overlaps no other, None where there is none."""
    for _ in range(40):
        x = int(generator.integers(0, _WIDTH - width))
        y = int(generator.integers(0, _HEIGHT - height))
        box = (x, y, x + width, y + height)
        if not any(touch(_with_hair(box), _with_hair(other)) for other in taken):
            return box
    return None


def _with_hair(box: Box) -> Box:
    """Grow a box by what hair and shoulders may cover."""
    margin = (box[3] - box[1]) // 4
    return (box[0] - margin, box[1] - margin, box[2] + margin, box[3] + margin)


def _background(generator: np.random.Generator) -> Image.Image:
    """Paint a wall or street: a colour gradient with soft shapes on it."""
    gray, tint = generator.integers(60, 190, (2, 2, 1)), generator.integers(-30, 31, (2, 2, 3))
    image = Image.fromarray((gray + tint).astype(np.uint8)).resize(
        (_WIDTH, _HEIGHT), Image.Resampling.BICUBIC
    )
    draw = ImageDraw.Draw(image)
    for _ in range(generator.integers(4, 12)):
        x, y = generator.integers(0, _WIDTH), generator.integers(0, _HEIGHT)
        w, h = generator.integers(10, 120, 2)
        shade = int(generator.integers(30, 200))
        color = tuple(shade + int(tint) for tint in generator.integers(-30, 31, 3))
        shape = draw.rectangle if generator.random() < 0.6 else draw.ellipse
        shape((int(x), int(y), int(x + w), int(y + h)), fill=color)
    return image.filter(ImageFilter.GaussianBlur(generator.uniform(2.0, 6.0)))


def _draw_face(generator: np.random.Generator, height: int, label: str) -> Image.Image:
    """Draw a head with shoulders on a transparent square 1.6 times as high as the face."""
    size = round(height * 1.6) * _SCALE
    image = Image.new("RGBA", (size, size))
    draw = ImageDraw.Draw(image)
    unit = height * _SCALE / 100  # The face is 100 units high and 78 wide.
    pen = _Pen(draw, size / 2, size / 2, unit)
    skin = _shade(generator, _SKINS)
    hair = _shade(generator, _HAIRS)
    _draw_head(generator, pen, skin, hair)
    if label != "without_mask":
        _draw_mask(generator, pen, _shade(generator, _MASKS), label == "with_mask")
    image = image.rotate(generator.uniform(-14, 14), Image.Resampling.BICUBIC)
    return image.resize((size // _SCALE, size // _SCALE), Image.Resampling.LANCZOS)


class _Pen:
    """Draws in units of a hundredth of the face's height, from the face's centre."""

    def __init__(self, draw: ImageDraw.ImageDraw, x: float, y: float, unit: float):
        self._draw, self._x, self._y, self._unit = draw, x, y, unit

    def points(self, *points: tuple[float, float]) -> list[tuple[float, float]]:
        return [(self._x + x * self._unit, self._y + y * self._unit) for x, y in points]

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: str) -> None:
        self._draw.ellipse(self.points((x - rx, y - ry), (x + rx, y + ry)), fill=fill)

    def polygon(self, points: Sequence[tuple[float, float]], fill: str) -> None:
        self._draw.polygon(self.points(*points), fill=fill)

    def line(self, points: Sequence[tuple[float, float]], fill: str, width: float) -> None:
        pixels = max(1, round(width * self._unit))
        self._draw.line(self.points(*points), fill=fill, width=pixels, joint="curve")


def _shade(generator: np.random.Generator, colors: Sequence[str]) -> str:
    """Pick a colour and vary it a little."""
    color = colors[int(generator.integers(len(colors)))]
    values = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    varied = np.clip(np.array(values) + generator.integers(-14, 15, 3), 0, 255)
    return "#" + "".join(f"{value:02x}" for value in varied)


def _darker(color: str, factor: float) -> str:
    values = [round(int(color[i : i + 2], 16) * factor) for i in (1, 3, 5)]
    return "#" + "".join(f"{value:02x}" for value in values)


def _draw_head(generator: np.random.Generator, pen: _Pen, skin: str, hair: str) -> None:
    """Draw shoulders, hair, face, eyes, nose and mouth."""
    shirt = _shade(generator, (*_MASKS, *_HAIRS))
    pen.ellipse(0, 92, 60, 40, shirt)
    pen.polygon([(-16, 30), (16, 30), (18, 66), (-18, 66)], _darker(skin, 0.85))
    long_hair = generator.random() < 0.4
    pen.ellipse(0, -10 if long_hair else -16, 44, 56 if long_hair else 40, hair)
    pen.ellipse(0, 2, 37, 48, skin)
    for side in (-1, 1):
        pen.ellipse(side * 38, 2, 5, 9, _darker(skin, 0.9))
        pen.ellipse(side * 15, -8, 7.5, 4.5, "#ffffff")
        pen.ellipse(side * 15, -8, 3.6, 4.2, "#2a1d18")
        pen.line([(side * 7, -19), (side * 23, -20)], _darker(hair, 0.7), 3)
    pen.polygon([(-38, -16), (-30, -44), (0, -52), (30, -44), (38, -16), (18, -32)], hair)
    pen.line([(0, -4), (-5, 13), (3, 14)], _darker(skin, 0.7), 2.6)
    for side in (-1, 1):
        pen.ellipse(side * 4, 14, 2.2, 1.6, _darker(skin, 0.45))
    pen.ellipse(0, 28, generator.uniform(9, 14), generator.uniform(2.5, 5), "#a8413f")
    if generator.random() < 0.15:  # A beard, which is no mask.
        pen.polygon([(-33, 18), (-20, 44), (0, 51), (20, 44), (33, 18), (14, 36), (-14, 36)], hair)
    if generator.random() < 0.2:  # Glasses.
        for side in (-1, 1):
            pen.line(
                [
                    (side * 5, -13),
                    (side * 25, -13),
                    (side * 25, -1),
                    (side * 5, -1),
                    (side * 5, -13),
                ],
                "#222222",
                1.8,
            )


def _draw_mask(generator: np.random.Generator, pen: _Pen, color: str, worn_well: bool) -> None:
    """Draw a mask over nose and mouth; badly worn, below the nose or on the chin."""
    top = generator.uniform(2, 6) if worn_well else generator.choice([19.0, 36.0])
    top += 0 if worn_well else generator.uniform(-1, 2)
    bottom = 48 if top < 30 else 54
    middle = (top + bottom) / 2
    strap = _darker(color, 0.8)
    for side in (-1, 1):
        pen.line([(side * 30, top + 3), (side * 39, 0)], strap, 1.8)
        pen.line([(side * 26, bottom - 8), (side * 39, 8)], strap, 1.8)
    outline = [(-34, top + 4), (0, top - 3), (34, top + 4), (31, middle + 4)]
    outline += [(18, bottom - 1), (0, bottom + 2), (-18, bottom - 1), (-31, middle + 4)]
    pen.polygon(outline, color)
    for fold in (0.3, 0.5, 0.7):
        y = top + fold * (bottom - top)
        pen.line([(-29, y), (0, y + 2), (29, y)], _darker(color, 0.86), 1.4)
    if generator.random() < 0.2:  # A pattern.
        for x in (-18, 0, 18):
            pen.ellipse(x, middle, 3.5, 3.5, _darker(color, 0.6))


def _annotation(filename: str, faces: Sequence[tuple[str, Box]]) -> etree._ElementTree:
    """Write a Pascal VOC annotation like those of the Kaggle data set."""
    root = etree.Element("annotation")
    for tag, text in (("folder", "images"), ("filename", filename)):
        etree.SubElement(root, tag).text = text
    size = etree.SubElement(root, "size")
    for tag, value in (("width", _WIDTH), ("height", _HEIGHT), ("depth", 3)):
        etree.SubElement(size, tag).text = str(value)
    etree.SubElement(root, "segmented").text = "0"
    for label, box in faces:
        element = etree.SubElement(root, "object")
        etree.SubElement(element, "name").text = label
        etree.SubElement(element, "pose").text = "Unspecified"
        for tag in ("truncated", "occluded", "difficult"):
            etree.SubElement(element, tag).text = "0"
        bndbox = etree.SubElement(element, "bndbox")
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            etree.SubElement(bndbox, tag).text = str(value)
    return etree.ElementTree(root)


@command_line
def main(argv: Sequence[str] | None = None) -> int:
    """Draw the sample data set from the command line; return the exit code."""
    parser = make_parser("sample_data", "Draw a small labelled data set.")
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parser.add_argument(
        "--num-photos", type=at_least(1), default=NUM_PHOTOS, help="number of photos"
    )
    parser.add_argument("--seed", type=at_least(0), default=0, help="seed of everything drawn")
    arguments = parser.parse_args(argv)
    if arguments.output.exists():
        parser.error(f"--output: {arguments.output} exists already; name a new folder")
    print(write_sample(arguments.output, arguments.num_photos, arguments.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
