import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fmd_tf.sample_data import draw_photo, main, write_sample
from fmd_tf.voc import read_folder


def test_the_seed_fixes_every_byte(tmp_path: Path):
    folders = [write_sample(tmp_path / name, num_photos=3, seed=4) for name in ("a", "b")]
    for path in folders[0].rglob("*.*"):
        assert path.read_bytes() == (folders[1] / path.relative_to(folders[0])).read_bytes()
    other = write_sample(tmp_path / "c", num_photos=1, seed=5)
    assert (other / "images/sample0.png").read_bytes() != (
        folders[0] / "images/sample0.png"
    ).read_bytes()


def test_it_is_a_valid_data_set_of_three_classes(sample_dir: Path):
    folder = read_folder(sample_dir)
    assert not folder.problems
    assert folder.num_clipped == 0
    assert all(1 <= len(annotation.faces) <= 6 for annotation in folder.annotations)
    counts = Counter(face.label for each in folder.annotations for face in each.faces)
    assert set(counts) == set(folder.class_names)
    sides = [face.box[2] - face.box[0] for each in folder.annotations for face in each.faces]
    assert min(sides) < 20 < 60 < max(sides)


def test_an_existing_sample_is_kept(tmp_path: Path):
    write_sample(tmp_path / "a", num_photos=1)
    (tmp_path / "a" / "images" / "sample0.png").write_text("mine")
    write_sample(tmp_path / "a", num_photos=1)
    assert (tmp_path / "a" / "images" / "sample0.png").read_text() == "mine"


def test_an_interrupted_sample_is_drawn_anew(tmp_path: Path):
    left = tmp_path / ".partial-a-0123abcd"
    (left / "images").mkdir(parents=True)
    long_ago = time.time() - 7200
    os.utime(left, (long_ago, long_ago))
    write_sample(tmp_path / "a", num_photos=1)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_two_commands_may_draw_it_at_once(tmp_path: Path):
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: write_sample(tmp_path / "a", num_photos=5), range(4)))
    assert {*folders} == {tmp_path / "a"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert len(list((tmp_path / "a" / "images").iterdir())) == 5


def test_faces_differ_from_their_background():
    photo, faces = draw_photo(np.random.default_rng(0))
    pixels = np.asarray(photo, float)
    for _, (xmin, ymin, xmax, ymax) in faces:
        assert pixels[ymin:ymax, xmin:xmax].std() > 10


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main(["--output", str(tmp_path / "a"), "--num-photos", "2"]) == 0
    with pytest.raises(SystemExit, match="2"):
        main(["--output", str(tmp_path / "a")])
    assert "exists already" in capsys.readouterr().err
