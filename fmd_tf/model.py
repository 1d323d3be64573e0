"""The classifier: preprocessing, a Keras application as backbone, and a custom head.

Contract: input "image" [batch, image_size, image_size, 3], RGB 0-255; output "probabilities",
float32 softmax [batch, num_classes]. All scaling is inside, so whoever has the file cannot get
it wrong; so are the views of a face that are averaged. A saved model is one `.keras` file that also
holds its `ModelCard`.
"""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import keras

from fmd_tf import MIN_IMAGE_SIZE, MIN_MULTI_VIEW_SIZE
from fmd_tf.centerface import build_backbone, is_centerface
from fmd_tf.config import CENTERFACE, IMAGENET, NO_WEIGHTS, WEIGHTS_HINT
from fmd_tf.errors import DownloadError, ModelError, first_line
from fmd_tf.publish import replacing

HEAD_LAYERS = ("head_dropout_1", "head_dense", "head_dropout_2", "logits")
"""Names of what follows the pooled features, in order, up to the logits."""
CardT = TypeVar("CardT")

_CARD_MEMBER = "fmd_tf.json"
# Sides of the views in sevenths of the crop; the first is the one that is trained. In a crop with a
# padding of 0.2 they are the face with a padding of 0.1, 0 and 0.2.
_SEVENTHS = (6, 5, 7)


@dataclass(frozen=True)
class ModelCard:
    """What one must know beside the weights to use a model.

    Attributes:
        class_names: Names of the outputs, in order.
        image_size: Side of the input crops in pixels.
        padding: Part of the face box's size added on each side of a crop.
        square: Whether crops are squares about the face, see `input_pipeline.crop_windows`.
        model_name: Backbone, one of `MODEL_NAMES`.
        multi_view: Whether it averages views of a crop, see `build_model`.
        training: Where the model comes from: seed, epoch, validation figures.
    """

    class_names: tuple[str, ...]
    image_size: int
    padding: float = 0.2
    square: bool = True
    model_name: str = "mobilenet"
    multi_view: bool = False
    training: dict = field(default_factory=dict)


@dataclass(frozen=True)
class _Backbone:
    """A Keras application, the preprocessing it was trained with, and its kind."""

    build: Callable[..., keras.Model]
    preprocess: Callable[[keras.KerasTensor, bool], keras.KerasTensor]
    depthwise: bool


def _caffe(image: keras.KerasTensor, downloaded: bool) -> keras.KerasTensor:
    """RGB to BGR, ImageNet means off, as `keras.applications.resnet50.preprocess_input`."""
    image = keras.ops.flip(image, axis=-1)
    offset = [-103.939, -116.779, -123.68]
    return keras.layers.Rescaling(1.0, offset, dtype="float32", name="preprocess")(image)


def _unit(image: keras.KerasTensor, downloaded: bool) -> keras.KerasTensor:
    """Scale to -1..1, as `keras.applications.mobilenet_v2.preprocess_input`."""
    return keras.layers.Rescaling(1 / 127.5, -1.0, dtype="float32", name="preprocess")(image)


def _inside(image: keras.KerasTensor, downloaded: bool) -> keras.KerasTensor:
    """Pass on: Keras' EfficientNet scales by itself, the last step only if it downloads weights.

    That step divides the normalised channels by the root of their standard deviation; here it is
    done before, about the same mean.
    """
    if downloaded:
        return image
    scale = [1 / deviation**0.5 for deviation in (0.229, 0.224, 0.225)]
    means = (0.485, 0.456, 0.406)
    offset = [255 * mean * (1 - each) for mean, each in zip(means, scale, strict=True)]
    return keras.layers.Rescaling(scale, offset, dtype="float32", name="preprocess")(image)


def _fraction(image: keras.KerasTensor, downloaded: bool) -> keras.KerasTensor:
    """Scale to 0..1, as `fmd_tf.centerface` has it."""
    return keras.layers.Rescaling(1 / 255, dtype="float32", name="preprocess")(image)


_BACKBONES = {
    "mobilenet": _Backbone(keras.applications.MobileNetV2, _unit, depthwise=True),
    "resnet50": _Backbone(keras.applications.ResNet50, _caffe, depthwise=False),
    "efficientnet": _Backbone(keras.applications.EfficientNetB0, _inside, depthwise=True),
}
MODEL_NAMES = tuple(_BACKBONES)


def is_depthwise(model_name: str) -> bool:
    """Tell whether a backbone of `MODEL_NAMES` is made of depthwise convolutions."""
    return _BACKBONES[model_name].depthwise


def build_model(
    model_name: str,
    image_size: int,
    num_classes: int,
    weights: str | Sequence[str] = "imagenet",
    dropout: float = 0.3,
    dense_units: int = 512,
    multi_view: bool = False,
    all_views: bool = True,
    is_loaded: bool = True,
) -> keras.Model:
    """Build the classifier.

    With pretrained weights the backbone runs in inference mode always, so batch norm keeps its
    ImageNet statistics while fine-tuning; from random weights batch norm learns.

    A classifier with several views looks at the middle of the crop at three zooms and at the
    mirror images of these, and averages the pooled features (multi-crop testing, Krizhevsky et
    al. 2012, on features). What is trained is the one view; the weights are the same.

    Args:
        model_name: Backbone, one of `MODEL_NAMES`.
        image_size: Side of the input in pixels, at least 32, or 38 with several views.
        num_classes: Number of outputs.
        weights: "imagenet" (downloaded by Keras), "none" (random), or the path of a
            `.weights.h5` file for the Keras application with `include_top=False`; for mobilenet
            also "centerface" (downloaded), or the path of its `.onnx` file. Of several the
            backbone is one network for each, beside one another, for `ensemble.join_models`.
        dropout: Rate before and after the dense layer; default 0.3.
        dense_units: Width of the dense layer; default 512.
        multi_view: Average six views of each crop; default False, the whole crop.
        all_views: False looks at the middle view alone, for training; default True.
        is_loaded: False leaves the network for these weights at random ones; default True.

    Returns:
        A functional model. Its parts are layers named "backbone", "pool", "head_dropout_1",
        "head_dense", "head_dropout_2", "logits" and "probabilities".

    Raises:
        ModelError: Unknown name, unusable size, or weights that cannot be had.
    """
    if model_name not in _BACKBONES:
        raise ModelError(f"expected a model name of {', '.join(MODEL_NAMES)}, got {model_name!r}")
    least = MIN_MULTI_VIEW_SIZE if multi_view else MIN_IMAGE_SIZE
    if image_size < least:
        raise ModelError(f"expected an image size of at least {least}, got {image_size}")
    seen = view_size(image_size, multi_view)
    image = keras.Input((image_size, image_size, 3), name="image", dtype="float32")
    views = _cut_views(image, seen, all_views) if multi_view else [image]
    x = keras.ops.concatenate(views, axis=0) if len(views) > 1 else views[0]
    if isinstance(weights, str):
        x = _run_backbone(model_name, x, weights, is_loaded)
    else:
        x = _joined_backbone(model_name, seen, weights, is_loaded)(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    if len(views) > 1:
        x = keras.ops.mean(keras.ops.reshape(x, (len(views), -1, x.shape[-1])), axis=0)
    for layer in _head_layers(num_classes, dropout, dense_units):
        x = layer(x)
    return keras.Model(image, x, name=model_name)


def view_size(image_size: int, multi_view: bool) -> int:
    """Return the side of what the backbone sees of a crop, in pixels."""
    return image_size * _SEVENTHS[0] // 7 if multi_view else image_size


def _cut_views(image: keras.KerasTensor, size: int, all_views: bool) -> list[keras.KerasTensor]:
    """Cut the middle of the crop at one zoom, or at all zooms and mirrored."""
    views = []
    for sevenths in _SEVENTHS if all_views else _SEVENTHS[:1]:
        side = image.shape[1] * sevenths // 7
        start = (image.shape[1] - side) // 2
        view = image[:, start : start + side, start : start + side]
        if side != size:
            view = keras.ops.image.resize(view, (size, size))
        views += [view, keras.ops.flip(view, axis=2)] if all_views else [view]
    return views


def _head_layers(num_classes: int, dropout: float, dense_units: int) -> list[keras.layers.Layer]:
    layers = keras.layers
    return [
        layers.Dropout(dropout, name="head_dropout_1"),
        layers.Dense(dense_units, activation="relu", name="head_dense"),
        layers.Dropout(dropout, name="head_dropout_2"),
        layers.Dense(num_classes, name="logits", dtype="float32"),
        layers.Softmax(name="probabilities", dtype="float32"),
    ]


def _downloads(weights: str, is_loaded: bool) -> bool:
    """Tell whether Keras downloads them: EfficientNet then does all of its scaling itself."""
    return is_loaded and weights == IMAGENET


def _run_backbone(
    model_name: str, image: keras.KerasTensor, weights: str, is_loaded: bool
) -> keras.KerasTensor:
    """Preprocess and apply; from pretrained weights in inference mode always."""
    features = load_backbone(model_name, image.shape[1], weights, is_loaded)
    if weights == "none":
        _speed_up_batch_norm(features)
    mode = {} if weights == "none" else {"training": False}
    preprocess = _fraction if is_centerface(weights) else _BACKBONES[model_name].preprocess
    image = preprocess(image, _downloads(weights, is_loaded))
    return features(image, **mode)


def _joined_backbone(
    model_name: str, image_size: int, weights: Sequence[str], is_loaded: bool
) -> keras.Model:
    """Put a backbone for each of the weights beside one another: their channels follow."""
    image = keras.Input((image_size, image_size, 3))
    members = []
    for index, each in enumerate(weights):
        # Each in a model of its own: layers of one model have different names.
        member = keras.Input((image_size, image_size, 3))
        features = _run_backbone(model_name, member, each, is_loaded)
        members.append(keras.Model(member, features, name=f"member_{index}")(image))
    return keras.Model(image, keras.ops.concatenate(members, axis=-1), name="backbone")


def backbones(model: keras.Model) -> list[keras.Model]:
    """Return the backbone of a classifier, or those of the members of an ensemble."""
    backbone = model.get_layer("backbone")
    members = [layer for layer in backbone.layers if isinstance(layer, keras.Model)]
    return [member.get_layer("backbone") for member in members] or [backbone]


def same_network(model: keras.Model) -> str | list[str]:
    """Return the `weights` for which `build_model` makes the network of a classifier again.

    Args:
        model: From `build_model`; a saved model does not say what it began from.
    """
    kinds = [kind_of_weights(backbone) for backbone in backbones(model)]
    return kinds if len(kinds) > 1 else kinds[0]


def kind_of_weights(backbone: keras.Model) -> str:
    """Return the `weights` for which `load_backbone` makes a backbone again."""
    layers = backbone.layers
    has_norm = any(isinstance(layer, keras.layers.BatchNormalization) for layer in layers)
    return NO_WEIGHTS if has_norm else CENTERFACE


def load_backbone(
    model_name: str, image_size: int | None, weights: str, is_loaded: bool = True
) -> keras.Model:
    """Build a backbone without top, under the name "backbone", and load its weights.

    Args:
        model_name: One of `MODEL_NAMES`.
        image_size: Side of its input in pixels; None for images of any size.
        weights: See `build_model`.
        is_loaded: Likewise.

    Returns:
        A Keras application, or with CenterFace's weights its MobileNetV2; scaling of values is
        not in it.

    Raises:
        ModelError: Weights that cannot be had.
    """
    if is_centerface(weights):
        if model_name != "mobilenet":
            raise ModelError(f"--weights {weights}: CenterFace's are for mobilenet alone")
        return build_backbone(image_size, weights, is_loaded)
    shape = (image_size, image_size, 3)
    download = IMAGENET if _downloads(weights, is_loaded) else None
    try:
        with warnings.catch_warnings():
            # MobileNetV2 warns that other sizes get the weights of 224 px, as they should.
            warnings.filterwarnings("ignore", "`input_shape` is undefined", UserWarning)
            model = _BACKBONES[model_name].build(
                include_top=False, weights=download, input_shape=shape, name="backbone"
            )
        if is_loaded and weights not in ("imagenet", "none"):
            model.load_weights(_existing(Path(weights)))
    # Keras raises bare Exception where a download fails, OSError, KeyError and ValueError for
    # files; all of them mean that these weights cannot be had.
    except ModelError:
        raise
    except Exception as error:
        kind = DownloadError if download else ModelError
        raise kind(_weights_message(model_name, weights, error)) from error
    return model


def _speed_up_batch_norm(backbone: keras.Model) -> None:
    """Let moving statistics follow within a few hundred steps: data sets here are small."""
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ModelError(f"--weights: no file {path}; {WEIGHTS_HINT}")
    if not path.name.endswith(".weights.h5"):
        raise ModelError(f"--weights: expected a file named *.weights.h5, got {path}")
    return path


def _weights_message(model_name: str, weights: str, error: Exception) -> str:
    reason = first_line(error)
    if weights == "imagenet":
        return (
            f"the ImageNet weights of {model_name} could not be downloaded ({reason}); put a local "
            ".weights.h5 file in the place of imagenet in --weights, or begin without them: "
            "--weights centerface (mobilenet) or none"
        )
    return (
        f"{weights} does not hold weights of keras.applications' {model_name} without top "
        f"({reason}); give a file saved from that backbone"
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
    for name in HEAD_LAYERS:
        x = model.get_layer(name)(x)
    return keras.Model(features, x, name="head")


def weighted_layers(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """Return the layers that have weights, those of models in the model too, by path."""
    layers: dict[str, keras.layers.Layer] = {}
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            inner = weighted_layers(layer).items()
            layers |= {f"{layer.name}/{path}": each for path, each in inner}
        elif layer.weights:
            layers[layer.name] = layer
    return layers


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
    write_archive(model, "classifier", asdict(card), path)


def load_model(path: Path | str) -> tuple[keras.Model, ModelCard]:
    """Load a model and its card.

    Args:
        path: A file that `save_model` wrote.

    Returns:
        The model, not compiled, and its card.

    Raises:
        ModelError: There is no such file, or it is not a classifier of this project.
    """
    return read_archive(Path(path), "classifier", _card, "python -m fmd_tf.train")


def _card(class_names: Sequence[str], **fields: Any) -> ModelCard:
    return ModelCard(tuple(class_names), **fields)


def write_archive(model: keras.Model, kind: str, card: dict, path: Path) -> None:
    """Save a model and what belongs to it as one `.keras` file, written beside and renamed.

    Args:
        model: Any Keras model.
        kind: What it is, for example "classifier".
        card: JSON-like fields.
        path: File name ending in `.keras`; replaced where it exists.
    """
    with replacing(path) as partial:
        model.save(partial)
        with zipfile.ZipFile(partial, "a") as archive:
            archive.writestr(_CARD_MEMBER, json.dumps({"kind": kind, **card}, indent=2))


def read_archive(
    path: Path, kind: str, make_card: Callable[..., CardT], command: str
) -> tuple[keras.Model, CardT]:
    """Load what `write_archive` wrote.

    Args:
        path: The file.
        kind: What it must hold.
        make_card: Makes the card of its fields.
        command: The command that makes such a file, for the message.

    Returns:
        The model, not compiled, and its card.

    Raises:
        ModelError: There is no such file, or it holds something else.
    """
    if path.is_dir():
        raise ModelError(f"{path} is a folder, expected a {kind}: a .keras file of {command}")
    if not path.is_file():
        raise ModelError(f"no {kind} {path}; train one with {command}")
    try:
        with zipfile.ZipFile(path) as archive:
            card = json.loads(archive.read(_CARD_MEMBER))
        found = card.pop("kind")
        if found == kind:
            return keras.saving.load_model(path, compile=False), make_card(**card)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path} is not a {kind} of fmd_tf, or not of this version "
            f"({type(error).__name__}); expected a .keras file of {command}"
        ) from error
    raise ModelError(f"{path} is a {found}, expected a {kind}; train one with {command}")
