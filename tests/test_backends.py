import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from fmd_tf.backends import Backend, BackendError, load_backend
from fmd_tf.client import ServingError
from fmd_tf.errors import ModelError, UserError
from fmd_tf.formats import FormatError, export_format
from fmd_tf.model import load_model
from fmd_tf.photos import Photo, PhotoError, read_photo
from fmd_tf.servable import ModelVersions
from tests.serving import encode, faces, running, write_half_plus_two
from tests.test_photos import exif

# With fractions, over the edge after padding, and of one pixel.
BOXES = np.array([[3.4, 5.5, 20.1, 30.7], [0, 0, 9, 9], [50, 30, 51, 31]], np.float32)
KINDS = ("keras", "savedmodel", "server", "litert")


@pytest.fixture(scope="module")
def litert_export(tiny_classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("litert") / "out"
    return export_format("litert", *load_model(tiny_classifier), folder)


@pytest.fixture(scope="module")
def backends(
    tiny_classifier: Path, tiny_export: Path, litert_export: Path
) -> Iterator[dict[str, Backend]]:
    versions = ModelVersions(tiny_export, "tiny")
    versions.sync()
    with running({"tiny": versions}) as server:
        url = f"{server.url}/v1/models/tiny"
        places = (str(tiny_classifier), str(tiny_export), url, str(litert_export))
        loaded = [load_backend(place, batch_size=2) for place in places]
        yield dict(zip(KINDS, loaded, strict=True))
        for each in loaded:
            each.close()


def photo(folder: Path, form: str = "PNG", **options: object) -> Photo:
    (folder / "a").write_bytes(encode(faces(1, shape=(48, 64))[0], form, **options))
    return read_photo(folder / "a")


@pytest.mark.parametrize(
    ("form", "options"),
    [("PNG", {}), ("JPEG", {"quality": 90}), ("JPEG", {"exif": exif(3)}), ("GIF", {})],
    ids="png jpeg turned gif".split(),
)
def test_all_give_the_same_answer(
    backends: dict[str, Backend], tmp_path: Path, form: str, options: dict
):
    this = photo(tmp_path, form, **options)
    answers = [backends[kind].classify_faces(this, BOXES) for kind in KINDS]
    whole = [backends[kind].classify_crop(this) for kind in KINDS]
    rows = [[list(each.probabilities.values()) for each in answer] for answer in answers]
    assert len({tuple(each.label for each in answer) for answer in answers}) == 1
    assert len({each.label for each in whole}) == 1
    # The server writes six digits, and the weights of LiteRT have three.
    for kind, row, one in zip(KINDS, rows, whole, strict=True):
        tolerance = 0.01 if kind == "litert" else 2e-6
        np.testing.assert_allclose(row, rows[0], atol=tolerance)
        assert one.score == pytest.approx(whole[0].score, abs=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_no_box_is_no_answer(backends: dict[str, Backend], tmp_path: Path, kind: str):
    assert backends[kind].classify_faces(photo(tmp_path), BOXES[:0]) == []
    assert not backends[kind].finds_faces


@pytest.mark.parametrize("kind", ["savedmodel", "server"])
def test_what_the_graph_refuses_is_a_fault_of_the_photo(
    backends: dict[str, Backend], tmp_path: Path, kind: str
):
    outside = np.array([[90, 90, 99, 99]], np.float32)
    with pytest.raises(PhotoError, match="expected boxes xmin, ymin, xmax, ymax in pixels"):
        backends[kind].classify_faces(photo(tmp_path), outside)


def write_with_detector(path: Path) -> None:
    """An export with the signature `photo`: a face a row of the photo up to two, all with masks."""
    names = [b"with_mask", b"without_mask"]

    def answer(count: tf.Tensor) -> dict[str, tf.Tensor]:
        return {
            "label": tf.fill([count], names[0]),
            "score": tf.fill([count], 0.75),
            "probabilities": tf.tile([[0.75, 0.25]], [count, 1]),
            "class_names": tf.tile([names], [count, 1]),
        }

    @tf.function(input_signature=[tf.TensorSpec(None, tf.string, name="image_bytes")])
    def find(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        pixels = tf.io.decode_image(tf.reshape(image_bytes, []), expand_animations=False)
        count = tf.minimum(tf.shape(pixels)[0] - 1, 2)
        boxes = tf.tile([[1.0, 2.0, 3.0, 4.0]], [count, 1])
        scores = tf.range(1.0, tf.cast(count, tf.float32) + 1) / 4
        return {"boxes": boxes, "face_scores": scores, **answer(count)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def crops(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        return answer(tf.shape(image_bytes)[0])

    module = tf.Module()
    module.find, module.crops = find, crops
    signatures = {"photo": find, "serving_default": crops, "faces": crops}
    tf.saved_model.save(module, str(path), signatures=signatures)


@pytest.mark.parametrize("over_http", [False, True])
def test_an_export_with_a_detector_finds_faces(tmp_path: Path, over_http: bool):
    write_with_detector(tmp_path / "model" / "1")
    versions = ModelVersions(tmp_path / "model", "face_mask")
    versions.sync()
    with running({"face_mask": versions}) as server:
        backend = load_backend(server.url if over_http else str(tmp_path / "model" / "1"))
        assert backend.finds_faces
        boxes, scores, predictions = backend.find_faces(photo(tmp_path))
        empty = backend.find_faces(Photo(np.zeros((1, 1, 3), np.uint8)))
        backend.close()
    np.testing.assert_array_equal(boxes, [[1, 2, 3, 4]] * 2)
    np.testing.assert_array_equal(scores, [0.25, 0.5])
    assert [each.probabilities for each in predictions] == [
        {"with_mask": 0.75, "without_mask": 0.25}
    ] * 2
    assert empty[0].shape == (0, 4) and empty[1].shape == (0,) and empty[2] == []


def test_models_of_another_kind_are_named(tmp_path: Path):
    write_half_plus_two(tmp_path / "half" / "7")
    with pytest.raises(BackendError, match="expected a model with the signatures faces"):
        load_backend(str(tmp_path / "half"))
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.save(tmp_path / "other.keras")
    with pytest.raises(ModelError, match=r"other\.keras"):
        load_backend(str(tmp_path / "other.keras"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no SavedModel in .*empty; expected"):
        load_backend(str(tmp_path / "empty"))
    (tmp_path / "empty" / "saved_model.pb").write_text("hello")
    with pytest.raises(BackendError, match="cannot be loaded as a SavedModel"):
        load_backend(str(tmp_path / "empty"))


def test_a_damaged_litert_export_is_named(litert_export: Path, tmp_path: Path):
    folder, card = tmp_path / "out", (litert_export / "model_card.json").read_bytes()
    for name, content in (
        ("model_card.json", b"{"),
        ("model_card.json", b"{}"),
        ("model.tflite", b""),
        ("detector_card.json", b'{"image_size": 96}'),
        ("model_card.json", card.replace(b'"mask_weared_incorrect"', b'"a", "b"')),
        ("model_card.json", card.replace(b'"image_size": 32', b'"image_size": 64')),
    ):
        shutil.copytree(litert_export, folder)
        assert (folder / name).exists() is (name != "detector_card.json")
        (folder / name).write_bytes(content)
        with pytest.raises(BackendError, match="out cannot be loaded as a LiteRT export"):
            load_backend(str(folder))
        shutil.rmtree(folder)


def test_a_litert_export_may_be_named_by_its_file(litert_export: Path, tmp_path: Path):
    answers = [
        load_backend(str(each)).classify_faces(photo(tmp_path), BOXES)
        for each in (litert_export, litert_export / "model.tflite")
    ]
    assert answers[0] == answers[1]


def test_litert_without_its_package_says_what_to_install(
    litert_export: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)  # An import of it then fails.
    with pytest.raises(FormatError, match=r'pip install -e "\.\[litert\]"'):
        load_backend(str(litert_export))


@pytest.mark.parametrize("end", ["", "/versions/1", "/labels/so%20far", "/labels/so far"])
def test_a_models_url_may_be_quoted(tiny_export: Path, end: str):
    versions = ModelVersions(tiny_export, "face mask", labels={"so far": 1})
    versions.sync()
    with running({"face mask": versions}) as server:
        backend = load_backend(f"{server.url}/v1/models/face%20mask{end}")
        assert backend.version == "1"
        backend.close()


def test_servers_of_another_kind_are_named(tmp_path: Path):
    write_half_plus_two(tmp_path / "half" / "1")
    versions = ModelVersions(tmp_path / "half", "half")
    versions.sync()
    with running({"half": versions}) as server:
        with pytest.raises(BackendError, match="got serving_default"):
            load_backend(f"{server.url}/v1/models/half/versions/1")
        with pytest.raises(ServingError, match="404"):
            load_backend(server.url)
