"""The README says what the code does."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from fmd_tf.config import TrainConfig

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


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
def test_every_flag_stands_in_the_table(setting):
    assert _row(setting) in README


def test_files_that_are_named_exist():
    for path in re.findall(r"`((?:fmd_tf|tests|savedmodel|notebooks)/[\w./]+)`", README):
        if not path.startswith("savedmodel/face_mask"):  # Made by training.
            assert (ROOT / path).exists(), path


def test_links_inside_the_repository_are_not_dead():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_two_commands_are_those_of_the_script():
    assert "bash run.sh " in README and "bash run.sh test " in README


if __name__ == "__main__":
    print("\n".join(_row(setting) for setting in fields(TrainConfig)))
