"""Write a model as a versioned SavedModel: `python -m fmd_tf.export --model FILE`.

`--format litert` and others write it for other runtimes instead, see `fmd_tf.formats`.

Contract of the signatures, all preprocessing inside; a batch is the rows of one request:

- `serving_default`: `image_bytes` string [batch], one encoded face crop each (JPEG, PNG, WebP or
  BMP).
- `pixels`: `pixels` float32 [batch, height, width, 3], face crops of any one size, RGB 0-255.
  uint8 pixels are sent as they are in JSON, where a float input takes integers; over gRPC or in
  Python they are cast to float32 first, which loses nothing.
- `faces`: `image_bytes`, encoded photos, and `boxes` float32, pixels of the photo as in
  `fmd_tf.boxes`. Columnar: one photo, a scalar or [1], and boxes [num_faces, 4]. Row format: an
  object for each photo with its `boxes` [num_faces, 4], equally many in each, or one box [4].
  Either way the answer has a row for each box, in their order, and cuts as training does: boxes
  are clipped to the photo, then `crop_faces` with the card's padding and shape.
- `photo`, where a detector is given: `image_bytes`, one encoded photo, a scalar or [1]. It is
  turned upright as its EXIF orientation says, its faces are found and cut as by `faces`. A row for
  each face, none for a photo without: also `boxes` float32 [num_faces, 4] in pixels of the upright
  photo, and `face_scores` float32 [num_faces], falling.

All return, a row for each face: `label` string [batch], `score` float32 [batch],
`probabilities` float32 [batch, num_classes] and `class_names` string [batch, num_classes] (every
row has them because TF Serving's row format wants equal first dimensions).

A crop image goes through `crop_faces` too, as one box without padding: it is scaled, and made
square by repeating its edge where the card says square. One of the model's own size passes
unchanged. Weights are constants of the graph; calls of the model from concurrent requests are
batched after decoding, so that an image that cannot be decoded fails its own request only.
"""

from __future__ import annotations

import argparse
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

from fmd_tf.arguments import add_detector_size, at_least, make_parser
from fmd_tf.detector import DetectorCard, find_faces, load_detector
from fmd_tf.errors import UserError, command_line
from fmd_tf.evaluate import load_faces, select_part
from fmd_tf.formats import (
    FORMATS,
    MAX_F1_LOSS,
    SAFEST,
    SAVED_MODEL,
    Predictor,
    compare,
    export_format,
    format_comparison,
    load_format,
    load_saved_model,
    require_format,
)
from fmd_tf.freezing import fold_batch_norm, freeze
from fmd_tf.input_pipeline import Crops, crop_faces, crop_windows, decode_photo, decode_upright
from fmd_tf.model import ModelCard, load_model
from fmd_tf.model_card import write_cards
from fmd_tf.publish import publishing, require_free, versions
from fmd_tf.splits import MAX_DISTANCE

Outputs = dict[str, tf.Tensor]
Classifier = Callable[[tf.Tensor], Outputs]
Detector = tuple[keras.Model, DetectorCard]

MAX_PIXELS = 50_000_000
MAX_BATCH = 1024
# Of a JPEG. Encoders write ten for a progressive one.
MAX_SCANS = 100
# Measured with ResNet50 at 112 px on two cores: waiting for a fuller batch (1 or 5 ms) costs a lone
# client that time and gains nothing at 16 clients; one thread or four are no better than two.
# All sizes are allowed, so that no batch is padded.
_BATCH_SIZES = list(range(1, 17))
_BATCH_THREADS = 2
_BATCH_TIMEOUT_MICROS = 0


class ExportError(UserError):
    """A SavedModel cannot be written."""


@command_line
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the process' exit code."""
    options = _parse(argv)
    # Before minutes are spent on reading faces.
    require_free(_target(options), options.overwrite)
    if options.format != SAVED_MODEL:
        require_format(options.format, has_detector=options.detector is not None)
    model, card = load_model(options.model)
    if options.format == SAVED_MODEL:
        _export_saved_model(model, card, options)
    else:
        _export_format(model, card, options)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("export", "Write a model for serving.")
    add = parser.add_argument
    add("--model", type=Path, required=True, help="best_model.keras of a training")
    add("--format", choices=(SAVED_MODEL, *FORMATS), default=SAVED_MODEL, help="what to write")
    add("--detector", type=Path, help="best_detector.keras, to find faces too")
    add_detector_size(parser)
    add("--output", type=Path, help="folder (default: savedmodel/face_mask, or exports/FORMAT)")
    add("--version", type=at_least(1), help="version number (default: one more than the last)")
    add("--overwrite", action="store_true", help="replace that version, or that folder")
    add("--data-dir", type=Path, help="VOC folder to compare with the model on; int8 needs it")
    add("--split-file", type=Path, help="split.json: calibrate on train, compare on test")
    add("--group-distance", type=at_least(0), default=MAX_DISTANCE, help="as for training (bits)")
    add("--skip-invalid", action="store_true", help="leave out invalid annotations")
    options = parser.parse_args(argv)
    if options.format != SAVED_MODEL and options.version:
        parser.error("--version is for --format savedmodel")
    if options.detector_size and not options.detector:
        parser.error("--detector-size needs --detector")
    if options.split_file and not options.data_dir:
        parser.error("--split-file needs --data-dir")
    name = "savedmodel/face_mask" if options.format == SAVED_MODEL else f"exports/{options.format}"
    options.output = options.output or Path(name)
    return options


def _target(options: argparse.Namespace) -> Path:
    """Return the folder that is to appear."""
    if options.format != SAVED_MODEL:
        return options.output
    return options.output / str(options.version or _next_version(options.output))


def _detector(options: argparse.Namespace) -> Detector | None:
    if options.detector is None:
        return None
    return load_detector(options.detector, options.detector_size)


def _load_crops(card: ModelCard, options: argparse.Namespace) -> Crops:
    return load_faces(options.data_dir, card, options.skip_invalid, options.group_distance)[0]


def _export_saved_model(model: keras.Model, card: ModelCard, options: argparse.Namespace) -> None:
    detector = _detector(options)
    test = None
    if options.data_dir:
        crops = _load_crops(card, options)
        test = select_part(crops, card, options.split_file, "test")
    path = export_saved_model(
        model, card, options.output, options.version, options.overwrite, detector
    )
    print(f"SavedModel: {path}")
    if test is not None:
        _compare(model, load_saved_model(path), test, options)


def _export_format(model: keras.Model, card: ModelCard, options: argparse.Namespace) -> None:
    """Write another format, load it again, and compare it with the model."""
    detector = _detector(options)
    output = options.output
    train = test = None
    if options.data_dir:
        crops = _load_crops(card, options)
        train = select_part(crops, card, options.split_file, "train").images
        test = select_part(crops, card, options.split_file, "test")
    export_format(options.format, model, card, output, options.overwrite, train, detector)
    files = [path for pattern in ("model.*", "detector.*") for path in output.glob(pattern)]
    size = sum(path.stat().st_size for path in files) / 1e6
    print(f"{options.format}: {output} ({size:.1f} MB)")
    predictor = load_format(options.format, output)
    if test is not None:
        _compare(model, predictor, test, options)


def _compare(
    model: keras.Model, predictor: Predictor, test: Crops, options: argparse.Namespace
) -> None:
    """Print what the format loses, and what the figures are worth."""
    comparison = compare(model, predictor, test)
    print(format_comparison(comparison))
    if comparison.macro_f1_loss > MAX_F1_LOSS and options.format not in (SAFEST, SAVED_MODEL):
        print(f"More than {100 * MAX_F1_LOSS:.1f} points are lost: {SAFEST} loses less.")
    if not options.split_file:
        print("Without --split-file these may be faces that it was trained on.")


def export_saved_model(
    model: keras.Model,
    card: ModelCard,
    output_dir: Path,
    version: int | None = None,
    overwrite: bool = False,
    detector: Detector | None = None,
) -> Path:
    """Write one version, which appears by a rename: a server never sees half of it.

    Args:
        model: The classifier.
        card: Its card.
        output_dir: Folder of the versions, `<output_dir>/<version>/saved_model.pb`.
        version: A number of at least 1; None takes one more than the highest there is.
        overwrite: Replace that version where it exists. TF Serving goes on serving the old one
            until it is started again: a new version number is the better way.
        detector: Face detector and its card, see `fmd_tf.detector`; adds the signature `photo`.

    Returns:
        The folder of the version.

    Raises:
        ExportError: The version is not usable, or model and card disagree.
        PublishError: The version exists already, or cannot be put into place.
    """
    _require_agreement(model, card)
    version = _next_version(output_dir) if version is None else version
    if version < 1:
        raise ExportError(f"--version: expected at least 1, got {version}")
    target = output_dir / str(version)
    with publishing(target, overwrite) as partial:
        _write(model, card, detector, partial)
    return target


def _require_agreement(model: keras.Model, card: ModelCard) -> None:
    """Fail where the card cannot belong to the model."""
    size, num_classes = card.image_size, len(card.class_names)
    if tuple(model.input_shape[1:]) != (size, size, 3):
        raise ExportError(
            f"expected a model with input [batch, {size}, {size}, 3] as its card says, got "
            f"{list(model.input_shape)}"
        )
    if tuple(model.output_shape[1:]) != (num_classes,):
        raise ExportError(
            f"expected a model with {num_classes} outputs, one for each class of its card, got "
            f"{list(model.output_shape)}"
        )


def _next_version(output_dir: Path) -> int:
    return max(versions(output_dir), default=0) + 1


def _write(model: keras.Model, card: ModelCard, detector: Detector | None, folder: Path) -> None:
    """Write graph and assets into a folder that no server looks at yet."""
    module = tf.Module()
    classify = _classifier(model, card)
    endpoints = {
        "serving_default": _bytes_endpoint(card, classify),
        "pixels": _pixels_endpoint(card, classify),
        "faces": _faces_endpoint(card, classify),
    }
    if detector:
        endpoints["photo"] = _photo_endpoint(card, classify, *detector)
    for name, endpoint in endpoints.items():
        setattr(module, f"endpoint_{name}", endpoint)
    # Nobody trains on from here, and EfficientNet's gradients cannot be saved from constants.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    try:
        tf.saved_model.save(module, str(folder), signatures=endpoints, options=options)
    except tf.errors.OpError as error:  # A full disk, for example.
        raise ExportError(f"{folder.parent} cannot be written: {error.message[:300]}") from error
    _write_assets(card, detector[1] if detector else None, folder / "assets.extra")
    # Servers run under users of their own.
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def _classifier(model: keras.Model, card: ModelCard) -> Classifier:
    """Return the function from crops float32 [batch, size, size, 3] to the outputs."""
    size = card.image_size
    folded = fold_batch_norm(model)
    spec = tf.TensorSpec([None, size, size, 3], tf.float32, name="crops")
    frozen = freeze(lambda images: folded(images, training=False), spec)
    batched = _batched(frozen, len(card.class_names))

    def classify(crops: tf.Tensor) -> Outputs:
        num_classes = len(card.class_names)
        # The batching op knows no empty batch.
        probabilities = tf.cond(
            tf.shape(crops)[0] > 0,
            lambda: batched(crops),
            lambda: tf.zeros([0, num_classes]),
        )
        class_names = tf.constant(card.class_names)
        return {
            "label": tf.gather(class_names, tf.argmax(probabilities, axis=1)),
            "score": tf.reduce_max(probabilities, axis=1),
            "probabilities": probabilities,
            "class_names": tf.repeat(class_names[None], tf.shape(probabilities)[0], axis=0),
        }

    return classify


def _batched(
    frozen: Callable[[tf.Tensor], tf.Tensor], num_classes: int
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Let concurrent requests share calls of the model (`tf.nondifferentiable_batch_function`).

    The raw op, because it takes a name: under the decorator's, two versions loaded into one eager
    process would share one queue, and one version would answer for the other.
    """
    shared_name = f"fmd_tf-{uuid.uuid4().hex}"

    def call(crops: tf.Tensor) -> tf.Tensor:
        (probabilities,) = tf.raw_ops.BatchFunction(
            in_tensors=[crops],
            captured_tensors=[],
            f=frozen,
            num_batch_threads=_BATCH_THREADS,
            max_batch_size=MAX_BATCH,
            batch_timeout_micros=_BATCH_TIMEOUT_MICROS,
            allowed_batch_sizes=_BATCH_SIZES,
            max_enqueued_batches=4 * MAX_BATCH,
            enable_large_batch_splitting=True,
            shared_name=shared_name,
            Tout=[tf.float32],
        )
        return tf.ensure_shape(probabilities, [None, num_classes])

    return call


def _bytes_endpoint(card: ModelCard, classify: Classifier) -> tf.types.experimental.GenericFunction:
    """Return `serving_default`."""
    size = card.image_size

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def serving_default(image_bytes: tf.Tensor) -> Outputs:
        image_bytes = tf.ensure_shape(image_bytes, [None])
        with tf.control_dependencies([_require_batch(tf.size(image_bytes))]):
            image_bytes = tf.identity(image_bytes)
        sizes = tf.map_fn(
            _encoded_size, image_bytes, fn_output_signature=tf.TensorSpec([2], tf.float64)
        )
        if card.square:
            sizes = tf.repeat(tf.reduce_max(sizes, axis=1, keepdims=True), 2, axis=1)
        with tf.control_dependencies([_require_pixels(sizes)]):
            image_bytes = tf.identity(image_bytes)
        crops = tf.map_fn(
            lambda each: _resize(decode_photo(each), card),
            image_bytes,
            fn_output_signature=tf.TensorSpec([size, size, 3], tf.float32),
        )
        return classify(crops)

    return serving_default


def _pixels_endpoint(
    card: ModelCard, classify: Classifier
) -> tf.types.experimental.GenericFunction:
    """Return `pixels`."""
    size = card.image_size

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32, name="pixels")])
    def pixels(pixels: tf.Tensor) -> Outputs:
        pixels = tf.ensure_shape(pixels, [None, None, None, 3])
        shape = tf.shape(pixels)
        sides = tf.cast(tf.repeat(shape[None, 1:3], shape[0], axis=0), tf.float64)
        if card.square:
            sides = tf.repeat(tf.reduce_max(sides, axis=1, keepdims=True), 2, axis=1)
        valid = tf.reduce_all((pixels >= 0.0) & (pixels <= 255.0))
        checks = [
            _require_batch(shape[0]),
            _require_pixels(sides),
            tf.debugging.Assert(valid, ["expected pixels of 0 to 255"]),
            tf.debugging.Assert(
                tf.reduce_all(shape[1:3] > 0), ["expected a height and width of at least 1"]
            ),
        ]
        with tf.control_dependencies(checks):
            pixels = tf.identity(pixels)
        crops = tf.cond(
            tf.reduce_all(shape[1:3] == size),
            lambda: pixels,
            lambda: tf.map_fn(
                lambda each: _resize(each, card),
                pixels,
                fn_output_signature=tf.TensorSpec([size, size, 3], tf.float32),
            ),
        )
        return classify(tf.ensure_shape(crops, [None, size, size, 3]))

    return pixels


def _faces_endpoint(card: ModelCard, classify: Classifier) -> tf.types.experimental.GenericFunction:
    """Return `faces`; its inputs have no fixed rank, so that both JSON formats fit."""
    size = card.image_size

    @tf.function(
        input_signature=[
            tf.TensorSpec(None, tf.string, name="image_bytes"),
            tf.TensorSpec(None, tf.float32, name="boxes"),
        ]
    )
    def faces(image_bytes: tf.Tensor, boxes: tf.Tensor) -> Outputs:
        photos, boxes = _group_boxes(image_bytes, boxes)
        sizes = tf.map_fn(_encoded_size, photos, fn_output_signature=tf.TensorSpec([2], tf.float64))
        with tf.control_dependencies([_require_pixels(sizes)]):
            photos = tf.identity(photos)
        crops = tf.map_fn(
            lambda each: _cut_faces(decode_photo(each[0]), each[1], card),
            (photos, boxes),
            fn_output_signature=tf.TensorSpec([None, size, size, 3], tf.uint8),
            parallel_iterations=1,
        )
        return classify(tf.cast(tf.reshape(crops, [-1, size, size, 3]), tf.float32))

    return faces


def _photo_endpoint(
    card: ModelCard, classify: Classifier, detector: keras.Model, detector_card: DetectorCard
) -> tf.types.experimental.GenericFunction:
    """Return `photo`."""
    spec = tf.TensorSpec([None, None, None, 3], tf.float32, name="photos")
    frozen = freeze(lambda images: detector(images, training=False), spec)
    size = card.image_size

    def detect(images: tf.Tensor, training: bool) -> tf.Tensor:
        (output,) = frozen(images)
        return tf.ensure_shape(output, [None, None, None, 5])

    @tf.function(input_signature=[tf.TensorSpec(None, tf.string, name="image_bytes")])
    def photo(image_bytes: tf.Tensor) -> Outputs:
        message = "expected one photo, got"
        check = tf.debugging.Assert(tf.size(image_bytes) == 1, [message, tf.size(image_bytes)])
        with tf.control_dependencies([check]):
            encoded = tf.reshape(image_bytes, [1])[0]
        with tf.control_dependencies([_require_pixels(_encoded_size(encoded)[None])]):
            pixels = decode_upright(tf.identity(encoded))
        boxes, face_scores = find_faces(detect, detector_card, pixels)
        crops = tf.ensure_shape(_cut_faces(pixels, boxes, card), [None, size, size, 3])
        faces = classify(tf.cast(crops, tf.float32))
        return {**faces, "boxes": boxes, "face_scores": face_scores}

    return photo


def _group_boxes(image_bytes: tf.Tensor, boxes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return photos [num_photos] and boxes [num_photos, boxes of each, 4] of any layout."""
    rank, dimensions = tf.rank(boxes), tf.concat([tf.shape(boxes), [0]], axis=0)
    photos = tf.reshape(image_bytes, [-1])
    num_photos = tf.size(photos)
    layout = (
        (tf.rank(image_bytes) <= 1)
        & (num_photos >= 1)
        & (
            (tf.size(boxes) == 0)
            | (
                (rank >= 2)
                & (rank <= 3)
                & (dimensions[-2] == 4)
                & ((dimensions[0] == num_photos) | ((num_photos == 1) & (rank == 2)))
            )
        )
    )
    check = tf.debugging.Assert(
        layout,
        [
            "expected one photo and boxes [num_faces, 4], or boxes [num_photos, num_faces, 4]; "
            "got image_bytes and boxes of shapes",
            tf.shape(image_bytes),
            tf.shape(boxes),
        ],
    )
    with tf.control_dependencies([check, _require_batch(tf.size(boxes) // 4)]):
        each = tf.size(boxes) // (4 * tf.maximum(num_photos, 1))
        return tf.identity(photos), tf.reshape(boxes, tf.stack([num_photos, each, 4]))


def _cut_faces(photo: tf.Tensor, boxes: tf.Tensor, card: ModelCard) -> tf.Tensor:
    """Cut faces as in training, where annotations are clipped to their photo."""
    height, width = tf.unstack(tf.cast(tf.shape(photo)[:2], tf.float32))
    clipped = tf.clip_by_value(boxes, 0.0, tf.stack([width, height, width, height]))
    # NaN compares false, so it is refused here.
    valid = tf.reduce_all(clipped[:, 2:] > clipped[:, :2])
    check = tf.debugging.Assert(
        valid,
        [
            "expected boxes xmin, ymin, xmax, ymax in pixels with an area inside the photo; got",
            boxes,
        ],
    )
    with tf.control_dependencies([check]):
        windows = crop_windows(clipped, card.padding, card.square)
    sides = tf.cast(windows[:, 2:] - windows[:, :2], tf.float64)
    with tf.control_dependencies([_require_pixels(sides)]):
        clipped = tf.identity(clipped)
    return crop_faces(photo, clipped, card.image_size, card.padding, card.square)


def _resize(image: tf.Tensor, card: ModelCard) -> tf.Tensor:
    """Scale a face crop to the model's input with the operations that cut crops in training."""
    height, width = tf.unstack(tf.shape(image)[:2])
    whole = tf.stack([[0, 0, width, height]])
    crop = crop_faces(image, whole, card.image_size, padding=0.0, square=card.square)[0]
    return tf.cast(crop, tf.float32)


def _require_pixels(sides: tf.Tensor) -> tf.Operation:
    """Refuse images whose sides, float64 [number, 2], have too many pixels in sum."""
    pixels = tf.reduce_sum(tf.reduce_prod(sides, axis=1))
    message = f"expected images of at most {MAX_PIXELS} pixels in a request, got"
    return tf.debugging.Assert(pixels <= MAX_PIXELS, [message, pixels])


def _require_batch(number: tf.Tensor) -> tf.Operation:
    """Refuse more faces than the batching op takes, before they are cut out and fill the memory."""
    message = f"expected at most {MAX_BATCH} faces in a request, got"
    return tf.debugging.Assert(number <= MAX_BATCH, [message, number])


def _encoded_size(image_bytes: tf.Tensor) -> tf.Tensor:
    """Read height and width, float64 [2], from the header: nothing is decoded yet.

    GIF is refused: its decoder reads all frames of any size before the first is returned.
    """
    padded = tf.strings.join([tf.strings.substr(image_bytes, 0, 32), tf.constant(bytes(32))])
    header = tf.io.decode_raw(tf.strings.substr(padded, 0, 32), tf.uint8)
    header = tf.cast(tf.ensure_shape(header, [32]), tf.int64)

    def starts(magic: bytes, offset: int = 0) -> tf.Tensor:
        return tf.reduce_all(header[offset : offset + len(magic)] == list(magic))

    def unknown() -> tf.Tensor:
        message = "Unknown image file format. One of JPEG, PNG, WebP, BMP required."
        with tf.control_dependencies([tf.debugging.Assert(False, [message])]):
            return tf.zeros([2], tf.float64)

    # The decoder also takes what has no chunk's name, and a size elsewhere.
    has_chunk = starts(b"VP8 ", 12) | starts(b"VP8L", 12) | starts(b"VP8X", 12)
    readers = [
        (starts(b"\xff\xd8\xff"), lambda: _jpeg_size(image_bytes)),
        (
            starts(b"\x89PNG\r\n\x1a\n"),
            lambda: _number(header, [[23, 22, 21, 20], [19, 18, 17, 16]]),
        ),
        (starts(b"BM"), lambda: _bmp_size(image_bytes, header)),
        (starts(b"RIFF") & starts(b"WEBP", 8) & has_chunk, lambda: _webp_size(header, starts)),
    ]
    return tf.case(readers, default=unknown)


def _number(header: tf.Tensor, offsets: Sequence[Sequence[int]]) -> tf.Tensor:
    """Read unsigned numbers, float64, from bytes at these offsets, the lowest byte first."""
    places = tf.constant([256**place for place in range(len(offsets[0]))], tf.int64)
    return tf.cast(tf.reduce_sum(tf.gather(header, offsets) * places, axis=1), tf.float64)


def _jpeg_size(image_bytes: tf.Tensor) -> tf.Tensor:
    """Refuse thousands of scans too: each takes a few bytes, and a pass over all pixels.

    A scan begins with FF DA and a length of at most 14 (ITU T.81, B.2.3). Other bytes hardly ever
    look so, be they of a thumbnail or of a film after the photo.
    """
    data = tf.io.decode_raw(image_bytes, tf.uint8)
    begins = (data[:-3] == 0xFF) & (data[1:-2] == 0xDA) & (data[2:-1] == 0) & (data[3:] <= 14)
    scans = tf.reduce_sum(tf.cast(begins, tf.int32))
    message = f"expected a JPEG of at most {MAX_SCANS} scans, got"
    with tf.control_dependencies([tf.debugging.Assert(scans <= MAX_SCANS, [message, scans])]):
        return tf.cast(tf.image.extract_jpeg_shape(image_bytes)[:2], tf.float64)


def _bmp_size(image_bytes: tf.Tensor, header: tf.Tensor) -> tf.Tensor:
    """Rows from the top have a negative height.

    A palette that is not 256 grays in order is refused: its numbers would be decoded as grays.
    """
    sides = _number(header, [[22, 23, 24, 25], [18, 19, 20, 21]])
    is_direct = header[28] != 8
    start = 14 + tf.cast(_number(header, [[14, 15]])[0], tf.int32)
    grays = b"".join(bytes([value, value, value, 0]) for value in range(256))
    start = tf.where(is_direct, 0, tf.minimum(start, tf.strings.length(image_bytes)))
    palette = tf.strings.substr(image_bytes, start, len(grays))
    message = "expected a BMP without a palette; store it as PNG"
    check = tf.debugging.Assert(is_direct | (palette == grays), [message])
    with tf.control_dependencies([check]):
        return tf.where(sides >= 2.0**31, 2.0**32 - sides, sides)


def _webp_size(header: tf.Tensor, starts: Callable[[bytes, int], tf.Tensor]) -> tf.Tensor:
    """See RFC 9649: lossy 14 bits each, lossless 14 bits each packed, extended 24 bits each."""
    packed = _number(header, [[21, 22, 23, 24]])[0]
    lossless = tf.stack([packed // 2**14 % 2**14, packed % 2**14]) + 1.0
    lossy = _number(header, [[28, 29], [26, 27]]) % 2**14
    extended = _number(header, [[27, 28, 29], [24, 25, 26]]) + 1.0
    simple = tf.where(starts(b"VP8L", 12), lossless, lossy)
    return tf.where(starts(b"VP8X", 12), extended, simple)


def _write_assets(card: ModelCard, detector_card: DetectorCard | None, folder: Path) -> None:
    """Write class names, cards and warm-up requests; TF Serving replays the last on loading."""
    folder.mkdir()
    write_cards(folder, card, detector_card)
    with tf.io.TFRecordWriter(str(folder / "tf_serving_warmup_requests")) as writer:
        for log in _warmup_logs(card.image_size, photo=detector_card is not None):
            writer.write(log.SerializeToString())


def _warmup_logs(size: int, photo: bool) -> list[prediction_log_pb2.PredictionLog]:
    """Return a request for each signature, and one that fills a batch."""
    image = np.full((size, size, 3), 127, np.uint8)
    encoded = tf.io.encode_jpeg(image).numpy()
    box = np.array([[0, 0, size, size]], np.float32)
    requests = [
        ("serving_default", {"image_bytes": np.array([encoded], object)}),
        ("serving_default", {"image_bytes": np.array([encoded] * _BATCH_SIZES[-1], object)}),
        ("pixels", {"pixels": image[None].astype(np.float32)}),
        ("faces", {"image_bytes": np.array([encoded], object), "boxes": box}),
    ]
    if photo:
        requests.append(("photo", {"image_bytes": np.array([encoded], object)}))
    return [_warmup_log(signature, inputs) for signature, inputs in requests]


def _warmup_log(signature: str, inputs: dict) -> prediction_log_pb2.PredictionLog:
    request = predict_pb2.PredictRequest(
        model_spec=model_pb2.ModelSpec(signature_name=signature),
        inputs={name: tf.make_tensor_proto(value) for name, value in inputs.items()},
    )
    return prediction_log_pb2.PredictionLog(
        predict_log=prediction_log_pb2.PredictLog(request=request)
    )


if __name__ == "__main__":
    sys.exit(main())
