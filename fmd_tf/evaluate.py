"""Score a classifier: `python -m fmd_tf.evaluate --model FILE --data-dir DIR`.

The report is the same that training writes, from a saved model and any VOC folder.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np

from fmd_tf import plots
from fmd_tf.arguments import at_least, make_parser
from fmd_tf.errors import UserError, command_line
from fmd_tf.face_mask_dataset import load_photos
from fmd_tf.gradcam import plot_grad_cam
from fmd_tf.input_pipeline import Crops, eval_dataset, load_crops
from fmd_tf.memory import keep_memory
from fmd_tf.metrics import Predictions, color_contrasts, compute_metrics, format_summary
from fmd_tf.model import ModelCard, load_model
from fmd_tf.publish import replacing, require_writable, write_text
from fmd_tf.row_file import Rows
from fmd_tf.splits import ALL_PHOTOS_NOTE, MAX_DISTANCE, SplitError, load_split, require_same_part
from fmd_tf.voc import Folder

_BOX = ("xmin", "ymin", "xmax", "ymax")
_CHANCE = "probability_"


class PredictionsError(UserError):
    """A table of predictions cannot be used."""


@command_line
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the process' exit code."""
    keep_memory()
    arguments = _parse(argv)
    metrics, card = evaluate(**vars(arguments))
    print(f"Results: {arguments.results_dir / 'metrics'}")
    print(format_summary(metrics, card.class_names))
    if arguments.split == "all":
        print(ALL_PHOTOS_NOTE)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("evaluate", "Score a trained model on a VOC folder.")
    add = parser.add_argument
    add("--model", type=Path, required=True, help="best_model.keras of a training")
    add("--data-dir", type=Path, required=True, help="folder with images/ and annotations/")
    add("--results-dir", type=Path, default=Path("results/again"), help="where metrics/ is written")
    add("--split-file", type=Path, help="split.json of the training")
    add("--group-distance", type=at_least(0), default=MAX_DISTANCE, help="as for training (bits)")
    add("--split", choices=("train", "val", "test", "all"), help="default: test, or all")
    add("--batch-size", type=at_least(1), default=32, help="faces a step")
    add("--min-face-size", type=at_least(0), default=0, help="leave out smaller faces (pixels)")
    add("--skip-invalid", action="store_true", help="leave out invalid annotations")
    add("--num-bootstrap", type=at_least(1), default=1000, help="samples")
    add("--seed", type=at_least(0), default=0, help="seed of the bootstrap")
    arguments = parser.parse_args(argv)
    if arguments.split in ("train", "val", "test") and not arguments.split_file:
        parser.error(f"--split {arguments.split} needs --split-file FILE")
    arguments.split = arguments.split or ("test" if arguments.split_file else "all")
    return arguments


def evaluate(
    model: Path,
    data_dir: Path,
    results_dir: Path,
    split_file: Path | None = None,
    split: str = "all",
    batch_size: int = 32,
    min_face_size: int = 0,
    skip_invalid: bool = False,
    num_bootstrap: int = 1000,
    seed: int = 0,
    group_distance: int = MAX_DISTANCE,
) -> tuple[dict[str, Any], ModelCard]:
    """Score a saved model on a VOC folder and write the report.

    Args:
        model: A `.keras` file of a training.
        data_dir: Folder with `images/` and `annotations/`.
        results_dir: `metrics/` is written there.
        split_file: A `split.json`; needed for every part but "all".
        split: Part to score: "train", "val", "test" or "all".
        batch_size: Crops a step.
        min_face_size: Leave out faces with a shorter side of fewer pixels.
        skip_invalid: Leave out invalid annotations instead of raising.
        num_bootstrap: Number of bootstrap samples for the intervals.
        seed: Seed of the bootstrap.
        group_distance: See `splits.group_photos`.

    Returns:
        What `metrics.json` holds, and the model's card.

    Raises:
        ValueError: A subclass for each kind of unusable input, with a message for the user.
    """
    if split != "all" and split_file is None:
        raise SplitError(f"the part {split} needs the split_file of the training")
    classifier, card = load_model(model)
    require_writable(results_dir / "metrics")
    crops, folder = load_faces(data_dir, card, skip_invalid, group_distance)
    write_problems(folder, results_dir)
    crops = select_part(crops, card, split_file, split).at_least(min_face_size)
    if not len(crops):
        raise SplitError(f"no faces to score in {data_dir}, part {split}")
    probabilities = predict_probabilities(classifier, crops.images, batch_size)
    metrics = write_report(
        results_dir,
        Predictions.from_crops(crops, probabilities),
        card.class_names,
        crops_images=crops.images,
        model=classifier,
        num_bootstrap=num_bootstrap,
        seed=seed,
    )
    record = {"model": model, "data_dir": data_dir, "split_file": split_file, "split": split}
    _write_record(results_dir, {**record, "min_face_size": min_face_size}, card)
    return metrics, card


def load_faces(
    data_dir: Path,
    card: ModelCard,
    skip_invalid: bool = False,
    group_distance: int = MAX_DISTANCE,
) -> tuple[Crops, Folder]:
    """Cut the faces of a VOC folder as a model wants them.

    Args:
        data_dir: Folder with `images/` and `annotations/`.
        card: Of the model.
        skip_invalid: Leave out invalid annotations instead of raising.
        group_distance: See `splits.group_photos`.

    Returns:
        The crops, and what was read.

    Raises:
        AnnotationError: Something in the folder is invalid.
    """
    photos, folder = load_photos(
        data_dir, card.class_names, skip_invalid, group_distance=group_distance
    )
    return load_crops(photos, card.image_size, card.padding, card.square), folder


def select_part(crops: Crops, card: ModelCard, split_file: Path | None, split: str) -> Crops:
    """Return the faces of one part of a split.

    Args:
        crops: All faces of the folder.
        card: Of the model that will see them.
        split_file: A `split.json`; None for all faces, whatever `split` says.
        split: "train", "val", "test" or "all".

    Raises:
        SplitError: The file is no split of these photos, or not that of the model's training, or
            its part has no faces.
    """
    if not split_file:
        return crops
    parts = load_split(split_file, crops.group_of_photo)
    if split == "all":
        return crops
    require_same_part(
        parts, split, card.training, f"the part {split} of {split_file} is not that of the model"
    )
    part = crops.select(getattr(parts, split))
    if not len(part):
        raise SplitError(f"{split_file} has no faces in its part {split}")
    return part


def write_problems(folder: Folder, results_dir: Path) -> None:
    """List what `--skip-invalid` left out in `results_dir/metrics/invalid.txt`, if anything."""
    path = results_dir / "metrics" / "invalid.txt"
    path.unlink(missing_ok=True)
    if folder.problems:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "\n".join(map(str, folder.problems)) + "\n")
        print(f"Left out {len(folder.problems)} invalid annotations, listed in {path}")


def _write_record(results_dir: Path, settings: dict[str, Any], card: ModelCard) -> None:
    """Keep what was scored and how."""
    record = {
        **settings,
        "model_sha256": hashlib.sha256(settings["model"].read_bytes()).hexdigest(),
        "training": card.training,
        "versions": {name: version(name) for name in ("keras", "numpy", "tensorflow")},
    }
    write_text(
        results_dir / "metrics" / "evaluation.json", json.dumps(record, indent=2, default=str)
    )


def predict_probabilities(model: keras.Model, images: Rows, batch_size: int = 32) -> np.ndarray:
    """Predict all crops, in order.

    Args:
        model: A classifier of `fmd_tf.model`.
        images: uint8 [num_faces, size, size, 3], RGB.
        batch_size: Crops a step; default 32.

    Returns:
        float32 [num_faces, num_classes].
    """
    verbose = 1 if sys.stdout.isatty() else 0
    probabilities = model.predict(eval_dataset(images, batch_size), verbose=verbose)
    return np.asarray(probabilities, np.float32)


def write_report(
    results_dir: Path,
    predictions: Predictions,
    class_names: Sequence[str],
    crops_images: Rows | None = None,
    model: keras.Model | None = None,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Write figures, predictions and plots to `results_dir/metrics/`.

    Args:
        results_dir: Made where it is missing.
        predictions: At least one face.
        class_names: Names of the classes, in order.
        crops_images: uint8 [num_faces, size, size, 3], for the pictures of mistakes and the
            slices by colour.
        model: For the Grad-CAM pictures.
        num_bootstrap: Number of bootstrap samples for the intervals.
        seed: Seed of the bootstrap.

    Returns:
        What `metrics.json` holds, see `metrics.compute_metrics`.
    """
    folder = results_dir / "metrics"
    folder.mkdir(parents=True, exist_ok=True)
    contrasts = None if crops_images is None else color_contrasts(crops_images)
    metrics = compute_metrics(predictions, class_names, num_bootstrap, seed, contrasts)
    write_text(folder / "metrics.json", json.dumps(metrics, indent=2, allow_nan=False))
    _write_predictions(folder / "predictions.csv", predictions, class_names)
    confusion = np.array(metrics["all_faces"]["confusion"])
    figures = {
        "confusion_matrix": plots.plot_confusion(confusion, class_names),
        "reliability": plots.plot_reliability(predictions),
    }
    if crops_images is not None:
        figures["mistakes"] = plots.plot_mistakes(predictions, crops_images, class_names)
        if model is not None:
            figures["gradcam"] = plot_grad_cam(model, crops_images, predictions, class_names)
    for name, figure in figures.items():
        plots.save_figure(figure, folder / f"{name}.png")
    return metrics


def _write_predictions(path: Path, predictions: Predictions, class_names: Sequence[str]) -> None:
    """Write a row a face, so that every figure can be computed again."""
    with (
        replacing(path) as partial,
        partial.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        chances = [f"{_CHANCE}{name}" for name in class_names]
        writer.writerow(["photo", *_BOX, "group", "label", "predicted", "confidence", *chances])
        for i, photo in enumerate(predictions.photos):
            writer.writerow(
                [
                    photo,
                    *predictions.boxes[i].tolist(),
                    int(predictions.groups[i]),
                    class_names[predictions.labels[i]],
                    class_names[predictions.predicted[i]],
                    *(
                        f"{value:.6f}"
                        for value in (predictions.confidences[i], *predictions.probabilities[i])
                    ),
                ]
            )


def read_predictions(path: Path) -> tuple[Predictions, tuple[str, ...]]:
    """Read a `predictions.csv`.

    Args:
        path: A file that `write_report` wrote.

    Returns:
        The predictions, with probabilities as rounded there, and the class names.

    Raises:
        PredictionsError: There is none, it is no such table, or it has no rows.
        OSError: It cannot be read.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        names = tuple(key.removeprefix(_CHANCE) for key in rows[0] if key.startswith(_CHANCE))
        chances = [[row[f"{_CHANCE}{name}"] for name in names] for row in rows]
        predictions = Predictions(
            probabilities=np.array(chances, np.float32),
            labels=np.array([names.index(row["label"]) for row in rows]),
            boxes=np.array([[row[side] for side in _BOX] for row in rows], np.int32),
            photos=tuple(row["photo"] for row in rows),
            groups=np.array([row["group"] for row in rows], np.int64),
        )
    except FileNotFoundError:
        raise PredictionsError(
            f"no {path}; expected what a training or python -m fmd_tf.evaluate wrote"
        ) from None
    except (IndexError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise PredictionsError(
            f"{path}: expected a predictions.csv of fmd_tf with at least one face "
            f"({type(error).__name__}: {error})"
        ) from error
    return predictions, names


if __name__ == "__main__":
    sys.exit(main())
