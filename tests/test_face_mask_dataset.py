from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import shuffle

from fmd_tf.face_mask_dataset import Builder, load_photos
from fmd_tf.face_mask_dataset.face_mask_dataset_builder import FaceMaskConfig
from fmd_tf.voc import AnnotationError, read_folder
from tests.conftest import add_photo


class FaceMaskDatasetTest(tfds.testing.DatasetBuilderTestCase):
    """TFDS' own tests of a builder, on the drawn photos in `dummy_data`."""

    DATASET_CLASS = Builder
    SPLITS = {"train": 3}
    EXAMPLE_DIR = Path(__file__).parent.parent / "fmd_tf/face_mask_dataset/dummy_data"
    SKIP_CHECKSUMS = True


def test_examples_carry_photo_name_boxes_labels_and_group(voc_dir: Path, tmp_path: Path):
    add_photo(voc_dir, "nobody")
    photos, folder = load_photos(voc_dir, tfds_dir=tmp_path / "tfds")
    examples = list(photos.as_numpy_iterator())
    assert [example["image/filename"] for example in examples] == [b"good.png", b"nobody.png"]
    assert examples[0]["faces"]["bbox"].tolist() == [[2, 3, 12, 13]]
    assert examples[0]["faces"]["label"].tolist() == [0]
    assert examples[1]["faces"]["bbox"].shape == (0, 4)
    assert examples[0]["group"] != examples[1]["group"]
    with Image.open(folder.annotations[0].photo) as photo:
        np.testing.assert_array_equal(examples[0]["image"], np.asarray(photo))


def test_photos_stay_in_order_and_in_different_buckets_of_tfds(
    voc_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    names = [f"photo{number:02d}" for number in range(20)]
    for name in names:
        add_photo(voc_dir, name)
    largest = []
    read_values = shuffle._Bucket.read_values

    def spy(bucket: shuffle._Bucket):
        largest.append(len(bucket))
        return read_values(bucket)

    # As if the photos were larger than what TFDS keeps in memory.
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 1)
    monkeypatch.setattr(shuffle._Bucket, "read_values", spy)
    photos, _ = load_photos(voc_dir, tfds_dir=tmp_path / "tfds")
    found = [example["image/filename"].decode() for example in photos.as_numpy_iterator()]
    assert found == ["good.png", *(f"{name}.png" for name in names)]
    assert sum(largest) == 21 and max(largest) == 1


def test_a_changed_folder_is_prepared_anew(voc_dir: Path, tmp_path: Path):
    load_photos(voc_dir, tfds_dir=tmp_path / "tfds")
    add_photo(voc_dir, "more")
    photos, _ = load_photos(voc_dir, tfds_dir=tmp_path / "tfds")
    assert len(list(photos)) == 2


def test_two_runs_may_prepare_a_folder_at_once(
    voc_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    generate = Builder._generate_examples

    def overtaken(builder, *args):
        monkeypatch.setattr(Builder, "_generate_examples", generate)
        load_photos(voc_dir, tfds_dir=tmp_path / "tfds")
        return generate(builder, *args)

    monkeypatch.setattr(Builder, "_generate_examples", overtaken)
    photos, _ = load_photos(voc_dir, tfds_dir=tmp_path / "tfds")
    assert len(list(photos)) == 1


def test_tfds_load_by_name(voc_dir: Path, tmp_path: Path):
    photos = tfds.load(
        "face_mask_dataset",
        split="train",
        data_dir=tmp_path / "tfds",
        download_and_prepare_kwargs={
            "download_config": tfds.download.DownloadConfig(manual_dir=voc_dir)
        },
    )
    (example,) = photos
    assert example["image/filename"].numpy() == b"good.png"


def test_tfds_load_reads_the_prepared_copy(voc_dir: Path, tmp_path: Path):
    load_photos(voc_dir, tfds_dir=tmp_path / "tfds")
    (prepared,) = (tmp_path / "tfds" / "face_mask_dataset").glob("voc_*/1.0.0")
    assert len(list(tfds.builder_from_directory(prepared).as_dataset(split="train"))) == 1


@pytest.mark.parametrize("suffix", ["jpg", "webp", "bmp"])
def test_all_photo_formats_decode_to_rgb(voc_dir: Path, tmp_path: Path, suffix: str):
    """A uniform colour survives lossy formats nearly unchanged."""
    add_photo(voc_dir, "other")
    annotation = voc_dir / "annotations" / "other.xml"
    annotation.write_text(annotation.read_text().replace("other.png", f"other.{suffix}"))
    (voc_dir / "images" / "other.png").unlink()
    Image.new("RGB", (40, 30), (200, 100, 50)).save(voc_dir / "images" / f"other.{suffix}")
    photos, _ = load_photos(voc_dir, tfds_dir=tmp_path / "tfds")
    image = list(photos.as_numpy_iterator())[1]["image"]
    assert np.abs(image.astype(int) - (200, 100, 50)).max() <= 4


@pytest.mark.parametrize("kind", ["WEBP", "JPEG", "BMP"])
def test_a_photo_is_read_as_what_it_is_and_not_as_it_is_named(
    voc_dir: Path, tmp_path: Path, kind: str
):
    Image.new("RGB", (40, 30), (200, 100, 50)).save(voc_dir / "images" / "good.png", format=kind)
    photos, _ = load_photos(voc_dir, tfds_dir=tmp_path / "tfds")
    (example,) = photos.as_numpy_iterator()
    assert np.abs(example["image"].astype(int) - (200, 100, 50)).max() <= 4


def test_groups_may_be_smaller(voc_dir: Path, tmp_path: Path):
    """Two uniform photos are one group; one with an edge is another where only copies are."""
    pixels = np.zeros((30, 40, 3), np.uint8)
    for stem, edge in (("dark", 0), ("edge", 255)):
        add_photo(voc_dir, stem)
        pixels[:, 30:] = edge
        Image.fromarray(pixels).save(voc_dir / "images" / f"{stem}.png")

    def groups(distance: int) -> list[int]:
        photos, _ = load_photos(voc_dir, tfds_dir=tmp_path / "tfds", group_distance=distance)
        return [int(each["group"]) for each in photos.as_numpy_iterator()]

    assert len(set(groups(0))) == 3
    assert len(set(groups(256))) == 1


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "I;16", "CMYK"])
def test_other_colour_modes_become_rgb_or_a_problem(voc_dir: Path, tmp_path: Path, mode: str):
    suffix = "jpg" if mode == "CMYK" else "png"
    gray = Image.new("L", (40, 30), 120)
    if mode == "I;16":
        photo = Image.fromarray(np.full((30, 40), 120 * 257, np.uint16))
    else:
        photo = gray.quantize(2) if mode == "P" else gray.convert("RGB").convert(mode)
    add_photo(voc_dir, "other")
    annotation = voc_dir / "annotations" / "other.xml"
    annotation.write_text(annotation.read_text().replace("other.png", f"other.{suffix}"))
    (voc_dir / "images" / "other.png").unlink()
    photo.save(voc_dir / "images" / f"other.{suffix}")
    photos, _ = load_photos(voc_dir, tfds_dir=tmp_path / "tfds")
    image = list(photos.as_numpy_iterator())[1]["image"]
    assert image.shape == (30, 40, 3)
    assert np.abs(image.astype(int) - 120).max() <= 4


def test_bad_data_is_not_prepared(voc_dir: Path, tmp_path: Path):
    (voc_dir / "images" / "good.png").unlink()
    with pytest.raises(AnnotationError):
        load_photos(voc_dir, tfds_dir=tmp_path / "tfds")
    assert not (tmp_path / "tfds").exists()


def test_a_photo_that_tensorflow_alone_refuses_is_named(voc_dir: Path, tmp_path: Path):
    """It was whole when the folder was read."""
    path = voc_dir / "images" / "good.png"
    folder = read_folder(voc_dir)
    path.write_bytes(path.read_bytes()[:-12])
    config = FaceMaskConfig(name="cut", folder=folder)
    with pytest.raises(AnnotationError, match=r"good\.png: expected a photo, got: .*PNG"):
        Builder(config=config, data_dir=tmp_path / "tfds").download_and_prepare()
