import json
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from fmd_tf.centerface import build_backbone
from fmd_tf.model import (
    MODEL_NAMES,
    ModelCard,
    ModelError,
    build_model,
    dtype_policy,
    features_model,
    freeze_batch_norm,
    head_model,
    load_model,
    logits_model,
    save_model,
    write_archive,
)
from tests.centerface_file import DrawnNetwork
from tests.serving import tiny_model

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def mobilenet() -> keras.Model:
    return build_model("mobilenet", 32, 3, "none")


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_backbones_give_probabilities(name: str):
    probabilities = np.array(build_model(name, 32, 4, "none")(IMAGES))
    assert probabilities.shape == (3, 4)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "module"), [("resnet50", "resnet50"), ("mobilenet", "mobilenet_v2")]
)
def test_preprocessing_is_that_of_the_application(name: str, module: str):
    model = build_model(name, 32, 3, "none")
    inside = keras.Model(model.input, model.get_layer("preprocess").output)(IMAGES)
    expected = getattr(keras.applications, module).preprocess_input(IMAGES.astype(np.float32))
    np.testing.assert_allclose(inside, expected, atol=1e-3)


def test_mobilenet_takes_the_weights_of_centerface(tmp_path: Path):
    path = str(DrawnNetwork().write(tmp_path / "drawn.onnx"))
    model = build_model("mobilenet", 32, 3, path)
    inside = keras.Model(model.input, model.get_layer("preprocess").output)(IMAGES)
    np.testing.assert_allclose(inside, IMAGES / 255, atol=1e-6)
    features = features_model(model)(IMAGES)
    expected = build_backbone(32, path)(IMAGES / np.float32(255))
    np.testing.assert_allclose(features, np.mean(expected, axis=(1, 2)), rtol=1e-4, atol=1e-4)
    for name in ("resnet50", "efficientnet"):
        with pytest.raises(ModelError, match=r"drawn\.onnx: CenterFace's are for mobilenet alone"):
            build_model(name, 32, 3, path)


def test_efficientnet_sees_the_same_from_a_file_as_downloaded(tmp_path: Path, monkeypatch):
    """Keras adds a step to the application only where it downloads the weights itself."""
    application = keras.applications.EfficientNetB0(include_top=False, weights=None)
    mean, deviation = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    (means,) = (x for x in application.layers if isinstance(x, keras.layers.Normalization))
    means.set_weights([mean, deviation, *means.get_weights()[2:]])
    path = tmp_path / "own.weights.h5"
    application.save_weights(path)
    monkeypatch.setattr("keras.src.utils.file_utils.get_file", lambda *_, **__: str(path))
    downloaded, own = (
        features_model(build_model("efficientnet", 32, 3, weights))(IMAGES)
        for weights in ("imagenet", str(path))
    )
    scale = np.abs(downloaded).max()
    np.testing.assert_allclose(own / scale, downloaded / scale, atol=1e-3)


def test_file_holds_model_and_card(mobilenet: keras.Model, tmp_path: Path):
    card = ModelCard(("a", "b", "c"), 32, 0.3, False, "other", True, {"epoch": 3, "split": "a"})
    save_model(mobilenet, card, tmp_path / "model.keras")
    loaded, loaded_card = load_model(tmp_path / "model.keras")
    assert loaded_card == card
    np.testing.assert_allclose(loaded(IMAGES), mobilenet(IMAGES), atol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]


def test_pretrained_batch_norm_never_moves(tmp_path: Path):
    weights = tmp_path / "own.weights.h5"
    keras.applications.MobileNetV2(include_top=False, weights=None).save_weights(weights)
    model = build_model("mobilenet", 32, 3, str(weights))
    freeze_batch_norm(model)
    norms = [layer for layer in model.get_layer("backbone").layers if "bn" in layer.name.lower()]
    before = [layer.get_weights() for layer in norms]
    trained = logits_model(model)
    trained.compile("adam", keras.losses.CategoricalCrossentropy(from_logits=True))
    trained.fit(IMAGES, np.eye(3), verbose=0)
    for old, layer in zip(before, norms, strict=True):
        for left, right in zip(old, layer.get_weights(), strict=True):
            np.testing.assert_array_equal(left, right)
    assert model.get_layer("backbone").get_layer("Conv1").kernel.trainable


def test_features_and_head_are_the_model(mobilenet: keras.Model):
    features = features_model(mobilenet)(IMAGES)
    expected = logits_model(mobilenet)(IMAGES)
    np.testing.assert_allclose(head_model(mobilenet)(features), expected, atol=1e-5)


def test_views_are_zooms_of_the_middle_and_their_mirror_images():
    # Of 42 pixels 6/7 are 36, from 3 to 39; 5/7 are 30, from 6 to 36; all are scaled to 36.
    crops = np.random.default_rng(0).uniform(0, 255, (2, 42, 42, 3)).astype(np.float32)
    model = build_model("mobilenet", 42, 3, "none", multi_view=True)
    single = build_model("mobilenet", 36, 3, "none")
    single.set_weights(model.get_weights())
    views = [crops[:, 3:39, 3:39]]
    views += [tf.image.resize(view, (36, 36)) for view in (crops[:, 6:36, 6:36], crops)]
    views += [view[:, :, ::-1] for view in views]
    features = np.mean([features_model(single)(view) for view in views], axis=0)
    expected = keras.ops.softmax(head_model(single)(features))
    np.testing.assert_allclose(model(crops), expected, atol=1e-5)


def test_what_is_trained_is_the_middle_view():
    crops = np.random.default_rng(0).uniform(0, 255, (2, 42, 42, 3)).astype(np.float32)
    trained = build_model("mobilenet", 42, 3, "none", multi_view=True, all_views=False)
    single = build_model("mobilenet", 36, 3, "none")
    single.set_weights(trained.get_weights())
    np.testing.assert_allclose(trained(crops), single(crops[:, 3:39, 3:39]), atol=1e-5)


def test_weights_move_between_precisions(mobilenet: keras.Model):
    """The saved model is float32, whatever trained it, and frozen layers keep their order."""
    with dtype_policy("mixed_bfloat16"):
        half = build_model("mobilenet", 32, 3, "none")
    freeze_batch_norm(half)
    half.set_weights(mobilenet.get_weights())
    full = build_model("mobilenet", 32, 3, "none")
    full.set_weights(half.get_weights())
    np.testing.assert_allclose(full(IMAGES), mobilenet(IMAGES), atol=1e-6)
    assert keras.config.dtype_policy().name == "float32"
    assert half(IMAGES).dtype == "float32"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("vgg", 32, 3, "none"), "expected a model name of mobilenet, resnet50, efficientnet"),
        (("mobilenet", 16, 3, "none"), "expected an image size of at least 32, got 16"),
        (("mobilenet", 37, 3, "none", 0.0, 8, True), "expected an image size of at least 38"),
        (("mobilenet", 32, 3, "none.weights.h5"), "no file none.weights.h5"),
    ],
)
def test_bad_arguments(arguments: tuple, expected: str):
    with pytest.raises(ModelError, match=expected):
        build_model(*arguments)


def test_weights_of_another_kind(tmp_path: Path):
    wrong = tmp_path / "weights.h5"
    wrong.write_text("hello")
    with pytest.raises(ModelError, match=r"expected a file named \*\.weights\.h5"):
        build_model("mobilenet", 32, 3, str(wrong))
    other = tmp_path / "other.weights.h5"
    keras.applications.ResNet50(include_top=False, weights=None).save_weights(other)
    with pytest.raises(ModelError, match=r"does not hold weights of .* mobilenet"):
        build_model("mobilenet", 32, 3, str(other))
    other.write_bytes(other.read_bytes()[:5000])
    with pytest.raises(ModelError, match="does not hold weights"):
        build_model("mobilenet", 32, 3, str(other))


def test_files_that_are_no_models(tmp_path: Path):
    with pytest.raises(ModelError, match="no classifier"):
        load_model(tmp_path / "none.keras")
    with pytest.raises(ModelError, match=r"is a folder, expected a classifier: a \.keras file of"):
        load_model(tmp_path)
    text = tmp_path / "text.keras"
    text.write_text("hello")
    with pytest.raises(ModelError, match="is not a classifier of fmd_tf"):
        load_model(text)
    with zipfile.ZipFile(tmp_path / "zip.keras", "w") as archive:
        archive.writestr("fmd_tf.json", json.dumps({"class_names": ["a", "b"], "image_size": 32}))
    with pytest.raises(ModelError, match="is not a classifier of fmd_tf"):
        load_model(tmp_path / "zip.keras")
    write_archive(
        tiny_model(), "classifier", {"class_names": ["a"], "new": 1}, tmp_path / "n.keras"
    )
    with pytest.raises(ModelError, match="or not of this version"):
        load_model(tmp_path / "n.keras")
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(tmp_path / "other.keras")
    with pytest.raises(ModelError, match="is not a classifier of fmd_tf"):
        load_model(tmp_path / "other.keras")


def test_a_network_that_is_not_loaded_scales_as_one_without_weights():
    expected, scaling = (
        build_model("efficientnet", 32, 3, weights, is_loaded=False).get_layer("preprocess")
        for weights in ("none", "imagenet")
    )
    assert scaling.get_config() == expected.get_config()
