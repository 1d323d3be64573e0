"""Where the data comes from; the download itself needs a network and is not tested here."""

from pathlib import Path

import kagglehub
import pytest

from fmd_tf.download import NUM_KAGGLE_PHOTOS, DataNotFoundError, find_data
from tests.conftest import make_voc_dir


def test_a_folder_that_was_named(tmp_path: Path):
    data_dir = make_voc_dir(tmp_path)
    assert find_data(data_dir) == data_dir


def test_a_folder_without_the_layout(tmp_path: Path):
    with pytest.raises(DataNotFoundError, match=r"without images/ and annotations/"):
        find_data(tmp_path)


def test_data_raw_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    make_voc_dir(tmp_path / "data").rename(tmp_path / "data" / "raw")
    assert find_data() == Path("data/raw")


def _download_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for what the download leaves on disk."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(kagglehub, "dataset_download", lambda name: str(folder / "kaggle"))


def test_a_whole_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _download_to(tmp_path, monkeypatch)
    for name in ("images", "annotations"):
        (tmp_path / "kaggle" / name).mkdir(parents=True)
        for index in range(NUM_KAGGLE_PHOTOS):
            (tmp_path / "kaggle" / name / f"{index}").touch()
    assert find_data() == tmp_path / "kaggle"
    (tmp_path / "kaggle" / "annotations" / "7").unlink()
    with pytest.raises(DataNotFoundError, match=r"expected 853 files .* got 852.*--data-dir"):
        find_data()


def test_a_failed_download_names_the_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(name: str) -> str:
        raise ConnectionError("no route")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kagglehub, "dataset_download", fail)
    with pytest.raises(DataNotFoundError) as caught:
        find_data()
    for part in ("ConnectionError: no route", "data/raw", "--data-dir DIR", "--sample"):
        assert part in str(caught.value)
