"""Write a model as a versioned SavedModel for TF Serving.

Contract of the signatures, all preprocessing inside:

- `serving_default`: `image_bytes` string [batch], one encoded face crop each (JPEG, PNG, WebP,
  BMP or GIF).
- `pixels`: `pixels` float32 [batch, height, width, 3], RGB 0-255, face crops of any size.

Both return, a row an image: `label` string [batch], `score` float32 [batch], `probabilities`
float32 [batch, num_classes] and `class_names` string [batch, num_classes].
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import tensorflow as tf

from fmd_tf.input_pipeline import crop_faces, decode_photo
from fmd_tf.model import ModelCard, ModelError, load_model

Outputs = dict[str, tf.Tensor]


class ExportError(ValueError):
    """A SavedModel cannot be written."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the process' exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m fmd_tf.export", description="Write a SavedModel for TF Serving."
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, help="best_model.keras of a training")
    add("--output", type=Path, default=Path("savedmodel/face_mask"), help="folder of versions")
    add("--version", type=int, help="version number (default: one more than the last)")
    add("--overwrite", action="store_true", help="replace that version")
    arguments = parser.parse_args(argv)
    try:
        model, card = load_model(arguments.model)
        version = export_saved_model(
            model, card, arguments.output, arguments.version, arguments.overwrite
        )
    except (ExportError, ModelError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"SavedModel: {version}")
    return 0


def export_saved_model(
    model: keras.Model,
    card: ModelCard,
    output_dir: Path,
    version: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Write one version, which appears by a rename: a server never sees half of it.

    Args:
        model: The classifier.
        card: Its card.
        output_dir: Folder of the versions, `<output_dir>/<version>/saved_model.pb`.
        version: A number of at least 1; None takes one more than the highest there is.
        overwrite: Replace that version where it exists.

    Returns:
        The folder of the version.

    Raises:
        ExportError: The version is not usable, or exists already.
    """
    version = _next_version(output_dir) if version is None else version
    if version < 1:
        raise ExportError(f"--version: expected at least 1, got {version}")
    target = output_dir / str(version)
    if target.exists() and not overwrite:
        raise ExportError(f"{target} exists already; give another --version, or --overwrite")
    partial = output_dir / f".{version}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    _write(model, card, partial)
    replaced = output_dir / f".{version}.replaced"
    shutil.rmtree(replaced, ignore_errors=True)
    if target.exists():
        target.rename(replaced)
    partial.rename(target)
    shutil.rmtree(replaced, ignore_errors=True)
    return target


def _next_version(output_dir: Path) -> int:
    versions = [int(path.name) for path in output_dir.glob("*") if path.name.isdecimal()]
    return max(versions, default=0) + 1


def _write(model: keras.Model, card: ModelCard, folder: Path) -> None:
    """Write the signatures with Keras' ExportArchive, which TF Serving loads."""
    classify = _classifier(model, card)

    def from_bytes(image_bytes: tf.Tensor) -> Outputs:
        size = card.image_size
        crops = tf.map_fn(
            lambda each: _resize(decode_photo(each), size),
            image_bytes,
            fn_output_signature=tf.TensorSpec([size, size, 3], tf.uint8),
        )
        return classify(crops)

    def from_pixels(pixels: tf.Tensor) -> Outputs:
        size = card.image_size
        pixels = tf.ensure_shape(pixels, [None, None, None, 3])
        crops = tf.map_fn(
            lambda each: _resize(each, size),
            tf.saturate_cast(tf.round(pixels), tf.uint8),
            fn_output_signature=tf.TensorSpec([size, size, 3], tf.uint8),
        )
        return classify(crops)

    archive = keras.export.ExportArchive()
    archive.track(model)
    bytes_spec = tf.TensorSpec([None], tf.string, name="image_bytes")
    pixels_spec = tf.TensorSpec([None, None, None, 3], tf.float32, name="pixels")
    archive.add_endpoint("serving_default", from_bytes, [bytes_spec])
    archive.add_endpoint("pixels", from_pixels, [pixels_spec])
    archive.write_out(str(folder), verbose=False)


def _resize(image: tf.Tensor, size: int) -> tf.Tensor:
    """Resize a face crop with the operations that cut crops in training."""
    height, width = tf.unstack(tf.shape(image)[:2])
    return crop_faces(image, [[0, 0, width, height]], size, padding=0.0, square=False)[0]


def _classifier(model: keras.Model, card: ModelCard) -> Callable[[tf.Tensor], Outputs]:
    """Return the function from uint8 crops [batch, size, size, 3] to the outputs."""

    def classify(crops: tf.Tensor) -> Outputs:
        probabilities = model(tf.cast(crops, tf.float32), training=False)
        class_names = tf.constant(card.class_names)
        return {
            "label": tf.gather(class_names, tf.argmax(probabilities, axis=1)),
            "score": tf.reduce_max(probabilities, axis=1),
            "probabilities": probabilities,
            "class_names": tf.repeat(class_names[None], tf.shape(probabilities)[0], axis=0),
        }

    return classify


if __name__ == "__main__":
    sys.exit(main())
