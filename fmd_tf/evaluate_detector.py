"""Score face detectors side by side, and with a classifier from photo to labelled faces.

`python -m fmd_tf.evaluate_detector --detector FILE --data-dir DIR --split-file FILE` scores a
trained detector; `--peer mtcnn` puts another beside it on the same photos, `--model FILE` adds
the classes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fmd_tf import CLASS_NAMES
from fmd_tf.arguments import add_detector_size, at_least, make_parser
from fmd_tf.backends import face_classifier
from fmd_tf.detect import (
    FaceDetector,
    Faces,
    load_face_detector,
    trained_detector,
)
from fmd_tf.detector import DetectorCard, load_detector
from fmd_tf.detector_metrics import (
    RECALL_OVERLAP,
    PhotoFaces,
    at_precision,
    average_precision,
    by_threshold,
    summarize,
)
from fmd_tf.errors import command_line
from fmd_tf.evaluate import write_problems
from fmd_tf.freezing import fold_batch_norm
from fmd_tf.input_pipeline import decode_photo
from fmd_tf.memory import keep_memory
from fmd_tf.model import ModelCard, ModelError, load_model
from fmd_tf.plots import plot_precision_recall, save_figure
from fmd_tf.publish import require_writable, write_text
from fmd_tf.splits import (
    ALL_PHOTOS_NOTE,
    MAX_DISTANCE,
    SplitError,
    group_photos,
    load_split,
    require_same_part,
)
from fmd_tf.voc import Annotation, read_folder

Labeller = Callable[[np.ndarray, np.ndarray], np.ndarray]

REPORT_FILES = ("detector.json", "precision_recall.png")
"""What `write_report` leaves, and would be wrong beside the split of another training."""
END_TO_END_OVERLAP = 0.3
LOWEST_SCORE = 0.05


@command_line
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the process' exit code."""
    keep_memory()
    options = _parse(argv)
    evaluate(**vars(options))
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("evaluate_detector", "Score face detectors on annotated photos.")
    add = parser.add_argument
    add("--detector", type=Path, required=True, help="best_detector.keras of a training")
    add_detector_size(parser)
    add("--data-dir", type=Path, required=True, help="VOC folder with images/ and annotations/")
    add("--results-dir", type=Path, default=Path("results/detector_again"), help="where to write")
    add("--split-file", type=Path, help="split.json of the training")
    add("--split", choices=("train", "val", "test", "all"), default="test", help="photos to score")
    add("--model", type=Path, help="classifier: also score boxes and classes together")
    add("--peer", choices=("none", "mtcnn"), default="none", help="detector to put beside it")
    add("--skip-invalid", action="store_true", help="leave out invalid annotations")
    add("--group-distance", type=at_least(0), default=MAX_DISTANCE, help="as for training (bits)")
    add("--class-names", nargs="+", default=list(CLASS_NAMES), help="names of the classes")
    return parser.parse_args(argv)


def evaluate(
    detector: Path,
    data_dir: Path,
    results_dir: Path,
    split_file: Path | None = None,
    split: str = "test",
    model: Path | None = None,
    peer: str = "none",
    skip_invalid: bool = False,
    class_names: Sequence[str] = CLASS_NAMES,
    group_distance: int = MAX_DISTANCE,
    detector_size: int | None = None,
) -> dict[str, Any]:
    """Score a saved detector, and what it stands beside, on annotated photos.

    Args:
        detector: File of the trained detector.
        data_dir: VOC folder.
        results_dir: `write_report` and `evaluate.write_problems` write to its folder `metrics`.
        split_file: A run's split; needed for any `split` but "all".
        split: Which part to score.
        model: Classifier that labels the found faces; None scores boxes only.
        peer: "mtcnn" scores MTCNN on the same photos too.
        skip_invalid: Leave out invalid annotations.
        class_names: Names of the classes, which must be the classifier's.
        group_distance: See `splits.group_photos`; the intervals draw groups.
        detector_size: See `labelling.Labeller`.

    Returns:
        What is written.

    Raises:
        ValueError: A subclass for each kind of unusable input, with a message for the user.
    """
    if split != "all" and split_file is None:
        raise SplitError(f"--split {split} needs the --split-file of the training")
    require_writable(results_dir / "metrics")
    network, card = load_detector(detector, detector_size)
    trainings = {detector: card.training}
    labeller = None
    if model:
        classifier, model_card = load_model(model)
        _require_classes(model, model_card, class_names)
        trainings[model] = model_card.training
        labeller = classifier_labeller(classifier, model_card)
    detectors = {"trained": trained_contender(network, card), **load_peer(peer)}
    folder = read_folder(data_dir, class_names, skip_invalid)
    write_problems(folder, results_dir)
    photos = list(folder.annotations)
    groups = group_photos(photos, group_distance)
    if split != "all" and split_file:
        photos = _part(photos, groups, split_file, split, trainings)
    photos = whole_photos(photos)
    if not photos:
        raise SplitError(f"no photos to score in {data_dir}, part {split}")
    figures = report(detectors, photos, class_names, groups, labeller)
    settings = {
        "detector": detector,
        "image_size": card.image_size,
        "model": model,
        "data_dir": data_dir,
        "split": split,
    }
    write_report(results_dir / "metrics", settings, figures)
    if split == "all":
        print(ALL_PHOTOS_NOTE)
    return figures


def _require_classes(model: Path, card: ModelCard, class_names: Sequence[str]) -> None:
    """Refuse a classifier whose classes are not those of the data in their order."""
    if card.class_names != tuple(class_names):
        raise ModelError(
            f"{model} tells apart {', '.join(card.class_names)}, in this order, not "
            f"{', '.join(class_names)}; give its classes with --class-names"
        )


def whole_photos(annotations: Sequence[Annotation]) -> list[Annotation]:
    """Return the photos without a face that `--skip-invalid` left out.

    In the others a face would be background.
    """
    return [annotation for annotation in annotations if not annotation.num_invalid]


def _part(
    annotations: Sequence[Annotation],
    groups: Mapping[str, int],
    split_file: Path,
    split: str,
    trainings: Mapping[Path, Mapping[str, Any]],
) -> list[Annotation]:
    """Return the photos of one part of a split, which must be the same in the trainings."""
    parts = load_split(split_file, groups)
    for path, training in trainings.items():
        problem = f"the part {split} of {split_file} is not that of {path}"
        require_same_part(parts, split, training, problem)
    names = set(getattr(parts, split))
    return [each for each in annotations if each.photo.name in names]


@dataclass(frozen=True)
class Contender:
    """A face detector that is scored.

    Attributes:
        find: Returns boxes of all scores that it can tell.
        threshold: Least score that is a face.
    """

    find: FaceDetector
    threshold: float


def trained_contender(model: keras.Model, card: DetectorCard) -> Contender:
    """Make a model of `fmd_tf.detector` ready, down to low scores."""
    return Contender(trained_detector(model, card, LOWEST_SCORE), card.threshold)


def load_peer(name: str) -> dict[str, Contender]:
    """Return another detector at its own settings, by its name; nothing for "none".

    Raises:
        DetectorError: Its package is missing.
    """
    detector = load_face_detector(name)
    return {name: Contender(detector, 0.0)} if detector else {}


def classifier_labeller(model: keras.Model, card: ModelCard) -> Labeller:
    """Return the function from a photo and boxes to int [num_faces], the classes."""
    classify = face_classifier(fold_batch_norm(model), card, card.padding)
    return lambda photo, boxes: classify(photo, boxes).argmax(axis=1)


def find_all(
    detector: Contender,
    annotations: Sequence[Annotation],
    class_names: Sequence[str],
) -> list[PhotoFaces]:
    """Run a detector over annotated photos.

    Args:
        detector: The detector.
        annotations: The photos and what is in them.
        class_names: Names of the classes.

    Returns:
        A record a photo, in their order.
    """
    index = {name: number for number, name in enumerate(class_names)}
    records = []
    for annotation in annotations:
        boxes, scores = detector.find(_pixels(annotation), annotation.photo)
        records.append(
            PhotoFaces(
                photo=annotation.photo.name,
                boxes=boxes,
                scores=scores,
                true_boxes=np.array([face.box for face in annotation.faces]).reshape(-1, 4),
                labels=np.array([index[face.label] for face in annotation.faces], np.int64),
            )
        )
    return records


def _pixels(annotation: Annotation) -> np.ndarray:
    return decode_photo(tf.io.read_file(str(annotation.photo))).numpy()


def report(
    detectors: Mapping[str, Contender],
    annotations: Sequence[Annotation],
    class_names: Sequence[str],
    groups: Mapping[str, int],
    labeller: Labeller | None = None,
) -> dict[str, Any]:
    """Score detectors on the same photos.

    Args:
        detectors: By name.
        annotations: Photos that none of them was trained on.
        class_names: Names of the classes.
        groups: Group of each photo by file name, for the intervals.
        labeller: Adds the figures of faces found with the right class.

    Returns:
        JSON-like: `photos`, and a detector's name to `threshold`, `ap50`, `milliseconds` a photo
        (median, detection alone), `detection` at an overlap of 0.4 and, with a labeller,
        `end_to_end` at 0.3: `detector_metrics.summarize`, and `by_threshold` and `at_precision`
        as there.
    """
    figures: dict[str, Any] = {"photos": len(annotations)}
    for name, detector in detectors.items():
        print(f"Scoring {name} on {len(annotations)} photos", flush=True)
        seconds: list[float] = []
        found = find_all(_timed(detector, seconds), annotations, class_names)
        tasks = {"detection": (found, RECALL_OVERLAP)}
        if labeller:
            labelled = [
                replace(photo, found_labels=labeller(_pixels(annotation), photo.boxes))
                for photo, annotation in zip(found, annotations, strict=True)
            ]
            tasks["end_to_end"] = labelled, END_TO_END_OVERLAP
        figures[name] = {
            "threshold": detector.threshold,
            "ap50": average_precision(found),
            "milliseconds": 1000 * float(np.median(seconds)),
        }
        for task, (photos, overlap) in tasks.items():
            faces = [photo.at_least(detector.threshold) for photo in photos]
            figures[name][task] = {
                **summarize(faces, class_names, overlap, groups),
                "by_threshold": by_threshold(photos, overlap),
                "at_precision": at_precision(photos, class_names, overlap, groups),
            }
    return figures


def write_report(folder: Path, settings: Mapping[str, Any], figures: Mapping[str, Any]) -> None:
    """Print the figures of `report`, and write them to `detector.json` and a plot beside it.

    Args:
        folder: Where both go.
        settings: What the figures are of; values that are no JSON are written as text.
        figures: What `report` returned.
    """
    table, plot = (folder / name for name in REPORT_FILES)
    write_text(table, json.dumps({"settings": settings, **figures}, indent=2, default=str))
    save_figure(plot_precision_recall(_detectors(figures)), plot)
    print(format_report(figures))


def _detectors(figures: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {name: value for name, value in figures.items() if isinstance(value, dict)}


def _timed(contender: Contender, seconds: list[float]) -> Contender:
    """Note how long each photo takes."""

    def find(photo: np.ndarray, path: Path | None = None) -> Faces:
        started = time.perf_counter()
        found = contender.find(photo, path)
        seconds.append(time.perf_counter() - started)
        return found

    return Contender(find, contender.threshold)


def format_report(figures: Mapping[str, Any]) -> str:
    """Return the figures of `report` as text, a column a detector."""
    detectors = _detectors(figures)
    lines = [""]

    def add_row(title: str, cells: Sequence[str]) -> None:
        lines.append(f"{title:34}" + "".join(f"{cell:>14}" for cell in cells))

    def add(title: str, values: Sequence[float | None], digits: int = 3) -> None:
        add_row(title, ["-" if value is None else f"{value:.{digits}f}" for value in values])

    def add_intervals(intervals: Sequence[Sequence[float] | None]) -> None:
        add_row(
            "  95 %", ["-" if not ends else "{:.2f} to {:.2f}".format(*ends) for ends in intervals]
        )

    add_row(f"{figures['photos']} photos", list(detectors))
    columns = list(detectors.values())
    add("AP50", [each["ap50"] for each in columns])
    add("milliseconds a photo", [each["milliseconds"] for each in columns], 0)
    for task, title in (("detection", "found"), ("end_to_end", "found and right")):
        if any(task in each for each in columns):
            parts = [each[task] for each in columns]
            for figure in ("recall", "precision"):
                add(f"{title}: {figure}", [part[figure] for part in parts])
                add_intervals([part[f"{figure}_95"] for part in parts])
            for records in zip(*(part["at_precision"] for part in parts), strict=True):
                recalls = [record.get("recall") for record in records]
                add(f"  recall at a precision of {records[0]['at']:.2f}", recalls)
            rows = [_recalls(part) for part in parts]
            for label, first in rows[0].items():
                add(f"{label} ({first['faces']})", [row[label]["recall"] for row in rows])
    return "\n".join(lines)


def _recalls(figures: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the slices of `detector_metrics.summarize` by the titles of their rows."""
    large = figures["faces_10px"]
    return {
        **{f"  {name}": each for name, each in figures["by_size"].items()},
        **{f"  {name}": each for name, each in figures["by_class"].items()},
        "  10 px and more": large,
        **{f"    {name}": each for name, each in large["by_class"].items()},
    }


if __name__ == "__main__":
    sys.exit(main())
