from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmd_tf import CLASS_NAMES, UNCERTAIN, draw
from fmd_tf.boxes import overlaps
from fmd_tf.draw import class_color, draw_faces, enlargement, save_picture
from fmd_tf.records import LabelledFace

GREEN = np.full((300, 400, 3), (0, 90, 0), np.uint8)


def face(box: tuple[float, ...], label: str = "with_mask", **fields) -> LabelledFace:
    probabilities = dict.fromkeys(CLASS_NAMES, 0.1) | {"with_mask": 0.8}
    return LabelledFace(box, 0.9, label, "with_mask", 0.8, probabilities, **fields)


def colors_in(picture: Image.Image, part: tuple[int, int, int, int]) -> set[tuple[int, ...]]:
    pixels = np.asarray(picture.crop(part)).reshape(-1, 3)
    return {tuple(map(int, pixel)) for pixel in np.unique(pixels, axis=0)}


def test_labels_have_colours_of_their_own():
    colors = [class_color(name, CLASS_NAMES) for name in (*CLASS_NAMES, UNCERTAIN)]
    assert len(set(colors)) == 4
    # People who do not see colours still see other greys (weights of ITU-R BT.601).
    greys = sorted(0.3 * red + 0.6 * green + 0.1 * blue for red, green, blue in colors)
    assert np.diff(greys).min() > 15


def test_a_hundred_classes_have_colours_too():
    names = [f"class {index}" for index in range(100)]
    assert class_color("class 99", names) == class_color("class 1", names)  # 99 = 14 * 7 + 1


@pytest.mark.parametrize(
    ("size", "scale"),
    # 1600 // 400 = 4, 1600 // 512 = 3; at most 4; nothing above 800; 16000 becomes 8000.
    [
        ((400, 300), 4),
        ((512, 366), 3),
        ((5, 9), 4),
        ((801, 100), 1),
        ((4000, 9), 1),
        ((10, 16000), 0.5),
    ],
)
def test_small_photos_are_enlarged(size: tuple[int, int], scale: float):
    assert enlargement(*size) == scale


def test_the_box_goes_around_the_face_and_leaves_it_alone():
    picture = draw_faces(GREEN, [face((100, 150, 130, 180))])
    assert picture.width == 1600
    # Enlarged by 4, the face is 400 to 520 by 600 to 720.
    assert colors_in(picture, (402, 602, 518, 718)) == {(0, 90, 0)}
    assert class_color("with_mask", CLASS_NAMES) in colors_in(picture, (390, 590, 530, 730))


def test_every_label_says_its_colour_below():
    faces = [face((10, 10, 30, 30)), face((50, 50, 70, 70), UNCERTAIN)]
    below = colors_in(draw_faces(GREEN, faces), (0, 1200, 1600, 1230))
    assert {class_color(each.label, CLASS_NAMES) for each in faces} <= below
    assert class_color("without_mask", CLASS_NAMES) not in below


def test_no_face_is_said():
    picture = draw_faces(GREEN, [])
    assert picture.height > 1200


def test_frames_keep_their_size():
    sizes = [
        draw_faces(GREEN, faces, note="9.9 frames/s", is_frame=True).size
        for faces in ([], [face((1, 1, 9, 9), track=3)])
    ]
    assert sizes == [(400, 300)] * 2


@pytest.mark.parametrize("shape", [(1, 1, 3), (8, 20000, 3), (3000, 2, 3)])
def test_odd_photos_are_drawn(tmp_path: Path, shape: tuple[int, ...]):
    picture = draw_faces(np.zeros(shape, np.uint8), [face((0, 0, 1, 1))])
    save_picture(picture, tmp_path / "deep" / "a.jpg")
    with Image.open(tmp_path / "deep" / "a.jpg") as saved:
        assert saved.size == picture.size
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.jpg"]


def test_a_crowd_is_drawn_without_labels_on_labels(monkeypatch: pytest.MonkeyPatch):
    find, places = draw._find_place, []

    def note(*arguments):
        places.append(find(*arguments))
        return places[-1]

    monkeypatch.setattr(draw, "_find_place", note)
    # 100 faces of 8 pixels in a 10 x 10 grid: there is not room for all texts.
    faces = [face((x, y, x + 8, y + 8)) for x in range(0, 100, 10) for y in range(0, 100, 10)]
    assert draw_faces(GREEN, faces).size[0] == 1600
    written = np.array([place for place in places if place])
    assert 10 < len(written) < len(places)
    assert np.triu(overlaps(written, written), k=1).max() == 0


def test_labels_of_other_alphabets_have_letters():
    font = draw._font((640, 480))
    missing = bytes(font.getmask("\uffff"))
    for letter in "éñмаскаΩ":
        assert bytes(font.getmask(letter)) != missing


def test_the_photo_is_not_changed():
    photo = np.zeros((900, 900, 3), np.uint8)
    draw_faces(photo, [face((10, 10, 300, 300))])
    assert not photo.any()
