"""TFDS builder over a folder of Pascal VOC annotations.

Contract: one TFDS split, "train", with every photo: `fmd_tf.splits` splits them. An example is
`image` uint8 [height, width, 3] RGB, `image/filename`, `group` int64 (see
`splits.group_photos`), and `faces`: `bbox` int32 [num_faces, 4] in pixels as in `fmd_tf.boxes`,
and `label`.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image
from tensorflow_datasets.core.shuffle import HKEY_SIZE

from fmd_tf import CLASS_NAMES
from fmd_tf.publish import PublishError
from fmd_tf.splits import MAX_DISTANCE, group_photos, series_sizes
from fmd_tf.voc import Annotation, AnnotationError, Folder, Problem, read_folder

_KAGGLE = "https://www.kaggle.com/datasets/andrewmvd/face-mask-detection"


@dataclass
class FaceMaskConfig(tfds.core.BuilderConfig):
    """The data set made from one folder, as it was when it was read.

    Attributes:
        folder: Its valid annotations; None for the folder in TFDS' manual directory.
        group_distance: See `splits.group_photos`.
    """

    folder: Folder | None = field(default=None, repr=False)
    group_distance: int = MAX_DISTANCE


class Builder(tfds.core.GeneratorBasedBuilder):
    """Photos with boxes and labels of faces, from a Pascal VOC folder."""

    name = "face_mask_dataset"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Initial release."}
    BUILDER_CONFIGS = [
        FaceMaskConfig(name="kaggle", description="Kaggle's andrewmvd/face-mask-detection.")
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""
    Download the archive from {_KAGGLE} and extract it, so that this folder holds `images/` and
    `annotations/`.
    """

    def _info(self) -> tfds.core.DatasetInfo:
        folder = self.builder_config.folder
        class_names = folder.class_names if folder else CLASS_NAMES
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "image/filename": tfds.features.Text(),
                    "group": tfds.features.Scalar(tf.int64),
                    "faces": tfds.features.Sequence(
                        {
                            "bbox": tfds.features.Tensor(shape=(4,), dtype=tf.int32),
                            "label": tfds.features.ClassLabel(names=list(class_names)),
                        }
                    ),
                }
            ),
            homepage=_KAGGLE,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        folder = self.builder_config.folder or read_folder(dl_manager.manual_dir)
        return {"train": self._generate_examples(folder.annotations)}

    def _generate_examples(
        self, annotations: Sequence[Annotation]
    ) -> Iterator[tuple[int, dict[str, object]]]:
        groups = group_photos(annotations, self.builder_config.group_distance)
        # TFDS sorts keys by bucket in memory; those of small numbers would all be in the first.
        step = 2**HKEY_SIZE // len(annotations)
        for index, annotation in enumerate(annotations):
            name = annotation.photo.name
            yield (
                index * step,
                {
                    "image": _photo(annotation.photo),
                    "image/filename": name,
                    "group": groups[name],
                    "faces": [
                        {"bbox": list(face.box), "label": face.label} for face in annotation.faces
                    ],
                },
            )


def _photo(path: Path) -> str | np.ndarray:
    """Keep files as they are, but WebP, which TFDS decodes as an animation.

    Raises:
        AnnotationError: Pillow has read the photo, and TensorFlow cannot.
    """
    with Image.open(path) as image:  # By content: many a file named .jpg is WebP.
        if image.format == "WEBP":
            return np.asarray(image.convert("RGB"))
    try:
        tf.io.decode_image(path.read_bytes(), channels=3, expand_animations=False)
    except tf.errors.OpError as error:
        reason = error.message.rpartition("}}")[2].partition("[Op:")[0].strip()[:200]
        problem = Problem(path, None, f"expected a photo, got: {reason}; store it as PNG anew")
        raise AnnotationError([problem]) from error
    return str(path)


def load_photos(
    data_dir: Path | str,
    class_names: Sequence[str] = CLASS_NAMES,
    skip_invalid: bool = False,
    tfds_dir: Path | str | None = None,
    group_distance: int = MAX_DISTANCE,
) -> tuple[tf.data.Dataset, Folder]:
    """Check a folder, prepare it as a TFDS data set once, and return its photos.

    The prepared copy is found again by the content of the annotations and the size and time of
    the photos, so a changed folder is prepared anew. TFDS prepares beside and renames.

    Args:
        data_dir: Folder with `images/` and `annotations/`.
        class_names: Names of the classes, in order.
        skip_invalid: See `voc.read_folder`.
        tfds_dir: Where TFDS keeps prepared data; default: TFDS' own (`~/tensorflow_datasets`,
            or the environment variable TFDS_DATA_DIR).
        group_distance: See `splits.group_photos`.

    Returns:
        The examples in the order of the photos, decoded; and the folder as it was read.

    Raises:
        AnnotationError: See `voc.read_folder`; or TensorFlow cannot decode a photo.
    """
    folder = read_folder(data_dir, class_names, skip_invalid)
    name = f"voc_{_fingerprint(folder, group_distance)}"
    config = FaceMaskConfig(name=name, folder=folder, group_distance=group_distance)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()  # A moving bar is no use in a log file.
    builder = _prepare(config, tfds_dir)
    read_config = tfds.ReadConfig(try_autocache=False, interleave_cycle_length=1)
    return builder.as_dataset(split="all", shuffle_files=False, read_config=read_config), folder


def _prepare(config: FaceMaskConfig, tfds_dir: Path | str | None) -> Builder:
    """Prepare a folder, unless that has been done."""
    with _silent_logging():
        builder = Builder(config=config, data_dir=tfds_dir)
    try:
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
    except RuntimeError as error:  # What TensorFlow says when it cannot write.
        raise PublishError(f"{builder.data_dir} cannot be written: {str(error)[:300]}") from error
    except OSError:
        # Another run may have prepared the same folder meanwhile; the first to rename wins.
        with _silent_logging():
            builder = Builder(config=config, data_dir=tfds_dir)
        if not builder.is_prepared():
            raise
    return builder


@contextmanager
def _silent_logging() -> Iterator[None]:
    """Silence TFDS, which warns of every configuration that is not in its catalogue."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _fingerprint(folder: Folder, group_distance: int) -> str:
    """Return a digest of what the examples are made from, grouping included."""
    settings = [
        folder.class_names,
        group_distance,
        series_sizes(group_distance),
        str(Builder.VERSION),
    ]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for annotation in folder.annotations:
        stat = annotation.photo.stat()
        faces = [(face.label, face.box) for face in annotation.faces]
        record = [annotation.photo.name, stat.st_size, stat.st_mtime_ns, faces]
        digest.update(json.dumps(record).encode())
    return digest.hexdigest()[:16]
