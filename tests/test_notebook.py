"""The notebook runs from top to bottom, and brings nothing of its own."""

import ast
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks" / "face_mask_detection.ipynb"
NUM_FIGURES = 10

# Warnings are errors in the kernel too, with the one exception of pyproject.toml: Keras 3.15
# converts its variables in a way that NumPy 2 deprecates.
STRICT = """
import warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy keyword",
                        DeprecationWarning, "keras")
"""


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def _code(notebook: nbformat.NotebookNode) -> list[str]:
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return ["\n".join(line for line in cell.splitlines() if "%" not in line[:6]) for cell in cells]


def test_no_output_is_kept(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and not cell.get("execution_count")


def test_it_defines_no_function_or_class(notebook):
    for source in _code(notebook)[1:]:
        for node in ast.walk(ast.parse(source)):
            assert not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda)


@pytest.mark.parametrize("page", [NOTEBOOK, ROOT / "README.md"], ids=lambda page: page.name)
def test_the_badge_opens_the_notebook(page):
    (target,) = re.findall(
        r"research.google.com/github/OWNER/fmd_tf/blob/main/([^)\\]+)", page.read_text()
    )
    assert ROOT / target == NOTEBOOK


def test_links_inside_the_repository_are_not_dead(notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (NOTEBOOK.parent / target).exists(), target


def test_it_runs_from_top_to_bottom(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("FMD_NOTEBOOK_FAST", "1")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{os.environ.get('PYTHONPATH', '')}")
    executed = nbformat.from_dict(notebook)
    executed.cells.insert(0, nbformat.v4.new_code_cell(STRICT))
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(executed, timeout=600, resources=resources).execute()
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    pictures = [each for each in outputs if "image/png" in each.get("data", {})]
    assert len(pictures) >= NUM_FIGURES
    assert (tmp_path / "savedmodel" / "notebook" / "1" / "saved_model.pb").is_file()
    for number, picture in enumerate(pictures):
        (tmp_path / f"figure-{number}.png").write_text(picture["data"]["image/png"])
