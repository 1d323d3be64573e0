import io
import struct
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from fmd_tf.input_pipeline import decode_photo
from fmd_tf.photos import PhotoError, find_photos, read_photo
from tests.serving import encode, faces

PIXELS = faces(1, shape=(30, 44))[0]


def write(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP"])
def test_pixels_are_those_of_training(tmp_path: Path, form: str):
    data = encode(PIXELS, form)
    photo = read_photo(write(tmp_path, "a.jpg", data))  # The ending does not matter.
    np.testing.assert_array_equal(photo.pixels, decode_photo(data))
    assert (photo.width, photo.height) == (44, 30)
    assert photo.encoded() == data


@pytest.mark.parametrize(("form", "options"), [("JPEG", {"exif": exif(6)}), ("GIF", {})])
def test_where_a_server_would_see_another_photo_it_gets_pixels(
    tmp_path: Path, form: str, options: dict
):
    photo = read_photo(write(tmp_path, "a", encode(PIXELS, form, **options)))
    assert photo.data is None
    for small in (False, True):
        np.testing.assert_array_equal(decode_photo(photo.encoded(small)), photo.pixels)


def test_links_to_folders_are_followed_once(tmp_path: Path):
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "photos"
    for each in (elsewhere, folder / "sub"):
        each.mkdir(parents=True)
        write(each, "a.png", encode(PIXELS))
    (folder / "link").symlink_to(elsewhere)
    (folder / "sub" / "back").symlink_to(folder)
    found = [path.relative_to(folder).as_posix() for path in find_photos(folder)]
    assert found == ["link/a.png", "sub/a.png"]


def test_an_upright_tag_changes_nothing(tmp_path: Path):
    data = encode(PIXELS, "JPEG", exif=exif(1))
    assert read_photo(write(tmp_path, "a", data)).encoded() == data


def test_of_an_animation_the_first_frame_is_read(tmp_path: Path):
    frames = [Image.new("RGB", (6, 4), color) for color in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    photo = read_photo(write(tmp_path, "a.gif", buffer.getvalue()))
    assert photo.pixels.shape == (4, 6, 3)
    assert (photo.pixels == [255, 0, 0]).all()


def test_sixteen_bits_become_eight(tmp_path: Path):
    deep = tf.io.encode_png(PIXELS.astype(np.uint16) * 257).numpy()
    np.testing.assert_array_equal(read_photo(write(tmp_path, "a.png", deep)).pixels, PIXELS)


def _saved(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "form", "options"),
    [
        ("P", "BMP", {}),
        ("1", "BMP", {}),
        ("RGBA", "WEBP", {"lossless": True}),
        ("RGB", "WEBP", {"lossless": True, "save_all": True, "append_images": True}),
    ],
    ids="palette one-bit alpha animated".split(),
)
def test_what_tensorflow_reads_wrongly_is_read_as_pillow_does(
    tmp_path: Path, mode: str, form: str, options: dict
):
    image = Image.fromarray(PIXELS).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    if "append_images" in options:
        options = {**options, "append_images": [Image.new("RGB", image.size)]}
    photo = read_photo(write(tmp_path, "a.png", _saved(image, form, **options)))
    np.testing.assert_array_equal(photo.pixels, np.asarray(image.convert("RGB")))
    np.testing.assert_array_equal(decode_photo(photo.encoded()), photo.pixels)
    assert photo.data is None and photo.file is None


def test_what_pillow_decodes_is_turned_too(tmp_path: Path):
    image = Image.fromarray(PIXELS)
    image.putalpha(128)
    data = _saved(image, "WEBP", lossless=True, exif=exif(6))
    turned = np.rot90(PIXELS, -1)
    np.testing.assert_array_equal(read_photo(write(tmp_path, "a.webp", data)).pixels, turned)


def test_a_damaged_tag_beside_the_orientation_does_not_matter(tmp_path: Path):
    """Pillow raises struct.error when it writes tags anew whose pointer is of the type BYTE."""
    tags = [(0x0112, 3, 1, 6), (0xA005, 1, 1, 1)]  # Tag, type, count, value; 3 is SHORT.
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    tiff = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    image = Image.fromarray(PIXELS)
    image.putalpha(128)
    data = _saved(image, "WEBP", lossless=True, exif=b"Exif\0\0" + tiff)
    turned = np.rot90(PIXELS, -1)
    np.testing.assert_array_equal(read_photo(write(tmp_path, "a.webp", data)).pixels, turned)


@pytest.mark.parametrize(("orientation", "as_stored"), [(1, True), (6, False)])
def test_a_file_is_kept_for_the_signature_that_turns_it(tmp_path: Path, orientation, as_stored):
    data = encode(PIXELS, "JPEG", exif=exif(orientation))
    photo = read_photo(write(tmp_path, "a.jpg", data))
    assert photo.file == data
    assert (photo.data == data) == as_stored


def _gif_that_ends_in(last: int) -> bytes:
    frames = [Image.new("P", (4, 4), color) for color in (0, 1, 0)]
    data = _saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    return data[:-1] + bytes([last])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"hello", "not an image of a known kind; expected JPEG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "got HEIC, AVIF or a video"),
        (encode(PIXELS, "TIFF"), "expected JPEG, PNG, WebP, BMP or GIF, got TIFF"),
        (encode(PIXELS, "JPEG")[:-200], r"damaged or cut off \(jpeg::Uncompress failed"),
        (encode(PIXELS, "PNG")[:-200], r"damaged or cut off \(Invalid PNG data"),
        # Pillow raises IndexError and struct.error for these.
        (_gif_that_ends_in(33), "damaged"),
        (_gif_that_ends_in(44), "damaged"),
    ],
    ids="empty text heic tiff jpeg png gif1 gif2".split(),
)
def test_what_cannot_be_read_has_a_reason(tmp_path: Path, data: bytes, message: str):
    with pytest.raises(PhotoError, match=message):
        read_photo(write(tmp_path, "a.jpg", data))


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path):
    with pytest.raises(PhotoError, match=r"cannot be read \(No such file"):
        read_photo(tmp_path / "no.jpg")
    with pytest.raises(PhotoError, match="cannot be read"):
        read_photo(tmp_path)


def test_photos_are_found_in_all_folders_in_the_same_order(tmp_path: Path):
    for name in (
        "b.JPG",
        "a.png",
        "deep/c.webp",
        "out/x.jpg",
        ".hidden.jpg",
        "notes.txt",
        "d.heic",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    found = [
        path.relative_to(tmp_path).as_posix() for path in find_photos(tmp_path, tmp_path / "out")
    ]
    assert found == ["a.png", "b.JPG", "d.heic", "deep/c.webp"]
