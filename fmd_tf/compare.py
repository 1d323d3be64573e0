"""Compare runs on the same faces: `python -m fmd_tf.compare BASE OTHER ...`.

Each argument is a results folder of training or evaluation. Differences come with an interval
of their own, by a bootstrap that draws the groups of both runs together.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from fmd_tf.arguments import make_parser
from fmd_tf.errors import command_line
from fmd_tf.evaluate import PredictionsError, read_predictions
from fmd_tf.metrics import Predictions, compute_metrics, paired_differences


@command_line
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the process' exit code."""
    parser = make_parser("compare", "Compare runs on the same faces, as a Markdown table.")
    parser.add_argument("base", type=Path, help="results folder of the run to compare with")
    parser.add_argument("others", type=Path, nargs="+", help="results folders of other runs")
    arguments = parser.parse_args(argv)
    print(compare(arguments.base, arguments.others))
    return 0


def compare(base: Path, others: Sequence[Path]) -> str:
    """Return a Markdown table with a row a run.

    The rare class is the one with the fewest faces, of those that have any.

    Args:
        base: Results folder of the run that the differences are to.
        others: Results folders of runs on the same faces.

    Raises:
        PredictionsError: A folder has no predictions, or they are of other faces.
        OSError: A file cannot be read.
    """
    first, class_names = _read(base)
    lines = [
        "| run | accuracy | difference (95 %) | macro-F1 | difference (95 %) | rare recall "
        "| calibration error | minutes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        _row(base, first, class_names, None),
    ]
    for folder in others:
        predictions, names = _read(folder)
        if names != class_names or not predictions.have_faces_of(first):
            raise PredictionsError(f"{folder} is of other faces, labels or classes than {base}")
        differences = paired_differences(first, predictions, len(class_names))
        lines.append(_row(folder, predictions, class_names, differences))
    return "\n".join(lines)


def _read(folder: Path) -> tuple[Predictions, tuple[str, ...]]:
    predictions, class_names = read_predictions(folder / "metrics" / "predictions.csv")
    return predictions.in_order(), class_names


def _row(
    folder: Path,
    predictions: Predictions,
    class_names: Sequence[str],
    differences: dict[str, list[float]] | None,
) -> str:
    figures = compute_metrics(predictions, class_names, num_bootstrap=1)["all_faces"]
    present = [each for each in figures["per_class"].values() if each["support"]]
    rare = min(present, key=lambda each: each["support"])
    cells = [str(folder)]
    for name in ("accuracy", "macro_f1"):
        limits = (differences or {}).get(name)
        cells.append(f"{figures[name]:.4f}")
        cells.append("{:+.3f} to {:+.3f}".format(*limits) if limits else "")
    cells += [f"{rare['recall']:.3f}", f"{figures['calibration_error']:.3f}", _minutes(folder)]
    return "| " + " | ".join(cells) + " |"


def _minutes(folder: Path) -> str:
    """Return the wall time of a training's epochs; an evaluation has none."""
    path = folder / "metrics" / "config.json"
    if not path.is_file():
        return ""
    try:
        seconds = json.loads(path.read_text(encoding="utf-8")).get("training_seconds")
    except (AttributeError, ValueError) as error:
        raise PredictionsError(f"{path}: expected the JSON file of a run ({error})") from error
    return "" if seconds is None else f"{seconds / 60:.1f}"


if __name__ == "__main__":
    sys.exit(main())
