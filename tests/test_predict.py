import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from fmd_tf import predict
from fmd_tf.client import ServingError
from fmd_tf.detect import DEFAULT_DETECTOR
from fmd_tf.detector import DetectorCard, build_detector, save_detector
from fmd_tf.draw import save_picture
from fmd_tf.export import export_saved_model
from fmd_tf.formats import export_format
from fmd_tf.input_pipeline import crop_faces, decode_upright
from fmd_tf.model import load_model, save_model
from fmd_tf.photos import Photo
from fmd_tf.records import LabelledFace, Record, Summary
from fmd_tf.video import VideoFile, VideoSource
from fmd_tf.voc import read_folder
from tests.conftest import voc_xml
from tests.serving import encode, faces
from tests.test_photos import exif
from tests.test_video import write_video


def run(*arguments: object) -> int:
    return predict.main([str(each) for each in arguments])


@pytest.fixture
def photos(tmp_path: Path, sample_dir: Path) -> Path:
    """Five drawn photos with their annotations, two of them in a folder of their own."""
    for name in ("images", "annotations"):
        (tmp_path / "voc" / name).mkdir(parents=True)
    for index, each in enumerate(read_folder(sample_dir).annotations[:5]):
        folder = tmp_path / "voc" / "images" / ("more" if index > 2 else "")
        folder.mkdir(exist_ok=True)
        shutil.copy(each.photo, folder)
        beside = folder if index > 2 else tmp_path / "voc" / "annotations"
        shutil.copy(each.xml, beside)
    return tmp_path / "voc" / "images"


def test_a_folder_is_labelled_as_the_model_labels_its_crops(
    photos: Path, tiny_classifier: Path, tmp_path: Path, sample_dir: Path
):
    output = tmp_path / "faces.json"
    arguments = ["--folder", photos, "--model", tiny_classifier, "--detector", "voc"]
    assert run(*arguments, "--output", output, "--batch-size", 2) == 0
    found = json.loads(output.read_text())
    model, card = load_model(tiny_classifier)
    annotations = {each.photo.name: each for each in read_folder(sample_dir).annotations}
    assert len(found["images"]) == 5
    for record in found["images"]:
        annotation = annotations[Path(record["file"]).name]
        boxes = np.array([face.box for face in annotation.faces]).reshape(-1, 4)
        pixels = decode_upright(annotation.photo.read_bytes())
        crops = crop_faces(pixels, boxes, card.image_size, card.padding, card.square)
        expected = model(np.asarray(crops, np.float32), training=False)
        rows = [list(face["probabilities"].values()) for face in record["faces"]]
        # The file has six digits.
        np.testing.assert_allclose(np.reshape(rows, (-1, 3)), expected, atol=1e-5)
        assert [face["box"] for face in record["faces"]] == boxes.tolist()
        assert (record["width"], record["height"]) == (annotation.width, annotation.height)
    assert [each["file"][:5] for each in found["images"]] == ["more/"] * 2 + ["sampl"] * 3
    assert found["summary"]["faces"] == sum(len(each["faces"]) for each in found["images"])


def test_the_console_has_a_block_an_image_and_a_summary(
    photos: Path, tiny_classifier: Path, capsys: pytest.CaptureFixture[str]
):
    (photos / "broken.jpg").write_text("hello")
    arguments = ["--folder", photos, "--model", tiny_classifier, "--detector", "voc"]
    assert run(*arguments, "--confidence-threshold", 1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "broken.jpg: not readable: not an image of a known kind" in lines[0]
    assert lines[-4].startswith("6 images: ") and " uncertain)" in lines[-4]
    assert lines[-3].endswith("1 not readable")
    assert lines[-2].startswith("  broken.jpg: ")
    assert lines[-1].startswith("6 in ")


def test_a_block():
    probabilities = {"with_mask": 0.912, "without_mask": 0.088}
    face = LabelledFace((1.2, 2.0, 30.7, 41.0), 0.9, "with_mask", "with_mask", 0.912, probabilities)
    text = predict.format_record(Record("a.jpg", 64, 48, [face]))
    assert text.splitlines() == [
        "a.jpg (64x48): 1 face",
        "  box (1, 2, 31, 41)  with_mask 0.912  [with_mask 0.912, without_mask 0.088]",
    ]
    assert predict.format_record(Record("a\n.jpg", 6, 4)) == r"'a\n.jpg' (6x4): no face found"


def test_annotated_pictures_of_photos_of_one_name(photos: Path, tiny_classifier: Path):
    first = next(photos.glob("*.png"))
    shutil.copy(first, photos / "more" / first.name)
    Image.open(first).save(first.with_suffix(".jpg"))
    arguments = ["--folder", photos, "--model", tiny_classifier, "--detector", "none"]
    # A second run does not take the first one's pictures for photos.
    for _ in range(2):
        assert run(*arguments, "--save-viz", photos / "out") == 0
    pictures = [each.relative_to(photos / "out") for each in (photos / "out").rglob("*.*")]
    assert len(pictures) == 7
    assert {Path(f"{first.stem}.jpg.jpg"), Path(f"more/{first.name}.jpg")} <= set(pictures)


def test_none_takes_each_photo_for_a_crop(tmp_path: Path, tiny_classifier: Path):
    (tmp_path / "crop.png").write_bytes(encode(faces(1)[0]))
    arguments = ["--image", tmp_path / "crop.png", "--model", tiny_classifier]
    assert run(*arguments, "--detector", "none", "--output", tmp_path / "a.json") == 0
    (record,) = json.loads((tmp_path / "a.json").read_text())["images"]
    (face,) = record["faces"]
    # A crop of the model's own size passes unchanged.
    expected = load_model(tiny_classifier)[0](faces(1).astype(np.float32)).numpy()[0]
    assert face["box"] == [0, 0, 32, 32] and face["face_score"] == 1
    np.testing.assert_allclose(list(face["probabilities"].values()), expected, atol=1e-5)


def test_boxes_are_of_the_upright_photo(tmp_path: Path, tiny_classifier: Path):
    upright = faces(1, shape=(30, 40))[0]
    for name, pixels, orientation in [("a", upright, 1), ("b", np.rot90(upright), 6)]:
        data = encode(pixels, "JPEG", quality=100, subsampling=0, exif=exif(orientation))
        (tmp_path / f"{name}.jpg").write_bytes(data)
        xml = voc_xml(f"{name}.jpg", (40, 30), [("with_mask", (5, 6, 25, 26))])
        (tmp_path / f"{name}.xml").write_text(xml)
    arguments = ["--folder", tmp_path, "--model", tiny_classifier, "--detector", "voc"]
    assert run(*arguments, "--output", tmp_path / "a.json") == 0
    first, second = json.loads((tmp_path / "a.json").read_text())["images"]
    assert (first["width"], first["height"]) == (second["width"], second["height"]) == (40, 30)
    # JPEG's blocks lie elsewhere in the turned photo.
    first, second = (list(each["faces"][0]["probabilities"].values()) for each in (first, second))
    np.testing.assert_allclose(first, second, atol=0.02)


def test_a_killed_run_goes_on(photos: Path, tiny_classifier: Path, tmp_path: Path):
    """Kill a process after its second photo, mark what it wrote, and run it again."""
    output, partial = tmp_path / "a.json", tmp_path / ".a.json.partial.jsonl"
    for index in range(300):
        shutil.copy(next(photos.glob("*.png")), photos / f"copy{index}.png")
    arguments = ["--folder", photos, "--model", tiny_classifier, "--detector", "none"]
    arguments += ["--output", output]
    command = [sys.executable, "-m", "fmd_tf.predict", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not partial.exists() or partial.read_bytes().count(b"\n") < 3:
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert not output.exists()
    partial.write_text(partial.read_text().replace('"label": "', '"label": "before '))
    assert run(*arguments) == 0
    records = json.loads(output.read_text())["images"]
    assert len({each["file"] for each in records}) == len(records) == 305
    marked = [each["faces"][0]["label"].startswith("before ") for each in records]
    assert 2 <= sum(marked) < 305
    assert marked == sorted(marked, reverse=True)
    assert not partial.exists()


def test_a_photo_that_changed_meanwhile_is_looked_at_again(tmp_path: Path):
    for name in ("same", "new", "gone"):
        (tmp_path / name).touch()
    files = [tmp_path / "same", tmp_path / "new"]
    photos = predict._Photos(str(tmp_path), files, tmp_path, named_as_given=False)
    started = (tmp_path / "same").stat().st_ctime + 1
    os.utime(tmp_path / "new", (started + 60, started + 60))
    records = [{"file": name, "error": None} for name in ("same", "new", "gone")]
    assert [photos.is_unchanged(each, started) for each in records] == [True, False, False]


def test_a_run_that_goes_on_has_no_old_answers(
    photos: Path, tiny_classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The second photo is edited; XML files of others are added, edited and removed."""
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    xmls = [
        (photos / name).with_suffix(".xml")
        if "/" in name
        else tmp_path / "voc" / "annotations" / name.replace(".png", ".xml")
        for name in names
    ]
    arguments = ["--folder", photos, "--model", tiny_classifier, "--detector", "voc"]
    assert run(*arguments, "--output", tmp_path / "a.json") == 0
    before = json.loads((tmp_path / "a.json").read_text())["images"]
    assert [each["file"] for each in before] == names
    added = xmls[0].read_text()
    xmls[0].unlink()
    read = predict.read_photo

    def interrupted(path: Path) -> Photo:
        if path == photos / names[2]:  # The partial file is written again after this.
            with Image.open(photos / names[1]) as image:
                image.transpose(Image.Transpose.ROTATE_180).save(photos / names[1])
            os.utime(photos / names[1])
        if path == photos / names[4]:
            raise KeyboardInterrupt
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(predict, "read_photo", interrupted)
        assert run(*arguments, "--output", tmp_path / "a.json") == 130
    xmls[0].write_text(added)
    with Image.open(photos / names[2]) as image:
        xmls[2].write_text(voc_xml(names[2], image.size, [("with_mask", (1, 2, 9, 10))]))
    xmls[3].unlink()
    assert run(*arguments, "--output", tmp_path / "a.json") == 0
    found = {each["file"]: each for each in json.loads((tmp_path / "a.json").read_text())["images"]}
    first, second, third, fourth, fifth = (found[name] for name in names)
    assert (first, fifth) == (before[0], before[4])
    assert second["faces"] != before[1]["faces"] and second["error"] is None
    assert [face["box"] for face in third["faces"]] == [[1, 2, 9, 10]]
    assert fourth["error"].startswith("no annotation")


def test_a_picture_of_a_photo_with_a_long_name_has_a_name_too(tmp_path: Path):
    names = ["a.png", "я" * 120 + ".png", "я" * 119 + "ю.png"]
    photos = predict._Photos(str(tmp_path), [], tmp_path, named_as_given=False)
    pictures = [photos.picture(tmp_path / name, tmp_path / "viz") for name in names]
    assert pictures[0].name == "a.png.jpg"
    assert len(set(pictures)) == 3
    for picture in pictures:
        save_picture(Image.new("RGB", (4, 4)), picture)


def test_a_server_that_fails_ends_the_run_and_keeps_it(
    photos: Path, tiny_classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["--folder", photos, "--detector", "voc", "--model", "http://127.0.0.1:9"]
    assert run(*arguments, "--output", tmp_path / "a.json") == 2
    assert "no answer from http://127.0.0.1:9" in capsys.readouterr().err
    assert list(tmp_path.glob("*.json*")) == []


def test_a_video_is_labelled(tmp_path: Path, tiny_classifier: Path, capsys):
    video = write_video(tmp_path / "in.mp4", faces(3, shape=(48, 64)))
    arguments = ["--video", video, "--model", tiny_classifier, "--detector", "none"]
    arguments += ["--output", tmp_path / "a.json", "--save-viz", tmp_path / "out"]
    assert run(*arguments) == 0
    written = json.loads((tmp_path / "a.json").read_text())
    assert [(each["frame"], each["faces"][0]["track"]) for each in written["images"]] == [
        (0, 1),
        (1, 1),
        (2, 1),
    ]
    assert sum(written["summary"]["tracks"].values()) == 1
    assert "1 face followed over frames (" in capsys.readouterr().out
    assert (tmp_path / "out" / "in.mp4").stat().st_size > 0


def test_a_video_is_not_written_over(tmp_path: Path, tiny_classifier: Path, capsys):
    video = write_video(tmp_path / "in.mp4", faces(2, shape=(48, 64)))
    before = video.read_bytes()
    arguments = ["--video", video, "--model", tiny_classifier, "--detector", "none"]
    assert run(*arguments, "--save-viz", tmp_path) == 2
    assert "in.mp4 is read and would be written over" in capsys.readouterr().err
    assert run(*arguments, "--output", video) == 2
    assert video.read_bytes() == before


def test_a_video_that_another_run_writes_costs_no_answers(tmp_path: Path, tiny_classifier: Path):
    video = write_video(tmp_path / "in.mp4", faces(2, shape=(48, 64)))
    arguments = ["--video", video, "--model", tiny_classifier, "--detector", "none"]
    arguments += ["--output", tmp_path / "a.json", "--save-viz", tmp_path / "out"]
    assert run(*arguments) == 0
    before = (tmp_path / "a.json").read_text()
    with closing(VideoFile(tmp_path / "out" / "in.mp4", 10.0)):
        assert run(*arguments) == 2
    assert (tmp_path / "a.json").read_text() == before
    assert len(list(VideoSource(tmp_path / "out" / "in.mp4"))) == 2


def test_a_video_of_one_name_is_replaced_and_told_of(
    tmp_path: Path, tiny_classifier: Path, capsys: pytest.CaptureFixture[str]
):
    for camera, count in (("cam1", 2), ("cam2", 3)):
        (tmp_path / camera).mkdir()
        video = write_video(tmp_path / camera / "clip.mp4", faces(count, shape=(48, 64)))
        arguments = ["--video", video, "--model", tiny_classifier, "--detector", "none"]
        assert run(*arguments, "--save-viz", tmp_path / "out") == 0
        told = capsys.readouterr().err
        assert ("out/clip.mp4 is there and will be replaced" in told) == (camera == "cam2")
    assert len(list(VideoSource(tmp_path / "out" / "clip.mp4"))) == 3


def test_a_window_that_is_closed_does_not_make_a_video_damaged(
    tmp_path: Path, tiny_classifier: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    class Closed:
        is_open = False

        def play(self, picture: Image.Image) -> bool:
            return False

    monkeypatch.setattr(predict, "Window", Closed)
    video = write_video(tmp_path / "in.mp4", faces(9, shape=(48, 64)))
    arguments = ["--video", video, "--model", tiny_classifier, "--detector", "none"]
    assert run(*arguments, "--save-viz", tmp_path / "out", "--visualize") == 0
    output, error = capsys.readouterr()
    assert "1 frame: " in output and "damaged" not in error


def test_a_video_of_another_kind_takes_no_others_place(tmp_path: Path, tiny_classifier: Path):
    video = write_video(tmp_path / "in.avi", faces(2, shape=(48, 64)))
    (tmp_path / "in.mp4").write_text("another")
    arguments = ["--video", video, "--model", tiny_classifier, "--detector", "none"]
    assert run(*arguments, "--save-viz", tmp_path) == 0
    assert (tmp_path / "in.mp4").read_text() == "another"
    assert len(list(VideoSource(tmp_path / "in.avi.mp4"))) == 2


def test_photos_are_not_written_over(tmp_path: Path, tiny_classifier: Path, capsys):
    first, second = tmp_path / "a.png", tmp_path / "a.png.jpg"
    for path in (first, second):
        path.write_bytes(encode(faces(1)[0]))
    (tmp_path / "link.json").symlink_to(first)
    before = first.read_bytes()
    for files, more in (
        ([first, second], ["--save-viz", tmp_path]),
        ([first], ["--output", first]),
        ([first], ["--output", tmp_path / "link.json"]),
    ):
        arguments = ["--image", *files, "--model", tiny_classifier, "--detector", "none"]
        assert run(*arguments, *more) == 2
        assert "is read and would be written over" in capsys.readouterr().err
    assert first.read_bytes() == second.read_bytes() == before


def test_pictures_of_photos_elsewhere_stay_in_their_folder(
    tmp_path: Path, tiny_classifier: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    for path in ("../a.png", "b.png"):
        Path(path).write_bytes(encode(faces(1)[0]))
    arguments = ["--image", "../a.png", "b.png", "--model", tiny_classifier, "--detector", "none"]
    assert run(*arguments, "--save-viz", "out") == 0
    written = list(tmp_path.rglob("*.jpg"))
    assert sorted(written) == [
        tmp_path / "deep/out/a.png.jpg",
        tmp_path / "deep/out/deep/b.png.jpg",
    ]


@pytest.mark.parametrize("trouble", ["server", "SIGTERM"])
def test_what_ends_a_video_costs_only_what_is_to_come(
    tmp_path: Path, tiny_classifier: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
):
    video = write_video(tmp_path / "in.mp4", faces(5, shape=(48, 64)))
    label, calls = predict.Labeller.__call__, []

    def end_third(self, photo, path=None):
        calls.append(photo)
        if len(calls) == 3 and trouble == "server":
            raise ServingError("no answer")
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return label(self, photo, path)

    monkeypatch.setattr(predict.Labeller, "__call__", end_third)
    arguments = ["--video", video, "--model", tiny_classifier, "--detector", "none"]
    arguments += ["--output", tmp_path / "a.json", "--save-viz", tmp_path / "out"]
    assert run(*arguments) == (2 if trouble == "server" else 0)
    assert json.loads((tmp_path / "a.json").read_text())["summary"]["images"] == 2
    assert len(list(VideoSource(tmp_path / "out" / "in.mp4"))) == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["in.mp4"]


@pytest.mark.parametrize(("expected", "said"), [(40, True), (14, False), (None, False)])
def test_frames_that_cannot_be_read_are_told_of(tmp_path: Path, capsys, expected, said):
    source = VideoSource(write_video(tmp_path / "in.mp4", faces(2)))
    source.num_frames = expected
    predict._tell_missing(source, 13)
    told = capsys.readouterr().err
    assert ("in.mp4: 13 frames could be read of the 40" in told) == said


def test_names_that_the_console_cannot_show_end_nothing(photos: Path, tiny_classifier: Path):
    first = next(photos.glob("*.png"))
    shutil.copy(first, photos / "Маска.png")
    (photos / os.fsdecode(b"\xff.jpg")).write_text("no photo")
    arguments = ["--folder", photos, "--model", tiny_classifier, "--detector", "none"]
    done = subprocess.run(
        [sys.executable, "-m", "fmd_tf.predict", *map(str, arguments)],
        env={**os.environ, "PYTHONIOENCODING": "cp1252"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"\\u041c\\u0430" in done.stdout and b"not readable" in done.stdout


def test_the_newest_version_of_an_export_tells_it_from_another(tmp_path: Path):
    for version in (9, 10):
        (tmp_path / str(version)).mkdir()
        (tmp_path / str(version) / "saved_model.pb").write_text(str(version))
    assert predict._sha256(tmp_path) == hashlib.sha256(b"10").hexdigest()


def test_the_summary_names_what_was_read():
    summary = Summary(images=1, without_faces=1)
    assert predict.format_summary(summary, 1, 0.5, "frame").splitlines() == [
        "1 frame: 0 faces",
        "1 without a face, 0 not readable",
        "1 in 0.5 s: 2.0 a second, 500 ms each",
    ]


def test_ctrl_c_keeps_what_was_labelled(
    photos: Path, tiny_classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Stop at the third photo; the same command goes on there."""
    read, stop = predict.read_photo, [photos / "sample0.png"]

    def interrupted(path: Path) -> Photo:
        if path in stop:
            raise KeyboardInterrupt
        return read(path)

    monkeypatch.setattr(predict, "read_photo", interrupted)
    arguments = ["--folder", photos, "--model", tiny_classifier, "--detector", "none"]
    arguments += ["--output", tmp_path / "a.json"]
    assert run(*arguments) == 130
    assert (tmp_path / ".a.json.partial.jsonl").read_text().count("\n") == 3  # Head and two.
    stop.clear()
    assert run(*arguments) == 0
    assert json.loads((tmp_path / "a.json").read_text())["summary"]["images"] == 5


def test_progress_off_a_terminal_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(predict, "_REPORT_SECONDS", 0.0)
    progress = predict.Progress(3, 1, "image")
    progress.add("a block")
    progress.close()
    assert capsys.readouterr() == ("a block\n", "2 of 3 images\n")


@pytest.mark.usefixtures("shallow_backbone")
def test_an_export_with_a_detector_gives_the_same_answer(
    tiny_classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    keras.utils.set_random_seed(0)
    # Untrained, its scores are all about 0.01 or less.
    detector = build_detector("none"), DetectorCard(image_size=96, threshold=0.001)
    classifier = load_model(tiny_classifier)
    for model in (detector[0], classifier[0]):
        # LiteRT keeps half of their bits: with others a peak may be another cell's.
        model.set_weights([np.float16(weight) for weight in model.get_weights()])
    save_detector(*detector, tmp_path / "detector.keras")
    save_model(*classifier, tmp_path / "classifier.keras")
    export_saved_model(*classifier, tmp_path / "export", detector=detector)
    export_format("litert", *classifier, tmp_path / "litert", detector=detector)
    monkeypatch.chdir(tmp_path)
    # An export finds faces with its own.
    DEFAULT_DETECTOR.parent.mkdir(parents=True)
    save_detector(detector[0], replace(detector[1], threshold=1.0), DEFAULT_DETECTOR)
    (tmp_path / "noise").mkdir()
    generator = np.random.default_rng(0)
    # No cell of noise has the score of its neighbour, of which either might be the higher.
    for name, options in {"a.png": {}, "turned.jpg": {"exif": exif(8)}, "b.gif": {}}.items():
        noise = generator.integers(0, 256, (90, 120, 3), dtype=np.uint8)
        form = "JPEG" if options else name[-3:].upper()
        (tmp_path / "noise" / name).write_bytes(encode(noise, form, **options))
    local = ["--model", "classifier.keras", "--detector-model", "detector.keras"]
    for name, flags in {"local": local, "export": [], "litert": []}.items():
        flags = flags or ["--model", name]
        assert run("--folder", "noise", *flags, "--output", f"{name}.json") == 0
    first, *others = (
        json.loads(Path(f"{name}.json").read_text()) for name in ("local", "export", "litert")
    )
    assert first["summary"]["faces"] > 7 and first["summary"]["unreadable"] == 0
    # The scaling of values becomes part of LiteRT's weights, which are rounded again.
    for other, probability in zip(others, (1e-5, 2e-3), strict=True):
        assert other["summary"] == first["summary"]
        for pair in zip(first["images"], other["images"], strict=True):
            assert len({(each["file"], each["width"]) for each in pair}) == 1
            tolerances = {"box": 0.011, "face_score": 1e-5, "confidence": probability}
            for key, tolerance in tolerances.items():
                values = [[face[key] for face in each["faces"]] for each in pair]
                np.testing.assert_allclose(*values, atol=tolerance)


@pytest.mark.parametrize("name", ["litert", "litert/model.tflite"])
def test_a_run_with_another_litert_model_is_another_run(
    name: str, photos: Path, tiny_classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    export_format("litert", *load_model(tiny_classifier), tmp_path / "litert")
    flags = ["--model", name, "--detector", "none", "--output", "a.json"]
    hashes = []
    for _ in range(2):
        assert run("--folder", photos, *flags) == 0
        hashes.append(json.loads(Path("a.json").read_text())["settings"]["model_sha256"])
        shutil.copy("litert/model.tflite", "litert/detector.tflite")
    assert len(hashes[0]) == 64 and hashes[0] != hashes[1]
