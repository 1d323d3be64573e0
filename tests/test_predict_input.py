"""Odd and bad input for `fmd_tf.predict`: it simply works, or one line says what is wrong.

`python -m tests.test_predict_input` prints the table of all kinds with what each gets.
"""

import contextlib
import io
import os
import re
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "agg")

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from fmd_tf import predict
from tests.conftest import save_tiny_classifier, voc_xml
from tests.serving import encode, faces, write_half_plus_two
from tests.test_photos import exif

Spoil = Callable[[Path], object]
PIXELS = faces(1, shape=(60, 90))[0]
WORKS = "works"


def _nothing(folder: Path) -> None:
    pass


def _write(name: str, data: bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(data)


def _image(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _animation() -> bytes:
    frames = [Image.new("RGB", (60, 40), color) for color in ("red", "green", "blue")]
    return _image(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100)


def _claims_to_be_huge() -> bytes:
    """A small PNG whose header, bytes 12 to 29 and their sum, says 20000 x 20000."""
    data = bytearray(encode(PIXELS))
    data[16:24] = struct.pack(">II", 20000, 20000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def _wide(folder: Path) -> None:
    Image.new("RGB", (20000, 10)).save(folder / "photo.png")
    xml = voc_xml("photo.png", (20000, 10), [("with_mask", (19000, 1, 19009, 10))])
    (folder / "photo.xml").write_text(xml)


def _tree(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "a.jpg").write_bytes(b"")
    (folder / "deep" / "b.jpg").write_text("hello")


def _one_of_two(folder: Path) -> None:
    _tree(folder)
    (folder / "deep" / "c.png").write_bytes(encode(PIXELS))


def _empty_video(folder: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    codec = cv2.VideoWriter.fourcc(*"mp4v")
    cv2.VideoWriter(str(folder / "v.mp4"), codec, 10.0, (64, 48)).release()


def _other_keras(folder: Path) -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.save(folder / "other.keras")


def _unfinished(folder: Path) -> None:
    lines = '{"schema_version": 1, "settings": {"model": "other"}}\n{"file": "a"}\n'
    (folder / ".o.json.partial.jsonl").write_text(lines)


def _annotated(xml: str) -> Spoil:
    return lambda folder: (folder / "photo.xml").write_text(xml)


CROP = ["--image", "photo", "--detector", "none"]
PHOTO = ["--image", "photo.png", "--detector", "none"]
VOC = ["--image", "photo.png", "--detector", "voc"]
VIDEO = ["--video", "v.mp4", "--detector", "none"]
# name: (how the folder is spoilt, flags, "works" or part of the message)
KINDS: dict[str, tuple[Spoil, list[str], str]] = {
    # Photos. Each is called `photo`: the ending does not matter.
    "empty file": (_write("photo", b""), CROP, "photo: the file is empty"),
    "text named .jpg": (
        _write("a.jpg", b"hello"),
        ["--image", "a.jpg", "--detector", "none"],
        "a.jpg: not an image of a known kind; expected JPEG, PNG, WebP, BMP or GIF",
    ),
    "truncated JPEG": (
        _write("photo", encode(PIXELS, "JPEG")[:-300]),
        CROP,
        "photo: damaged or cut off",
    ),
    "truncated PNG": (_write("photo", encode(PIXELS)[:-300]), CROP, "photo: damaged or cut off"),
    "header only": (_write("photo", encode(PIXELS, "JPEG")[:20]), CROP, "photo: "),
    "1x1": (_write("photo", encode(PIXELS[:1, :1])), CROP, WORKS),
    "20,000 px wide": (_wide, VOC, WORKS),
    "20,000 px wide crop": (_wide, PHOTO, "a face of 20000x20000 pixels with its surroundings"),
    "20,000 x 20,000": (
        _write("photo", _claims_to_be_huge()),
        CROP,
        "far too large; expected at most 100000000 pixels",
    ),
    "CMYK": (_write("photo", _image(Image.new("CMYK", (60, 40)), "JPEG")), CROP, WORKS),
    "16-bit grey PNG": (
        _write("photo", _image(Image.new("I;16", (60, 40), 40000), "PNG")),
        CROP,
        WORKS,
    ),
    "16-bit RGB PNG": (
        lambda folder: (folder / "photo").write_bytes(
            tf.io.encode_png(PIXELS.astype(np.uint16) * 257).numpy()
        ),
        CROP,
        WORKS,
    ),
    "1-bit PNG": (_write("photo", _image(Image.new("1", (60, 40)), "PNG")), CROP, WORKS),
    "palette PNG": (_write("photo", _image(Image.new("P", (60, 40)), "PNG")), CROP, WORKS),
    "PNG with alpha": (_write("photo", _image(Image.new("RGBA", (60, 40)), "PNG")), CROP, WORKS),
    "grey JPEG": (_write("photo", _image(Image.new("L", (60, 40)), "JPEG")), CROP, WORKS),
    "animated GIF": (_write("photo", _animation()), CROP, WORKS),
    "JPEG on its side (EXIF)": (
        _write("photo", encode(PIXELS, "JPEG", exif=exif(6))),
        CROP,
        WORKS,
    ),
    "TIFF": (_write("photo", encode(PIXELS, "TIFF")), CROP, "got TIFF; convert it first"),
    "no such photo": (_nothing, CROP, "photo: cannot be read (No such file or directory)"),
    "photo is a folder": (lambda folder: (folder / "photo").mkdir(), CROP, "cannot be read"),
    "no face in it": (_annotated(voc_xml("photo.png", (90, 60))), VOC, WORKS),
    # Folders.
    "no such folder": (_nothing, ["--folder", "nowhere"], "--folder: nowhere does not exist"),
    "folder is a file": (_nothing, ["--folder", "photo.png"], "--folder: photo.png is no folder"),
    "empty folder": (
        lambda folder: (folder / "deep").mkdir(),
        ["--folder", "deep"],
        "--folder: no photos in deep",
    ),
    "nothing readable in it": (
        _tree,
        ["--folder", "deep", "--detector", "none"],
        "nothing could be read: a.jpg: the file is empty",
    ),
    "one readable of three": (_one_of_two, ["--folder", "deep", "--detector", "none"], WORKS),
    # Video.
    "no such video": (_nothing, VIDEO, "no video file v.mp4"),
    "text named .mp4": (_write("v.mp4", b"hello"), VIDEO, "v.mp4 cannot be opened"),
    "video without frames": (_empty_video, VIDEO, "v.mp4 "),
    "camera not there": (
        _nothing,
        ["--webcam", "77", "--detector", "none"],
        "camera 77 cannot be opened",
    ),
    "camera -1": (_nothing, ["--webcam", "-1"], "at least 0, got '-1'"),
    "XML boxes for video": (
        _write("v.mp4", b"hello"),
        ["--video", "v.mp4", "--detector", "voc"],
        "--detector voc needs photos",
    ),
    # Where answers go.
    "output is a folder": (
        lambda folder: (folder / "o.json").mkdir(),
        [*PHOTO, "--output", "o.json"],
        "--output: o.json is a folder",
    ),
    "output not writable": (
        _nothing,
        [*PHOTO, "--output", "photo.png/o.json"],
        "--output: photo.png/o.json cannot be written",
    ),
    "pictures not writable": (
        _nothing,
        [*PHOTO, "--save-viz", "photo.png"],
        "--save-viz: photo.png is a file; expected a folder",
    ),
    "pictures below a file": (
        _nothing,
        [*PHOTO, "--save-viz", "photo.png/deep"],
        "photo.png/deep cannot be written",
    ),
    "pictures among photos": (
        _one_of_two,
        ["--folder", "deep", "--save-viz", "deep"],
        "--save-viz: expected another folder than that of the photos",
    ),
    "another run unfinished": (
        _unfinished,
        [*PHOTO, "--output", "o.json"],
        "is of an unfinished run with",
    ),
    "no screen": (_nothing, [*PHOTO, "--visualize"], "--visualize needs a screen"),
    # Models.
    "no model": (_nothing, [*PHOTO, "--model", "no.keras"], "no.keras; train one with"),
    "model is text": (
        _write("t.keras", b"hello"),
        [*PHOTO, "--model", "t.keras"],
        "t.keras is not",
    ),
    "model of another kind": (
        _other_keras,
        [*PHOTO, "--model", "other.keras"],
        "other.keras is not",
    ),
    "SavedModel of another kind": (
        lambda folder: write_half_plus_two(folder / "half" / "1"),
        [*PHOTO, "--model", "half"],
        "half/1: expected a model with the signatures faces and serving_default",
    ),
    "folder without SavedModel": (
        lambda folder: (folder / "deep").mkdir(),
        [*PHOTO, "--model", "deep"],
        "no SavedModel in deep",
    ),
    "server down": (
        _nothing,
        [*PHOTO, "--model", "http://127.0.0.1:9"],
        "no answer from http://127.0.0.1:9 after 5 attempts",
    ),
    "no server's URL": (_nothing, [*PHOTO, "--model", "http://"], "expected a URL such as"),
    # Detectors.
    "unknown detector": (_nothing, [*PHOTO[:2], "--detector", "yolo"], "invalid choice: 'yolo'"),
    "no trained detector": (
        _nothing,
        PHOTO[:2],
        "no detector checkpoints/detector/best_detector.keras; train one with python -m",
    ),
    "detector without file": (
        _nothing,
        [*VOC, "--detector-model", "d.keras"],
        "--detector-model: --detector voc has no file",
    ),
    "detector without size": (
        _nothing,
        [*VOC, "--detector-size", "416"],
        "--detector-size: --detector voc has no such setting",
    ),
    "detector of too few pixels": (_nothing, [*PHOTO, "--detector-size", "32"], "at least 64"),
    "no XML": (_nothing, VOC, "photo.png: no annotation photo.xml beside it or in ../annotations"),
    "XML of another size": (
        _annotated(voc_xml("photo.png", (60, 90))),
        VOC,
        "expected the annotation of 90x60 pixels, got 60x90",
    ),
    "XML cut off": (_annotated("<annotation><size>"), VOC, "expected XML, got"),
    # Numbers.
    "threshold over 1": (_nothing, [*PHOTO, "--confidence-threshold", "50"], "of 0 to 1, got '50'"),
    "threshold no number": (_nothing, [*PHOTO, "--face-threshold", "nan"], "of 0 to 1, got 'nan'"),
    "no batch": (_nothing, [*PHOTO, "--batch-size", "0"], "at least 1, got '0'"),
    "no source": (_nothing, [], "one of the arguments --image --folder --video --webcam"),
    "two sources": (_nothing, [*PHOTO, "--folder", "deep"], "not allowed with argument --image"),
}


def _run(name: str, folder: Path, model: Path) -> tuple[int, str, str]:
    """Run predict in a folder; return exit code, standard output and standard error."""
    spoil, flags, _ = KINDS[name]
    (folder / "photo.png").write_bytes(encode(PIXELS))
    spoil(folder)
    flags = flags if "--model" in flags else [*flags, "--model", str(model)]
    output, error = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(error),
    ):
        try:
            code = predict.main(flags)
        except SystemExit as stop:  # argparse ends the process by itself
            code = int(stop.code or 0)
    return code, output.getvalue(), error.getvalue()


@pytest.mark.parametrize("name", KINDS)
def test_input(tmp_path: Path, tiny_classifier: Path, name: str):
    code, output, error = _run(name, tmp_path, tiny_classifier)
    expected = KINDS[name][2]
    if expected == WORKS:
        assert (code, error) == (0, "")
        assert re.search(r"^\d images?: \d faces?", output, re.MULTILINE)
    else:
        assert code == 2
        assert expected in error
        assert "Traceback" not in error
        assert error.splitlines()[-1].startswith(("error: ", "usage: ", "python -m"))
        assert not (tmp_path / "o.json").is_file()


def _table() -> None:
    """Print every kind with the line it gets."""
    print("| input | exit code | what it gets |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as models:
        model = save_tiny_classifier(Path(models))
        for name in KINDS:
            with tempfile.TemporaryDirectory() as folder:
                code, output, error = _run(name, Path(folder), model)
                said = (error or output.splitlines()[0]).strip().splitlines()[-1]
                print(f"| {name} | {code} | {said.replace('|', '/').replace(folder, '')} |")


if __name__ == "__main__":
    sys.exit(_table())
