"""The text that goes with an exported model: what it is for, its own figures, its limits.

The headings follow Mitchell et al. 2019, "Model Cards for Model Reporting" (arXiv:1810.03993).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fmd_tf import CLASS_NAMES
from fmd_tf.detector import DetectorCard
from fmd_tf.model import ModelCard

_USE = """\
## Use

For counting and reminding: how many people at a door wear a mask, and how. A person must be able
to see why and to object. Not for deciding about anyone alone, not for identifying people, and not
as evidence: the figures below are of photos like those it learned from, and other people, cameras
and masks will do worse.
"""

_DATA = """\
## Data and protocol

Photos with a Pascal VOC box for every face. Photos are split in groups: a photo, its
near-duplicates and its series are in one part. Learning rate, stopping, the choice of the epoch and
the temperature look at validation faces only; the test faces are scored once. All faces count,
those of a few pixels too, unless a least size was set in training. Probabilities of classes that
are rare in training are raised a little, so that more of them are found; `logit_offsets` in the
card's JSON file says by how much.
"""

_KAGGLE = """\
Kaggle's `andrewmvd/face-mask-detection`, the project's reference data (CC0 there), was gathered
from the web: nothing is known of age, sex, skin or origin of the people in it, two of them are on
184 of its 853 photos, and no figure by any such group can be given. Measure on your own people
before you rely on it.
"""

_LIMITS = """\
## Known weaknesses

Masks of the colour of skin are taken for bare faces, and hands before the mouth for masks. Faces
of a few pixels are a guess.
"""

_LICENCES = """\
## Licences

The code is under the MIT licence. Training begins from CenterFace's weights (MIT; learnt from
WIDER FACE), from the ImageNet weights of Keras Applications, or from the files that were given.
The data has the licence of its source.
"""


def write_cards(folder: Path, card: ModelCard, detector_card: DetectorCard | None = None) -> None:
    """Write what one must know beside an exported model, for programs and for people.

    Args:
        folder: Gets class_names.txt, model_card.json, README.md and, where there is a detector,
            detector_card.json.
        card: Of the classifier.
        detector_card: Of the detector in the same graph.
    """
    texts = {
        "class_names.txt": "".join(f"{name}\n" for name in card.class_names),
        "model_card.json": json.dumps(asdict(card), indent=2) + "\n",
        "README.md": format_model_card(card, detector_card),
    }
    if detector_card:
        texts["detector_card.json"] = json.dumps(asdict(detector_card), indent=2) + "\n"
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def read_cards(folder: Path) -> tuple[ModelCard, DetectorCard | None]:
    """Read what `write_cards` wrote for programs.

    Raises:
        OSError: A file cannot be read.
        ValueError: It is no JSON, or TypeError or KeyError: no such card.
    """
    fields = json.loads((folder / "model_card.json").read_text(encoding="utf-8"))
    card = ModelCard(**{**fields, "class_names": tuple(fields["class_names"])})
    detector = folder / "detector_card.json"
    if not detector.is_file():
        return card, None
    return card, DetectorCard(**json.loads(detector.read_text(encoding="utf-8")))


def format_model_card(card: ModelCard, detector_card: DetectorCard | None = None) -> str:
    """Write the card of a model.

    Args:
        card: Of the classifier; its `training` holds the figures where `fmd_tf.train` made it.
        detector_card: Of the detector that is exported with it.

    Returns:
        Markdown.
    """
    names = ", ".join(f"`{name}`" for name in card.class_names)
    lines = [
        "# Model card",
        "",
        f"A face-mask classifier: {card.model_name} on face crops of {card.image_size} px, classes "
        f"{names}. Padding {card.padding:g}, {'square' if card.square else 'squashed'} crops"
        f"{', each the average of six views' if card.multi_view else ''}.",
    ]
    if "teacher" in card.training:
        lines.append("Two networks answer together, with the mean of their logits.")
    if detector_card:
        lines.append(_detector_line(detector_card))
    kaggle = card.class_names == CLASS_NAMES
    lines += ["", _USE, _DATA, *([_KAGGLE] if kaggle else []), *_figures(card), _LIMITS]
    if kaggle:
        lines.append("`mask_weared_incorrect` is rare in the data, and missed most often.\n")
    lines.append(_LICENCES)
    return "\n".join(lines)


def _detector_line(card: DetectorCard) -> str:
    precision = card.training.get("val_ap50")
    known = f", average precision {precision:.3f} on validation photos" if precision else ""
    return (
        f"\nFaces are found by a detector at {card.image_size} px, with a score of at least "
        f"{card.threshold:.2f}{known}. A face that it misses gets no label."
    )


def _figures(card: ModelCard) -> list[str]:
    """Describe the figures of this model; those of validation faces are no measure of it."""
    report = card.training.get("report")
    if not report:
        return ["## Figures", "", "This model was never scored by `fmd_tf.train`.", ""]
    lines = [
        "## Figures",
        "",
        f"On {report['part']} faces, 95 % intervals by bootstrap over groups:",
    ]
    lines += [
        "",
        "| faces | accuracy | macro-F1 | calibration error |",
        "| --- | --- | --- | --- |",
    ]
    lines += [_overall_row(title, report[name]) for name, title in _PARTS.items() if name in report]
    lines += ["", "| class | faces | precision | recall |", "| --- | --- | --- | --- |"]
    for name, figures in report["all_faces"]["per_class"].items():
        lines.append(f"| `{name}` | {figures['support']} | {_row(figures, _PER_CLASS)} |")
    lines += ["", "| shorter side, px | faces | accuracy |", "| --- | --- | --- |"]
    for each in report["by_size"]:
        lines.append(f"| {each['pixels']} | {each['num_faces']} | {_row(each, ['accuracy'])} |")
    lines += _colors(report, card.class_names)
    seconds = report.get("seconds")
    cost = f"Its epochs took {seconds / 60:.0f} minutes." if seconds else ""
    return [*lines, "", f"{cost} Energy was not measured.".strip(), ""]


def _colors(report: Mapping[str, Any], class_names: Sequence[str]) -> list[str]:
    """Tell where masks of the colour of skin and hands are: at the ends of this table."""
    if "by_color" not in report:
        return []
    lines = [
        "",
        "Recall, and faces, by how much the colour of a face's lower half differs from the upper:",
        "",
        f"| difference | {' | '.join(f'`{name}`' for name in class_names)} |",
        "| --- " * (1 + len(class_names)) + "|",
    ]
    for each in report["by_color"]:
        cells = [
            f"{_row(each['recall'], [name])} ({each['support'][name]})" for name in class_names
        ]
        lines.append(f"| {each['contrast']} | {' | '.join(cells)} |")
    return lines


_PER_CLASS = ("precision", "recall")
_PARTS = {
    "all_faces": "all",
    "faces_10px": "10 px and more",
    "series": "of a series",
    "no_series": "of no series",
}


def _overall_row(title: str, figures: Mapping[str, Any]) -> str:
    cells = [f"{title} ({figures['num_faces']})"]
    for name in ("accuracy", "macro_f1"):
        interval = figures["intervals_95"].get(name)
        span = f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
        cells.append(f"{_row(figures, [name])}{span}")
    return f"| {' | '.join(cells)} | {_row(figures, ['calibration_error'])} |"


def _row(figures: Mapping[str, Any], names: Sequence[str]) -> str:
    values = [figures[name] for name in names]
    return " | ".join("-" if value is None else f"{value:.3f}" for value in values)
