"""The files that set the project up agree with each other."""

import ast
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def environment() -> dict:
    return yaml.safe_load((ROOT / "environment.yml").read_text())


def test_conda_brings_the_python_that_the_project_asks_for(project: dict, environment: dict):
    python = next(each for each in environment["dependencies"] if str(each).startswith("python"))
    assert python == f"python{project['requires-python']}"


def test_conda_installs_the_project_and_nothing_beside_it(environment: dict):
    """Every version stands in pyproject.toml alone, so nothing can contradict it."""
    assert environment["dependencies"][1:] == ["pip", {"pip": ["-e ."]}]
    assert environment["name"] == "fmd_tf"


def test_gpu_extra_is_the_tensorflow_of_the_project(project: dict):
    (tensorflow,) = [each for each in project["dependencies"] if each.startswith("tensorflow>")]
    extra = tensorflow.replace("tensorflow", "tensorflow[and-cuda]", 1)
    assert project["optional-dependencies"]["gpu"] == [extra]
    assert "[gpu]" in (ROOT / "environment.yml").read_text()


def imports_of(path: Path) -> set[str]:
    """Return the packages a file imports, wherever in the file."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    froms = {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.split(".")[0] for name in plain | froms}


def test_every_import_is_a_dependency(project: dict):
    extras = project["optional-dependencies"]
    wanted = [project["dependencies"], *(extras[name] for name in extras.keys() - {"dev"})]
    names = {re.split(r"[<>=\[]", each)[0].replace("-", "_") for part in wanted for each in part}
    names |= {"PIL", "absl", "cv2", "google", "sklearn", "tensorflow_serving"}  # PyPI: other names.
    imported = {name for path in (ROOT / "fmd_tf").rglob("*.py") for name in imports_of(path)}
    standard = {"__future__", "fmd_tf", *__import__("sys").stdlib_module_names}
    assert imported - standard - names == set()


def test_both_scripts_run_the_same_main_job():
    def flags(name: str) -> list[str]:
        text = (ROOT / name).read_text().replace("\\\n", " ").replace("\\", "/")
        return re.findall(r"-m fmd_tf\.train (--sample[^\n]*)", text)[0].split()

    assert flags("run.sh") == flags("run.bat")


@pytest.mark.parametrize(
    ("python", "found"), [("./old", "Python 3.10.13"), ("./missing", "no ./missing")]
)
def test_run_sh_says_which_python_it_needs_and_leaves_nothing(tmp_path, python, found):
    shutil.copy(ROOT / "run.sh", tmp_path)
    (tmp_path / "old").write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.10.13\n')
    (tmp_path / "old").chmod(0o755)
    env = {**os.environ, "PYTHON": python}
    done = subprocess.run(["bash", "run.sh"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"run.sh: expected Python 3.11, 3.12 or 3.13, found {found}; ")
    assert not (tmp_path / ".venv").exists()


def test_scripts_are_valid_bash():
    for name in ("run.sh", ".ci/run"):
        subprocess.run(["bash", "-n", ROOT / name], check=True)
