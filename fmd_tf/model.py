"""The classifier: preprocessing, a Keras application as backbone, and a custom head.

Contract: input "image" [batch, image_size, image_size, 3], RGB 0-255; output "probabilities",
float32 softmax [batch, num_classes]. All scaling is inside, so whoever has the file cannot get
it wrong. A saved model is one `.keras` file that also holds its `ModelCard`.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import keras

from fmd_tf import MIN_IMAGE_SIZE

_CARD_MEMBER = "fmd_tf.json"


class ModelError(ValueError):
    """A model or its weights cannot be built, read or written."""


@dataclass(frozen=True)
class ModelCard:
    """What one must know beside the weights to use a model.

    Attributes:
        class_names: Names of the outputs, in order.
        image_size: Side of the input crops in pixels.
        padding: Part of the face box's size added on each side of a crop.
        square: Whether crops are squares about the face, see `input_pipeline.crop_windows`.
        model_name: Backbone, one of `MODEL_NAMES`.
        training: Where the model comes from: seed, epoch, validation figures.
    """

    class_names: tuple[str, ...]
    image_size: int
    padding: float = 0.1
    square: bool = True
    model_name: str = "resnet50"
    training: dict = field(default_factory=dict)


@dataclass(frozen=True)
class _Backbone:
    """A Keras application and the preprocessing it was trained with."""

    build: Callable[..., keras.Model]
    preprocess: Callable[[keras.KerasTensor], keras.KerasTensor]


def _caffe(image: keras.KerasTensor) -> keras.KerasTensor:
    """RGB to BGR, ImageNet means off, as `keras.applications.resnet50.preprocess_input`."""
    image = keras.ops.flip(image, axis=-1)
    offset = [-103.939, -116.779, -123.68]
    return keras.layers.Rescaling(1.0, offset, dtype="float32", name="preprocess")(image)


def _unit(image: keras.KerasTensor) -> keras.KerasTensor:
    """Scale to -1..1, as `keras.applications.mobilenet_v2.preprocess_input`."""
    return keras.layers.Rescaling(1 / 127.5, -1.0, dtype="float32", name="preprocess")(image)


def _inside(image: keras.KerasTensor) -> keras.KerasTensor:
    """Pass on: the application scales by itself, as Keras' EfficientNet does."""
    return image


_BACKBONES = {
    "resnet50": _Backbone(keras.applications.ResNet50, _caffe),
    "efficientnet": _Backbone(keras.applications.EfficientNetB0, _inside),
    "mobilenet": _Backbone(keras.applications.MobileNetV2, _unit),
}
MODEL_NAMES = tuple(_BACKBONES)


def build_model(
    model_name: str,
    image_size: int,
    num_classes: int,
    weights: str = "imagenet",
    dropout: float = 0.3,
    dense_units: int = 512,
) -> keras.Model:
    """Build the classifier.

    With pretrained weights the backbone runs in inference mode always, so batch norm keeps its
    ImageNet statistics while fine-tuning; from random weights batch norm learns.

    Args:
        model_name: Backbone, one of `MODEL_NAMES`.
        image_size: Side of the input in pixels, at least 32.
        num_classes: Number of outputs.
        weights: "imagenet" (downloaded by Keras), "none" (random), or the path of a
            `.weights.h5` file for the Keras application with `include_top=False`.
        dropout: Rate before and after the dense layer; default 0.3.
        dense_units: Width of the dense layer; default 512.

    Returns:
        A functional model. Its parts are layers named "backbone", "pool", "head_dropout_1",
        "head_dense", "head_dropout_2", "logits" and "probabilities".

    Raises:
        ModelError: Unknown name, unusable size, or weights that cannot be had.
    """
    if model_name not in _BACKBONES:
        raise ModelError(f"expected a model name of {', '.join(MODEL_NAMES)}, got {model_name!r}")
    backbone = _BACKBONES[model_name]
    if image_size < MIN_IMAGE_SIZE:
        raise ModelError(f"expected an image size of at least {MIN_IMAGE_SIZE}, got {image_size}")
    features = _load_backbone(backbone, model_name, image_size, weights)
    if weights == "none":
        _speed_up_batch_norm(features)
    image = keras.Input((image_size, image_size, 3), name="image", dtype="float32")
    mode = {} if weights == "none" else {"training": False}
    x = features(backbone.preprocess(image), **mode)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    for layer in _head_layers(num_classes, dropout, dense_units):
        x = layer(x)
    return keras.Model(image, x, name=model_name)


def _head_layers(num_classes: int, dropout: float, dense_units: int) -> list[keras.layers.Layer]:
    layers = keras.layers
    return [
        layers.Dropout(dropout, name="head_dropout_1"),
        layers.Dense(dense_units, activation="relu", name="head_dense"),
        layers.Dropout(dropout, name="head_dropout_2"),
        layers.Dense(num_classes, name="logits", dtype="float32"),
        layers.Softmax(name="probabilities", dtype="float32"),
    ]


def _load_backbone(
    backbone: _Backbone, model_name: str, image_size: int, weights: str
) -> keras.Model:
    """Build the application under the name "backbone" and load its weights."""
    shape = (image_size, image_size, 3)
    download = "imagenet" if weights == "imagenet" else None
    try:
        model = backbone.build(
            include_top=False, weights=download, input_shape=shape, name="backbone"
        )
        if weights not in ("imagenet", "none"):
            model.load_weights(_existing(Path(weights)))
    # Keras raises bare Exception where a download fails, OSError, KeyError and ValueError for
    # files; all of them mean that these weights cannot be had.
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(_weights_message(model_name, weights, error)) from error
    return model


def _speed_up_batch_norm(backbone: keras.Model) -> None:
    """Let moving statistics follow within a few hundred steps: data sets here are small."""
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ModelError(f"--weights: no file {path}; give a .weights.h5 file, imagenet or none")
    if not path.name.endswith(".weights.h5"):
        raise ModelError(f"--weights: expected a file named *.weights.h5, got {path}")
    return path


def _weights_message(model_name: str, weights: str, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    if weights == "imagenet":
        return (
            f"the ImageNet weights of {model_name} could not be downloaded ({reason}); give a "
            "local .weights.h5 file with --weights FILE, or start from random weights with "
            "--weights none"
        )
    return (
        f"{weights} does not hold weights of keras.applications' {model_name} without top "
        f"({reason}); give a file saved from that backbone, and the --model-name it belongs to"
    )


def logits_model(model: keras.Model) -> keras.Model:
    """Return the model up to its logits, sharing all layers: what is trained."""
    return keras.Model(model.input, model.get_layer("logits").output, name="classifier")


def features_model(model: keras.Model) -> keras.Model:
    """Return the frozen part: image [batch, size, size, 3] to pooled features [batch, depth]."""
    return keras.Model(model.input, model.get_layer("pool").output, name="features")


def head_model(model: keras.Model) -> keras.Model:
    """Return the head on pooled features [batch, depth] up to the logits, sharing its layers."""
    features = keras.Input(model.get_layer("pool").output.shape[1:])
    x = features
    for name in ("head_dropout_1", "head_dense", "head_dropout_2", "logits"):
        x = model.get_layer(name)(x)
    return keras.Model(features, x, name="head")


def freeze_batch_norm(model: keras.Model) -> None:
    """Make all weights trainable but those of batch norm; recompile afterwards."""
    backbone = model.get_layer("backbone")
    backbone.trainable = True
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False


@contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Build layers under another dtype policy: Keras applications take no dtype."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def save_model(model: keras.Model, card: ModelCard, path: Path) -> None:
    """Save model and card as one `.keras` file, written beside and renamed.

    Args:
        model: The classifier.
        card: Goes into the file's archive, where Keras leaves it alone.
        path: File name ending in `.keras`; replaced where it exists.
    """
    partial = path.with_name(f".{path.name}.partial.keras")
    model.save(partial)
    with zipfile.ZipFile(partial, "a") as archive:
        archive.writestr(_CARD_MEMBER, json.dumps(asdict(card), indent=2))
    partial.replace(path)


def load_model(path: Path | str) -> tuple[keras.Model, ModelCard]:
    """Load a model and its card.

    Args:
        path: A file that `save_model` wrote.

    Returns:
        The model, not compiled, and its card.

    Raises:
        ModelError: There is no such file, or it is not a model of this project.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"no model file {path}; train one with python -m fmd_tf.train")
    try:
        with zipfile.ZipFile(path) as archive:
            card = _parse_card(archive.read(_CARD_MEMBER))
        return keras.saving.load_model(path, compile=False), card
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, OSError) as error:
        raise ModelError(
            f"{path} is not a model of fmd_tf ({type(error).__name__}); expected the "
            "best_model.keras of python -m fmd_tf.train"
        ) from error


def _parse_card(text: bytes) -> ModelCard:
    fields = json.loads(text)
    return ModelCard(**{**fields, "class_names": tuple(fields["class_names"])})
