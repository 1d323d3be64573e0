import os
import shutil
from pathlib import Path

import pytest

from fmd_tf.publish import PublishError, locked, publishing, replacing, require_writable, write_text


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "a.txt"
    write_text(path, "before")
    with pytest.raises(OSError, match="full"), replacing(path) as partial:
        partial.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "before"
    with replacing(path) as partial:
        partial.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]


def test_a_name_that_is_no_text_is_written_escaped(tmp_path: Path):
    write_text(tmp_path / "a.txt", "caf\udce9.jpg")
    assert (tmp_path / "a.txt").read_bytes() == b"caf\\udce9.jpg"


def test_a_file_in_the_way_of_a_folder_is_said(tmp_path: Path):
    (tmp_path / "results").touch()
    with pytest.raises(PublishError, match="metrics cannot be written"):
        require_writable(tmp_path / "new", tmp_path / "results" / "metrics")
    assert (tmp_path / "new").is_dir()


def test_a_lock_that_cannot_be_written_is_no_other_run(tmp_path: Path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(PublishError, match="file cannot be written"),
        locked(tmp_path / "file" / ".lock"),
    ):
        pass


def test_of_two_runs_one_gets_the_lock(tmp_path: Path):
    with (
        locked(tmp_path / ".lock"),
        pytest.raises(PublishError, match="another run writes to"),
        locked(tmp_path / ".lock"),
    ):
        pass
    with locked(tmp_path / ".lock"):
        pass


@pytest.mark.parametrize("name", ["model.keras", "model.py"])
def test_a_model_that_is_no_export_is_not_replaced(name: str, tmp_path: Path):
    (tmp_path / name).touch()
    with (
        pytest.raises(PublishError, match=f"holds {name}, which is of no export"),
        publishing(tmp_path, overwrite=True),
    ):
        pass


def test_a_file_is_no_folder_to_replace(tmp_path: Path):
    (tmp_path / "model.onnx").write_text("mine")
    with (
        pytest.raises(PublishError, match=r"model\.onnx is a file, expected a folder"),
        publishing(tmp_path / "model.onnx", overwrite=True),
    ):
        pass
    assert (tmp_path / "model.onnx").read_text() == "mine"


def test_what_a_kill_leaves_of_the_replaced_stays_an_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def publish() -> list[Path]:
        with publishing(tmp_path / "1", overwrite=True) as partial:
            partial.mkdir()
            # As long ago as exports are when they are replaced.
            os.utime(partial, (0, 0))
        return list(tmp_path.glob(".replaced-1-*"))

    publish()
    with monkeypatch.context() as killed:
        killed.setattr(shutil, "rmtree", lambda *_, **__: None)
        (left,) = publish()
    assert publish() == [left]
    os.utime(left, (0, 0))
    assert publish() == []


def test_only_an_export_is_replaced(tmp_path: Path):
    target = tmp_path / "keep"
    with publishing(target, overwrite=True) as partial:
        partial.mkdir()
        for name in ("model.onnx", "model_card.json", "class_names.txt", "README.md"):
            (partial / name).write_text("before")
    with publishing(target, overwrite=True) as partial:
        partial.mkdir()
        (partial / "model.onnx").write_text("after")
    assert [path.name for path in target.iterdir()] == ["model.onnx"]
    (target / "best_model.keras").touch()
    with (
        pytest.raises(PublishError, match=r"holds best_model\.keras, which is of no export"),
        publishing(target, overwrite=True),
    ):
        pass
    assert (target / "model.onnx").read_text() == "after"
