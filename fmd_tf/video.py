"""Video in, labelled video out: frames, a tracker that keeps boxes steady, an annotated file.

Frames are read and written by OpenCV (the extra `video`). The tracker is the matching of SORT
(Bewley et al. 2016, arXiv:1602.00763) with an alpha-beta filter in place of its Kalman filter:
a box goes on with its speed and is corrected by a part of what the detector says otherwise.
"""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image
from scipy.optimize import linear_sum_assignment

from fmd_tf import UNCERTAIN
from fmd_tf.boxes import overlaps
from fmd_tf.draw import draw_faces
from fmd_tf.errors import UserError, install_command
from fmd_tf.photos import Photo, PhotoError
from fmd_tf.publish import writing
from fmd_tf.records import LabelledFace, Record

DEFAULT_FRAME_RATE = 25.0
# FFmpeg gives 1000 where a file has no rate, as those that browsers record.
_MAX_FRAME_RATE = 240.0
_EXPECTED = "expected a video that OpenCV reads, such as MP4"
_EXPECTED_CAMERA = (
    "expected the number of a camera that is plugged in and free, from 0, or the URL of one that "
    "OpenCV reads, such as rtsp://host/stream"
)

Box = tuple[float, float, float, float]
Labeller = Callable[[Photo], Sequence[LabelledFace]]


class VideoError(UserError):
    """A video or camera cannot be read, or a video cannot be written."""


@dataclass(frozen=True)
class Frame:
    """One frame.

    Attributes:
        index: Number from 0.
        seconds: Time since the beginning; frames may come unevenly.
        pixels: uint8 RGB [height, width, 3].
        time: When a camera took it, ISO 8601 in UTC; None in a file.
    """

    index: int
    seconds: float
    pixels: np.ndarray
    time: str | None = None


class _NewestFrames:
    """Reads a camera in the background and gives its newest frame.

    One frame after the other would be seen later and later where labelling takes longer than the
    camera; what is labelled should be what is there.

    Args:
        capture: An open `cv2.VideoCapture`, which is released when the reading ends.
    """

    def __init__(self, capture: Any) -> None:
        self._capture = capture
        self._frame: np.ndarray | None = None
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._ended:
            read, frame = self._capture.read()
            with self._changed:
                if read:
                    self._frame = frame
                else:
                    self._ended = True
                self._changed.notify()
        self._capture.release()

    def next(self) -> np.ndarray | None:
        """Wait for a frame that was not given yet; None at the end."""
        with self._changed:
            # With a limit, as Ctrl-C does not end a wait without one on Windows.
            while self._frame is None and not self._ended:
                self._changed.wait(0.5)
            frame, self._frame = self._frame, None
            return frame

    def close(self) -> None:
        """Stop; a read that waits for a camera that is gone ends by itself."""
        self._ended = True
        self._thread.join(timeout=2.0)


class VideoSource:
    """The frames of a file or camera.

    Args:
        source: A file, the number of a camera, or the URL of one. User and password in a URL are
            left out of `name`, and so is the value of each parameter whose name tells of one.

    Raises:
        VideoError: OpenCV is missing, or there is no such file or camera, or no frame in it.
    """

    def __init__(self, source: Path | int | str) -> None:
        self._cv2 = _import_cv2()
        self.name = f"camera {source}" if isinstance(source, int) else str(source)
        if isinstance(source, str):
            self.name = _SECRETS.sub(r"\1", re.sub("//[^/]*@", "//", source))
        if isinstance(source, Path) and not source.is_file():
            raise VideoError(f"no video file {source}")
        self.is_camera = not isinstance(source, Path)
        self._newest: _NewestFrames | None = None
        self._capture = self._open(source)
        read, self._first = self._capture.read()
        if not read:
            self.close()
            raise VideoError(f"no frame can be read from {self.name}; {self._expected()}")
        rate = self._capture.get(self._cv2.CAP_PROP_FPS)
        has_rate = 0 < rate <= _MAX_FRAME_RATE
        self.frame_rate = rate if has_rate else DEFAULT_FRAME_RATE
        count = self._capture.get(self._cv2.CAP_PROP_FRAME_COUNT)
        # Where the file does not say how many, OpenCV takes the length times the rate.
        is_known = has_rate and 0 < count < 2**31 and not self.is_camera
        self.num_frames = int(count) if is_known else None

    def _open(self, source: Path | int | str) -> Any:
        capture = self._cv2.VideoCapture(
            _name_for_opencv(source) if isinstance(source, Path) else source
        )
        if not capture.isOpened():
            capture.release()
            raise VideoError(f"{self.name} cannot be opened; {self._expected()}")
        return capture

    def _expected(self) -> str:
        return _EXPECTED_CAMERA if self.is_camera else _EXPECTED

    def __iter__(self) -> Iterator[Frame]:
        """Give the frames, once; a camera has no end, and gives its newest frame each time."""
        started, index, bgr, seconds, now = time.perf_counter(), 0, self._first, 0.0, None
        first = self._position()
        if self.is_camera:
            self._newest = _NewestFrames(self._capture)
        while bgr is not None:
            if self.is_camera:
                seconds = time.perf_counter() - started
                now = datetime.now(UTC).isoformat(timespec="milliseconds")
            rgb = self._cv2.cvtColor(bgr, self._cv2.COLOR_BGR2RGB)
            yield Frame(index, round(seconds, 3), rgb, now)
            index, bgr = index + 1, self._following()
            if not self.is_camera:
                seconds = self._later(seconds, self._position() - first)

    def _position(self) -> float:
        """Return the time in seconds that the file gives of the frame that was read last."""
        return self._capture.get(self._cv2.CAP_PROP_POS_MSEC) / 1000

    def _later(self, seconds: float, position: float) -> float:
        """Return the next frame's time; the file's own must lie between the last and the end."""
        end = self.num_frames / self.frame_rate if self.num_frames else math.inf
        return position if seconds < position <= end else seconds + 1 / self.frame_rate

    def _following(self) -> np.ndarray | None:
        if self._newest:
            return self._newest.next()
        read, bgr = self._capture.read()
        return bgr if read else None

    def close(self) -> None:
        """Let go of the file or camera."""
        if self._newest:
            self._newest.close()
        else:
            self._capture.release()


# A parameter of a camera's URL up to its value, where the name tells that the value is a secret.
_SECRETS = re.compile(
    r"(?i)([?&][^=&]*(?:auth|key|login|pass|pin|psw|pwd|secret|sign|token|user|usr)[^=&]*=)[^&#]*"
)


def _name_for_opencv(path: Path) -> str:
    """Return a name that OpenCV takes: in a relative one, FFmpeg sees a protocol before a colon.

    Raises:
        VideoError: The name is not UTF-8, by which OpenCV would end the process.
    """
    name = str(path.absolute())
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise VideoError(f"{str(path)!a}: OpenCV takes names in UTF-8 only; rename it") from error
    return name


def _import_cv2() -> ModuleType:
    # OpenCV and FFmpeg print to standard error what becomes an error message here.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    try:
        import cv2
    except ImportError as error:
        raise VideoError(
            f"video needs OpenCV ({error}); install it with {install_command('video')}"
        ) from error
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2


class VideoFile:
    """An annotated video that is being written; `finish` puts it into place.

    Args:
        path: File name ending in `.mp4`; replaced where it exists.
        frame_rate: Frames a second.

    Raises:
        VideoError: It cannot be written.
        PublishError: Another run writes it now.
    """

    def __init__(self, path: Path, frame_rate: float) -> None:
        self._cv2 = _import_cv2()
        self.path = path
        self._partial = path.with_name(f".{path.stem}.partial.mp4")
        # MPEG-4 counts time in at most 65535 parts of a second.
        self._frame_rate = round(frame_rate, 3 if frame_rate < 65 else 1)
        self._writer: Any = None
        self._size = (0, 0)
        self._num_frames = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise VideoError(f"{path} cannot be written ({error.strerror})") from error
        self._lock = ExitStack()
        self._lock.enter_context(writing(path))
        # While the lock is held: later it could be another run's.
        self._lock.callback(self._partial.unlink, missing_ok=True)

    def add(self, picture: Image.Image, copies: int = 1) -> None:
        """Append a frame so many times; all have the first one's size, made even."""
        if self._writer is None:
            self._size = (max(2, picture.width // 2 * 2), max(2, picture.height // 2 * 2))
            codec = self._cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = self._cv2.VideoWriter(
                _name_for_opencv(self._partial), codec, self._frame_rate, self._size
            )
            if not self._writer.isOpened():
                raise VideoError(f"{self.path} cannot be written by OpenCV as MP4")
        cropped = np.asarray(picture.crop((0, 0, *self._size)))
        bgr = self._cv2.cvtColor(cropped, self._cv2.COLOR_RGB2BGR)
        for _ in range(copies):
            self._writer.write(bgr)
        self._num_frames += copies

    def finish(self) -> bool:
        """Close the file and rename it into place; tell whether there is one.

        Raises:
            VideoError: It was not written to its end, which OpenCV does not tell of.
        """
        if self._writer is None or not self._writer.isOpened():
            return False
        self._writer.release()
        written = self._cv2.VideoCapture(_name_for_opencv(self._partial))
        num_frames = written.get(self._cv2.CAP_PROP_FRAME_COUNT) if written.isOpened() else 0
        written.release()
        if num_frames < self._num_frames:
            raise VideoError(f"{self.path} could not be written to its end; is the disk full?")
        self._partial.replace(self.path)
        self._lock.close()
        return True

    def close(self) -> None:
        """Drop what was not finished."""
        if self._writer is not None:
            self._writer.release()
        self._lock.close()


@dataclass
class _Track:
    """A face, its pixels a frame to the right and down, and how often it was found.

    `age` counts the frames since it was found last.
    """

    face: LabelledFace
    speed: np.ndarray
    found: int = 1
    age: int = 0

    def move(self) -> None:
        """Go to where the face should be in the next frame."""
        box = np.array(self.face.box) + np.tile(self.speed, 2)
        self.face = replace(self.face, box=_as_box(box), seen=False)
        self.age += 1


class Tracker:
    """Keeps boxes and probabilities of faces steady over frames.

    Args:
        confidence_threshold: Least smoothed probability, else the label is uncertain.
        min_overlap: Least intersection over union of a face with where it should be, both boxes
            grown to twice their size, so that small faces may jump (Yang et al. 2023,
            arXiv:2211.14317); default 0.3.
        new_share: Weight of a frame's box against the expected one, 1 for no smoothing; default
            0.6. The speed is corrected by `new_share ** 2 / (2 - new_share)` of the difference
            (Benedict and Bordner 1962, "Synthesis of an optimal set of radar track-while-scan
            smoothing equations").
        new_share_probabilities: The same for probabilities; default 0.3.
        memory: Frames for which a face that is not found goes on as before, if it was found more
            than once; default 5.
    """

    def __init__(
        self,
        confidence_threshold: float = 0.0,
        min_overlap: float = 0.3,
        new_share: float = 0.6,
        new_share_probabilities: float = 0.3,
        memory: int = 5,
    ) -> None:
        self._threshold = confidence_threshold
        self._min_overlap = min_overlap
        self._new_share = new_share
        self._new_share_speed = new_share**2 / (2 - new_share)
        self._new_share_probabilities = new_share_probabilities
        self._memory = memory
        self._tracks: list[_Track] = []
        self._next = 1

    def update(self, faces: Sequence[LabelledFace]) -> list[LabelledFace]:
        """Take the faces of the next frame.

        Args:
            faces: What the detector found, boxes in pixels.

        Returns:
            The faces to show, each with its `track`: those found, smoothed, and those remembered
            (`seen` is false), by number.
        """
        for track in self._tracks:
            track.move()
        matches = _match(self._tracks, faces, self._min_overlap)
        for index, track in enumerate(self._tracks):
            if index in matches:
                self._correct(track, faces[matches[index]])
        found = set(matches.values())
        self._tracks += [self._begin(face) for i, face in enumerate(faces) if i not in found]
        self._tracks = [track for track in self._tracks if self._is_kept(track)]
        return [track.face for track in self._tracks]

    def skip(self) -> list[LabelledFace]:
        """Return the faces where they should be in the next frame, which is not looked at."""
        for track in self._tracks:
            track.move()
        return [track.face for track in self._tracks]

    def _is_kept(self, track: _Track) -> bool:
        return track.age <= (self._memory if track.found > 1 else 0)

    def _begin(self, face: LabelledFace) -> _Track:
        self._next += 1
        return _Track(replace(face, track=self._next - 1, seen=True), speed=np.zeros(2))

    def _correct(self, track: _Track, now: LabelledFace) -> None:
        """Move a track from where it should be towards where its face was found."""
        difference = np.array(now.box) - np.array(track.face.box)
        box = np.array(track.face.box) + self._new_share * difference
        shift = (difference[:2] + difference[2:]) / 2
        track.speed = track.speed + self._new_share_speed * shift / track.age
        track.found, track.age = track.found + 1, 0
        track.face = self._smooth(track.face, now, _as_box(box))

    def _smooth(self, before: LabelledFace, now: LabelledFace, box: Box) -> LabelledFace:
        """Average the probabilities and choose the label by them."""
        share = self._new_share_probabilities
        probabilities = {
            name: share * value + (1 - share) * before.probabilities[name]
            for name, value in now.probabilities.items()
        }
        best = max(probabilities, key=lambda name: probabilities[name])
        confidence = probabilities[best]
        label = best if confidence >= self._threshold else UNCERTAIN
        return replace(
            now,
            box=box,
            label=label,
            class_name=best,
            confidence=confidence,
            probabilities=probabilities,
            track=before.track,
        )


def _match(
    tracks: Sequence[_Track], faces: Sequence[LabelledFace], min_overlap: float
) -> dict[int, int]:
    """Return face index by track index, with the largest sum of overlaps."""
    if not tracks or not faces:
        return {}
    before, now = ([track.face.box for track in tracks], [face.box for face in faces])
    shared = overlaps(_grow(np.array(before)), _grow(np.array(now)))
    # Pairs that may not match must not draw others into worse matches.
    allowed = np.where(shared >= min_overlap, shared, 0.0)
    rows, columns = linear_sum_assignment(allowed, maximize=True)
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    return {row: column for row, column in pairs if allowed[row, column] > 0}


def _as_box(values: np.ndarray) -> Box:
    xmin, ymin, xmax, ymax = values.tolist()
    return xmin, ymin, xmax, ymax


def _grow(boxes: np.ndarray) -> np.ndarray:
    """Return boxes of twice the width and height about the same centre."""
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, 2:] + half], axis=1)


def label_video(
    source: VideoSource,
    label: Labeller,
    tracker: Tracker,
    output: VideoFile | None,
    show: Callable[[Image.Image], bool] | None = None,
    label_every: int = 1,
) -> Iterator[Record]:
    """Label the frames one by one; only one is in memory.

    Args:
        source: The frames.
        label: Finds and classifies the faces of one frame.
        tracker: Keeps them steady.
        output: Where the annotated video goes.
        show: Shows an annotated frame; returns False to stop.
        label_every: Look at the first of so many frames; in the others faces go on as they moved.

    Yields:
        A record a frame.

    Raises:
        VideoError: A camera has gone away.
    """
    clock = FrameClock()
    num_written = 0
    with closing(source):
        for frame in source:
            looked_at = frame.index % label_every == 0
            record = _label_frame(source.name, frame, label if looked_at else None, tracker)
            clock.tick()
            if output or show:
                note = f"{clock.rate:.1f} frames/s"
                picture = draw_faces(frame.pixels, record.faces, note, is_frame=True)
                if output:
                    # The file's frames come evenly; a phone's do not, and a camera does not wait
                    # until its last one is labelled.
                    due = 1 + round(frame.seconds * source.frame_rate) - num_written
                    copies = max(0, due)
                    output.add(picture, copies)
                    num_written += copies
            yield record
            if show and not show(picture):
                return
    if source.is_camera:
        raise VideoError(f"{source.name} gives no more frames; what was labelled until now is kept")


def _label_frame(name: str, frame: Frame, label: Labeller | None, tracker: Tracker) -> Record:
    """Label a frame; without a labeller it is not looked at."""
    height, width = frame.pixels.shape[:2]
    empty = Record(name, frame=frame.index, seconds=frame.seconds, time=frame.time)
    try:
        faces = tracker.update(label(Photo(frame.pixels))) if label else tracker.skip()
    except PhotoError as error:
        return replace(empty, error=str(error))
    inside = [_clip(face, width, height) for face in faces]
    return replace(empty, width=width, height=height, faces=[face for face in inside if face])


def _clip(face: LabelledFace, width: int, height: int) -> LabelledFace | None:
    """Return the part inside the frame; a face that is remembered may leave it."""
    box = np.clip(face.box, 0, [width, height, width, height])
    kept = (box[2:] > box[:2]).all()
    return replace(face, box=_as_box(box)) if kept else None


class FrameClock:
    """Frames per second, over the last second or so."""

    def __init__(self) -> None:
        self._ticks = [time.perf_counter()]

    def tick(self) -> None:
        """Count a frame."""
        now = time.perf_counter()
        self._ticks = [tick for tick in self._ticks[-60:] if now - tick < 2.0] or self._ticks[-1:]
        self._ticks.append(now)

    @property
    def rate(self) -> float:
        """Frames per second; 0 before the first."""
        span = self._ticks[-1] - self._ticks[0]
        return (len(self._ticks) - 1) / span if span > 0 else 0.0
