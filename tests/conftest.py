"""Shared test data: a drawn data set, small VOC folders, and the real data where it is."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ["MPLBACKEND"] = "agg"
# TFDS reads it when it is imported; it would prepare data in the user's home.
os.environ["TFDS_DATA_DIR"] = tempfile.mkdtemp(prefix="fmd_tf-")

import numpy as np
import pytest
from PIL import Image

from fmd_tf.sample_data import write_sample

atexit.register(shutil.rmtree, os.environ["TFDS_DATA_DIR"], ignore_errors=True)


@pytest.fixture(scope="session")
def sample_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample(tmp_path_factory.mktemp("sample") / "voc", num_photos=24, seed=1)


@pytest.fixture(scope="session")
def real_dir() -> Path:
    folder = os.environ.get("FMD_DATA_DIR")
    if not folder:
        pytest.skip("FMD_DATA_DIR names no folder with the real data")
    return Path(folder)


@pytest.fixture(scope="module")
def shallow_backbone() -> Iterator[None]:
    """Let "mobilenet" be a network that TensorFlow traces quickly, see `tests.backbone`."""
    from tests.backbone import make_shallow

    with pytest.MonkeyPatch.context() as patch:
        make_shallow(patch)
        yield


def voc_xml(
    filename: str,
    size: tuple[int, int] = (40, 30),
    faces: Sequence[tuple[str, Sequence[object]]] = (),
) -> str:
    """Return a VOC annotation; a face is (class name, (xmin, ymin, xmax, ymax))."""
    objects = "".join(
        f"\n<object><name>{name}</name><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>"
        f"<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
        for name, box in faces
    )
    return (
        f"<annotation><filename>{filename}</filename><size><width>{size[0]}</width>"
        f"<height>{size[1]}</height><depth>3</depth></size>{objects}</annotation>"
    )


@pytest.fixture
def voc_dir(tmp_path: Path) -> Path:
    return make_voc_dir(tmp_path)


def make_voc_dir(folder: Path) -> Path:
    """Make `voc` with one valid photo of 40 x 30 pixels and one face in it."""
    data_dir = folder / "voc"
    for name in ("images", "annotations"):
        (data_dir / name).mkdir(parents=True)
    add_photo(data_dir, "good", faces=[("with_mask", (2, 3, 12, 13))])
    return data_dir


def add_photo(
    data_dir: Path,
    stem: str,
    faces: Sequence[tuple[str, Sequence[object]]] = (),
    size: tuple[int, int] = (40, 30),
) -> None:
    """Add a photo of noise (its own for each name) and its annotation."""
    generator = np.random.default_rng(list(stem.encode()))
    small = generator.integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(small).resize(size).save(data_dir / "images" / f"{stem}.png")
    xml = voc_xml(f"{stem}.png", size, faces)
    (data_dir / "annotations" / f"{stem}.xml").write_text(xml)


@pytest.fixture(scope="session")
def tiny_classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="session")
def tiny_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of versions of the same classifier."""
    from fmd_tf.export import export_saved_model
    from tests.serving import CARD, tiny_model

    return export_saved_model(tiny_model(), CARD, tmp_path_factory.mktemp("export") / "tiny").parent


def save_tiny_classifier(folder: Path) -> Path:
    """Save a classifier with the real one's contract, see `tests.serving.tiny_model`."""
    # Imported here, so that tests without TensorFlow start quickly.
    from fmd_tf.model import save_model
    from tests.serving import CARD, tiny_model

    save_model(tiny_model(), CARD, folder / "tiny.keras")
    return folder / "tiny.keras"
