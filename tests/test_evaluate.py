import csv
import json
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest

from fmd_tf.evaluate import evaluate, main, predict_probabilities, write_report
from fmd_tf.metrics import Predictions
from fmd_tf.model import ModelCard, load_model, save_model
from tests.conftest import add_photo

NAMES = ("with_mask", "without_mask", "mask_weared_incorrect")


def _model(size: int = 16) -> keras.Model:
    """A small classifier with the layers of `fmd_tf.model`, and random weights."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    image = keras.Input((size, size, 3), name="image")
    x = layers.Rescaling(1 / 255)(image)
    x = layers.Conv2D(4, 3, name="backbone")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dropout(0.1, name="head_dropout_1")(x)
    x = layers.Dense(8, name="head_dense")(x)
    x = layers.Dropout(0.1, name="head_dropout_2")(x)
    x = layers.Dense(3, name="logits")(x)
    return keras.Model(image, layers.Softmax(name="probabilities")(x))


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.keras"
    save_model(_model(), ModelCard(NAMES, 16), path)
    return path


def test_prediction_keeps_order_and_remainder():
    model, images = _model(), np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), np.uint8)
    expected = np.array(model(images))
    np.testing.assert_allclose(predict_probabilities(model, images, 3), expected, atol=1e-6)


def test_predictions_can_be_read_back(tmp_path: Path):
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]], np.float32)
    predictions = Predictions(
        probabilities,
        np.array([0, 1]),
        np.array([[1, 2, 30, 40], [5, 6, 17, 18]]),
        ("a.png", "b, c.png"),
        np.array([3, 4]),
    )
    write_report(tmp_path, predictions, NAMES)
    with (tmp_path / "metrics" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["photo"] for row in rows] == ["a.png", "b, c.png"]
    assert (rows[1]["label"], rows[1]["predicted"]) == ("without_mask", "mask_weared_incorrect")
    assert (rows[1]["xmin"], rows[1]["ymax"], rows[1]["group"]) == ("5", "18", "4")
    read = [[float(row[f"probability_{name}"]) for name in NAMES] for row in rows]
    np.testing.assert_allclose(read, probabilities, atol=1e-6)


def test_small_faces_are_left_out_after_the_split(voc_dir: Path, model_file: Path, tmp_path: Path):
    """A photo of small faces alone is still a photo that the split knows."""
    add_photo(voc_dir, "small", faces=[("with_mask", (1, 1, 5, 5))])
    split = {"train": [], "val": [], "test": ["good.png", "small.png"]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    metrics, _ = evaluate(
        model_file,
        voc_dir,
        tmp_path / "results",
        split_file=tmp_path / "split.json",
        split="test",
        min_face_size=10,
    )
    assert metrics["all_faces"]["num_faces"] == 1


def test_a_part_of_another_split_than_the_models_is_refused(
    voc_dir: Path, model_file: Path, tmp_path: Path, capsys
):
    model, card = load_model(model_file)
    training = {**card.training, "split": {"train": "1", "val": "2", "test": "of another run"}}
    save_model(model, replace(card, training=training), tmp_path / "model.keras")
    (tmp_path / "split.json").write_text('{"train": [], "val": [], "test": ["good.png"]}')
    arguments = ["--model", str(tmp_path / "model.keras"), "--data-dir", str(voc_dir)]
    arguments += ["--results-dir", str(tmp_path), "--split-file", str(tmp_path / "split.json")]
    assert main(arguments) == 2
    assert "is not that of the model, so it may have learnt from" in capsys.readouterr().err
    assert main([*arguments, "--split", "all"]) == 0
    assert "right where the model has seen none of them" in capsys.readouterr().out


def test_what_is_left_out_is_listed(voc_dir: Path, model_file: Path, tmp_path: Path, capsys):
    add_photo(voc_dir, "bad", faces=[("with_mask", (5, 5, 5, 9))])
    arguments = ["--model", str(model_file), "--data-dir", str(voc_dir)]
    arguments += ["--results-dir", str(tmp_path / "results")]
    assert main(arguments) == 2
    assert "expected xmin < xmax" in capsys.readouterr().err
    assert main([*arguments, "--skip-invalid"]) == 0
    assert "xmin < xmax" in (tmp_path / "results" / "metrics" / "invalid.txt").read_text()
    record = json.loads((tmp_path / "results" / "metrics" / "evaluation.json").read_text())
    assert len(record["model_sha256"]) == 64


def test_an_empty_part_is_refused(voc_dir: Path, model_file: Path, tmp_path: Path, capsys):
    (tmp_path / "split.json").write_text('{"train": ["good.png"], "val": [], "test": []}')
    arguments = ["--model", str(model_file), "--data-dir", str(voc_dir)]
    arguments += ["--results-dir", str(tmp_path), "--split-file", str(tmp_path / "split.json")]
    assert main(arguments) == 2
    assert "has no faces in its part test" in capsys.readouterr().err
