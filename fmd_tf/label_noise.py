"""Sort a classifier's mistakes: `python -m fmd_tf.label_noise --predictions CSV ...`.

A face whose label is contradicted with confidence by every model that did not train on it has
perhaps a wrong label (Northcutt et al. 2021, "Confident Learning", arXiv:1911.00068). What
`python -m fmd_tf.train --folds K` writes are such predictions; several seeds make the list more
certain. Suspects are listed and shown, and the figures given with and without them: a list of
suspects made from a model's answers flatters this model, so the headline stays the one with all.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fmd_tf import plots
from fmd_tf.arguments import make_parser
from fmd_tf.errors import command_line
from fmd_tf.evaluate import PredictionsError, read_predictions
from fmd_tf.face_mask_dataset import load_photos
from fmd_tf.input_pipeline import Crops, load_crops
from fmd_tf.metrics import SIZE_EDGES, Face, Predictions, compute_metrics
from fmd_tf.publish import require_writable, write_text

SUSPECT, LABEL, TINY, WRONG = "suspect", "label", "tiny", "wrong"
"""Kinds of mistakes; that a label is wrong only a person can say."""
_VERDICT_FIELDS = ("photo", "xmin", "ymin", "xmax", "ymax", "verdict")
_PICTURE_SIZE = 112
_MOST_SHOWN = 800  # A picture of twice as many would be too high for Matplotlib.


@command_line
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the process' exit code."""
    arguments = _parse(argv)
    summary = find_label_noise(**vars(arguments))
    print(_format(summary))
    print(f"Results: {arguments.results_dir / 'metrics'}")
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser(
        "label_noise", "List labels that every model contradicts; sort the mistakes."
    )
    add = parser.add_argument
    add("--data-dir", type=Path, required=True, help="folder with images/ and annotations/")
    add(
        "--predictions",
        type=Path,
        nargs="+",
        required=True,
        metavar="CSV",
        help="predictions.csv of one or more cross-validations of the same faces",
    )
    add("--results-dir", type=Path, default=Path("results"), help="where metrics/ is written")
    add(
        "--confidence",
        type=float,
        default=0.9,
        help="what every model must give to another class than the label's",
    )
    add("--verdicts", type=Path, help="CSV of photo, box and verdict, as a mistakes.csv is")
    arguments = parser.parse_args(argv)
    if not 0 < arguments.confidence < 1:
        parser.error("--confidence: expected more than 0 and less than 1")
    return arguments


def find_label_noise(
    data_dir: Path,
    predictions: Sequence[Path],
    results_dir: Path,
    confidence: float = 0.9,
    verdicts: Path | None = None,
) -> dict[str, Any]:
    """Write the suspects, the sorted mistakes and both figures to `results_dir/metrics/`.

    Args:
        data_dir: VOC folder that the predictions are of.
        predictions: `predictions.csv` files, one a cross-validation.
        results_dir: Receives `mistakes.csv`, `mistakes_sorted.png` and `label_noise.json`.
        confidence: Probability that every model must give to one class other than the label.
        verdicts: CSV with the columns photo, xmin, ymin, xmax, ymax, verdict, made by looking;
            replaces the kind of the faces that it names, as does the column of verdicts of a
            `mistakes.csv` that is there.

    Returns:
        What `label_noise.json` holds: "num_suspects", "num_wrong_labels" (by verdict),
        "mistakes" by kind, and the figures "with_all" and "without_wrong_and_suspect_labels"
        (suspects on which there is no verdict) of the averaged predictions, as of
        `metrics.compute_metrics`.

    Raises:
        PredictionsError: A file is no such table, the tables are of different faces, or
            `mistakes.csv` is there with verdicts on others.
        AnnotationError: Something in the folder is invalid.
    """
    require_writable(results_dir / "metrics")
    read = [read_predictions(path) for path in predictions]
    pooled, agreed, class_names = _pool(read, predictions)
    suspects = agreed & (_lowest_confidence(read, pooled) >= confidence)
    folder = results_dir / "metrics"
    said = _kept_verdicts(folder / "mistakes.csv", pooled)
    said |= _read_verdicts(verdicts) if verdicts else {}
    kinds = _kinds(pooled, suspects, said)
    doubted = np.array([kinds[i] in (LABEL, SUSPECT) for i in range(len(kinds))])
    wrong = np.flatnonzero(pooled.predicted != pooled.labels)
    photos, _ = load_photos(data_dir, class_names, skip_invalid=True)
    figure = _plot(pooled, wrong, kinds, load_crops(photos, _PICTURE_SIZE), class_names)
    _write_mistakes(folder / "mistakes.csv", pooled, kinds, said, class_names)
    plots.save_figure(figure, folder / "mistakes_sorted.png")
    summary = {
        "predictions": [str(path) for path in predictions],
        "confidence": confidence,
        "num_suspects": int(suspects.sum()),
        "num_wrong_labels": list(kinds.values()).count(LABEL),
        "mistakes": dict(Counter(kinds[i] for i in wrong.tolist()).most_common()),
        "with_all": compute_metrics(pooled, class_names),
        "without_wrong_and_suspect_labels": compute_metrics(pooled.where(~doubted), class_names),
    }
    write_text(folder / "label_noise.json", json.dumps(summary, indent=2))
    return summary


def _pool(
    read: Sequence[tuple[Predictions, tuple[str, ...]]], paths: Sequence[Path]
) -> tuple[Predictions, np.ndarray, tuple[str, ...]]:
    """Average the models' answers; tell where they all agree on the class."""
    class_names = read[0][1]
    runs = [predictions.in_order() for predictions, _ in read]
    for path, run, (_, names) in zip(paths, runs, read, strict=True):
        if names != class_names or not run.have_faces_of(runs[0]):
            raise PredictionsError(
                f"{path} is of other faces, labels or classes than {paths[0]}; give "
                "cross-validations of the same data"
            )
    mean = np.mean([run.probabilities for run in runs], axis=0)
    agreed = np.all([run.predicted == runs[0].predicted for run in runs], axis=0)
    return replace(runs[0], probabilities=mean), agreed, class_names


def _lowest_confidence(
    read: Sequence[tuple[Predictions, tuple[str, ...]]], pooled: Predictions
) -> np.ndarray:
    """Return the least probability a model gives to the pooled class, 0 where it is the label."""
    rows = np.arange(len(pooled.labels))
    given = [run.in_order().probabilities[rows, pooled.predicted] for run, _ in read]
    return np.where(pooled.predicted == pooled.labels, 0.0, np.min(given, axis=0))


def _kinds(
    pooled: Predictions, suspects: np.ndarray, verdicts: Mapping[Face, str]
) -> dict[int, str]:
    """Return the kind of each face, were it a mistake; a person's verdict goes first."""
    tiny = pooled.short_sides < SIZE_EDGES[0]
    kinds = np.select([suspects, tiny], [SUSPECT, TINY], WRONG).tolist()
    return {i: verdicts.get(face, kinds[i]) for i, face in enumerate(pooled.faces)}


def _face_of(row: Mapping[str, str]) -> Face:
    xmin, ymin, xmax, ymax = (int(row[name]) for name in _VERDICT_FIELDS[1:5])
    return row["photo"], xmin, ymin, xmax, ymax


def _read_verdicts(path: Path) -> dict[Face, str]:
    """Read what a person has said about mistakes; nothing is said where there is no verdict."""
    try:
        # Spreadsheets begin UTF-8 with a byte order mark.
        with path.open(newline="", encoding="utf-8-sig") as file:
            said = {_face_of(row): row["verdict"] for row in csv.DictReader(file)}
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise PredictionsError(
            f"{path}: expected a CSV with the columns {', '.join(_VERDICT_FIELDS)} ({error})"
        ) from error
    return {face: verdict for face, verdict in said.items() if verdict}


def _kept_verdicts(path: Path, pooled: Predictions) -> dict[Face, str]:
    """Read what a person has filled in in the file that is about to be written."""
    said = _read_verdicts(path) if path.exists() else {}
    if said.keys() - set(pooled.faces):
        raise PredictionsError(
            f"{path} has verdicts on faces that the predictions are not of, which would be lost; "
            "choose another --results-dir"
        )
    return said


def _write_mistakes(
    path: Path,
    pooled: Predictions,
    kinds: Mapping[int, str],
    said: Mapping[Face, str],
    class_names: Sequence[str],
) -> None:
    """Write a row a mistake, the surest first within its kind, and whatever has a verdict."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow([*_VERDICT_FIELDS, "kind", "label", "predicted", "confidence"])
    faces = pooled.faces
    listed = (pooled.predicted != pooled.labels) | [face in said for face in faces]
    for i in _by_kind(pooled, np.flatnonzero(listed), kinds):
        label, predicted = (class_names[each[i]] for each in (pooled.labels, pooled.predicted))
        confidence = f"{pooled.confidences[i]:.3f}"
        verdict = said.get(faces[i], "")
        writer.writerow([*faces[i], verdict, kinds[i], label, predicted, confidence])
    write_text(path, table.getvalue())


def _by_kind(pooled: Predictions, wrong: np.ndarray, kinds: Mapping[int, str]) -> list[int]:
    return sorted(wrong.tolist(), key=lambda i: (kinds[i], -pooled.confidences[i]))


def _plot(
    pooled: Predictions,
    wrong: np.ndarray,
    kinds: Mapping[int, str],
    crops: Crops,
    class_names: Sequence[str],
) -> Figure:
    """Show the mistakes under their kinds."""
    boxes = crops.boxes.tolist()
    row_of = {
        (photo, *box): row for row, (photo, box) in enumerate(zip(crops.photos, boxes, strict=True))
    }
    names, order = pooled.faces, _by_kind(pooled, wrong, kinds)[:_MOST_SHOWN]
    if missing := [names[i] for i in order if names[i] not in row_of]:
        raise PredictionsError(f"no face {missing[0]} in the data; give the folder it is of")
    titles = [
        f"{kinds[i]}\n{class_names[pooled.labels[i]]}\n→ {class_names[pooled.predicted[i]]} "
        f"{pooled.confidences[i]:.2f}\n{pooled.photos[i]} {pooled.short_sides[i]} px"
        for i in order
    ]
    return plots.plot_grid([crops.images[row_of[names[i]]] for i in order], titles, columns=8)


def _format(summary: Mapping[str, Any]) -> str:
    """Write the kinds and both figures for the console."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in summary["mistakes"].items())
    lines = [
        f"Mistakes: {kinds or 'none'}",
        f"Labels that every model contradicts: {summary['num_suspects']}; wrong ones by verdict: "
        f"{summary['num_wrong_labels']}",
    ]
    for key in ("with_all", "without_wrong_and_suspect_labels"):
        part = summary[key]["all_faces"]
        figures = ""
        if part["num_faces"]:
            figures = f", accuracy {part['accuracy']:.4f}, macro-F1 {part['macro_f1']:.4f}"
        lines.append(f"{key.replace('_', ' ')}: {part['num_faces']} faces{figures}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
