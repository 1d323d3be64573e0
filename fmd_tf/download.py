"""Finds the training data: the folder that was named, `data/raw`, or Kaggle's download."""

from __future__ import annotations

from pathlib import Path

import kagglehub

from fmd_tf.errors import UserError, first_line

KAGGLE_DATASET = "andrewmvd/face-mask-detection"
NUM_KAGGLE_PHOTOS = 853
DEFAULT_DIR = Path("data/raw")


class DataNotFoundError(UserError):
    """There is no data to train on."""


def find_data(data_dir: Path | None = None) -> Path:
    """Return the VOC folder to read.

    Args:
        data_dir: Folder with `images/` and `annotations/`. None takes `data/raw` if it is
            there, else downloads the Kaggle data set with kagglehub, which shows progress,
            needs no account, and keeps a copy in its cache.

    Returns:
        A folder with `images/` and `annotations/`.

    Raises:
        DataNotFoundError: There is no such folder, or the download failed or is not whole.
    """
    if data_dir is not None:
        return _require_layout(data_dir, "--data-dir")
    if DEFAULT_DIR.is_dir():
        return _require_layout(DEFAULT_DIR, "data/raw")
    print(f"No --data-dir and no {DEFAULT_DIR}: downloading Kaggle's {KAGGLE_DATASET}", flush=True)
    try:
        downloaded = Path(kagglehub.dataset_download(KAGGLE_DATASET))
    # kagglehub passes on whatever its HTTP and archive libraries raise, and promises no type.
    except Exception as error:
        raise DataNotFoundError(
            _ways_out(f"the download failed ({type(error).__name__}: {first_line(error)})")
        ) from error
    for folder in ("images", "annotations"):
        found = len(list((downloaded / folder).glob("*")))
        if found != NUM_KAGGLE_PHOTOS:
            expected = f"expected {NUM_KAGGLE_PHOTOS} files in {downloaded / folder}, got {found}"
            raise DataNotFoundError(_ways_out(f"the download is not whole: {expected}"))
    return downloaded


def _require_layout(data_dir: Path, name: str) -> Path:
    missing = [each for each in ("images", "annotations") if not (data_dir / each).is_dir()]
    if missing:
        raise DataNotFoundError(
            f"{name}: expected a folder with images/ and annotations/, got {data_dir} without "
            f"{' and '.join(each + '/' for each in missing)} (rename CVAT's JPEGImages and "
            "Annotations so)"
        )
    return data_dir


def _ways_out(reason: str) -> str:
    return (
        f"{reason}. Either download the archive by hand from "
        f"https://www.kaggle.com/datasets/{KAGGLE_DATASET} and extract it to {DEFAULT_DIR}, or "
        "name a folder of your own with --data-dir DIR, or try the drawn data with --sample"
    )
