import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from fmd_tf import UNCERTAIN
from fmd_tf.client import Prediction
from fmd_tf.publish import PublishError
from fmd_tf.records import JsonOutput, LabelledFace, OutputError, Record, Summary, label_faces

SETTINGS = {"model": "a", "face_threshold": None}


def keep_all(record: object, written: float) -> bool:
    return True


def record(name: str) -> dict:
    return Record(name, 4, 3).to_json()


def test_below_the_threshold_a_face_is_uncertain_and_says_of_what():
    boxes = np.array([[0, 0, 4, 4], [1, 1, 3, 3.126]], np.float32)
    predictions = [
        Prediction("a", 0.7, {"a": 0.7, "b": 0.3}),
        Prediction("b", 0.69, {"a": 0.31, "b": 0.69}),
    ]
    faces = label_faces(boxes, np.array([0.9, 0.8], np.float32), predictions, 0.7)
    assert [face.label for face in faces] == ["a", UNCERTAIN]
    assert faces[1].to_json() == {
        "box": [1.0, 1.0, 3.0, 3.13],  # 3.126 to two places.
        "face_score": 0.8,
        "label": "uncertain",
        "class": "b",
        "confidence": 0.69,
        "probabilities": {"a": 0.31, "b": 0.69},
    }


def test_the_summary_counts():
    summary = Summary()
    for each in [record("a"), Record("b", error="damaged").to_json(), record("c")]:
        summary.add(each)
    assert summary.to_json() == {
        "images": 3,
        "unreadable": 1,
        "without_faces": 2,
        "faces": 0,
        "labels": {},
    }
    assert summary.errors == ["b: damaged"]


def test_a_face_of_many_frames_is_followed_once():
    """The third face was found in one frame only, and expected in the next."""

    def face(label: str, track: int, seen: bool = True) -> LabelledFace:
        return LabelledFace((0, 0, 4, 4), 0.9, label, label, 0.9, {}, track, seen)

    frames = [
        [face("a", 1), face("b", 2)],
        [face("b", 1), face("b", 2), face("a", 3)],
        [face("b", 1, seen=False), face("a", 3, seen=False)],
    ]
    summary = Summary()
    for number, faces in enumerate(frames):
        summary.add(Record("v.mp4", 4, 3, faces, frame=number, seconds=0.1 * number).to_json())
    assert summary.to_json()["faces"] == 7
    assert summary.to_json()["tracks"] == {"b": 2}


def test_a_million_errors_are_not_kept():
    summary = Summary()
    for index in range(1000):
        summary.add(Record(f"{index}", error="damaged").to_json())
    assert summary.unreadable == 1000
    assert len(summary.errors) == 20


def test_the_file_appears_when_all_is_done(tmp_path: Path):
    path = tmp_path / "deep" / "faces.json"
    output = JsonOutput(path, SETTINGS, keep_all)
    output.add(record("a"))
    output.add(record("b"))
    assert not path.exists()
    output.finish(Summary())
    found = json.loads(path.read_text())
    assert (found["schema"], found["schema_version"]) == ("fmd_tf.predictions", 1)
    assert found["settings"] == SETTINGS
    assert [each["file"] for each in found["images"]] == ["a", "b"]
    assert [each.name for each in path.parent.iterdir()] == ["faces.json"]


def test_a_file_without_images_is_json_too(tmp_path: Path):
    JsonOutput(tmp_path / "a.json", SETTINGS, keep_all).finish(Summary())
    assert json.loads((tmp_path / "a.json").read_text())["images"] == []


def test_a_killed_run_goes_on_after_the_last_whole_line(tmp_path: Path):
    first = JsonOutput(tmp_path / "a.json", SETTINGS, keep_all)
    first.add(record("a"))
    first.close()
    with first.partial.open("a") as file:
        file.write('{"file": "b", "wid')
    second = JsonOutput(tmp_path / "a.json", SETTINGS, keep_all)
    assert [each["file"] for each in second.done()] == ["a"]
    second.add(record("b"))
    second.finish(Summary())
    images = json.loads((tmp_path / "a.json").read_text())["images"]
    assert images == [record("a"), record("b")]


def test_a_run_with_other_settings_is_not_mixed_in(tmp_path: Path):
    first = JsonOutput(tmp_path / "a.json", SETTINGS, keep_all)
    first.add(record("a"))
    first.close()
    with pytest.raises(OutputError, match=r"unfinished run with model a \(now b\); finish"):
        JsonOutput(tmp_path / "a.json", {**SETTINGS, "model": "b"}, keep_all)
    third = JsonOutput(tmp_path / "a.json", SETTINGS, keep_all)
    assert len(list(third.done())) == 1
    third.close()


@pytest.mark.parametrize("left", ["", '{"schema', '{"settings": {"model": "b"}}\n'])
def test_a_run_that_kept_nothing_is_forgotten(tmp_path: Path, left: str):
    (tmp_path / ".a.json.partial.jsonl").write_text(left)
    output = JsonOutput(tmp_path / "a.json", SETTINGS, keep_all)
    assert list(output.done()) == []
    output.close()


def test_a_video_starts_over(tmp_path: Path):
    """What a killed run left is no less than hours of work, also when the next one is killed."""
    for number, name in enumerate(["a.json", "a.json", "a.txt", "a.json"]):
        output = JsonOutput(tmp_path / name, {})
        assert list(output.done()) == []
        output.add(record(f"{number}"))
        output.close()
    JsonOutput(tmp_path / "a.txt", {}).close()
    kept = {"a.json.interrupted-1": "0", "a.json.interrupted-2": "1", "a.txt.interrupted-1": "2"}
    for name, number in kept.items():
        lines = (tmp_path / f"{name}.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines[1:]] == [record(number)]
    assert len(list(tmp_path.glob("*interrupted*"))) == 3


def test_records_that_no_longer_hold_are_dropped(tmp_path: Path):
    """Each record is judged by the time when the last run began, not by that of a record."""
    begun: list[float] = []

    def keep(each: Mapping[str, Any], started: float) -> bool:
        begun.append(started)
        return each["file"] != "b"

    before = until = 0.0
    for names in ("abc", "bd", ""):
        after = time.time()
        output = JsonOutput(tmp_path / "a.json", SETTINGS, keep)
        assert all(before <= started <= until for started in begun)
        before, until = after, time.time()
        begun.clear()
        time.sleep(0.02)
        for name in names:
            output.add(record(name))
        output.close()
    output = JsonOutput(tmp_path / "a.json", SETTINGS, keep_all)
    assert list(output.done()) == [record("a"), record("c"), record("d")]
    output.close()


def test_a_file_of_another_kind_is_not_written_over(tmp_path: Path):
    (tmp_path / "m.keras").write_bytes(b"PK\x03\x04 a model")
    with pytest.raises(OutputError, match=r"m\.keras is there and no JSON file of this command"):
        JsonOutput(tmp_path / "m.keras", SETTINGS)
    assert (tmp_path / "m.keras").read_bytes() == b"PK\x03\x04 a model"


def test_two_runs_do_not_write_one_file(tmp_path: Path):
    first = JsonOutput(tmp_path / "a.json", SETTINGS, keep_all)
    with pytest.raises(PublishError, match="another run writes to"):
        JsonOutput(tmp_path / "a.json", SETTINGS, keep_all)
    first.add(record("a"))
    first.finish(Summary())
    JsonOutput(tmp_path / "a.json", SETTINGS, keep_all).finish(Summary())
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_run_that_ends_takes_no_others_lock_away(tmp_path: Path, monkeypatch):
    """The second run begins in the moment in which the first one releases its lock."""
    first = JsonOutput(tmp_path / "a.json", SETTINGS, keep_all)
    release, later = FileLock.release, []

    def release_and_begin(lock: FileLock, force: bool = False) -> None:
        release(lock, force)
        if not later:
            later.append(None)
            later[:] = [JsonOutput(tmp_path / "a.json", SETTINGS, keep_all)]

    monkeypatch.setattr(FileLock, "release", release_and_begin)
    first.finish(Summary())
    with pytest.raises(PublishError, match="another run writes to"):
        JsonOutput(tmp_path / "a.json", SETTINGS, keep_all)
    later[0].close()


def test_what_is_there_stays_until_the_new_file_is_whole(tmp_path: Path):
    JsonOutput(tmp_path / "a.json", {"model": "old"}, keep_all).finish(Summary())
    output = JsonOutput(tmp_path / "a.json", SETTINGS, keep_all)
    assert json.loads((tmp_path / "a.json").read_text())["settings"] == {"model": "old"}
    output.finish(Summary())
    assert json.loads((tmp_path / "a.json").read_text())["summary"]["images"] == 0
