"""The commands and pieces of Python in the documentation run, but for those of `NOT_RUN`.

Each runs as it stands, in a folder that holds what it names: a data set `DIR`, `photo.jpg`, a
classifier, a detector, an export and its server. Trainings get flags that make them short, and a
shallow backbone.
"""

import importlib
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmd_tf import CLASS_NAMES
from fmd_tf.config import TrainConfig, parse_config
from fmd_tf.detector import DetectorCard, build_detector, save_detector
from fmd_tf.evaluate import write_report
from fmd_tf.export import export_saved_model
from fmd_tf.metrics import Predictions
from fmd_tf.model import build_model, save_model
from fmd_tf.splits import Split, group_photos, make_split, save_split, split_digests
from fmd_tf.voc import Annotation, read_folder
from tests.serving import CARD, encode, faces, process
from tests.test_video import write_video

pytestmark = pytest.mark.usefixtures("shallow_backbone")
ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", "savedmodel/README.md", "docs/*.md")
DEFAULT_URL = "http://127.0.0.1:8501"
SHORT = "--weights none --epochs 1 --seed 0"
SHORTER = {
    "train": f"{SHORT} --model-name mobilenet --image-size 38 "
    "--checkpoint-dir runs/classifier --results-dir runs/results --export-dir runs/export "
    "--overwrite",
    "benchmark input": "--rounds 1",
    "benchmark train": "--rounds 1 --steps 2 --image-size 38 --peer-epochs 0",
    "benchmark photo": "--rounds 1",
    "train_detector": f"{SHORT} --image-size 96 --view-size 64 --checkpoint-dir runs/detector "
    "--results-dir runs/results --overwrite",
}
TRAINED: set[str] = set()
NOT_RUN = {
    r"bash run\.sh( test.*)?$": "CI runs the two commands themselves",
    r"FMD_DATA_DIR=\S+ bash run\.sh test": "CI runs it where the data is",
    r"\.venv/bin/pip download": "needs the internet; .ci/run has a line like it",
    r"\.venv/bin/python -m ruff": "CI runs the linter",
    r"(cd savedmodel && )?docker compose": "needs Docker; test_deployment checks the file",
    r".*--webcam": "needs a camera",
    r".*train .*--folds": "test_train runs a cross-validation",
    r"bash run\.sh benchmark (serving|infer)": "test_benchmark runs it with a smaller model",
}


def _blocks(language: str) -> list[tuple[str, str]]:
    """Return (page, text) of all blocks of a language."""
    pages = [page for pattern in PAGES for page in sorted(ROOT.glob(pattern))]
    return [
        (str(page.relative_to(ROOT)), text)
        for page in pages
        for text in re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)
    ]


def _commands() -> list[str]:
    """Return each command once, without its comment, in the order of the pages."""
    lines = []
    for _, block in _blocks("bash"):
        whole = re.sub(r"\\\n\s*", "", block)  # A line that goes on.
        whole = re.sub(r"\|\n\s*", "| ", whole)
        lines += [re.sub(r"\s+#.*", "", line).strip() for line in whole.splitlines()]
    return list(dict.fromkeys(line for line in lines if line))


def _parameters() -> Iterator[Any]:
    """Give the commands, those that cannot run here with the reason."""
    for command in _commands():
        reason = next((why for pattern, why in NOT_RUN.items() if re.match(pattern, command)), None)
        marks = [pytest.mark.skip(reason=reason)] if reason else []
        yield pytest.param(command, marks=marks, id=command[:70])


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, sample_dir: Path) -> Iterator[Path]:
    """A folder with all that the documentation names; commands run in it."""
    folder = tmp_path_factory.mktemp("documented")
    for name in ("DIR", "OTHER_PHOTOS", "data/raw"):
        shutil.copytree(sample_dir, folder / name)
    _write_two_classes(sample_dir, folder / "my_photos")
    (folder / "photos").mkdir()
    for name in ("photo.jpg", "photo.png", "photos/a.jpg"):
        form = "PNG" if name.endswith("png") else "JPEG"
        (folder / name).write_bytes(encode(faces(1, shape=(150, 150))[0], form))
    (folder / "face.jpg").write_bytes(encode(faces(1)[0], "JPEG"))
    write_video(folder / "in.mp4", faces(2, shape=(48, 64)))
    (folder / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "mistakes.csv", folder / "docs")
    _write_models(folder)
    shutil.copytree(sample_dir, folder / "data" / "sample")
    (folder / "checkpoints" / "sample").mkdir()
    shutil.copy(folder / "checkpoints" / "best_model.keras", folder / "checkpoints" / "sample")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(ROOT)
        yield folder


def _write_two_classes(sample_dir: Path, folder: Path) -> None:
    """Copy the sample with the classes of the documentation's own photos."""
    shutil.copytree(sample_dir, folder)
    for xml in (folder / "annotations").iterdir():
        text = re.sub(r"<name>(with_mask)</name>", "<name>mask</name>", xml.read_text())
        names = "|".join(CLASS_NAMES)
        xml.write_text(re.sub(rf"<name>({names})</name>", "<name>no_mask</name>", text))


def _write_models(folder: Path) -> None:
    """Write what trainings of both kinds leave, with models that have learnt nothing."""
    card = replace(
        CARD,
        # As those of the student which it teaches.
        padding=TrainConfig().padding,
        image_size=38,
        multi_view=True,
        model_name="mobilenet",
        training={"split": split_digests(_write_splits(folder)), "temperature": 1.0},
    )
    model = build_model("mobilenet", card.image_size, len(CLASS_NAMES), "none", multi_view=True)
    detector, detector_card = build_detector("none"), DetectorCard(96)
    (folder / "checkpoints" / "detector").mkdir(parents=True)
    path = folder / "checkpoints" / "detector" / "best_detector.keras"
    save_detector(detector, detector_card, path)
    save_model(model, card, folder / "checkpoints" / "best_model.keras")
    versions = folder / "savedmodel" / "face_mask"
    export_saved_model(model, card, versions, detector=(detector, detector_card))


def _write_splits(folder: Path) -> Split:
    annotations = read_folder(folder / "DIR", CLASS_NAMES).annotations
    groups = group_photos(annotations)
    labels = {
        each.photo.name: [CLASS_NAMES.index(face.label) for face in each.faces]
        for each in annotations
    }
    split = make_split(labels, groups)
    _write_folds(annotations, groups, folder / "results")
    for results in ("results", "results/detector"):
        save_split(split, groups, folder / results / "metrics" / "split.json")
    of_training = folder / "results" / "folds-0" / "metrics" / "predictions.csv"
    shutil.copy(of_training, folder / "results" / "metrics")
    return split


def _write_folds(annotations: Sequence[Annotation], groups: dict[str, int], folder: Path) -> None:
    """Write the pooled predictions of two cross-validations, of chance."""
    faces = [(each, face) for each in annotations for face in each.faces]
    for seed in (0, 1):
        chance = np.random.default_rng(seed).dirichlet(np.ones(len(CLASS_NAMES)), len(faces))
        predictions = Predictions(
            probabilities=chance.astype(np.float32),
            labels=np.array([CLASS_NAMES.index(face.label) for _, face in faces]),
            boxes=np.array([face.box for _, face in faces]),
            photos=tuple(each.photo.name for each, _ in faces),
            groups=np.array([groups[each.photo.name] for each, _ in faces]),
        )
        write_report(folder / f"folds-{seed}", predictions, CLASS_NAMES, num_bootstrap=2)


@pytest.fixture(scope="module")
def url(workspace: Path) -> Iterator[str]:
    """The server, started by the documented command."""
    (command,) = {each for each in _commands() if each.startswith("bash run.sh serve")}
    with process(*shlex.split(command)[3:]) as (_, url):
        yield url


@pytest.mark.parametrize("command", list(_parameters()))
def test_a_command_runs(command: str, workspace: Path, url: str):
    command = command.replace(DEFAULT_URL, url)
    words = shlex.split(command.replace("bash run.sh ", "python -m fmd_tf."))
    if words[:2] != ["python", "-m"]:
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
        assert json.loads(done.stdout).keys() & {"model_version_status", "predictions", "outputs"}
    elif words[2] != "fmd_tf.serve":  # That one runs already.
        name = words[2].removeprefix("fmd_tf.")
        shorter = SHORTER.get(name) or SHORTER.get(f"{name} {words[3]}", "")
        arguments = [*words[3:], *shorter.split()]
        if name == "train" and not _is_new(arguments):
            pytest.skip("another command has trained with these settings")
        assert importlib.import_module(words[2]).main(arguments) == 0


def _is_new(arguments: Sequence[str]) -> bool:
    """Parse the arguments of a training; tell whether none had the same settings."""
    settings = repr(parse_config(TrainConfig, arguments, "train", ""))
    seen = settings in TRAINED
    TRAINED.add(settings)
    return not seen


@pytest.mark.parametrize(("page", "code"), _blocks("python"))
def test_a_piece_of_python_runs(page: str, code: str, workspace: Path, url: str):
    if "grpc" in code:
        pytest.skip("needs TensorFlow Serving's gRPC port, which the embedded server has not")
    exec(compile(code.replace(DEFAULT_URL, url), page, "exec"), {})
