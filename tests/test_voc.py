"""What the parser accepts, and the message each kind of bad input gets."""

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from fmd_tf.voc import AnnotationError, Face, read_folder
from tests.conftest import add_photo, voc_xml


def _xml(text: str) -> Callable[[Path], None]:
    """Break the data set by an annotation `bad.xml` of its own photo."""

    def spoil(data_dir: Path) -> None:
        add_photo(data_dir, "bad")
        (data_dir / "annotations" / "bad.xml").write_text(text)

    return spoil


def _faces(*faces: tuple) -> Callable[[Path], None]:
    return _xml(voc_xml("bad.png", faces=faces))


def _photo(change: Callable[[Path], object]) -> Callable[[Path], None]:
    """Break the data set by spoiling the photo `bad.png`."""

    def spoil(data_dir: Path) -> None:
        add_photo(data_dir, "bad")
        change(data_dir / "images" / "bad.png")

    return spoil


def _cut_end(num_bytes: int) -> Callable[[Path], object]:
    """Cut off what Pillow does not miss: of the last chunk, which has 12 bytes, or all of it."""
    return lambda photo: photo.write_bytes(photo.read_bytes()[:-num_bytes])


def _damage(photo: Path) -> None:
    """Change a checksum, which Pillow does not look at."""
    data = bytearray(photo.read_bytes())
    chunk = data.index(b"IDAT")
    data[chunk + 4 + int.from_bytes(data[chunk - 4 : chunk])] ^= 0xFF
    photo.write_bytes(data)


def _truncate(photo: Path) -> None:
    photo.write_bytes(photo.read_bytes()[:-60])


def _turn(photo: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(photo, exif=exif)


def _second_annotation(data_dir: Path) -> None:
    (data_dir / "annotations" / "twice.xml").write_text(voc_xml("good.png"))


def _without_annotation(data_dir: Path) -> None:
    Image.new("RGB", (4, 4)).save(data_dir / "images" / "alone.png")


def _photo_of_another_kind(data_dir: Path) -> None:
    Image.new("RGB", (4, 4)).save(data_dir / "images" / "alone.tif")


def _folder_of_photos(data_dir: Path) -> None:
    (data_dir / "images" / "day2").mkdir()
    _without_annotation(data_dir)
    (data_dir / "images" / "alone.png").rename(data_dir / "images" / "day2" / "a.png")


_ENTITY = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>'
_NAMELESS = voc_xml("bad.png", faces=[("", (1, 1, 5, 5))])
_BOXLESS = voc_xml("bad.png").replace("</ann", "<object><name>with_mask</name></object></ann")
_SIDELESS = voc_xml("bad.png", faces=[("with_mask", (1, 1, 5, 5))]).replace("<xmax>5</xmax>", "")

BAD_INPUT = {
    "not xml": (_xml("hello"), "expected XML, got:"),
    "empty file": (_xml(""), "expected XML, got:"),
    "cut xml": (_xml(voc_xml("bad.png")[:-9]), "expected XML, got:"),
    "other xml": (_xml("<html/>"), "expected the element <annotation>, got <html>"),
    "external entity": (_xml(_ENTITY), "expected <filename> with the photo's name, got none"),
    "no name": (_xml(_NAMELESS), "bad.xml:2: expected <name> in <object>, got none"),
    "no box": (_xml(_BOXLESS), "expected <bndbox> in <object>, got none"),
    "no side": (_xml(_SIDELESS), "expected <xmax> in <bndbox>, got none"),
    "no number": (_faces(("with_mask", ("a", 1, 5, 5))), "expected a number in <xmin>, got 'a'"),
    "not finite": (_faces(("with_mask", ("nan", 1, 5, 5))), "expected a number in <xmin>"),
    "flat box": (_faces(("with_mask", (5, 1, 5, 5))), "expected xmin < xmax and ymin < ymax"),
    "inverted box": (_faces(("with_mask", (5, 9, 8, 2))), "expected xmin < xmax and ymin < ymax"),
    "box outside": (_faces(("with_mask", (50, 1, 60, 5))), "expected a box inside 40x30 pixels"),
    "unknown class": (_faces(("mask", (1, 1, 5, 5))), "--class-names with_mask mask"),
    "no size": (_xml("<annotation><filename>bad.png</filename></annotation>"), "<size/width>"),
    "other size": (_xml(voc_xml("bad.png", (41, 30))), "expected 41x30 pixels as bad.xml declares"),
    "photo missing": (_photo(Path.unlink), "expected the photo images/bad.png, which does not"),
    "photo is text": (_photo(lambda p: p.write_text("hi")), "expected a whole photo, got: not an"),
    "photo empty": (_photo(lambda p: p.write_bytes(b"")), "expected a whole photo, got: not an"),
    "photo truncated": (_photo(_truncate), "expected a whole photo, got:"),
    "photo without its last byte": (_photo(_cut_end(1)), "a PNG that is cut off at its end"),
    "photo with damaged pixels": (_photo(_damage), "a PNG whose chunk IDAT is damaged"),
    "photo without its last chunk": (_photo(_cut_end(12)), "a PNG that is cut off at its end"),
    "photo with a very long name": (
        _xml(voc_xml(f"{'x' * 300}.png")),
        "expected the photo images/x",
    ),
    "photo turned": (_photo(_turn), "an EXIF orientation of 6"),
    "leaves the folder": (_xml(voc_xml("../good.png")), "expected <filename> inside images/"),
    "windows path": (_xml(voc_xml("C:\\x\\bad.png")), "expected <filename> inside images/"),
    "no photo suffix": (_xml(voc_xml("bad.gif")), "expected a photo of .png, .jpg"),
    "two annotations": (_second_annotation, "second annotation of good.png"),
    "no annotation": (_without_annotation, "alone.png: photo without an annotation"),
    "other kind": (_photo_of_another_kind, "alone.tif: expected a photo of .png, .jpg"),
    "folder of photos": (_folder_of_photos, "images/day2: not looked into; expected all photos"),
}

_OTHER_FILES = ("two annotations", "no annotation", "other kind", "folder of photos")


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_named(voc_dir: Path, name: str):
    spoil, expected = BAD_INPUT[name]
    spoil(voc_dir)
    with pytest.raises(AnnotationError) as caught:
        read_folder(voc_dir)
    assert expected in str(caught.value)
    assert all(
        "bad" in str(problem.file) or name in _OTHER_FILES for problem in caught.value.problems
    )


def test_a_name_of_an_annotation_need_not_be_text(voc_dir: Path):
    xml = voc_dir / "annotations" / "good.xml"
    xml.rename(os.fsdecode(os.fsencode(xml.parent) + b"/caf\xe9.xml"))
    assert len(read_folder(voc_dir).annotations) == 1


@pytest.mark.parametrize(
    ("at", "value"), [(30, 1), (54, 0xFF)], ids=["run lengths", "red and blue swapped"]
)
def test_a_bmp_that_tensorflow_misreads_is_named(voc_dir: Path, at: int, value: int):
    """A header of 124 bytes, as Photoshop writes it, with the masks of blue, green, red."""
    masks = [0xFF0000, 0xFF00, 0xFF, 0xFF000000]
    header = [124, 40, 30, 1 + (32 << 16), 3, 40 * 30 * 4, 0, 0, 0, 0, *masks]
    data = b"BM" + struct.pack("<III", 138 + 4800, 0, 138) + struct.pack("<14I", *header)
    data = bytearray(data + bytes(138 - len(data) + 4800))
    photo, xml = voc_dir / "images" / "good.bmp", voc_dir / "annotations" / "good.xml"
    (voc_dir / "images" / "good.png").unlink()
    xml.write_text(xml.read_text().replace("good.png", "good.bmp"))
    photo.write_bytes(data)
    assert len(read_folder(voc_dir).annotations) == 1
    data[at : at + 4] = struct.pack("<I", value)
    data[62:66] = struct.pack("<I", 0xFF0000 if at == 54 else 0xFF)
    photo.write_bytes(data)
    with pytest.raises(AnnotationError, match="BMP"):
        read_folder(voc_dir)


def test_skip_invalid_goes_on_and_keeps_the_list(voc_dir: Path):
    for name in ("not xml", "photo missing"):
        BAD_INPUT[name][0](voc_dir)
    folder = read_folder(voc_dir, skip_invalid=True)
    assert [annotation.photo.name for annotation in folder.annotations] == ["good.png"]
    assert len(folder.problems) == 1  # The second replaced the annotation of the first.


def test_a_bad_face_does_not_cost_the_good_one_beside_it(voc_dir: Path):
    _faces(("with_mask", (5, 1, 5, 5)), ("without_mask", (1, 2, 9, 9)))(voc_dir)
    folder = read_folder(voc_dir, skip_invalid=True)
    assert folder.annotations[0].faces == (Face("without_mask", (1, 2, 9, 9)),)
    assert [annotation.num_invalid for annotation in folder.annotations] == [1, 0]


def test_all_problems_come_at_once(voc_dir: Path):
    _faces(("with_mask", (5, 1, 5, 5)), ("mask", (1, 1, 5, 5)))(voc_dir)
    _second_annotation(voc_dir)
    with pytest.raises(AnnotationError, match="3 problems"):
        read_folder(voc_dir)


def test_boxes_are_clipped_and_counted(voc_dir: Path):
    add_photo(voc_dir, "wide", faces=[("with_mask", (30, 20, 41, 30))])
    folder = read_folder(voc_dir)
    assert folder.annotations[1].faces[0].box == (30, 20, 40, 30)
    assert folder.num_clipped == 1


def test_a_photo_without_faces_is_valid_and_counted(voc_dir: Path):
    add_photo(voc_dir, "nobody")
    assert read_folder(voc_dir).num_without_faces == 1


def test_photos_are_in_natural_order(voc_dir: Path):
    for stem in ("good10", "good2"):
        add_photo(voc_dir, stem)
    names = [annotation.photo.stem for annotation in read_folder(voc_dir).annotations]
    assert names == ["good", "good2", "good10"]


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "webp", "bmp", "PNG"])
def test_photo_formats(voc_dir: Path, suffix: str):
    Image.new("RGB", (40, 30)).save(voc_dir / "images" / f"other.{suffix}")
    (voc_dir / "annotations" / "other.xml").write_text(voc_xml(f"other.{suffix}"))
    assert len(read_folder(voc_dir).annotations) == 2


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PPM"])
def test_other_formats_under_a_usual_name_are_problems(voc_dir: Path, kind: str):
    Image.new("RGB", (40, 30)).save(voc_dir / "images" / "good.png", format=kind)
    with pytest.raises(AnnotationError, match=f"got: {kind} under the name good.png"):
        read_folder(voc_dir)


def test_a_bmp_with_a_palette_is_a_problem(voc_dir: Path):
    """TensorFlow would take its numbers for grays."""
    photo = Image.new("RGB", (40, 30), (200, 100, 50)).quantize(2)
    photo.save(voc_dir / "images" / "good.png", format="BMP")
    with pytest.raises(AnnotationError, match="a BMP with a palette; store it as PNG"):
        read_folder(voc_dir)


def test_bytes_after_a_png_do_no_harm_and_after_a_bmp_are_a_problem(voc_dir: Path):
    path = voc_dir / "images" / "good.png"
    path.write_bytes(path.read_bytes() + b"more")
    assert len(read_folder(voc_dir).annotations) == 1
    Image.new("RGB", (40, 30)).save(path, format="BMP")
    assert len(read_folder(voc_dir).annotations) == 1
    path.write_bytes(path.read_bytes() + bytes(2))
    with pytest.raises(AnnotationError, match="or with bytes after its pixels; store it as PNG"):
        read_folder(voc_dir)


@pytest.mark.parametrize(("offset", "value"), [(28, 16), (14, 12)])
def test_a_bmp_that_tensorflow_does_not_decode_is_a_problem(voc_dir: Path, offset, value):
    """Of 16 bits a pixel; or as OS/2 wrote it, with a shorter header."""
    path = voc_dir / "images" / "good.png"
    Image.new("RGB", (40, 30)).save(path, format="BMP")
    data = bytearray(path.read_bytes())
    data[offset] = value
    if value == 12:  # Then two bytes each for width, height, planes and bits.
        data[18:26] = bytes([40, 0, 30, 0, 1, 0, 24, 0])
    path.write_bytes(data)
    with pytest.raises(AnnotationError, match="a BMP that is compressed, of 16 bits a"):
        read_folder(voc_dir)


@pytest.mark.parametrize("missing", ["images", "annotations"])
def test_missing_folders(voc_dir: Path, missing: str):
    (voc_dir / missing).rename(voc_dir / "elsewhere")
    with pytest.raises(AnnotationError, match=f"{missing}: no such folder"):
        read_folder(voc_dir)


def test_own_classes(voc_dir: Path):
    add_photo(voc_dir, "own", faces=[("mask", (1, 1, 5, 5))])
    folder = read_folder(voc_dir, class_names=("with_mask", "mask"))
    assert folder.class_names == ("with_mask", "mask")


def test_real_data(real_dir: Path):
    folder = read_folder(real_dir)
    assert not folder.problems
    assert len(folder.annotations) >= 600
