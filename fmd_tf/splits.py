"""Groups of photos that belong together, and splits that keep them together.

A face in the test part proves nothing if the same photo, a copy of it, or another shot of the
same series is in the training part. So photos are joined to groups first, and whole groups are
dealt out.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fmd_tf.errors import UserError
from fmd_tf.publish import write_text
from fmd_tf.voc import Annotation

HASH_SIZE = 16
HASH_BITS = HASH_SIZE**2
MAX_DISTANCE = 50
"""Photos whose 256-bit difference hashes differ in at most so many bits are one scene.

Measured on the Kaggle data: copies differ in 0 to 5 bits, consecutive shots in 27 to 48, and
hardly any other pair in under 60. A pair joined by mistake costs nothing but a larger group;
only the photos of one fixed camera are all joined, and need a smaller number.
"""

SERIES_SIZES = ((301, 400),)
"""Photo sizes (width, height) that are one series each.

In the Kaggle data all 184 photos of this size are from one series of selfies of two people.
"""

ALL_PHOTOS_NOTE = (
    "All photos were scored: right where the model has seen none of them; of the photos of its "
    "training, give --split-file results/metrics/split.json"
)

_NUM_CANDIDATES = 1000


class SplitError(UserError):
    """Photos cannot be split as asked for."""


@dataclass(frozen=True)
class Split:
    """File names of the photos of each part; no group is in two parts."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]


def series_sizes(max_distance: int) -> tuple[tuple[int, int], ...]:
    """Return the sizes of photos that are a series: none where copies alone are to be joined."""
    return SERIES_SIZES if max_distance >= MAX_DISTANCE else ()


def group_photos(
    annotations: Sequence[Annotation],
    max_distance: int = MAX_DISTANCE,
) -> dict[str, int]:
    """Join near-duplicate photos, consecutive shots and series to groups.

    Near-duplicates are found by the difference hash, as in `imagehash.dhash` (N. Krawetz,
    "Kind of Like That", 2013), joined transitively.

    Args:
        annotations: The photos.
        max_distance: Number of differing bits, of 256, up to which two photos are one scene. With
            less than `MAX_DISTANCE`, which asks for copies alone, there are no series.

    Returns:
        Group number by photo file name; the numbers follow the order of the annotations.
    """
    with ThreadPoolExecutor() as pool:
        hashes = np.array(list(pool.map(_difference_hash, annotations)), dtype=np.float32)
    first, second = _close_pairs(hashes, max_distance)
    for size in series_sizes(max_distance):
        series = [i for i, each in enumerate(annotations) if (each.width, each.height) == size]
        first = np.append(first, series[:-1])
        second = np.append(second, series[1:])
    links = coo_array((np.ones(len(first)), (first, second)), shape=[len(annotations)] * 2)
    _, groups = connected_components(links, directed=False)
    names = [annotation.photo.name for annotation in annotations]
    return {name: int(group) for name, group in zip(names, groups, strict=True)}


def _difference_hash(annotation: Annotation) -> np.ndarray:
    """Return the 256 bits that tell where brightness rises from left to right."""
    with Image.open(annotation.photo) as file:
        image: Image.Image = file
        if file.mode.startswith("I"):  # 16 bits, of which Pillow would clip all but the darkest.
            image = Image.fromarray((np.asarray(file) >> 8).astype(np.uint8))
        return imagehash.dhash(image.convert("RGB"), HASH_SIZE).hash.ravel()


def _close_pairs(hashes: np.ndarray, max_distance: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the index pairs of near-duplicates, comparing blocks to bound the memory."""
    first, second = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    for start in range(0, len(hashes), 1024):
        block, later = hashes[start : start + 1024], hashes[start:]
        distances = block @ (1 - later).T + (1 - block) @ later.T
        rows, columns = np.nonzero(np.triu(distances <= max_distance, k=1))
        first.append((rows + start).astype(np.int32))
        second.append((columns + start).astype(np.int32))
    return np.concatenate(first), np.concatenate(second)


def make_split(
    labels_by_photo: Mapping[str, Sequence[int]],
    groups: Mapping[str, int],
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    seed: int = 0,
) -> Split:
    """Split photos into train, validation and test, group by group, classes in proportion.

    The test part is dealt first, so models with other validation fractions are scored on the
    same photos.

    Args:
        labels_by_photo: Labels of each photo's faces.
        groups: Group of each photo.
        val_fraction: Part of the faces for validation; 0 for none.
        test_fraction: Part of the faces for the test; 0 for none.
        seed: Seed; the order of the mappings does not matter.

    Returns:
        The split.

    Raises:
        SplitError: There are fewer groups with faces than parts.
    """
    rest_parts = 2 if val_fraction else 1
    rest, test = _deal(
        labels_by_photo, groups, [1 - test_fraction, test_fraction], seed, rest_parts
    )
    train, val = _deal_rest(labels_by_photo, groups, rest, val_fraction / (1 - test_fraction), seed)
    return Split(train, val, test)


def choose_split(
    labels_by_photo: Mapping[str, Sequence[int]],
    groups: Mapping[str, int],
    fractions: tuple[float, float],
    seed: int,
    split_file: Path | None,
) -> Split:
    """Read the split that was asked for, or make it.

    Args:
        labels_by_photo: Labels of each photo's faces.
        groups: Group of each photo.
        fractions: Parts of the faces for validation and test.
        seed: See `make_split`.
        split_file: Split to read; None makes one.

    Returns:
        The split.

    Raises:
        SplitError: See `make_split` and `load_split`; or a part of the file holds no faces.
    """
    if not split_file:
        return make_split(labels_by_photo, groups, *fractions, seed)
    split = load_split(split_file, groups)
    for name, photos in asdict(split).items():
        if (photos or name != "test") and not any(labels_by_photo[photo] for photo in photos):
            raise SplitError(f"{split_file}: expected faces in every part, got none in {name!r}")
    return split


def make_folds(
    labels_by_photo: Mapping[str, Sequence[int]],
    groups: Mapping[str, int],
    num_folds: int,
    val_fraction: float = 0.15,
    seed: int = 0,
) -> tuple[Split, ...]:
    """Split photos so that each is in the test part of exactly one fold.

    Args:
        labels_by_photo: Labels of each photo's faces.
        groups: Group of each photo.
        num_folds: Number of folds, at least 2.
        val_fraction: Part of all faces that each fold takes for validation from what is not
            its test part.
        seed: Seed; the order of the mappings does not matter.

    Returns:
        One split a fold.

    Raises:
        SplitError: There are too few groups.
    """
    tests = _deal(labels_by_photo, groups, [1 / num_folds] * num_folds, seed)
    val_of_rest = val_fraction * num_folds / (num_folds - 1)
    folds = []
    for test in tests:
        rest = labels_by_photo.keys() - set(test)
        train, val = _deal_rest(labels_by_photo, groups, rest, val_of_rest, seed)
        folds.append(Split(train, val, test))
    return tuple(folds)


def _deal_rest(
    labels_by_photo: Mapping[str, Sequence[int]],
    groups: Mapping[str, int],
    rest: Collection[str],
    val_of_rest: float,
    seed: int,
) -> list[tuple[str, ...]]:
    """Deal what is no test part to training and validation."""
    labels = {photo: labels_by_photo[photo] for photo in rest}
    return _deal(labels, groups, [1 - val_of_rest, val_of_rest], seed)


def _deal(
    labels_by_photo: Mapping[str, Sequence[int]],
    groups: Mapping[str, int],
    fractions: Sequence[float],
    seed: int,
    first_parts: int = 1,
) -> list[tuple[str, ...]]:
    """Deal whole groups to parts; of many random deals take the most balanced one.

    Args:
        labels_by_photo: See `make_split`.
        groups: See `make_split`.
        fractions: Part of the faces for each part; 0 for none.
        seed: See `make_split`.
        first_parts: Number of parts that the first one is going to be dealt to.

    Returns:
        The photos of each part.
    """
    photos = sorted(labels_by_photo)
    _, rows = np.unique([groups[photo] for photo in photos], return_inverse=True)
    num_classes = 1 + max((max(each, default=0) for each in labels_by_photo.values()), default=0)
    counts = np.zeros((rows.max(initial=-1) + 1, num_classes))
    for row, photo in zip(rows, photos, strict=True):
        counts[row] += np.bincount(np.array(labels_by_photo[photo], int), minlength=num_classes)
    num_parts = sum(fraction > 0 for fraction in fractions) + first_parts - 1
    num_groups = np.count_nonzero(counts.sum(axis=1))
    if num_groups < num_parts:
        raise SplitError(
            f"expected at least {num_parts} groups of photos with faces for {num_parts} parts, "
            f"got {num_groups} ({len(photos)} photos; near-duplicates, and all shots of one fixed "
            "camera, are one group): add photos of other scenes, ask for fewer parts with "
            "--test-fraction 0, or join copies only with --group-distance 5"
        )
    generator = np.random.default_rng(seed)
    part_of = _best_deal(counts, np.array(fractions), generator, first_parts)
    return [
        tuple(photo for photo, row in zip(photos, rows, strict=True) if part_of[row] == part)
        for part in range(len(fractions))
    ]


def _best_deal(
    counts: np.ndarray, fractions: np.ndarray, generator: np.random.Generator, first_parts: int
) -> np.ndarray:
    """Return the part of each group, from the deal whose worst class share is best."""
    best, best_error = np.zeros(len(counts), int), np.inf
    used = np.flatnonzero(fractions > 0)
    borders = np.cumsum(fractions[used])[:-1] * counts.sum()
    target = fractions[used, None] * counts.sum(axis=0)
    # A class in fewer groups than there are parts would be the worst of every deal, and nothing
    # else would be balanced.
    spread = (counts > 0).sum(axis=0) >= len(used)
    present = spread if spread.any() else counts.sum(axis=0) > 0
    for _ in range(_NUM_CANDIDATES):
        order = generator.permutation(len(counts))
        # A group goes to the part in which its middle face falls.
        dealt = counts[order]
        middles = np.cumsum(dealt.sum(axis=1)) - dealt.sum(axis=1) / 2
        parts = np.searchsorted(borders, middles)
        got = np.stack([dealt[parts == part].sum(axis=0) for part in range(len(used))])
        error = np.abs(got[:, present] / target[:, present] - 1).max()
        num_first = np.count_nonzero(dealt[parts == 0].any(axis=1))
        if not got.sum(axis=1).all() or num_first < first_parts:
            error = np.inf
        if error < best_error:
            best_error = error
            best[order] = used[parts]
    if np.isinf(best_error):  # A few groups of very different sizes: one each, the first the rest.
        faces = counts.sum(axis=1)
        order = np.argsort(np.where(faces > 0, faces, np.inf), kind="stable")
        best[order] = used[np.maximum(len(used) - 1 - np.arange(len(counts)), 0)]
    return best


def split_digests(split: Split) -> dict[str, str]:
    """Return for each part 16 hexadecimal digits, the same for the same photos in any order."""
    return {
        name: hashlib.sha256(json.dumps(sorted(photos)).encode()).hexdigest()[:16]
        for name, photos in asdict(split).items()
    }


def require_same_part(split: Split, part: str, training: Mapping[str, Any], problem: str) -> None:
    """Refuse figures of a part that a model may have learnt from.

    Args:
        split: The split that is about to be used.
        part: The part that is about to be scored: "train", "val" or "test".
        training: What the model's card says of its training.
        problem: Beginning of the message.

    Raises:
        SplitError: The card's part is another one; that of a card without parts is not known.
    """
    digests = split_digests(split)
    named = training.get("split", digests)
    # Cards of earlier versions have one digest of all parts.
    if not isinstance(named, Mapping) or named.get(part) != digests[part]:
        raise SplitError(
            f"{problem}, so it may have learnt from these photos; give the split.json that its "
            "training wrote to results/metrics"
        )


def save_split(split: Split, groups: Mapping[str, int], path: Path) -> None:
    """Write a split as JSON, beside and renamed.

    Args:
        split: The split.
        groups: Group of each photo, kept for the reader.
        path: File to write.
    """
    parts = {part.name: list(getattr(split, part.name)) for part in fields(Split)}
    record = {**parts, "groups": dict(groups)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(record, indent=1))


def load_split(path: Path | str, groups: Mapping[str, int]) -> Split:
    """Read a split back and check it against the photos at hand.

    Args:
        path: A file that `save_split` wrote, or JSON with lists "train", "val" and "test".
        groups: Group of each photo of the data set; those in the file, where it has them, are
            the ones with which it was made.

    Returns:
        The split.

    Raises:
        SplitError: The file is not such a file, names a photo that is not there or twice, or
            puts photos of one group into two parts.
    """
    path = Path(path)
    split, groups_then = _read_split(path)
    _check_names(split, groups, path)
    _check_groups(split, groups_then or groups, path)
    if groups_then:
        _note_other_groups(split, groups, path)
    if left_out := len(groups) - sum(map(len, asdict(split).values())):
        print(f"{left_out} photos are in no part of {path} and left out", flush=True)
    return split


def groups_of_split(split_file: Path | None, groups: Mapping[str, int]) -> Mapping[str, int]:
    """Return the groups with which a split was made, to be saved with it again.

    Args:
        split_file: File that the split was read from; None where it was made of `groups`.
        groups: Group of each photo at hand.

    Returns:
        Those in the file, where it has them.

    Raises:
        SplitError: See `load_split`.
    """
    return (split_file and _read_split(split_file)[1]) or groups


def _read_split(path: Path) -> tuple[Split, dict[str, int]]:
    """Read a split, and the groups in its file: of all of its photos, or none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        split = Split(**{part.name: _names(record[part.name]) for part in fields(Split)})
        groups = {photo: int(group) for photo, group in record.get("groups", {}).items()}
        has_all = all(photo in groups for part in asdict(split).values() for photo in part)
        return split, groups if has_all else {}
    except FileNotFoundError:
        raise SplitError(f"no split file {path}; a run writes results/metrics/split.json") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SplitError(
            f'{path}: expected JSON with lists of photo names "train", "val" and "test", got '
            f"{type(error).__name__}: {error}"
        ) from error


def _note_other_groups(split: Split, groups: Mapping[str, int], path: Path) -> None:
    """Tell where the photos at hand are alike that were not when the split was made."""
    try:
        _check_groups(split, groups, path)
    except SplitError as error:
        print(
            f"Note: {error}. Right if the split was made with a smaller --group-distance; wrong "
            "if it was made of other photos of these names",
            flush=True,
        )


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise TypeError(f"{json.dumps(value)[:40]} is no list of names")
    return tuple(value)


def _check_names(split: Split, photos: Collection[str], path: Path) -> None:
    """Raise where a split does not fit the data."""
    named = Counter(photo for part in fields(Split) for photo in getattr(split, part.name))
    unknown = [photo for photo in named if photo not in photos]
    if unknown:
        raise SplitError(f"{path} names {len(unknown)} photos not in the data: {unknown[:3]}")
    double = [photo for photo, count in named.items() if count > 1]
    if double:
        raise SplitError(f"{path} names {len(double)} photos twice: {double[:3]}")


def _check_groups(split: Split, groups: Mapping[str, int], path: Path) -> None:
    """Raise where a split leaks."""
    part_of_group: dict[int, tuple[str, str]] = {}
    for part in fields(Split):
        for photo in getattr(split, part.name):
            other_part, other = part_of_group.setdefault(groups[photo], (part.name, photo))
            if other_part != part.name:
                raise SplitError(
                    f"{path} leaks: {other} ({other_part}) and {photo} ({part.name}) belong "
                    "together (near-duplicates, or one series); put both into one part"
                )
