import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from fmd_tf.exif import read_orientation
from fmd_tf.input_pipeline import decode_photo, decode_upright
from tests.serving import encode, faces

# No two of the eight ways to turn it look alike.
PHOTO = faces(1, shape=(24, 40))[0]


def tiff(orientation: int, order: str = "<", before: int = 0) -> bytes:
    """A TIFF header and directory: `before` other tags, then the orientation."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    entries = [struct.pack(order + "HHIHH", 0x0100 + i, 3, 1, 7, 0) for i in range(before)]
    entries.append(struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0))
    head = struct.pack(order + "IH", 8, len(entries))
    return mark + head + b"".join(entries) + struct.pack(order + "I", 0)


def jpeg(exif: bytes | None, leading: bytes = b"") -> bytes:
    """A JPEG with an Exif segment after its JFIF segment and `leading`."""
    data = encode(PHOTO, "JPEG", quality=95)
    jfif = 4 + struct.unpack(">H", data[4:6])[0]
    body = b"" if exif is None else b"Exif\0\0" + exif
    segment = b"" if exif is None else b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
    return data[:2] + data[2:jfif] + leading + segment + data[jfif:]


def by_pillow(data: bytes) -> np.ndarray:
    """Turn TensorFlow's pixels with Pillow: the two decoders differ by a grey level or so."""
    with Image.open(io.BytesIO(data)) as image:
        turned = Image.fromarray(decode_photo(data).numpy())
        turned.getexif()[0x0112] = image.getexif().get(0x0112, 1)
        return np.asarray(ImageOps.exif_transpose(turned))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("order", "before"), [("<", 0), (">", 0), (">", 5)])
def test_all_orientations_are_pillows(orientation: int, order: str, before: int):
    data = jpeg(tiff(orientation, order, before))
    assert read_orientation(data).numpy() == orientation
    expected = by_pillow(data)
    # 5 to 8 stand on their side: 24 x 40 becomes 40 x 24.
    assert expected.shape == ((40, 24, 3) if orientation >= 5 else (24, 40, 3))
    np.testing.assert_array_equal(decode_upright(data), expected)


def test_pillow_writes_what_is_read_here():
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "a camera", 6
    data = encode(PHOTO, "JPEG", exif=exif)
    np.testing.assert_array_equal(decode_upright(data), by_pillow(data))
    assert decode_upright(data).shape == (40, 24, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_png_and_webp_as_pillow_writes_them(kind: str, orientation: int):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "a camera", orientation
    data = encode(PHOTO, kind, exif=exif)
    assert read_orientation(data).numpy() == orientation
    np.testing.assert_array_equal(decode_upright(data), by_pillow(data))


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def test_a_png_says_it_before_its_pixels():
    data = encode(PHOTO, "PNG")
    header, end = 8 + 25, len(data) - 12
    text, exif = png_chunk(b"tEXt", b"a\0b" * 999), png_chunk(b"eXIf", tiff(6))
    assert read_orientation(data[:header] + text + exif + data[header:]).numpy() == 6
    assert read_orientation(data[:end] + exif + data[end:]).numpy() == 1


def webp_chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


@pytest.mark.parametrize("begins", [b"", b"Exif\0\0"])
def test_a_webp_says_it_after_its_pixels(begins: bytes):
    pixels, odd = encode(PHOTO, "WEBP")[12:], webp_chunk(b"ICCP", b"odd")
    chunks = odd + pixels + webp_chunk(b"EXIF", begins + tiff(8))
    data = b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks
    assert read_orientation(data).numpy() == 8


def test_in_a_graph_and_after_other_segments():
    other = b"\xff\xe1" + struct.pack(">H", 2 + 5000) + b"http" + bytes(4996)
    decode = tf.function(decode_upright, input_signature=[tf.TensorSpec([], tf.string)])
    np.testing.assert_array_equal(
        decode(jpeg(tiff(8), leading=other)), decode_upright(jpeg(tiff(8)))
    )


@pytest.mark.parametrize(
    "data",
    [
        jpeg(None),
        jpeg(tiff(0)),
        jpeg(tiff(9)),
        jpeg(b""),
        jpeg(b"II*\0" + b"\xff" * 40),
        jpeg(b"MM\0*" + b"\xff" * 40),
        jpeg(tiff(6)[:12]),
        encode(PHOTO, "PNG"),
    ],
    ids="none 0 9 empty far_little far_big cut png".split(),
)
def test_without_a_usable_tag_nothing_is_turned(data: bytes):
    np.testing.assert_array_equal(decode_upright(data), decode_photo(data))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"\xff\xd8",
        b"\xff\xd8\xff\xe1\x00\x00Exif\0\0II",
        b"\x89PNG\r\n\x1a\n",
        b"\x89PNG\r\n\x1a\n" + b"\xff" * 40,
        b"RIFF\0\0\0\0WEBP",
        b"RIFF\0\0\0\0WEBP" + b"\xff" * 40,
        b"RIFF\0\0\0\0WEBPEXIF",
    ],
)
def test_of_no_photo_at_all_it_is_one(data: bytes):
    assert read_orientation(data).numpy() == 1
