import io
import json
import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow.core.protobuf import saved_model_pb2

from fmd_tf import CLASS_NAMES, export
from fmd_tf.detector import DetectorCard, build_detector, find_faces, save_detector
from fmd_tf.export import ExportError, export_saved_model, main
from fmd_tf.input_pipeline import crop_faces, decode_photo
from fmd_tf.model import MODEL_NAMES, ModelCard, build_model, save_model
from fmd_tf.publish import PublishError
from fmd_tf.rest import RestError
from fmd_tf.servable import Servable
from tests.serving import CARD, SIZE, encode, faces, tiny_model

# Every op of an export, checked once by loading and running one in TensorFlow 2.20 (the newest
# TF Serving). A test in CI without that version can show only that no other op has come in:
# whoever adds one loads an export in 2.20 first.
OPS_SEEN_IN_TF_2_20 = """
AddV2 All Any ArgMax Assert BatchFunction BiasAdd Cast ClipByValue ConcatV2 Const Conv2D
Conv2DBackpropInput DecodeImage DecodeRaw DepthwiseConv2dNative EnsureShape Equal Exp ExpandDims
ExtractJpegShape Fill Floor FloorDiv FloorMod GatherV2 Greater GreaterEqual Identity IdentityN If
Less LessEqual LogicalAnd LogicalOr MatMul Max MaxPool Maximum Mean MergeV2Checkpoints Minimum Mul
Neg NoOp NonMaxSuppressionV3 NotEqual Pack Pad PartitionedCall Placeholder Prod Range Rank RealDiv
Relu Relu6 Reshape ResizeBilinear RestoreV2 ReverseV2 Round Rsqrt SaveV2 ScaleAndTranslate Select
SelectV2 Shape ShardedFilename Sigmoid Size Softmax Sqrt SquaredDifference Squeeze
StatefulPartitionedCall StatelessIf StatelessWhile StaticRegexFullMatch StopGradient StridedSlice
StringJoin StringLength Sub Substr Sum TensorListFromTensor TensorListGetItem TensorListReserve
TensorListSetItem TensorListStack Tile Transpose Unpack Where While
""".split()


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return tiny_model()


@pytest.fixture(scope="module")
def version_dir(model: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_saved_model(model, CARD, tmp_path_factory.mktemp("export") / "face_mask")


@pytest.fixture(scope="module")
def session(version_dir: Path) -> Servable:
    """In a session, as TF Serving loads it."""
    return Servable(version_dir)


def ask(session: Servable, signature: str, **tensors: object) -> dict[str, np.ndarray]:
    types = {"image_bytes": object, "pixels": np.float32, "boxes": np.float32}
    arrays = {name: np.array(value, types[name]) for name, value in tensors.items()}
    return session.signature(signature).run(arrays)


@pytest.mark.parametrize("batch_size", [1, 7, 33])
def test_bytes_and_pixels_agree_with_the_model(
    model: keras.Model, session: Servable, batch_size: int
) -> None:
    crops = faces(batch_size)
    expected = model.predict(crops.astype(np.float32), verbose=0)
    by_bytes = ask(session, "serving_default", image_bytes=[encode(crop) for crop in crops])
    by_pixels = ask(session, "pixels", pixels=crops)
    np.testing.assert_allclose(by_bytes["probabilities"], expected, atol=1e-4)
    np.testing.assert_allclose(by_pixels["probabilities"], expected, atol=1e-4)
    winners = expected.argmax(axis=1)
    assert by_bytes["label"].tolist() == [CLASS_NAMES[index].encode() for index in winners]
    np.testing.assert_allclose(by_bytes["score"], expected.max(axis=1), atol=1e-4)
    assert by_bytes["class_names"].tolist() == [[n.encode() for n in CLASS_NAMES]] * batch_size


@pytest.mark.parametrize("num_faces", [1, 7, 33])
def test_faces_are_cut_as_in_training(
    model: keras.Model, session: Servable, num_faces: int
) -> None:
    (photo,) = faces(1, seed=1, shape=(90, 140))
    generator = np.random.default_rng(0)
    # Boxes at the photo's edge among them: 100 + 40 reaches 140, its width.
    start = generator.integers(0, (100, 60), (num_faces, 2))
    boxes = np.concatenate([start, start + generator.integers(5, (41, 31), (num_faces, 2))], axis=1)
    crops = crop_faces(photo, boxes, SIZE, CARD.padding, CARD.square)
    expected = model.predict(tf.cast(crops, tf.float32), verbose=0)
    answer = ask(session, "faces", image_bytes=encode(photo), boxes=boxes)
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-4)


def test_faces_takes_every_layout_of_both_json_formats(session: Servable) -> None:
    (photo,) = faces(1, shape=(60, 80))
    image, boxes = encode(photo), [[0, 0, 40, 40], [10, 5, 30, 50]]
    expected = ask(session, "faces", image_bytes=image, boxes=boxes)["probabilities"]
    layouts: list[tuple[object, object]] = [
        ([image], boxes),
        ([image], [boxes]),
        ([image, image], boxes),
        ([image, image], [[boxes[0]], [boxes[1]]]),
    ]
    for images, rows in layouts:
        answer = ask(session, "faces", image_bytes=images, boxes=rows)
        np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-6)


def test_boxes_are_clipped_to_the_photo(session: Servable) -> None:
    (photo,) = faces(1, shape=(60, 80))
    inside = ask(session, "faces", image_bytes=encode(photo), boxes=[[40, 30, 80, 60]])
    beyond = ask(session, "faces", image_bytes=encode(photo), boxes=[[40, 30, 1e9, np.inf]])
    np.testing.assert_array_equal(inside["probabilities"], beyond["probabilities"])


def test_no_boxes_give_no_rows(session: Servable) -> None:
    image = encode(faces(1)[0])
    for boxes in (np.zeros((0, 4)), np.zeros(0)):
        answer = ask(session, "faces", image_bytes=image, boxes=boxes)
        assert answer["probabilities"].shape == (0, 3)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP"])
def test_formats_and_sizes_are_those_of_crop_faces(
    model: keras.Model, session: Servable, form: str
) -> None:
    (image,) = faces(1, seed=3, shape=(50, 37))
    encoded = encode(image, form)
    decoded = decode_photo(encoded)
    # The box of the whole image is made square: 50 x 50 with repeated columns.
    crop = crop_faces(decoded, np.array([[0, 0, 37, 50]]), SIZE, padding=0.0, square=True)
    expected = model.predict(tf.cast(crop, tf.float32), verbose=0)
    answer = ask(session, "serving_default", image_bytes=[encoded])
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-4)
    answer = ask(session, "pixels", pixels=decoded.numpy()[None])
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-4)


def test_float_pixels_of_the_models_size_are_not_rounded(
    model: keras.Model, session: Servable
) -> None:
    pixels = np.random.default_rng(0).uniform(0, 255, (2, SIZE, SIZE, 3)).astype(np.float32)
    answer = ask(session, "pixels", pixels=pixels)
    expected = model.predict(pixels, verbose=0)
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(), (3,), (32, 32, 3), (1, 32, 32, 4), (1, 1, 32, 32, 3)])
def test_pixels_of_a_wrong_rank_are_an_error(session: Servable, shape: tuple[int, ...]) -> None:
    with pytest.raises(RestError, match="is not compatible with expected shape") as caught:
        ask(session, "pixels", pixels=np.zeros(shape))
    assert caught.value.code == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("signature", "tensors", "message"),
    [
        ("serving_default", {"image_bytes": b"scalar"}, "not compatible with expected shape"),
        ("serving_default", {"image_bytes": [[b"list"]]}, "not compatible with expected shape"),
        ("serving_default", {"image_bytes": [b""]}, "Unknown image file format"),
        ("serving_default", {"image_bytes": [b"no image"]}, "Unknown image file format"),
        ("serving_default", {"image_bytes": [b"\xff\xd8\xff"]}, "JPEG"),
        ("serving_default", {"image_bytes": [b"\x89PNG\r\n\x1a\n"]}, "PNG"),
        ("serving_default", {"image_bytes": [b"RIFF\1\0\0\0WEBPVP8 "]}, "WebP"),
        ("serving_default", {"image_bytes": [b"BM\1\2"]}, "bmp"),
        ("serving_default", {"image_bytes": [b"GIF89a\1\0\1\0"]}, "Unknown image file format"),
        ("pixels", {"pixels": np.full((1, 4, 4, 3), 256)}, "expected pixels of 0 to 255"),
        ("pixels", {"pixels": np.full((1, 4, 4, 3), np.nan)}, "expected pixels of 0 to 255"),
        ("pixels", {"pixels": np.zeros((2, 0, 4, 3))}, "height and width of at least 1"),
        ("pixels", {"pixels": np.zeros((1025, 1, 1, 3))}, "expected at most 1024 faces"),
        ("serving_default", {"image_bytes": [b""] * 1025}, "expected at most 1024 faces"),
        ("faces", {"boxes": [[0, 0, 9, 9]] * 1025}, "expected at most 1024 faces"),
        ("faces", {"boxes": [[[0, 0, 9, 9]] * 1025]}, "expected at most 1024 faces"),
        ("faces", {"boxes": [0, 0, 9, 9]}, "expected one photo and boxes"),
        ("faces", {"boxes": [[0, 0, 9]]}, "expected one photo and boxes"),
        ("faces", {"boxes": 3.0}, "slice index"),
        ("faces", {"boxes": [[9, 0, 0, 9]]}, "with an area inside the photo"),
        ("faces", {"boxes": [[50, 0, 90, 9]]}, "with an area inside the photo"),
        ("faces", {"boxes": [[np.nan, 0, 9, 9]]}, "with an area inside the photo"),
    ],
)
def test_bad_input_is_an_error(
    session: Servable, signature: str, tensors: dict[str, object], message: str
) -> None:
    if signature == "faces":
        tensors = {"image_bytes": encode(faces(1)[0]), **tensors}
    with pytest.raises(RestError, match=message) as caught:
        ask(session, signature, **tensors)
    assert caught.value.http_status == 400


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP"])
def test_cut_off_images_are_an_error(session: Servable, form: str) -> None:
    encoded = encode(faces(1)[0], form)
    for length in (len(encoded) // 2, 40, 20):
        with pytest.raises(RestError):
            ask(session, "serving_default", image_bytes=[encoded[:length]])


def test_the_numbers_of_a_bmps_palette_are_not_taken_for_grays(session: Servable) -> None:
    image = Image.fromarray(faces(1)[0])
    gray = encode(np.asarray(image.convert("L")), "BMP")
    answer = ask(session, "serving_default", image_bytes=[gray])
    rgb = encode(np.asarray(image.convert("L").convert("RGB")), "PNG")
    expected = ask(session, "serving_default", image_bytes=[rgb])
    np.testing.assert_allclose(answer["probabilities"], expected["probabilities"], atol=1e-6)
    file = io.BytesIO()
    image.convert("P").save(file, "BMP")
    for length in (None, 60, 30):
        with pytest.raises(RestError, match="expected a BMP without a palette"):
            ask(session, "serving_default", image_bytes=[file.getvalue()[:length]])


def oversized(form: str) -> bytes:
    """A small file whose header says more than 50 megapixels."""
    big = (60000).to_bytes(4, "big")
    if form == "PNG":
        # After the signature: length, IHDR, width, height.
        return b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + big + big + b"\x08\2\0\0\0" + bytes(40)
    if form == "BMP":
        # Width and height stand at 18 and 22; a negative height counts rows from the top.
        sides = (60000).to_bytes(4, "little") + (-60000).to_bytes(4, "little", signed=True)
        return b"BM" + bytes(16) + sides + b"\1\0\x18\0" + bytes(40)
    sides = (16383 | 16383 << 14).to_bytes(4, "little")
    if form == "WEBP lossless":
        return b"RIFF\x50\0\0\0WEBPVP8L\x30\0\0\0\x2f" + sides + bytes(60)
    if form == "WEBP extended":
        return b"RIFF\x50\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\xff\xff\x3f" * 2 + bytes(60)
    if form == "WEBP":
        sides = (16383).to_bytes(2, "little") * 2
        return b"RIFF\x50\0\0\0WEBPVP8 \x30\0\0\0\0\0\0\x9d\x01\x2a" + sides + bytes(60)
    encoded = bytearray(encode(faces(1)[0], "JPEG"))
    # Start of frame: marker, length (2), precision (1), height (2), width (2).
    frame = encoded.index(b"\xff\xc0")
    encoded[frame + 5 : frame + 9] = (60000).to_bytes(2, "big") * 2
    return bytes(encoded)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "WEBP", "WEBP lossless", "WEBP extended"])
def test_too_many_pixels_are_refused_from_the_header(session: Servable, form: str) -> None:
    encoded = oversized(form)
    for signature, tensors in (
        ("serving_default", {"image_bytes": [encoded]}),
        ("faces", {"image_bytes": encoded, "boxes": [[0, 0, 9, 9]]}),
    ):
        with pytest.raises(RestError, match="at most 50000000 pixels in a request"):
            ask(session, signature, **tensors)


@pytest.mark.parametrize("options", [{}, {"lossless": True}], ids=["lossy", "lossless"])
def test_a_webp_without_the_head_of_its_chunk_is_refused(session: Servable, options: dict) -> None:
    # The decoder takes it, and the size stands elsewhere.
    encoded = encode(faces(1)[0], "WEBP", **options)
    bare = b"RIFF" + (len(encoded) - 16).to_bytes(4, "little") + b"WEBP" + encoded[20:]
    assert decode_photo(bare).shape == (SIZE, SIZE, 3)
    for signature, tensors in (
        ("serving_default", {"image_bytes": [bare]}),
        ("faces", {"image_bytes": bare, "boxes": [[0, 0, 9, 9]]}),
    ):
        with pytest.raises(RestError, match="Unknown image file format"):
            ask(session, signature, **tensors)


def with_scans(number: int, after: bytes = b"") -> bytes:
    """A progressive JPEG whose last scan is repeated until there are so many."""
    encoded = encode(faces(1)[0], "JPEG", progressive=True)
    first, *_, last = encoded.split(b"\xff\xda")
    scans = encoded.count(b"\xff\xda")
    again = (b"\xff\xda" + last.removesuffix(b"\xff\xd9")) * (number - scans)
    assert first and scans == 10
    return encoded.removesuffix(b"\xff\xd9") + again + b"\xff\xd9" + after


def test_a_jpeg_with_too_many_scans_is_refused(session: Servable) -> None:
    film = np.random.default_rng(0).integers(0, 256, 10_000_000, np.uint8).tobytes()
    assert film.count(b"\xff\xda") > 100
    for encoded in (with_scans(10), with_scans(100), with_scans(10, film)):
        ask(session, "serving_default", image_bytes=[encoded])
        ask(session, "faces", image_bytes=encoded, boxes=[[0, 0, 9, 9]])
    for signature, tensors in (
        ("serving_default", {"image_bytes": [with_scans(101)]}),
        ("faces", {"image_bytes": with_scans(101), "boxes": [[0, 0, 9, 9]]}),
    ):
        with pytest.raises(RestError, match=r"JPEG of at most 100 scans, got\] \[101\]"):
            ask(session, signature, **tensors)


def test_the_square_about_a_strip_counts_as_pixels(session: Servable) -> None:
    # 8000 x 1 pixels are few, but the square about them has 64 megapixels.
    strip = encode(np.zeros((1, 8000, 3), np.uint8))
    for signature, tensors in (
        ("serving_default", {"image_bytes": [strip]}),
        ("faces", {"image_bytes": strip, "boxes": [[0, 0, 8000, 1]]}),
        ("pixels", {"pixels": np.zeros((1, 1, 8000, 3))}),
    ):
        with pytest.raises(RestError, match="at most 50000000 pixels in a request"):
            ask(session, signature, **tensors)


def test_one_corrupt_image_fails_alone_among_concurrent_requests(session: Servable) -> None:
    good = encode(faces(1)[0])
    outcomes: dict[int, str] = {}

    def request(index: int) -> None:
        for _ in range(5):
            try:
                ask(session, "serving_default", image_bytes=[b"bad" if index == 3 else good])
                outcomes[index] = outcomes.get(index, "") + "."
            except RestError:
                outcomes[index] = outcomes.get(index, "") + "E"

    threads = [threading.Thread(target=request, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == {index: "EEEEE" if index == 3 else "....." for index in range(8)}


def test_two_versions_in_one_eager_process_do_not_share_a_queue(
    model: keras.Model, version_dir: Path, tmp_path: Path
) -> None:
    other = tiny_model(seed=1)
    paths = [version_dir, export_saved_model(other, CARD, tmp_path)]
    crops = faces(4).astype(np.float32)
    loaded = [tf.saved_model.load(str(path)).signatures["pixels"] for path in paths]
    for signature, trained in zip(loaded, (model, other), strict=True):
        answer = signature(pixels=tf.constant(crops))["probabilities"]
        np.testing.assert_allclose(answer, trained.predict(crops, verbose=0), atol=1e-4)


def test_the_graph_has_only_ops_that_tf_2_20_ran(version_dir: Path) -> None:
    require_known_ops(version_dir)


def require_known_ops(version_dir: Path) -> None:
    saved = saved_model_pb2.SavedModel.FromString((version_dir / "saved_model.pb").read_bytes())
    graph = saved.meta_graphs[0].graph_def
    ops = {node.op for node in graph.node}
    ops |= {node.op for function in graph.library.function for node in function.node_def}
    ops -= {function.signature.name for function in graph.library.function}
    assert ops <= set(OPS_SEEN_IN_TF_2_20)
    # 12 is the least consumer of graphs with functions; TF 2.20 is far above it.
    assert graph.versions.min_consumer <= 12
    compiled = [f for f in graph.library.function if f.attr["_XlaMustCompile"].b]
    assert compiled == []


def test_assets_and_warm_up(version_dir: Path, session: Servable) -> None:
    assets = version_dir / "assets.extra"
    assert (assets / "class_names.txt").read_text().split() == list(CLASS_NAMES)
    card = json.loads((assets / "model_card.json").read_text())
    assert card["image_size"] == SIZE
    assert card["padding"] == 0.1
    assert (assets / "README.md").read_text().startswith("# Model card")
    # Four requests: bytes, bytes in a full batch, pixels, faces.
    assert session.warm_up(version_dir) == 4
    for path in [version_dir, *version_dir.rglob("*")]:
        assert path.stat().st_mode & 0o004, f"{path} must be readable for a server's own user"


def test_versions_count_up_and_are_never_overwritten(model: keras.Model, tmp_path: Path) -> None:
    first = export_saved_model(model, CARD, tmp_path)
    assert first == tmp_path / "1"
    (tmp_path / "9").mkdir()
    assert export_saved_model(model, CARD, tmp_path) == tmp_path / "10"
    before = (first / "saved_model.pb").stat().st_mtime_ns
    with pytest.raises(PublishError, match="exists already"):
        export_saved_model(model, CARD, tmp_path, version=1)
    assert (first / "saved_model.pb").stat().st_mtime_ns == before
    export_saved_model(model, CARD, tmp_path, version=1, overwrite=True)
    assert (first / "saved_model.pb").stat().st_mtime_ns > before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "10", "9"]
    with pytest.raises(ExportError, match="at least 1, got 0"):
        export_saved_model(model, CARD, tmp_path, version=0)


def test_an_interrupted_export_leaves_nothing_a_server_loads(
    model: keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def interrupt(card: ModelCard, detector_card: DetectorCard | None, folder: Path) -> None:
        seen.extend(path.name for path in tmp_path.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "_write_assets", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_saved_model(model, CARD, tmp_path)
    assert len(seen) == 1
    assert not seen[0].isdecimal()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_is_removed(model: keras.Model, tmp_path: Path) -> None:
    stale, running = tmp_path / ".partial-1-deadbeef", tmp_path / ".partial-1-11feed11"
    somebodys = tmp_path / ".partial-downloads"
    for folder in (stale, running, somebodys):
        folder.mkdir()
    two_hours_ago = time.time() - 7200
    for folder in (stale, somebodys):
        os.utime(folder, (two_hours_ago, two_hours_ago))
    export_saved_model(model, CARD, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {running.name, somebodys.name, "1"}


def test_model_and_card_must_agree(model: keras.Model, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"input \[batch, 64, 64, 3\]"):
        export_saved_model(model, ModelCard(CLASS_NAMES, 64), tmp_path)
    with pytest.raises(ExportError, match="2 outputs"):
        export_saved_model(model, ModelCard(CLASS_NAMES[:2], SIZE), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_command_line(
    model: keras.Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "best_model.keras"
    save_model(model, CARD, file)
    arguments = ["--model", str(file), "--output", str(tmp_path / "out"), "--version", "3"]
    assert main(arguments) == 0
    assert (tmp_path / "out/3/saved_model.pb").is_file()
    assert main(arguments) == 2
    assert main(["--model", str(tmp_path / "none.keras")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in errors] == ["error", "error"]
    shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("form", ["savedmodel", "litert", "onnx"])
def test_a_target_in_the_way_is_found_before_faces_are_read(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "3" if form == "savedmodel" else tmp_path
    target.mkdir(exist_ok=True)
    (target / "notes.md").touch()
    arguments = ["--format", form, "--output", str(tmp_path), "--model", str(tmp_path / "none")]
    arguments += ["--version", "3"] if form == "savedmodel" else []
    assert main(arguments) == 2
    expected = f"error: {target} exists already; give another --output, or --overwrite\n"
    assert capsys.readouterr().err == expected
    assert main([*arguments, "--overwrite"]) == 2
    assert "holds notes.md, which is of no export" in capsys.readouterr().err


@pytest.mark.parametrize("model_name", MODEL_NAMES)
def test_every_backbone_agrees_with_its_model(model_name: str, tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    model = build_model(model_name, SIZE, 3, "none")
    version_dir = export_saved_model(model, ModelCard(CLASS_NAMES, SIZE), tmp_path)
    require_known_ops(version_dir)
    session = Servable(version_dir)
    crops = faces(3)
    expected = model(crops.astype(np.float32), training=False).numpy()
    answer = ask(session, "serving_default", image_bytes=[encode(crop) for crop in crops])
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-4)
    session.release()


@pytest.fixture(scope="module")
def detector() -> tuple[keras.Model, DetectorCard]:
    """Return an untrained detector: any faces will do, as long as they are the same everywhere."""
    keras.utils.set_random_seed(1)
    network = build_detector("none")
    scores = find_faces(network, DetectorCard(64), tf.constant(_scene()), threshold=0.0)[1]
    return network, DetectorCard(64, threshold=float(scores[4] + scores[5]) / 2)


def _scene(height: int = 60, width: int = 90) -> np.ndarray:
    return faces(1, seed=5, shape=(height, width))[0]


@pytest.fixture(scope="module")
def photo_dir(model: keras.Model, detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output_dir = tmp_path_factory.mktemp("photo") / "face_mask"
    return export_saved_model(model, CARD, output_dir, detector=detector)


@pytest.fixture(scope="module")
def photo_session(photo_dir: Path) -> Servable:
    return Servable(photo_dir)


def test_photo_finds_cuts_and_classifies_as_python_does(model, detector, photo_session) -> None:
    photo = tf.constant(_scene())
    boxes, scores = find_faces(*detector, photo)
    assert len(boxes) == 5
    crops = crop_faces(photo, boxes, CARD.image_size, CARD.padding, CARD.square)
    expected = model.predict(crops.numpy().astype(np.float32), verbose=0)
    for image_bytes in (encode(photo.numpy()), [encode(photo.numpy())]):
        found = ask(photo_session, "photo", image_bytes=image_bytes)
        np.testing.assert_allclose(found["boxes"], boxes, atol=1e-3)
        np.testing.assert_allclose(found["face_scores"], scores, atol=1e-5)
        np.testing.assert_allclose(found["probabilities"], expected, atol=1e-4)
        assert found["label"].shape == found["score"].shape == (5,)


def test_photo_is_turned_upright(detector, photo_session) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # To be shown rotated by 90 degrees clockwise.
    stored = encode(_scene(), "JPEG", exif=exif)
    upright = tf.image.rot90(decode_photo(stored), k=3)
    found = ask(photo_session, "photo", image_bytes=stored)
    np.testing.assert_allclose(found["boxes"], find_faces(*detector, upright)[0], atol=1e-3)
    assert len(found["boxes"])


def test_a_photo_without_faces_has_no_rows(model, detector, tmp_path) -> None:
    strict = (detector[0], replace(detector[1], threshold=1.0))
    session = Servable(export_saved_model(model, CARD, tmp_path / "face_mask", detector=strict))
    found = ask(session, "photo", image_bytes=encode(_scene()))
    assert {name: array.shape for name, array in found.items()} == {
        "boxes": (0, 4),
        "face_scores": (0,),
        "label": (0,),
        "score": (0,),
        "probabilities": (0, 3),
        "class_names": (0, 3),
    }


@pytest.mark.parametrize(
    ("image_bytes", "expected"),
    [
        ([encode(_scene()), encode(_scene())], "expected one photo"),
        (b"no image", "Unknown image file format"),
        (encode(_scene())[:-200], "PNG"),
    ],
    ids=["two photos", "text", "cut off"],
)
def test_photo_refuses_what_is_not_one_photo(photo_session, image_bytes, expected) -> None:
    with pytest.raises(RestError, match=expected):
        ask(photo_session, "photo", image_bytes=image_bytes)


def test_the_graph_of_photo_has_only_ops_that_tf_2_20_ran(photo_dir: Path) -> None:
    require_known_ops(photo_dir)


def test_the_command_line_adds_a_detector(model, detector, tmp_path, capsys) -> None:
    save_model(model, CARD, tmp_path / "model.keras")
    save_detector(*detector, tmp_path / "detector.keras")
    arguments = ["--model", str(tmp_path / "model.keras"), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--detector", str(tmp_path / "detector.keras")]) == 0
    assert "photo" in tf.saved_model.load(str(tmp_path / "out" / "1")).signatures
    size = ["--detector-size", "96"]
    assert main([*arguments, "--detector", str(tmp_path / "detector.keras"), *size]) == 0
    card = json.loads((tmp_path / "out" / "2" / "assets.extra" / "detector_card.json").read_text())
    assert card["image_size"] == 96
    litert = ["--format", "litert", "--model", str(tmp_path / "model.keras")]
    litert += ["--output", str(tmp_path / "litert")]
    assert main([*litert, "--detector", str(tmp_path / "detector.keras"), *size]) == 0
    assert json.loads((tmp_path / "litert" / "detector_card.json").read_text()) == card
    with pytest.raises(SystemExit):
        main([*arguments, *size])
    assert "--detector-size needs --detector" in capsys.readouterr().err
    assert main([*arguments, "--detector", str(tmp_path / "model.keras")]) == 2
    assert "is a classifier, expected a detector" in capsys.readouterr().err
