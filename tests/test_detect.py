from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from fmd_tf.detect import DetectorError, load_face_detector
from fmd_tf.detector import DetectorCard, build_detector, find_faces, save_detector
from fmd_tf.photos import PhotoError
from fmd_tf.sample_data import write_sample
from tests.conftest import voc_xml

PHOTO = np.zeros((30, 40, 3), np.uint8)


@pytest.mark.parametrize("folder", ["images", "annotations"])
def test_boxes_lie_beside_the_photo_or_in_annotations(tmp_path: Path, folder: str):
    for name in ("images", "annotations"):
        (tmp_path / name).mkdir()
    # 41 reaches a pixel beyond the photo; the class is nothing that a classifier knows.
    xml = voc_xml("a.jpg", (40, 30), [("whatever", (2, 3, 12, 13)), ("x", (20, 1, 41, 9))])
    (tmp_path / folder / "a.xml").write_text(xml)
    boxes, scores = load_face_detector("voc")(PHOTO, tmp_path / "images" / "a.jpg")
    np.testing.assert_array_equal(boxes, [[2, 3, 12, 13], [20, 1, 40, 9]])
    np.testing.assert_array_equal(scores, [1, 1])
    assert boxes.dtype == scores.dtype == np.float32


def test_the_annotation_of_a_photo_with_another_ending_is_not_taken(tmp_path: Path):
    (tmp_path / "door.xml").write_text(voc_xml("door.png"))
    for name in ("door.png", "door.jpg"):
        (tmp_path / name).touch()
    with pytest.raises(PhotoError, match=r"door\.xml is of another photo; name it door\.jpg\.xml"):
        load_face_detector("voc")(PHOTO, tmp_path / "door.jpg")
    faces = [("x", (2, 3, 12, 13))]
    (tmp_path / "door.jpg.xml").write_text(voc_xml("door.jpg", (40, 30), faces))
    assert len(load_face_detector("voc")(PHOTO, tmp_path / "door.jpg")[0]) == 1
    (tmp_path / "door.png").unlink()
    assert len(load_face_detector("voc")(PHOTO, tmp_path / "door.jpg")[0]) == 0


def test_an_annotation_without_faces_is_an_answer(tmp_path: Path):
    (tmp_path / "a.xml").write_text(voc_xml("a.jpg"))
    boxes, scores = load_face_detector("voc")(PHOTO, tmp_path / "a.jpg")
    assert boxes.shape == (0, 4) and scores.shape == (0,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no annotation a.xml beside it or in ../annotations"),
        ("<annotation>", "expected XML"),
        (voc_xml("a.jpg", (30, 40)), "expected the annotation of 40x30 pixels, got 30x40"),
        (voc_xml("a.jpg", faces=[("x", (5, 5, 5, 9))]), "expected xmin < xmax"),
    ],
)
def test_an_unusable_annotation_is_a_fault_of_the_photo(
    tmp_path: Path, text: str | None, message: str
):
    if text:
        (tmp_path / "a.xml").write_text(text)
    with pytest.raises(PhotoError, match=message):
        load_face_detector("voc")(PHOTO, tmp_path / "a.jpg")


def test_boxes_beside_need_a_file():
    with pytest.raises(PhotoError, match="need a photo file"):
        load_face_detector("voc")(PHOTO)


def test_none_takes_the_photo_for_a_face():
    assert load_face_detector("none") is None


def test_unknown_and_missing_detectors(tmp_path: Path):
    with pytest.raises(DetectorError, match="expected a detector of trained, mtcnn, voc, none"):
        load_face_detector("yolo")
    with pytest.raises(DetectorError, match=r"no detector .*no.keras; train one with python -m"):
        load_face_detector("trained", tmp_path / "no.keras")


def test_mtcnn_names_its_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "mtcnn", None)
    with pytest.raises(DetectorError, match=r'-m pip install -e "\.\[mtcnn\]"'):
        load_face_detector("mtcnn")


# From Python 3.13 on, lz4, by which MTCNN reads its weights, flushes files that are closed.
_closed_twice = pytest.mark.filterwarnings(
    "ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"
)


@_closed_twice
@pytest.mark.parametrize("shape", [(1, 1, 3), (30, 400, 3), (60, 60, 3)])
def test_mtcnn_finds_nothing_in_nothing(shape: tuple[int, ...]):
    pytest.importorskip("mtcnn")
    boxes, scores = load_face_detector("mtcnn")(np.zeros(shape, np.uint8))
    assert boxes.shape == (0, 4) and scores.shape == (0,)


@_closed_twice
def test_mtcnn_finds_real_faces(real_dir: Path):
    pytest.importorskip("mtcnn")
    # Photo 0 has three faces of 30 to 41 pixels' width, turned to the camera.
    photo = np.asarray(Image.open(real_dir / "images" / "maksssksksss0.png").convert("RGB"))
    boxes, scores = load_face_detector("mtcnn")(photo)
    assert 1 <= len(boxes) == len(scores) <= 4
    assert (boxes[:, 2:] > boxes[:, :2]).all() and (boxes >= 0).all()


@pytest.mark.usefixtures("shallow_backbone")
def test_the_trained_detector_is_the_one_of_its_module(tmp_path: Path):
    tf.keras.utils.set_random_seed(0)
    model, card = build_detector("none"), DetectorCard(image_size=64)
    save_detector(model, card, tmp_path / "d.keras")
    photo = np.asarray(Image.open(next((write_sample(tmp_path / "s", 3) / "images").iterdir())))
    # Untrained, its scores are all about 0.01: any threshold under that finds something.
    for size in (None, 128):
        boxes, scores = load_face_detector("trained", tmp_path / "d.keras", 0.001, size)(photo)
        looked = replace(card, image_size=size or 64)
        expected = find_faces(model, looked, tf.constant(photo), 0.001)
        assert len(boxes) > 0
        np.testing.assert_allclose(boxes, expected[0], atol=0.01)
        np.testing.assert_allclose(scores, expected[1], atol=1e-5)
