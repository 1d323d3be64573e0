"""Write and run a classifier in the formats of other runtimes: LiteRT, ONNX, OpenVINO.

Contract: each model has one input, float32 [batch, size, size, 3], face crops RGB 0-255 as
`input_pipeline.crop_faces` cuts them, and one output, float32 [batch, num_classes],
probabilities. A format is a folder with the model's file or files, `class_names.txt`,
`model_card.json` and a model card in `README.md`; it appears by a rename. One of LiteRT may hold
a detector too, with the input and output of `fmd_tf.detector`, and `detector_card.json`.
"""

from __future__ import annotations

import importlib
import os
import tempfile
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from sklearn.metrics import f1_score

from fmd_tf.detector import DetectorCard
from fmd_tf.errors import UserError, install_command
from fmd_tf.input_pipeline import Crops, eval_dataset
from fmd_tf.model import ModelCard, weighted_layers
from fmd_tf.model_card import write_cards
from fmd_tf.publish import publishing
from fmd_tf.row_file import Rows

Predictor = Callable[[np.ndarray], np.ndarray]
CALIBRATION_FACES = 300
"""Crops that int8 ranges are read from, when there are as many."""
SAVED_MODEL = "savedmodel"
_LITERT_FILE = "model.tflite"
_DETECTOR_FILE = "detector.tflite"
MAX_F1_LOSS = 0.005
SAFEST = "litert"
"""What to take where a format loses more: half-precision weights lose next to nothing."""
_BATCH_SIZE = 32
_MAX_THREADS = 4
"""Of LiteRT, which does not choose by itself; small models gain nothing of more."""


class FormatError(UserError):
    """A model cannot be written or run in a format."""


@dataclass(frozen=True)
class Format:
    """A way to write a classifier and to run what was written.

    Attributes:
        file: Name of the model's file.
        packages: What must be importable to write and run it.
        extra: The extra of this project that installs them.
        write: Writes a model to a file; the crops are for calibration.
        load: Loads that file.
        calibrated: Whether writing needs crops, uint8 [number, size, size, 3].
    """

    file: str
    packages: tuple[str, ...]
    extra: str
    write: Callable[[keras.Model, Path, Rows], None]
    load: Callable[[Path], Predictor]
    calibrated: bool = False


def export_format(
    name: str,
    model: keras.Model,
    card: ModelCard,
    folder: Path,
    overwrite: bool = False,
    crops: Rows | None = None,
    detector: tuple[keras.Model, DetectorCard] | None = None,
) -> Path:
    """Write a classifier in one format.

    Args:
        name: One of `FORMATS`.
        model: The classifier.
        card: Its card.
        folder: What is written.
        overwrite: Replace the folder where it exists.
        crops: uint8 [number, size, size, 3], training crops; for int8 only.
        detector: Face detector and its card, see `fmd_tf.detector`; for LiteRT only. Its weights
            are in float16 with int8 too, as it would need photos of its own to be calibrated.

    Returns:
        The folder.

    Raises:
        FormatError: A package is missing, int8 has no crops, or a detector is for LiteRT only.
        PublishError: The folder exists, or cannot be put into place.
    """
    form = require_format(name, has_detector=detector is not None)
    crops = np.zeros((0, *model.input_shape[1:]), np.uint8) if crops is None else crops
    if form.calibrated and not len(crops):
        raise FormatError(
            f"{name} reads its ranges from training crops; give --data-dir, and the training's "
            "--split-file"
        )
    with publishing(folder, overwrite) as partial:
        partial.mkdir()
        form.write(model, partial / form.file, crops)
        if detector:
            _write_litert(detector[0], partial / _DETECTOR_FILE, crops)
        write_cards(partial, card, detector[1] if detector else None)
    return folder


def load_format(name: str, folder: Path) -> Predictor:
    """Load what `export_format` wrote.

    Args:
        name: One of `FORMATS`.
        folder: The folder.

    Returns:
        A function from at least one crop, [batch, size, size, 3] RGB 0-255 of any number type,
        to probabilities float32 [batch, num_classes].

    Raises:
        FormatError: A package is missing, or there is no such file.
    """
    form = require_format(name)
    if not (folder / form.file).is_file():
        raise FormatError(f"{folder} holds no {form.file}; write it with --format {name}")
    return form.load(folder / form.file)


def litert_folder(path: Path) -> Path | None:
    """Return the folder of a LiteRT export, named by itself or by the file in it; else None."""
    folder = path.parent if path.name == _LITERT_FILE else path
    return folder if (folder / _LITERT_FILE).is_file() else None


def load_litert_detector(folder: Path) -> Predictor:
    """Load the detector of a LiteRT export.

    Args:
        folder: What `export_format` wrote with a detector.

    Returns:
        A function from a photo, float32 [1, height, width, 3], to what `fmd_tf.detector` has of it.
    """
    # It looks at each photo at two sizes in turns.
    return _load_litert(folder / _DETECTOR_FILE, num_sizes=2)


def load_saved_model(version: Path) -> Predictor:
    """Load the signature `pixels` of a SavedModel of `fmd_tf.export`, as `load_format` does."""
    pixels = tf.saved_model.load(str(version)).signatures["pixels"]

    def predict(crops: np.ndarray) -> np.ndarray:
        return pixels(pixels=tf.cast(crops, tf.float32))["probabilities"].numpy()

    return predict


@dataclass(frozen=True)
class Comparison:
    """How a written model answers beside the one it was written from.

    Attributes:
        num_faces: Faces that both were asked.
        largest_difference: Of a probability.
        same_label: Part of the faces with the same likeliest class.
        macro_f1: Of the written model, 0 to 1, over the classes that are met, as in `metrics`.
        macro_f1_loss: What it lost against the original.
    """

    num_faces: int
    largest_difference: float
    same_label: float
    macro_f1: float
    macro_f1_loss: float


def compare(model: keras.Model, predictor: Predictor, crops: Crops) -> Comparison:
    """Ask the classifier and what was written from it the same faces.

    Args:
        model: The classifier.
        predictor: From `load_format` or `load_saved_model`.
        crops: Faces that the model was not trained on.
    """
    expected = model.predict(eval_dataset(crops.images, _BATCH_SIZE), verbose=0)
    starts = range(0, len(crops), _BATCH_SIZE)
    found = np.concatenate([predictor(crops.images[at : at + _BATCH_SIZE]) for at in starts])
    scores = [
        f1_score(crops.labels, each.argmax(axis=1), average="macro", zero_division=0)
        for each in (expected, found)
    ]
    return Comparison(
        num_faces=len(crops),
        largest_difference=float(np.abs(found - expected).max()),
        same_label=float((found.argmax(axis=1) == expected.argmax(axis=1)).mean()),
        macro_f1=float(scores[1]),
        macro_f1_loss=float(scores[0] - scores[1]),
    )


def format_comparison(comparison: Comparison) -> str:
    """Describe a comparison in one line."""
    return (
        f"{comparison.num_faces} faces beside the .keras file: same label "
        f"{comparison.same_label:.1%}, largest difference {comparison.largest_difference:.2g}, "
        f"macro-F1 {comparison.macro_f1:.3f} (loss {100 * comparison.macro_f1_loss:.1f} points)"
    )


def require_format(name: str, has_detector: bool = False) -> Format:
    """Return a format whose packages are there.

    Args:
        name: One of `FORMATS`.
        has_detector: Whether a detector is to go with it.

    Raises:
        FormatError: One is missing; the message names the extra that installs it. Or there is no
            place for a detector.
    """
    form = FORMATS[name]
    if has_detector and form.file != _LITERT_FILE:
        raise FormatError(f"--format {name} takes no --detector; savedmodel and litert do")
    for package in form.packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise FormatError(
                f"--format {name} needs the package {package} ({error}); install it with "
                f"{install_command(form.extra)}"
            ) from error
    return form


def _write_litert(model: keras.Model, path: Path, crops: Rows) -> None:
    """Keep weights in float16 and compute in float32."""
    model.export(
        str(path),
        format="litert",
        verbose=False,
        optimizations=[tf.lite.Optimize.DEFAULT],
        target_spec={"supported_types": [tf.float16]},
    )


def _write_litert_dynamic(model: keras.Model, path: Path, crops: Rows) -> None:
    """Keep weights in int8, and quantise activations as they come, each time anew."""
    model.export(
        str(path), format="litert", verbose=False, optimizations=[tf.lite.Optimize.DEFAULT]
    )


def _write_litert_int8(model: keras.Model, path: Path, crops: Rows) -> None:
    """Quantise weights for each channel, and activations, to int8 (Jacob et al. 2018).

    Input and output stay float32.
    """

    def representative() -> Iterator[list[np.ndarray]]:
        chosen = np.random.default_rng(0).permutation(len(crops))[:CALIBRATION_FACES]
        for crop in crops[chosen]:
            yield [crop[None].astype(np.float32)]

    with _round_depthwise(model), warnings.catch_warnings():
        # It warns that inputs have no ranges, which is as it should be: they are float32.
        warnings.filterwarnings("ignore", "Statistics for quantized inputs", UserWarning)
        model.export(
            str(path),
            format="litert",
            verbose=False,
            optimizations=[tf.lite.Optimize.DEFAULT],
            representative_dataset=representative,
            target_spec={"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]},
        )


@contextmanager
def _round_depthwise(model: keras.Model) -> Iterator[None]:
    """Put the kernels of depthwise convolutions on the grid of int8, for as long as it is written.

    A channel of theirs sees about the same value at all of its few weights, so errors that do not
    cancel are an offset of all its answers (Nagel et al. 2019, arXiv:1906.04721, who correct the
    bias). MobileNetV2's first layer has weights of 50 and -50 beside small ones.
    """
    kind = keras.layers.DepthwiseConv2D
    layers = [layer for layer in weighted_layers(model).values() if isinstance(layer, kind)]
    kernels = [layer.kernel.numpy() for layer in layers]
    try:
        for layer, kernel in zip(layers, kernels, strict=True):
            layer.kernel.assign(round_to_int8(kernel))
        yield
    finally:
        for layer, kernel in zip(layers, kernels, strict=True):
            layer.kernel.assign(kernel)


def round_to_int8(kernel: np.ndarray) -> np.ndarray:
    """Round to the grid that int8 has for each channel, so that each channel's sum stays.

    It is the method of the largest remainder: all values are rounded down, and those that lost
    most up again, until the sum is right to half a step.

    Args:
        kernel: Of a depthwise convolution, float32 [height, width, channels, multiplier].

    Returns:
        The same shape; 254 steps from minus to plus a channel's largest magnitude.
    """
    weights = kernel.reshape(kernel.shape[0] * kernel.shape[1], -1)
    step = np.maximum(np.abs(weights).max(axis=0) / 127, np.finfo(np.float32).tiny)
    low = np.floor(weights / step)
    lost = weights / step - low
    rank = np.argsort(np.argsort(-lost, axis=0), axis=0)
    return ((low + (rank < np.round(lost.sum(axis=0)))) * step).reshape(kernel.shape)


def _load_litert(path: Path, num_sizes: int = 1) -> Predictor:
    """Load a model that stays laid out for as many sizes: a new one costs a sixth of an answer."""
    from ai_edge_litert.interpreter import Interpreter

    threads = min(_MAX_THREADS, os.cpu_count() or 1)
    interpreters = deque(Interpreter(str(path), num_threads=threads) for _ in range(num_sizes))
    (image,) = interpreters[0].get_input_details()
    (answer,) = interpreters[0].get_output_details()

    def is_laid_out(shape: tuple[int, ...]) -> bool:
        return tuple(interpreters[0].get_input_details()[0]["shape"]) == shape

    def predict(images: np.ndarray) -> np.ndarray:
        if not is_laid_out(images.shape):
            interpreters.rotate()
        interpreter = interpreters[0]
        if not is_laid_out(images.shape):
            interpreter.resize_tensor_input(image["index"], images.shape)
            interpreter.allocate_tensors()
        interpreter.set_tensor(image["index"], images.astype(np.float32))
        interpreter.invoke()
        return interpreter.get_tensor(answer["index"])

    for each in interpreters:
        each.allocate_tensors()
    return predict


def _write_onnx(model: keras.Model, path: Path, crops: Rows) -> None:
    model(np.zeros((1, *model.input_shape[1:]), np.float32))  # Keras wants it to have been called.
    with warnings.catch_warnings():
        # Keras asks for np.object, which NumPy no longer has, and is warned of it.
        warnings.simplefilter("ignore", FutureWarning)
        model.export(str(path), format="onnx", verbose=False)
    _raise_scales(path)


def _raise_scales(path: Path) -> None:
    """Let the views of a face have the sizes that they should.

    tf2onnx writes by how much an image is scaled, in float32, and runtimes cut off the product: of
    68 px and a little less than 82/68 they make 81. The next larger number is enough.
    """
    import onnx

    written = onnx.load(path)
    graph = written.graph
    scales = {node.input[2] for node in graph.node if node.op_type == "Resize"}
    for tensor in graph.initializer:
        if tensor.name in scales and tensor.data_type == onnx.TensorProto.FLOAT:
            factors = onnx.numpy_helper.to_array(tensor)
            raised = np.where(factors == 1, factors, np.nextafter(factors, np.float32(np.inf)))
            tensor.CopyFrom(onnx.numpy_helper.from_array(raised, tensor.name))
    onnx.save(written, path)


def _load_onnx(path: Path) -> Predictor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda crops: session.run(None, {name: crops.astype(np.float32)})[0]


def _write_openvino(model: keras.Model, path: Path, crops: Rows) -> None:
    import openvino

    # Keras hands over a function instead of a folder, which OpenVINO 2026.4 stumbles over in
    # Python 3.13.
    with tempfile.TemporaryDirectory() as folder:
        model.export(folder, format="tf_saved_model", verbose=False)
        openvino.save_model(openvino.convert_model(folder), path, compress_to_fp16=False)


def _load_openvino(path: Path) -> Predictor:
    import openvino

    compiled = openvino.Core().compile_model(str(path), "CPU")
    return lambda crops: np.array(compiled(crops.astype(np.float32))[0])


_ONNX = ("onnx", "tf2onnx", "onnxruntime")
FORMATS = {
    "litert": Format(_LITERT_FILE, ("ai_edge_litert",), "litert", _write_litert, _load_litert),
    "litert-dynamic": Format(
        _LITERT_FILE, ("ai_edge_litert",), "litert", _write_litert_dynamic, _load_litert
    ),
    "litert-int8": Format(
        _LITERT_FILE, ("ai_edge_litert",), "litert", _write_litert_int8, _load_litert, True
    ),
    "onnx": Format("model.onnx", _ONNX, "onnx", _write_onnx, _load_onnx),
    "openvino": Format("model.xml", ("openvino",), "openvino", _write_openvino, _load_openvino),
}
