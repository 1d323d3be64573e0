"""Find and classify the faces of photos, folders and video: `python -m fmd_tf.predict`.

    python -m fmd_tf.predict --image photo.jpg
    python -m fmd_tf.predict --folder photos --output faces.json --save-viz labelled

The exit code is 0 where at least one image could be read, even if others could not (they are
listed), and 2 where nothing could be read or asked for.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fmd_tf.arguments import add_detector_size, at_least, fraction, make_parser
from fmd_tf.backends import load_backend
from fmd_tf.checkpoints import BEST_MODEL
from fmd_tf.detect import DETECTOR_NAMES, FaceDetector, load_face_detector
from fmd_tf.devices import faster_graphs
from fmd_tf.draw import draw_faces, save_picture
from fmd_tf.errors import UserError, command_line
from fmd_tf.formats import litert_folder
from fmd_tf.labelling import Labeller
from fmd_tf.memory import keep_memory
from fmd_tf.photos import PhotoError, find_photos, read_photo
from fmd_tf.publish import require_writable, version_folder
from fmd_tf.records import JsonOutput, LabelledFace, OutputError, Record, Summary
from fmd_tf.video import Tracker, VideoFile, VideoSource, label_video
from fmd_tf.window import Window

DEFAULT_MODEL = f"checkpoints/{BEST_MODEL}"
DEFAULT_VIDEO_DIR = Path("results/video")
_REPORT_SECONDS = 15.0
_LONGEST_NAME = 220
"""Bytes of a photo's name in that of its picture; file systems take 255."""


class InputError(UserError):
    """There is nothing to predict on."""


@command_line
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the process' exit code."""
    keep_memory()
    arguments = build_parser().parse_args(argv)
    try:
        with _terminated_as_interrupted():
            predict(**vars(arguments))
    except KeyboardInterrupt as stop:
        message = "stopped; with --output the same command goes on from here"
        raise KeyboardInterrupt(message) from stop
    return 0


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Keep as much when a service is stopped, or its terminal closed, as at Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {
        each: signal.signal(each, signal.default_int_handler)
        for each in (getattr(signal, name) for name in names)
        if signal.getsignal(each) != signal.SIG_IGN  # As nohup has it.
    }
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = make_parser("predict", "Find and classify the faces of photos.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--image", type=Path, nargs="+", help="photos")
    source.add_argument("--folder", type=Path, help="folder of photos, and the folders in it")
    source.add_argument("--video", type=_video, help="video file, or the URL of a camera")
    source.add_argument(
        "--webcam", type=at_least(0), metavar="N", help="number of a camera, from 0"
    )
    add = parser.add_argument
    add(
        "--model",
        default=DEFAULT_MODEL,
        help=".keras file, folder of an export, or a server's URL, with /v1/models/NAME where its "
        "model is not face_mask",
    )
    add("--detector", choices=DETECTOR_NAMES, default="trained", help="what finds the faces")
    add(
        "--detector-model",
        type=Path,
        metavar="FILE",
        help="trained detector; default: the export's, or checkpoints/detector/best_detector.keras",
    )
    add_detector_size(parser)
    add("--output", type=Path, metavar="FILE.json", help="JSON file of all answers")
    add("--save-viz", type=Path, metavar="DIR", help="folder for the annotated pictures or video")
    add("--visualize", action="store_true", help="show each picture in a window")
    add("--confidence-threshold", type=fraction, default=0.5, help="below it a face is uncertain")
    add(
        "--face-threshold",
        type=fraction,
        help="least score of a face; default: the detector's own, the lowest that an export takes",
    )
    add("--batch-size", type=at_least(1), default=32, help="faces that are classified at a time")
    add(
        "--label-every",
        type=at_least(1),
        default=1,
        metavar="N",
        help="look at every Nth frame of a video; between them faces go on as they moved",
    )
    return parser


def _video(text: str) -> Path | str:
    return text if "://" in text else Path(text)


def predict(
    image: Sequence[Path] | None = None,
    folder: Path | None = None,
    video: Path | str | None = None,
    webcam: int | None = None,
    model: str = DEFAULT_MODEL,
    detector: str = "trained",
    detector_model: Path | None = None,
    output: Path | None = None,
    save_viz: Path | None = None,
    visualize: bool = False,
    confidence_threshold: float = 0.5,
    face_threshold: float | None = None,
    detector_size: int | None = None,
    batch_size: int = 32,
    label_every: int = 1,
) -> Summary:
    """Find and classify the faces of photos, of a folder, or of a video, and print them.

    Args:
        image: Photos; one of `image`, `folder`, `video` and `webcam` is given.
        folder: Folder of photos, searched with all folders in it.
        video: Video file, or the URL of a camera as a string, which is watched as `webcam` is.
        webcam: Number of a camera, watched until Ctrl-C or until its window is closed.
        model: See `backends.load_backend`.
        detector: See `labelling.Labeller`.
        detector_model: See `labelling.Labeller`.
        output: JSON file, see `fmd_tf.records`. An interrupted run over photos goes on where it
            stopped.
        save_viz: Folder for annotated pictures, named as the photos with `.jpg` added, or for the
            annotated video; that of a file is written to `results/video` by default.
        visualize: Show them in a window.
        confidence_threshold: Least probability of the likeliest class, else a face is "uncertain".
        face_threshold: Least score of a face; None takes the detector's own.
        detector_size: See `labelling.Labeller`.
        batch_size: Faces of a photo that are classified at a time.
        label_every: Of a video, look at the first of so many frames.

    Returns:
        The counts.

    Raises:
        ValueError: A subclass for each kind of unusable input, with a message for the user.
    """
    source = _open_source(image, folder, video, webcam, save_viz, detector)
    _refuse_overwriting(source, output, save_viz)
    if save_viz:
        require_writable(save_viz)
    window = Window() if visualize else None
    with closing(load_backend(model, batch_size)) as backend:
        label = Labeller(
            backend, detector, detector_model, confidence_threshold, face_threshold, detector_size
        )
        settings = {
            "source": source.name,
            "model": model,
            "model_sha256": _sha256(Path(model)),
            "model_version": backend.version,
            "detector": detector,
            "detector_sha256": _sha256(label.detector_file),
            "detector_size": detector_size,
            "confidence_threshold": confidence_threshold,
            "face_threshold": face_threshold,
            "pictures": str(save_viz) if save_viz else None,
        }
        # The video first: if another run writes it, no JSON file is replaced.
        with (
            _video_file(source, save_viz) as annotated,
            _Results(output, settings, source) as results,
        ):
            if isinstance(source, VideoSource):
                tracker = Tracker(confidence_threshold)
                with faster_graphs():
                    _label_video(source, label, tracker, annotated, window, results, label_every)
            else:
                _label_photos(source, label, save_viz, window, results)
    return results.summary


@dataclass(frozen=True)
class _Photos:
    """The photos of a run: what is read, and the folder that names are relative to.

    `annotated` reads boxes from the XML files beside them, where these are what is labelled.
    """

    name: str
    files: Sequence[Path]
    root: Path
    named_as_given: bool
    annotated: FaceDetector | None = None

    def file_name(self, path: Path) -> str:
        return str(path) if self.named_as_given else path.relative_to(self.root).as_posix()

    def picture(self, path: Path, folder: Path) -> Path:
        """Two photos have two pictures, also where only their ending or folder differs."""
        relative = Path(os.path.relpath(path, self.root))
        name = os.fsencode(relative.name)
        if len(name) > _LONGEST_NAME:  # There would be no room for an ending.
            beginning = name[:_LONGEST_NAME].decode(errors="ignore")
            mark = hashlib.sha256(name).hexdigest()[:8]
            return folder / relative.with_name(f"{beginning}-{mark}.jpg")
        return folder / relative.with_name(f"{relative.name}.jpg")

    @cached_property
    def _by_name(self) -> dict[str, Path]:
        return {self.file_name(path): path for path in self.files}

    def is_unchanged(self, record: Mapping[str, Any], started: float) -> bool:
        """Tell whether an interrupted run's record is an answer that still holds.

        Args:
            record: The record; one with an error does not hold, as that may be mended by now.
            started: When the run began, in seconds since the epoch; what changed since may have
                done so after it was read.
        """
        path = self._by_name.get(record["file"])
        if path is None or record["error"] is not None or not path.exists():
            return False
        status = path.stat()
        if max(status.st_mtime, status.st_ctime) > started:
            return False
        return self.annotated is None or _has_boxes(record, self.annotated, path)


def _has_boxes(record: Mapping[str, Any], annotated: FaceDetector, path: Path) -> bool:
    """Tell whether the faces of a record are those that a photo's XML file has now."""
    photo = np.broadcast_to(np.uint8(0), (record["height"], record["width"], 3))
    try:
        boxes, _ = annotated(photo, path)
    except PhotoError:
        return False
    recorded = np.reshape([face["box"] for face in record["faces"]], (-1, 4))
    # A record has two digits.
    return boxes.shape == recorded.shape and np.allclose(boxes, recorded, rtol=0, atol=0.01)


def _open_source(
    image: Sequence[Path] | None,
    folder: Path | None,
    video: Path | str | None,
    webcam: int | None,
    save_viz: Path | None,
    detector: str,
) -> _Photos | VideoSource:
    """Look at the input before a model is loaded for it."""
    if save_viz and save_viz.exists() and not save_viz.is_dir():
        raise OutputError(f"--save-viz: {save_viz} is a file; expected a folder")
    annotated = load_face_detector("voc") if detector == "voc" else None
    if image:
        files = list(dict.fromkeys(image))
        try:
            # By name, as `..` is not followed by relative paths either.
            parents = [Path(os.path.normpath(path.absolute())).parent for path in files]
            root = Path(os.path.commonpath(parents))
        except ValueError as error:  # On Windows.
            raise InputError("--image: expected photos of one drive") from error
        name = " ".join(map(str, files))
        return _Photos(name, files, root, named_as_given=True, annotated=annotated)
    if folder:
        files = _folder_files(folder, save_viz)
        return _Photos(str(folder), files, folder, named_as_given=False, annotated=annotated)
    if detector == "voc":
        raise InputError("--detector voc needs photos with XML files; choose another for video")
    watched = webcam if video is None else video
    if watched is None:
        raise InputError("expected an image, a folder, a video or a webcam")
    return VideoSource(watched)


def _refuse_overwriting(
    source: _Photos | VideoSource, output: Path | None, save_viz: Path | None
) -> None:
    """Refuse to write over what is read, by whatever name."""
    if isinstance(source, VideoSource):
        read: Sequence[Path] = [] if source.is_camera else [Path(source.name)]
        written = [_video_path(source, save_viz)]
    else:
        read = source.files
        # The pictures of a folder lie in one that is not searched.
        pictures = save_viz if source.named_as_given else None
        written = [source.picture(path, pictures) for path in read] if pictures else []
    there = [path for path in (output, *written) if path and path.exists()]
    originals = {_identity(path) for path in read if path.exists()} if there else set()
    for path in there:
        if _identity(path) in originals:
            if isinstance(source, VideoSource):
                source.close()
            raise OutputError(
                f"{path} is read and would be written over; give another --output or --save-viz"
            )


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _folder_files(folder: Path, save_viz: Path | None) -> list[Path]:
    if not folder.is_dir():
        reason = "is no folder" if folder.exists() else "does not exist"
        raise InputError(f"--folder: {folder} {reason}")
    if save_viz and save_viz.resolve() == folder.resolve():
        raise OutputError("--save-viz: expected another folder than that of the photos")
    files = find_photos(folder, leave_out=save_viz)
    if not files:
        raise InputError(f"--folder: no photos in {folder}, such as .jpg, .png, .webp or .bmp")
    return files


def _sha256(path: Path | None) -> str | None:
    """Tell one model from another that takes its place; of a server's the version must do."""
    if path is None or not path.exists():
        return None
    if folder := litert_folder(path):
        files = sorted(folder.glob("*.tflite"))
    else:
        files = [version_folder(path) / "saved_model.pb"] if path.is_dir() else [path]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


class _Results:
    """Where answers go: the console, the JSON file and the counts."""

    def __init__(
        self, output: Path | None, settings: Mapping[str, Any], source: _Photos | VideoSource
    ) -> None:
        self.summary = Summary()
        self.done: set[str] = set()
        self._is_video = isinstance(source, VideoSource)
        keep = None if isinstance(source, VideoSource) else source.is_unchanged
        self._json = JsonOutput(output, settings, keep) if output else None
        for record in self._json.done() if self._json else ():
            self.summary.add(record)
            self.done.add(record["file"])
        self._num_before = self.summary.images
        total = source.num_frames if isinstance(source, VideoSource) else len(source.files)
        self._unit = "frame" if self._is_video else "image"
        self._progress = Progress(total, self._num_before, self._unit)
        self._started = time.perf_counter()

    def __enter__(self) -> _Results:
        if self._num_before:
            print(f"Going on after {_count(self._num_before, 'image')} of an interrupted run")
        return self

    def add(self, record: Record) -> None:
        """Print and keep one answer."""
        values = record.to_json()
        self.summary.add(values)
        if self._json:
            self._json.add(values)
        self._progress.add(format_record(record))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._progress.close()
        if kind is None:
            self._finish()
        elif self._json and self._is_video:
            # A rerun begins anew: what there is would be lost.
            self._json.finish(self.summary)
        elif self._json:
            self._json.close()

    def _finish(self) -> None:
        """Print the summary and put the JSON file into place."""
        if self._json:
            self._json.finish(self.summary)
            print(f"JSON: {self._json.path}")
        new = self.summary.images - self._num_before
        seconds = time.perf_counter() - self._started
        print(format_summary(self.summary, new, seconds, self._unit))
        if self.summary.unreadable == self.summary.images:
            first = (self.summary.errors or ["no image at all"])[0]
            raise InputError(f"nothing could be read: {first}")


class Progress:
    """A bar on standard error, or a line there every so often where it is no terminal.

    Args:
        total: Number of images; None if unknown.
        initial: How many are done already.
        unit: What is counted.
    """

    def __init__(self, total: int | None, initial: int, unit: str) -> None:
        self._bar = tqdm(
            total=total,
            initial=initial,
            unit=unit,
            file=sys.stderr,
            disable=not sys.stderr.isatty(),
        )
        self._total, self._count, self._unit = total, initial, unit
        self._reported = time.monotonic()

    def add(self, text: str) -> None:
        """Print a text to standard output and count one."""
        self._bar.write(text, file=sys.stdout)
        self._bar.update()
        self._count += 1
        now = time.monotonic()
        if self._bar.disable and now - self._reported > _REPORT_SECONDS:
            self._reported = now
            of = f" of {self._total}" if self._total else ""
            print(f"{self._count}{of} {self._unit}s", file=sys.stderr)

    def close(self) -> None:
        """Leave the bar where it is."""
        self._bar.close()


def _label_photos(
    photos: _Photos,
    label: Labeller,
    save_viz: Path | None,
    window: Window | None,
    results: _Results,
) -> None:
    """Label photo after photo; only one is in memory."""
    for path in photos.files:
        name = photos.file_name(path)
        if name in results.done:
            continue
        try:
            photo = read_photo(path)
            faces = label(photo, path)
        except PhotoError as error:
            results.add(Record(name, error=str(error)))
            continue
        if save_viz or window:
            picture = draw_faces(photo.pixels, faces)
            # Before the record: a photo that is recorded has its picture.
            if save_viz:
                save_picture(picture, photos.picture(path, save_viz))
        results.add(Record(name, photo.width, photo.height, faces))
        if window:
            window.show(picture, f"{name} (any key for the next)")


def _video_path(source: VideoSource, save_viz: Path | None) -> Path | None:
    """Return where the annotated video goes; a camera's is kept only if asked for."""
    if source.is_camera:
        name = re.sub(r"[^\w.]+", "-", source.name).strip("-")
        return save_viz / f"{name}.mp4" if save_viz else None
    path = Path(source.name)
    name = path.stem if path.suffix.lower() == ".mp4" else path.name
    return (save_viz or DEFAULT_VIDEO_DIR) / f"{name}.mp4"


@contextmanager
def _video_file(source: _Photos | VideoSource, save_viz: Path | None) -> Iterator[VideoFile | None]:
    """Begin the annotated video, where there is to be one, and drop it if it is not finished."""
    if isinstance(source, VideoSource) and (path := _video_path(source, save_viz)):
        with closing(VideoFile(path, source.frame_rate)) as annotated:
            yield annotated
    else:
        yield None


def _label_video(
    source: VideoSource,
    label: Labeller,
    tracker: Tracker,
    output: VideoFile | None,
    window: Window | None,
    results: _Results,
    label_every: int,
) -> None:
    """Label frame after frame until the end, Ctrl-C, or until the window is closed."""
    if output and output.path.exists():
        print(f"{output.path} is there and will be replaced", file=sys.stderr)
    try:
        show = window.play if window else None
        for record in label_video(source, label, tracker, output, show, label_every):
            results.add(record)
        if window is None or window.is_open:
            _tell_missing(source, results.summary.images)
    except KeyboardInterrupt:
        print("stopped; what was labelled until now is kept", file=sys.stderr)
    finally:
        # Whatever ended it, a server that went away too, an hour of video is not lost.
        if output and output.finish():
            print(f"Video: {output.path}")


def _tell_missing(source: VideoSource, num_read: int) -> None:
    """Tell of a damaged file; what it says of its length may be a little wrong in a whole one."""
    if source.num_frames and num_read < 0.98 * source.num_frames - 1:
        print(
            f"{source.name}: {num_read} frames could be read of the {source.num_frames} that the "
            "file should have; it is damaged, or cut off",
            file=sys.stderr,
        )


def format_record(record: Record) -> str:
    """Return the lines that are printed of an image: its name, and a line a face."""
    name = record.file if record.file.isprintable() else ascii(record.file)
    frame = "" if record.frame is None else f" frame {record.frame} ({record.seconds:.2f} s)"
    if record.error is not None:
        return f"{name}{frame}: not readable: {record.error}"
    count = _count(len(record.faces), "face") if record.faces else "no face found"
    head = f"{name}{frame} ({record.width}x{record.height}): {count}"
    return "\n".join([head, *map(_format_face, record.faces)])


def _by_label(counts: Mapping[str, int]) -> str:
    labels = ", ".join(f"{number} {name}" for name, number in counts.items())
    return f" ({labels})" if labels else ""


def _count(number: int, unit: str) -> str:
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"


def _format_face(face: LabelledFace) -> str:
    box = ", ".join(f"{value:.0f}" for value in face.box)
    chances = ", ".join(f"{name} {value:.3f}" for name, value in face.probabilities.items())
    track = "" if face.track is None else f"face {face.track}{'' if face.seen else ' (expected)'}  "
    return f"  {track}box ({box})  {face.label} {face.confidence:.3f}  [{chances}]"


def format_summary(summary: Summary, num_new: int, seconds: float, unit: str = "image") -> str:
    """Return the lines that are printed at the end.

    Args:
        summary: The counts.
        num_new: How many images were labelled now, not in a run before.
        seconds: How long that took.
        unit: What an image is called; default "image".
    """
    counts = summary.to_json()
    images, found = _count(counts["images"], unit), _count(counts["faces"], "face")
    lines = [
        f"{images}: {found}{_by_label(counts['labels'])}",
        f"{counts['without_faces']} without a face, {counts['unreadable']} not readable",
        *(f"  {error}" for error in summary.errors),
    ]
    if "tracks" in counts:
        followed = _count(sum(counts["tracks"].values()), "face")
        lines.insert(1, f"{followed} followed over frames{_by_label(counts['tracks'])}")
    more = summary.unreadable - len(summary.errors)
    lines += [f"  and {more} more"] if more else []
    if num_new and seconds:
        rate = f"{num_new / seconds:.1f} a second, {1000 * seconds / num_new:.0f} ms each"
        lines.append(f"{num_new} in {seconds:.1f} s: {rate}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
