"""Bad input on the command line: one clear message, exit code 2, never a traceback.

`python -m tests.test_bad_input` prints the table of all kinds with the message each gets.
"""

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from fmd_tf import evaluate, export, train
from tests.conftest import add_photo, make_voc_dir
from tests.test_voc import BAD_INPUT

Spoil = Callable[[Path], object]


def _nothing(folder: Path) -> None:
    pass


def _text(name: str, text: str = "hello") -> Spoil:
    return lambda folder: (folder / name).write_text(text)


def _in_data(spoil: Spoil) -> Spoil:
    return lambda folder: spoil(folder / "voc")


def _unwritable(folder: Path) -> None:
    (folder / "results").write_text("a file where a folder should be")


def _too_few(folder: Path) -> None:
    for path in (folder / "voc").rglob("good.*"):
        path.unlink()
    add_photo(folder / "voc", "only", faces=[("with_mask", (2, 3, 12, 13))])


def _no_faces(folder: Path) -> None:
    _too_few(folder)
    add_photo(folder / "voc", "only")


OTHER_RUN = (
    "checkpoints/state-000",
    "checkpoints/run.json",
    "results/metrics/confusion_matrix.png",
)


def _other_run(folder: Path) -> None:
    (folder / "checkpoints" / "state-000").mkdir(parents=True)
    (folder / "results" / "metrics").mkdir(parents=True)
    (folder / "results" / "metrics" / "confusion_matrix.png").touch()
    (folder / "checkpoints" / "run.json").write_text('{"lr": 7}')
    for index in range(4):
        faces = [("with_mask", (2, 3, 12, 13)), ("without_mask", (12, 3, 22, 13))]
        add_photo(folder / "voc", f"more{index}", faces=faces)


# name: (how the folder is spoilt, flags beside those of `_run`, part of the message)
COMMAND_LINE = {
    "no such folder": (_nothing, ["--data-dir", "nowhere"], "got nowhere without images/"),
    "unknown flag": (_nothing, ["--learning-rate", "1"], "unrecognized arguments"),
    "lr not a number": (_nothing, ["--lr", "fast"], "invalid float value: 'fast'"),
    "lr not positive": (_nothing, ["--lr", "-1"], "--lr: expected more than 0, got -1.0"),
    "unknown model": (_nothing, ["--model-name", "vgg"], "invalid choice: 'vgg'"),
    "image too small": (_nothing, ["--image-size", "8"], "--image-size: expected at least 38"),
    "no batch": (_nothing, ["--batch-size", "0"], "--batch-size: expected at least 1, got 0"),
    "fractions": (_nothing, ["--val-fraction", "0.6", "--test-fraction", "0.5"], "a sum of less"),
    "one class": (_nothing, ["--class-names", "face"], "at least two different names"),
    "folds and split": (_nothing, ["--folds", "3", "--split-file", "s.json"], "leave out --split"),
    "sample and data": (_nothing, ["--sample"], "--sample draws its own data"),
    "results not writable": (_unwritable, [], "results cannot be written"),
    "weights missing": (_other_run, ["--weights", "w.weights.h5", "--overwrite"], "no file w.w"),
    "weights no file": (
        lambda folder: (_other_run(folder), _text("w.weights.h5")(folder)),
        ["--weights", "w.weights.h5", "--overwrite"],
        "w.weights.h5 does not hold weights",
    ),
    "split missing": (_nothing, ["--split-file", "no.json"], "no split file no.json"),
    "split no json": (_text("s.json"), ["--split-file", "s.json"], "s.json: expected JSON"),
    "split of other data": (
        _text("s.json", '{"train": ["x.png"], "val": [], "test": []}'),
        ["--split-file", "s.json"],
        "s.json names 1 photos not in the data",
    ),
    "too few photos": (
        _too_few,
        [],
        "expected at least 3 groups of photos with faces for 3 parts, got 1",
    ),
    "no faces": (_no_faces, [], "no faces"),
    "another run": (_other_run, [], "holds a run with"),
}
MODEL_FILES = {
    "model missing": (evaluate.main, _nothing, "no classifier"),
    "model no model": (evaluate.main, _text("m.keras"), "is not a classifier of fmd_tf"),
    "export of no model": (export.main, _text("m.keras"), "is not a classifier of fmd_tf"),
}


def _run(folder: Path, flags: list[str]) -> tuple[int, str]:
    """Run the training in a folder; return exit code and what it said on standard error."""
    base = ["--weights", "none", "--model-name", "mobilenet", "--image-size", "38"]
    return _caught(train.main, folder, ["--data-dir", "voc", *base, *flags])


def _caught(main: Callable[[list[str]], int], folder: Path, argv: list[str]) -> tuple[int, str]:
    error = io.StringIO()
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stderr(error),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        try:
            code = main(argv)
        except SystemExit as stop:  # argparse ends the process by itself
            code = int(stop.code or 0)
    return code, error.getvalue()


def _model_file(name: str, folder: Path) -> tuple[int, str]:
    main, spoil, _ = MODEL_FILES[name]
    spoil(folder)
    data = ["--data-dir", "voc"] if main is evaluate.main else ["--output", "out"]
    return _caught(main, folder, ["--model", "m.keras", *data])


@pytest.mark.parametrize("name", COMMAND_LINE)
def test_command_line(tmp_path: Path, name: str):
    make_voc_dir(tmp_path)
    spoil, flags, expected = COMMAND_LINE[name]
    spoil(tmp_path)
    kept = [tmp_path / name for name in OTHER_RUN if (tmp_path / name).exists()]
    code, error = _run(tmp_path, flags)
    assert code == 2
    assert expected in error
    assert "Traceback" not in error
    assert not (tmp_path / "results" / "metrics" / "metrics.json").exists()
    # Whatever is wrong with this run, the one before is not lost.
    assert all(path.exists() for path in kept)


@pytest.mark.parametrize("name", BAD_INPUT)
def test_annotations(tmp_path: Path, name: str):
    make_voc_dir(tmp_path)
    BAD_INPUT[name][0](tmp_path / "voc")
    code, error = _run(tmp_path, [])
    assert code == 2
    assert error.startswith("error: ")
    assert BAD_INPUT[name][1] in error


@pytest.mark.parametrize("name", MODEL_FILES)
def test_model_files(tmp_path: Path, name: str):
    make_voc_dir(tmp_path)
    code, error = _model_file(name, tmp_path)
    assert code == 2
    assert MODEL_FILES[name][2] in error


def test_without_annotations_of_a_photo_nothing_is_trained(tmp_path: Path):
    make_voc_dir(tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "voc" / "images" / "alone.png")
    assert _run(tmp_path, [])[0] == 2
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [".lock"]


def _table() -> None:
    """Print every kind of bad input with its message."""
    print("| bad input | message |\n| --- | --- |")
    rows: dict[str, Callable[[Path], tuple[int, str]]] = {}
    for name, (spoil, _) in BAD_INPUT.items():
        rows[name] = lambda folder, spoil=spoil: (spoil(folder / "voc"), _run(folder, []))[1]
    for name, (spoil, flags, _) in COMMAND_LINE.items():
        rows[name] = lambda folder, s=spoil, f=flags: (s(folder), _run(folder, f))[1]
    for name in MODEL_FILES:
        rows[name] = lambda folder, name=name: _model_file(name, folder)
    for name, run in rows.items():
        with tempfile.TemporaryDirectory() as folder:
            make_voc_dir(Path(folder))
            lines = run(Path(folder))[1].strip().splitlines()
            message = lines[1] if lines[0].endswith("annotations:") else lines[-1]
            print(f"| {name} | {message.replace('|', '/').replace(folder + os.sep, '')} |")


if __name__ == "__main__":
    sys.exit(_table())
