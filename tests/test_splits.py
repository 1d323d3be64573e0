import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from fmd_tf import CLASS_NAMES
from fmd_tf.splits import (
    Split,
    SplitError,
    choose_split,
    group_photos,
    groups_of_split,
    load_split,
    make_folds,
    make_split,
    require_same_part,
    save_split,
    split_digests,
)
from fmd_tf.voc import read_folder
from tests.conftest import add_photo

KNOWN_PAIRS = """
13-737 146-219 410-428 451-61 514-680 653-775 656-690 435-554 665-704 156-545 662-839 354-74
327-699 287-478 485-87 293-466 157-411 248-68 438-67
"""


def _random_data(seed: int) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Photos of one to eight faces, three classes of which one is rare, in groups."""
    generator = np.random.default_rng(seed)
    labels = {
        f"{i}.png": generator.choice(3, generator.integers(1, 9), p=[0.8, 0.17, 0.03]).tolist()
        for i in range(200)
    }
    return labels, {photo: int(generator.integers(0, 120)) for photo in labels}


def test_digests_are_of_the_parts_and_not_of_their_order():
    digests = split_digests(Split(train=("a", "b"), val=("c",), test=("d",)))
    assert digests == split_digests(Split(train=("b", "a"), val=("c",), test=("d",)))
    others = split_digests(Split(train=("a", "c"), val=("b",), test=("d",)))
    assert [name for name in digests if digests[name] != others[name]] == ["train", "val"]


def _assert_no_group_in_two_parts(split, groups):
    parts = [{groups[photo] for photo in part} for part in (split.train, split.val, split.test)]
    for i in range(3):
        for j in range(i):
            assert not parts[i] & parts[j]


@pytest.mark.parametrize("seed", range(10))
def test_no_group_is_in_two_parts_and_no_photo_is_lost(seed: int):
    labels, groups = _random_data(seed)
    split = make_split(labels, groups, seed=seed)
    _assert_no_group_in_two_parts(split, groups)
    assert sorted([*split.train, *split.val, *split.test]) == sorted(labels)


def test_classes_are_in_proportion():
    labels, groups = _random_data(0)
    split = make_split(labels, groups, 0.2, 0.2, seed=3)
    counts = np.bincount(np.concatenate(list(labels.values())))
    for part in (split.val, split.test):
        got = np.bincount(np.concatenate([labels[photo] for photo in part]), minlength=3)
        assert np.all(np.abs(got / (0.2 * counts) - 1) < 0.25)


def test_a_class_of_one_face_does_not_upset_the_others():
    """The rarest class, of 5 in 100 photos, is in each part, beside one of a single face."""
    labels = {f"{i}.png": [2] if i % 20 == 0 else [i % 2] for i in range(100)}
    labels["3.png"] = [3]
    for seed in range(5):
        split = make_split(labels, {name: i for i, name in enumerate(labels)}, seed=seed)
        for part in (split.train, split.val, split.test):
            assert any(labels[photo] == [2] for photo in part)


def test_split_depends_on_the_seed_alone():
    labels, groups = _random_data(0)
    backwards = dict(reversed(labels.items()))
    assert make_split(labels, groups, seed=5) == make_split(backwards, groups, seed=5)
    assert make_split(labels, groups, seed=5) != make_split(labels, groups, seed=6)


def test_the_test_part_is_the_same_with_any_part_for_validation():
    labels, groups = _random_data(0)
    splits = [make_split(labels, groups, fraction, seed=4) for fraction in (0.05, 0.15, 0.5)]
    assert len({split.test for split in splits}) == 1
    sizes = [sum(len(labels[photo]) for photo in split.val) for split in splits]
    assert sizes == pytest.approx(
        [0.05 * sum(map(len, labels.values())) * n for n in (1, 3, 10)], rel=0.1
    )


def test_no_test_part():
    labels, groups = _random_data(0)
    assert make_split(labels, groups, test_fraction=0).test == ()


def test_every_photo_is_tested_in_one_fold():
    labels, groups = _random_data(1)
    folds = make_folds(labels, groups, 5, seed=2)
    assert sorted(photo for fold in folds for photo in fold.test) == sorted(labels)
    for fold in folds:
        _assert_no_group_in_two_parts(fold, groups)
        assert len(fold.train) + len(fold.val) + len(fold.test) == len(labels)


def test_a_few_groups_of_very_different_size_still_fill_all_parts():
    labels = {"a": [0], "b": [1] * 50, "c": [0]}
    split = make_split(labels, {"a": 0, "b": 1, "c": 2})
    assert split.train == ("b",)
    assert len(split.val) == len(split.test) == 1
    labels = {"a": [0], "b": [1] * 50, "c": [0], "none": []}
    for seed in range(5):
        split = make_split(labels, {photo: i for i, photo in enumerate(labels)}, seed=seed)
        assert all(
            any(labels[photo] for photo in part) for part in (split.train, split.val, split.test)
        )


def test_too_few_groups():
    with pytest.raises(
        SplitError, match="at least 3 groups of photos with faces for 3 parts, got 2"
    ):
        make_split({"a": [0], "b": [1], "c": [0]}, {"a": 0, "b": 1, "c": 1})


def test_split_file(tmp_path: Path):
    labels, groups = _random_data(0)
    split = make_split(labels, groups)
    save_split(split, groups, tmp_path / "split.json")
    assert load_split(tmp_path / "split.json", groups) == split


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nonsense", "expected JSON with lists"),
        ('{"train": ["a"], "val": []}', "KeyError: 'test'"),
        ('{"train": "abc", "val": [], "test": []}', 'TypeError: "abc" is no list of names'),
        ('{"train": [["a"]], "val": [], "test": []}', "is no list of names"),
        ("[1]", "TypeError"),
        ('{"train": ["x"], "val": [], "test": []}', "names 1 photos not in the data"),
        ('{"train": ["a", "a"], "val": [], "test": []}', "names 1 photos twice"),
        ('{"train": ["a"], "val": ["b"], "test": []}', r"leaks: a \(train\) and b \(val\)"),
    ],
)
def test_bad_split_files(tmp_path: Path, text: str, expected: str):
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(SplitError, match=expected):
        load_split(tmp_path / "split.json", {"a": 0, "b": 0})


def test_a_split_is_checked_by_the_groups_with_which_it_was_made(tmp_path: Path, capsys):
    """Groups may have been smaller then, as `--group-distance` says."""
    path = tmp_path / "split.json"
    save_split(Split(("a",), ("b",), ()), {"a": 0, "b": 1}, path)
    assert load_split(path, {"a": 0, "b": 1}).val == ("b",)
    assert capsys.readouterr().out == ""
    # Or these are other photos: nobody but the user knows.
    assert load_split(path, {"a": 0, "b": 0, "c": 1}).val == ("b",)
    said = capsys.readouterr().out
    assert "leaks: a (train) and b (val)" in said and "smaller --group-distance" in said
    assert f"1 photos are in no part of {path}" in said
    save_split(Split(("a",), ("b",), ()), {"a": 0, "b": 0}, path)
    with pytest.raises(SplitError, match="leaks"):
        load_split(path, {"a": 0, "b": 1})


def test_a_split_is_saved_again_with_its_own_groups(tmp_path: Path):
    """With those of the photos at hand it would leak, and could not be read."""
    path, now = tmp_path / "split.json", {"a": 0, "b": 0, "c": 1}
    save_split(Split(("a",), ("b",), ()), {"a": 5, "b": 6}, path)
    save_split(load_split(path, now), groups_of_split(path, now), path)
    assert load_split(path, now).val == ("b",)
    # A split that was made elsewhere has none, or not of all of its photos.
    for groups in ({}, {"a": 5}):
        save_split(Split(("a",), ("c",), ()), groups, path)
        assert groups_of_split(path, now) == now
    assert groups_of_split(None, now) == now


def test_a_part_without_faces_is_refused_before_training(tmp_path: Path):
    labels = {"a": [0], "b": [], "c": [1]}
    groups = {"a": 0, "b": 1, "c": 2}
    for parts in (Split(("a",), ("b",), ("c",)), Split(("a",), (), ("c",))):
        save_split(parts, groups, tmp_path / "split.json")
        with pytest.raises(SplitError, match="got none in 'val'"):
            choose_split(labels, groups, (0.2, 0.2), 0, tmp_path / "split.json")


def test_photos_without_faces_fill_no_part():
    """Ten photos of nobody beside four with faces: each part must get one of the four."""
    labels: dict[str, list[int]] = {f"{i}.png": [0, 0, 1] if i < 4 else [] for i in range(14)}
    for seed in range(5):
        split = make_split(labels, {photo: i for i, photo in enumerate(labels)}, seed=seed)
        for part in (split.train, split.val, split.test):
            assert any(labels[photo] for photo in part)
    with pytest.raises(SplitError, match="groups of photos with faces for 3 parts, got 0"):
        make_split({photo: [] for photo in "abcd"}, dict.fromkeys("abcd", 0))


def test_a_class_without_faces_does_not_upset_the_others():
    labels, groups = _random_data(0)
    with_gap = {photo: [(0, 2, 3)[each] for each in faces] for photo, faces in labels.items()}
    assert make_split(with_gap, groups, seed=1) == make_split(labels, groups, seed=1)


def test_a_part_that_is_not_the_models_is_refused():
    split = Split(("a", "b"), ("c",), ("d",))
    training = {"split": split_digests(Split(("a",), ("b", "c"), ("d",)))}
    with pytest.raises(SplitError, match=r"x is not it, so it may have learnt from"):
        require_same_part(split, "val", training, "x is not it")
    require_same_part(split, "test", training, "x is not it")  # Of both, nothing has learnt.
    require_same_part(split, "test", {}, "x is not it")
    with pytest.raises(SplitError, match="x is not it"):
        require_same_part(split, "test", {"split": "0123456789abcdef"}, "x is not it")


def test_missing_split_file(tmp_path: Path):
    with pytest.raises(SplitError, match="no split file"):
        load_split(tmp_path / "none.json", {})


def test_copies_are_one_group_and_others_are_not(voc_dir: Path):
    for stem in ("first", "second"):
        add_photo(voc_dir, stem)
    with Image.open(voc_dir / "images" / "first.png") as photo:
        copy = ImageEnhance.Brightness(photo).enhance(0.9).resize((36, 27))
    add_photo(voc_dir, "copy", size=(36, 27))
    copy.save(voc_dir / "images" / "copy.png")
    groups = group_photos(read_folder(voc_dir).annotations)
    assert groups["first.png"] == groups["copy.png"]
    assert len(set(groups.values())) == 3  # good, first with its copy, second


def test_photos_of_16_bits_are_told_apart(voc_dir: Path):
    """Infrared cameras write them; as 8 bits all but the darkest would be white."""
    for stem in ("first", "second"):
        add_photo(voc_dir, stem)
        path = voc_dir / "images" / f"{stem}.png"
        with Image.open(path) as photo:
            gray = np.asarray(photo.convert("L")).astype(np.uint16) * 257
        Image.fromarray(gray).save(path)
    assert len(set(group_photos(read_folder(voc_dir).annotations).values())) == 3


def test_shots_of_one_camera_are_one_group_unless_only_copies_are(voc_dir: Path):
    background = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    for i in range(3):
        add_photo(voc_dir, f"door{i}")
        shot = background.copy()
        shot[5:20, 10 * i : 10 * i + 12] = 255
        Image.fromarray(shot).save(voc_dir / "images" / f"door{i}.png")
    annotations = read_folder(voc_dir).annotations
    assert len(set(group_photos(annotations, max_distance=100).values())) == 2
    assert len(set(group_photos(annotations, max_distance=0).values())) == 4


def test_a_series_is_one_group(voc_dir: Path):
    for name in ("first", "second"):
        add_photo(voc_dir, name, size=(301, 400))
    annotations = read_folder(voc_dir).annotations
    groups = group_photos(annotations)
    assert groups["first.png"] == groups["second.png"] != groups["good.png"]
    # Where copies alone are to be joined, a size is no series.
    assert len(set(group_photos(annotations, max_distance=5).values())) == 3


def test_real_duplicates_land_together(real_dir: Path):
    annotations = read_folder(real_dir).annotations
    groups = group_photos(annotations)
    present = 0
    for pair in KNOWN_PAIRS.split():
        first, second = (f"maksssksksss{number}.png" for number in pair.split("-"))
        if first in groups and second in groups:
            present += 1
            assert groups[first] == groups[second], pair
    assert present >= 10
    # The series is the one large group: the hash must not chain strangers together.
    sizes = np.bincount(list(groups.values()))
    assert np.sort(sizes)[-2] <= 4
    labels = {a.photo.name: [CLASS_NAMES.index(f.label) for f in a.faces] for a in annotations}
    for seed in range(3):
        _assert_no_group_in_two_parts(make_split(labels, groups, seed=seed), groups)


def test_split_file_is_plain_json(tmp_path: Path):
    labels, groups = _random_data(0)
    save_split(make_split(labels, groups), groups, tmp_path / "split.json")
    assert set(json.loads((tmp_path / "split.json").read_text())) == {
        "train",
        "val",
        "test",
        "groups",
    }
