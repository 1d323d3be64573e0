"""What prediction found, and the JSON file of it.

Schema, version 1; a field is never taken away or given another meaning without a new number:

    {"schema": "fmd_tf.predictions", "schema_version": 1,
     "settings": {...},                      what was asked for
     "images": [                             one record an image, in the order they were read
       {"file": "a/b.jpg",                   as given, or relative to the folder
        "width": 640, "height": 480,         pixels of the upright photo; null if unreadable
        "error": null,                       or why it could not be read
        "faces": [                           empty where there is none
          {"box": [xmin, ymin, xmax, ymax],  pixels of the upright photo
           "face_score": 0.98,               how sure the detector is
           "label": "with_mask",             or "uncertain"
           "class": "with_mask",             the likeliest class, whatever the threshold
           "confidence": 0.97,               its probability
           "probabilities": {"with_mask": 0.97, ...}}]}],
     "summary": {"images": 1, "unreadable": 0, "without_faces": 0, "faces": 1,
                 "labels": {"with_mask": 1}}}

A frame of a video is an image with "frame" (from 0) and "seconds" (since the beginning) added, and
that of a camera also with "time", when it was taken, ISO 8601 in UTC. Its faces have "track", a
number that a face keeps over the frames, and "seen", false where the tracker remembers a face that
the detector missed or did not look for. Its summary has "tracks" too: how many faces were followed,
found in two frames at least, by the last label of each, as {"with_mask": 2}.

While a run goes on, its records are lines of a partial file beside, below a line with its settings
and "started", seconds since the epoch; a rerun with the same settings goes on after the last whole
line.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from fmd_tf import UNCERTAIN
from fmd_tf.client import Prediction
from fmd_tf.errors import UserError, differences
from fmd_tf.publish import replacing, writing

SCHEMA = "fmd_tf.predictions"
SCHEMA_VERSION = 1


class OutputError(UserError):
    """The JSON file cannot be written, or holds another unfinished run."""


@dataclass(frozen=True)
class LabelledFace:
    """One face and its answer.

    Attributes:
        box: xmin, ymin, xmax, ymax, pixels of the upright photo.
        face_score: Score of the detector, 0-1.
        label: The likeliest class, or `UNCERTAIN`.
        class_name: The likeliest class.
        confidence: Its probability.
        probabilities: Probability of each class by name, in the model's order.
        track: Number of the face in a video; None in a photo.
        seen: False where a tracker remembers a face that was not found in this frame, or not
            looked for.
    """

    box: tuple[float, float, float, float]
    face_score: float
    label: str
    class_name: str
    confidence: float
    probabilities: Mapping[str, float]
    track: int | None = None
    seen: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return the face as the schema has it."""
        values: dict[str, Any] = {
            "box": [round(value, 2) for value in self.box],
            "face_score": round(self.face_score, 6),
            "label": self.label,
            "class": self.class_name,
            "confidence": round(self.confidence, 6),
            "probabilities": {name: round(p, 6) for name, p in self.probabilities.items()},
        }
        return values if self.track is None else {**values, "track": self.track, "seen": self.seen}


def label_faces(
    boxes: np.ndarray,
    face_scores: np.ndarray,
    predictions: Sequence[Prediction],
    confidence_threshold: float,
) -> list[LabelledFace]:
    """Join boxes and predictions, and call those below the threshold uncertain.

    Args:
        boxes: float32 [num_faces, 4], pixels.
        face_scores: float32 [num_faces].
        predictions: One for each box.
        confidence_threshold: Least probability of the likeliest class, 0-1.

    Returns:
        A face for each box, in their order.
    """
    rows = zip(boxes.tolist(), face_scores.tolist(), predictions, strict=True)
    return [
        LabelledFace(
            box=tuple(box),
            face_score=face_score,
            label=each.label if each.score >= confidence_threshold else UNCERTAIN,
            class_name=each.label,
            confidence=each.score,
            probabilities=each.probabilities,
        )
        for box, face_score, each in rows
    ]


@dataclass(frozen=True)
class Record:
    """One image: its faces, or why there is no answer.

    Attributes:
        file: Name of the image.
        width: Pixels; None where it could not be read.
        height: Pixels; None where it could not be read.
        faces: What was found.
        error: Why there is no answer; None where there is one.
        frame: Number of the frame in a video, from 0.
        seconds: Time of the frame.
        time: When a camera took it, ISO 8601 in UTC.
    """

    file: str
    width: int | None = None
    height: int | None = None
    faces: Sequence[LabelledFace] = ()
    error: str | None = None
    frame: int | None = None
    seconds: float | None = None
    time: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the record as the schema has it."""
        place: dict[str, Any] = {}
        if self.frame is not None:
            place = {"frame": self.frame, "seconds": self.seconds}
        if self.time is not None:
            place["time"] = self.time
        return {
            "file": self.file,
            **place,
            "width": self.width,
            "height": self.height,
            "error": self.error,
            "faces": [face.to_json() for face in self.faces],
        }


_SHOWN_ERRORS = 20


@dataclass
class Summary:
    """Counts over records.

    Attributes:
        images: Images, or frames.
        unreadable: How many of them had no answer.
        without_faces: How many were read and show no face.
        labels: Faces by label.
        tracks: Of a video, the last label of each face that is followed, and how often it was
            found; None for photos.
        errors: The first few of those without an answer, as text.
    """

    images: int = 0
    unreadable: int = 0
    without_faces: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    tracks: dict[int, tuple[str, int]] | None = None
    errors: list[str] = field(default_factory=list)

    def add(self, record: Mapping[str, Any]) -> None:
        """Count one record, as the schema has it."""
        self.images += 1
        if record["error"] is not None:
            self.unreadable += 1
            if len(self.errors) < _SHOWN_ERRORS:
                self.errors.append(f"{record['file']}: {record['error']}")
        elif not record["faces"]:
            self.without_faces += 1
        self.labels.update(face["label"] for face in record["faces"])
        if "frame" in record:
            self.tracks = self.tracks or {}
            for face in record["faces"]:
                found = self.tracks.get(face["track"], ("", 0))[1] + face["seen"]
                self.tracks[face["track"]] = (face["label"], found)

    @property
    def followed(self) -> Counter[str]:
        """Faces that were found in two frames at least, each once, by their last label."""
        return Counter(label for label, found in (self.tracks or {}).values() if found > 1)

    def to_json(self) -> dict[str, Any]:
        """Return the summary as the schema has it."""
        return {
            "images": self.images,
            "unreadable": self.unreadable,
            "without_faces": self.without_faces,
            "faces": self.labels.total(),
            "labels": dict(sorted(self.labels.items())),
            **({} if self.tracks is None else {"tracks": dict(sorted(self.followed.items()))}),
        }


class JsonOutput:
    """The JSON file of a run: records go to a partial file, the whole appears by a rename.

    Args:
        path: The file; its folder is made where it is missing.
        settings: What must be the same for a rerun to go on, as JSON values.
        keep: Tells of a record of an interrupted run, and of the time when that began, in seconds
            since the epoch, whether it still holds; without it a run starts over, and sets aside
            what the interrupted one left.

    Raises:
        OutputError: The file cannot be written or is no such file, or a run with other settings is
            unfinished.
        PublishError: Another run writes to it now.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        keep: Callable[[Mapping[str, Any], float], bool] | None = None,
    ) -> None:
        self.path = path
        self.partial = path.with_name(f".{path.name}.partial.jsonl")
        self._lock = ExitStack()
        self._head = {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "settings": json.loads(json.dumps(settings)),
        }
        self._first_line = f"{json.dumps({**self._head, 'started': time.time()})}\n"
        if path.is_dir():
            raise OutputError(f"--output: {path} is a folder; expected a file such as faces.json")
        try:
            self._require_own()
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.enter_context(writing(path))
            self._file = self._open(keep)
        except OSError as error:
            self._lock.close()
            raise OutputError(f"--output: {path} cannot be written ({error.strerror})") from error
        except OutputError:
            self._lock.close()
            raise

    def _require_own(self) -> None:
        """Refuse to write over a file of another kind: a model, or somebody's notes."""
        if self.path.is_file() and self.path.stat().st_size:
            with self.path.open("rb") as file:
                if f'"{SCHEMA}"'.encode() not in file.read(1000):
                    raise OutputError(
                        f"--output: {self.path} is there and no JSON file of this command; give "
                        "another name, or remove it"
                    )

    def _open(self, keep: Callable[[Mapping[str, Any], float], bool] | None) -> IO[str]:
        if sum(1 for _ in islice(self._lines(), 2)) < 2:
            self._start()
        elif keep is None:
            names = (f"{self.path.name}.interrupted-{number}.jsonl" for number in count(1))
            paths = (self.path.with_name(name) for name in names)
            aside = next(path for path in paths if not path.exists())
            self.partial.replace(aside)
            print(f"What an interrupted run left is set aside: {aside}", file=sys.stderr)
            self._start()
        else:
            self._require_same(json.loads(next(self._lines())))
            self._drop_but(keep)
        return self.partial.open("a", encoding="utf-8")

    def _start(self) -> None:
        self.partial.write_text(self._first_line, encoding="utf-8")

    def _lines(self) -> Iterator[bytes]:
        """Read the partial file, if there is one, without a line half written."""
        if self.partial.is_file():
            with self.partial.open("rb") as file:
                yield from (line for line in file if line.endswith(b"\n"))

    def _drop_but(self, keep: Callable[[Mapping[str, Any], float], bool]) -> None:
        """Leave the records in the partial file that still hold, and may change from now on."""
        lines = self._lines()
        started = json.loads(next(lines)).get("started", 0.0)
        with replacing(self.partial) as whole, whole.open("wb") as file:
            file.write(self._first_line.encode())
            file.writelines(line for line in lines if keep(json.loads(line), started))

    def _require_same(self, found: Mapping[str, Any]) -> None:
        version = {"schema_version": found.get("schema_version")}
        differing = differences(
            {**found.get("settings", {}), **version},
            {**self._head["settings"], "schema_version": SCHEMA_VERSION},
        )
        if differing:
            raise OutputError(
                f"--output: {self.partial} is of an unfinished run with {differing}; "
                "finish that run, delete the file, or choose another --output"
            )

    def done(self) -> Iterator[dict[str, Any]]:
        """Read the records that are there already."""
        with self.partial.open(encoding="utf-8") as file:
            next(file)
            for line in file:
                yield json.loads(line)

    def add(self, record: Mapping[str, Any]) -> None:
        """Keep one record; from now on it survives the process."""
        self._file.write(f"{json.dumps(record, allow_nan=False)}\n")
        self._file.flush()

    def finish(self, summary: Summary) -> None:
        """Write the file, record by record, and drop the partial one."""
        self._file.close()
        with replacing(self.path) as whole, whole.open("w", encoding="utf-8") as file:
            head = json.dumps(self._head, indent=1).removesuffix("\n}")
            file.write(f'{head},\n "images": [')
            for index, record in enumerate(self.done()):
                file.write(",\n  " if index else "\n  ")
                file.write(json.dumps(record))
            file.write(f'\n ],\n "summary": {json.dumps(summary.to_json())}\n}}\n')
            file.flush()
            os.fsync(file.fileno())
        self.partial.unlink()
        self._lock.close()

    def close(self) -> None:
        """Keep what there is for a rerun."""
        self._file.close()
        self._lock.close()
