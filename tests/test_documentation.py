"""README and docs say what the code does; their commands are in test_documented_commands."""

import argparse
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from fmd_tf.benchmark import format_report
from fmd_tf.config import DetectorConfig, RunConfig, TrainConfig
from fmd_tf.predict import build_parser
from fmd_tf.records import SCHEMA, SCHEMA_VERSION, LabelledFace, Record, Summary

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), *ROOT.glob("fmd_tf/*/*.md")])
README, TRAINING, DETECTOR, PREDICTION, SPEED = (
    (ROOT / name).read_text()
    for name in (
        "README.md",
        "docs/training.md",
        "docs/detector.md",
        "docs/prediction.md",
        "docs/speed.md",
    )
)
BENCHMARKS = sorted((ROOT / "docs" / "benchmark").glob("*.json"))


def _row(setting) -> str:
    default = setting.default
    if isinstance(default, bool):
        shown = "on" if default else "off"
    elif isinstance(default, tuple):
        shown = "the three of Kaggle"
    else:
        shown = "" if default is None else f"`{default}`"
    flag = setting.name.replace("_", "-")
    choices = setting.metadata["choices"]
    text = setting.metadata["help"]
    options = " (" + ", ".join(choices) + ")" if choices else ""
    return f"| `--{flag}` | {text}{options} | {shown} |"


@pytest.mark.parametrize("setting", fields(TrainConfig), ids=lambda setting: setting.name)
def test_every_flag_of_the_training_stands_in_its_table(setting):
    assert _row(setting) in TRAINING


DETECTOR_FLAGS = [
    each for each in fields(DetectorConfig) if each.name not in {e.name for e in fields(RunConfig)}
]


@pytest.mark.parametrize("setting", DETECTOR_FLAGS, ids=lambda setting: setting.name)
def test_every_flag_of_the_detector_stands_in_its_table(setting):
    assert _row(setting) in DETECTOR


def _predict_row(action: argparse.Action) -> str:
    default = (
        "off" if action.nargs == 0 else "" if action.default is None else f"`{action.default}`"
    )
    options = f" ({', '.join(action.choices)})" if action.choices else ""
    return f"| `{action.option_strings[0]}` | {action.help}{options} | {default} |"


PREDICT_FLAGS = [action for action in build_parser()._actions if action.dest != "help"]


@pytest.mark.parametrize("action", PREDICT_FLAGS, ids=lambda action: action.dest)
def test_every_flag_of_prediction_stands_in_its_table(action: argparse.Action):
    assert _predict_row(action) in PREDICTION


def test_the_json_schema_is_the_one_written():
    (block,) = re.findall(r"```json\n(.*?)```", PREDICTION, re.DOTALL)
    shown = json.loads(block)
    assert (shown["schema"], shown["schema_version"]) == (SCHEMA, SCHEMA_VERSION)
    (image,) = shown["images"]
    (face,) = image["faces"]
    probabilities = face["probabilities"]
    this = LabelledFace(tuple(face["box"]), 0.98, "with_mask", "with_mask", 0.97, probabilities)
    assert Record("a/b.jpg", 640, 480, [this]).to_json() == image
    summary = Summary()
    summary.add(image)
    assert summary.to_json() == shown["summary"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_exist(page):
    made = ("savedmodel/face_mask", "savedmodel/certificates")  # By training, and by hand.
    for path in re.findall(r"`((?:fmd_tf|tests|savedmodel|notebooks)/[\w./]+)`", page.read_text()):
        assert path.startswith(made) or (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_inside_the_repository_are_not_dead(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        assert not anchor or anchor in _anchors(linked.read_text()), f"{target}#{anchor}"


def _anchors(text: str) -> set[str]:
    """Return what a page's headings are linked by: small letters, hyphens for spaces."""
    headings = re.findall(r"^#+ (.*)", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_figures_of_the_benchmark_are_kept():
    assert {path.stem for path in BENCHMARKS} >= {"infer", "input", "photo", "train"}


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_tables_of_speed_are_those_of_the_kept_figures(path):
    tables = format_report(json.loads(path.read_text()))
    assert tables in SPEED
    assert tables in README or path.stem not in ("infer", "photo")


def test_the_two_commands_are_those_of_the_script():
    assert "bash run.sh " in README and "bash run.sh test " in README


if __name__ == "__main__":
    print("\n".join(_row(setting) for setting in (*fields(TrainConfig), *fields(DetectorConfig))))
    print("\n".join(_predict_row(action) for action in PREDICT_FLAGS))
