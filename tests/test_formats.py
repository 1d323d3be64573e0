import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from fmd_tf import CLASS_NAMES, export
from fmd_tf.detector import DetectorCard, build_detector
from fmd_tf.formats import (
    FORMATS,
    Comparison,
    FormatError,
    compare,
    export_format,
    load_format,
    load_litert_detector,
    round_to_int8,
)
from fmd_tf.input_pipeline import Crops
from fmd_tf.model import build_model, load_model
from fmd_tf.model_card import read_cards
from fmd_tf.publish import PublishError
from tests.serving import CARD, SIZE, faces

CROPS = faces(64)


@pytest.fixture(scope="module")
def model(tiny_classifier: Path) -> keras.Model:
    """Loaded from its file, as the command does: such a model has never been called."""
    return load_model(tiny_classifier)[0]


def crops_of(images: np.ndarray, labels: np.ndarray) -> Crops:
    number = len(images)
    boxes = np.tile(np.array([[0, 0, 20, 20]], np.int32), (number, 1))
    return Crops(
        images, labels, boxes, ("a.png",) * number, np.zeros(number, np.int64), {"a.png": 0}
    )


# Eight bits have steps of 1/256 in the answer, and as many in each layer before it.
@pytest.mark.parametrize(
    ("name", "largest"),
    [
        ("litert", 0.01),
        ("litert-dynamic", 0.1),
        ("litert-int8", 0.15),
        ("onnx", 1e-5),
        ("openvino", 0.05),
    ],
)
def test_a_written_model_answers_as_its_original(
    name: str, largest: float, model: keras.Model, tmp_path: Path
):
    folder = export_format(name, model, CARD, tmp_path / "out", crops=CROPS)
    predict = load_format(name, folder)
    for number in (1, 5):
        expected = model.predict(CROPS[:number].astype(np.float32), verbose=0)
        found = predict(CROPS[:number])
        assert found.dtype == np.float32 and found.shape == expected.shape
        assert np.abs(found - expected).max() < largest
    assert (folder / "class_names.txt").read_text().split() == list(CLASS_NAMES)
    assert (folder / "README.md").read_text().startswith("# Model card")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_onnx_keeps_the_size_of_views_whose_scale_is_no_round_number(tmp_path: Path):
    # 82 px from 68 and from 96.
    model = build_model("mobilenet", 96, len(CLASS_NAMES), "none", multi_view=True)
    crops = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3)).astype(np.uint8)
    predict = load_format("onnx", export_format("onnx", model, CARD, tmp_path / "out"))
    expected = model.predict(crops.astype(np.float32), verbose=0)
    assert np.abs(predict(crops) - expected).max() < 1e-4


def test_int8_rounds_a_channel_so_that_its_sum_stays():
    # A step is 12.7 / 127 = 0.1, so these are 127, 0.4, 0.4 and 0.3 steps: 128.1 together. Rounded
    # one by one they would be 127; of the first two remainders one is rounded up.
    channel = np.array([12.7, 0.04, 0.04, 0.03], np.float32)
    both = round_to_int8(np.stack([channel, -channel], axis=1).reshape(2, 2, 2, 1))
    assert both.shape == (2, 2, 2, 1)
    assert np.sort(both[:, :, 0].ravel()) == pytest.approx([0.0, 0.0, 0.1, 12.7])
    assert np.sort(both[:, :, 1].ravel()) == pytest.approx([-12.7, -0.1, 0.0, 0.0])
    assert (round_to_int8(np.zeros((3, 3, 2, 1), np.float32)) == 0).all()


def test_int8_keeps_small_weights_beside_large_ones(tmp_path: Path):
    kernel = np.full((3, 3, 3, 1), 0.3, np.float32)
    kernel[1, 0], kernel[1, 2] = 100.0, -100.0  # A step is 0.8, so each 0.3 is rounded to nothing.
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = keras.layers.Rescaling(1 / 255)(image)
    blur = keras.layers.DepthwiseConv2D(3, activation="relu")
    inner = keras.Model(image, keras.layers.GlobalAveragePooling2D()(blur(x)))
    blur.set_weights([kernel, np.zeros(3)])
    head = keras.layers.Dense(3, activation="softmax", kernel_initializer="identity")
    model = keras.Model(image, head(inner(image)))
    # In a picture of one colour the two large weights cancel, so the answer is that of the others.
    pictures = np.random.default_rng(0).integers(0, 256, (64, 1, 1, 3), dtype=np.uint8)
    pictures = np.tile(pictures, (1, SIZE, SIZE, 1))
    folder = export_format("litert-int8", model, CARD, tmp_path / "out", crops=pictures)
    found = load_format("litert-int8", folder)(pictures[:32])
    assert (blur.kernel.numpy() == kernel).all()
    expected = model.predict(pictures[:32].astype(np.float32), verbose=0)
    assert np.abs(found - expected).max() < 0.1


def test_weights_of_fewer_bits_take_less_room(model: keras.Model, tmp_path: Path):
    sizes = {}
    for name in ("litert", "litert-int8"):
        folder = export_format(name, model, CARD, tmp_path / name, crops=CROPS)
        sizes[name] = (folder / "model.tflite").stat().st_size
    # A kernel of 5 x 5 x 3 x 6 has 450 weights, of two bytes or one.
    assert sizes["litert"] > sizes["litert-int8"] > 450


def test_a_comparison_counts(model: keras.Model):
    crops = crops_of(CROPS, model.predict(CROPS.astype(np.float32), verbose=0).argmax(axis=1))
    same = compare(model, lambda images: model(images.astype(np.float32)).numpy(), crops)
    assert (same.num_faces, same.same_label, same.macro_f1_loss) == (64, 1.0, 0.0)
    wrong = compare(model, lambda images: np.tile([[1.0, 0.0, 0.0]], (len(images), 1)), crops)
    assert wrong.same_label == np.mean(crops.labels == 0)
    assert wrong.macro_f1 < same.macro_f1 and wrong.macro_f1_loss > 0


def test_int8_without_crops_says_what_to_give(model: keras.Model, tmp_path: Path):
    with pytest.raises(FormatError, match="--data-dir"):
        export_format("litert-int8", model, CARD, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_kept(model: keras.Model, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(PublishError, match="exists already"):
        export_format("litert", model, CARD, tmp_path / "out")
    with pytest.raises(PublishError, match="holds mine, which is of no export"):
        export_format("litert", model, CARD, tmp_path / "out", overwrite=True)
    (tmp_path / "out" / "mine").rename(tmp_path / "out" / "model.onnx")
    export_format("litert", model, CARD, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "model.onnx").exists()


@pytest.mark.parametrize("name", FORMATS)
def test_a_missing_package_names_its_extra(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path):
    for package in FORMATS[name].packages:
        monkeypatch.setitem(sys.modules, package, None)  # An import of it then fails.
    with pytest.raises(FormatError, match=rf'pip install -e "\.\[{FORMATS[name].extra}\]"'):
        load_format(name, tmp_path)


@pytest.mark.parametrize("name", ["litert", "litert-int8"])
@pytest.mark.usefixtures("shallow_backbone")
def test_a_detector_goes_with_litert(name: str, model: keras.Model, tmp_path: Path):
    keras.utils.set_random_seed(0)
    detector = build_detector("none")
    card = DetectorCard(image_size=96, threshold=0.25)
    folder = export_format(name, model, CARD, tmp_path / "out", False, CROPS, (detector, card))
    ask = load_litert_detector(folder)
    for shape in ((1, 64, 96, 3), (1, 32, 64, 3), (1, 64, 96, 3), (1, 64, 32, 3)):
        photo = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)
        assert ask(photo) == pytest.approx(detector(photo).numpy(), abs=0.02)
    assert read_cards(folder) == (CARD, card)
    assert "detector at 96 px" in (folder / "README.md").read_text()
    # It may be replaced as a whole.
    export_format(name, model, CARD, folder, True, CROPS)
    assert not (folder / "detector.tflite").exists() and read_cards(folder)[1] is None


def test_a_format_without_place_for_a_detector_says_so(model: keras.Model, tmp_path: Path):
    with pytest.raises(FormatError, match="--format onnx takes no --detector"):
        export_format("onnx", model, CARD, tmp_path / "out", detector=(model, DetectorCard(96)))
    assert list(tmp_path.iterdir()) == []


def test_nothing_written_is_named(tmp_path: Path):
    with pytest.raises(FormatError, match=r"holds no model\.onnx"):
        load_format("onnx", tmp_path)


def test_the_command_compares_on_the_test_faces(
    tiny_classifier: Path, sample_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    flags = ["--model", str(tiny_classifier), "--data-dir", str(sample_dir)]
    output = ["--output", str(tmp_path / "out")]
    assert export.main([*flags, "--format", "litert-int8", *output]) == 0
    assert "faces beside the .keras file: same label" in capsys.readouterr().out
    assert export.main([*flags, "--format", "litert-int8", *output]) == 2
    assert "exists already" in capsys.readouterr().err
    assert export.main([*flags[:2], "--format", "litert", "--output", str(tmp_path / "x")]) == 0
    assert "faces beside" not in capsys.readouterr().out
    assert export.main([*flags, "--output", str(tmp_path / "saved")]) == 0
    assert "same label 100.0%" in capsys.readouterr().out


def test_the_command_says_what_to_install_before_it_reads_faces(
    tiny_classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)  # An import of it then fails.
    flags = ["--model", str(tiny_classifier), "--data-dir", "missing", "--format", "onnx"]
    assert export.main([*flags, "--output", str(tmp_path / "onnx")]) == 2
    assert '-m pip install -e ".[onnx]"' in capsys.readouterr().err


def test_a_great_loss_is_said_with_a_way_out(
    tiny_classifier: Path,
    sample_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    bad = Comparison(9, 0.9, 0.8, 0.7, macro_f1_loss=0.1)
    monkeypatch.setattr(export, "compare", lambda *_: bad)
    flags = ["--model", str(tiny_classifier), "--data-dir", str(sample_dir)]
    output = ["--format", "litert-int8", "--output", str(tmp_path / "out")]
    assert export.main([*flags, *output]) == 0
    shown = capsys.readouterr().out
    assert ": litert loses less" in shown and "Without --split-file" in shown
