from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

from fmd_tf.config import ConfigError, TrainConfig, parse_config
from fmd_tf.model import MODEL_NAMES


def _parse(argv):
    return parse_config(TrainConfig, argv, "train", "Train.")


def test_every_setting_is_a_flag_with_its_default():
    assert _parse([]) == TrainConfig()


def test_flags_are_typed():
    config = _parse(
        ["--class-names", "a", "b", "--lr", "1e-3", "--no-square", "--split-file", "s.json"]
    )
    assert config.class_names == ("a", "b")
    assert config.lr == 0.001
    assert not config.square
    assert config.split_file == Path("s.json")


def test_flags_of_the_ancestor_work():
    config = _parse(
        "--data-dir d --model-name efficientnet --epochs 3 --batch-size 8 --lr 0.01 --device cuda "
        "--patience 2 --weight-decay 0.1 --scheduler cosine --checkpoint-dir c --results-dir r "
        "--seed 5".split()
    )
    assert (config.device, config.scheduler, config.seed) == ("cuda", "cosine", 5)


def test_a_run_begins_from_the_best_weights_that_its_backbone_has():
    assert _parse([]).begins_from == ("centerface", "imagenet")
    assert _parse(["--model-name", "resnet50"]).begins_from == ("imagenet",)
    assert _parse(["--distill", "teacher.keras"]).begins_from == ("imagenet",)
    for weights in (["none"], ["a.onnx", "b.weights.h5"]):
        assert _parse(["--weights", *weights]).begins_from == tuple(weights)


def test_model_names_are_those_that_can_be_built():
    """The configuration lists them by itself: it must not import TensorFlow."""
    (setting,) = [each for each in fields(TrainConfig) if each.name == "model_name"]
    assert setting.metadata["choices"] == MODEL_NAMES


def test_a_configuration_cannot_change():
    with pytest.raises(FrozenInstanceError):
        TrainConfig().epochs = 3


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"epochs": 0}, "--epochs: expected at least 1, got 0"),
        ({"lr": float("nan")}, "--lr: expected more than 0"),
        ({"dropout": 1.0}, "--dropout: expected at least 0 and less than 1"),
        ({"val_fraction": 0.0}, "--val-fraction: expected more than 0"),
        ({"folds": 1}, "--folds: expected 0 or at least 2"),
        ({"scheduler": "step"}, "--scheduler: expected one of plateau, cosine, got step"),
        ({"class_names": ("a", "a")}, "at least two different names"),
        ({"weights": ()}, "--weights: expected one, or two for two models"),
        ({"weights": ("none",) * 3}, "--weights: expected one, or two for two models"),
    ],
)
def test_bad_settings(settings: dict, expected: str):
    with pytest.raises(ConfigError, match=expected):
        TrainConfig(**settings)


def test_one_teacher_is_enough():
    with pytest.raises(ConfigError, match="--distill has its own teacher"):
        TrainConfig(distill=Path("teacher.keras"), self_distill=True)
    for settings in ({"distill": Path("teacher.keras")}, {"self_distill": True}):
        with pytest.raises(ConfigError, match="--weights of two models: the first teaches"):
            TrainConfig(weights=("centerface", "imagenet"), **settings)


@pytest.mark.parametrize(
    ("settings", "teacher", "model"),
    [
        ({}, "centerface", "imagenet"),
        ({"weights": ("a.onnx", "b.weights.h5")}, "a.onnx", "b.weights.h5"),
        ({"self_distill": True, "weights": ("centerface",)}, "centerface", "centerface"),
        ({"self_distill": True}, "imagenet", "imagenet"),
    ],
)
def test_what_a_teacher_and_its_student_begin_from(settings: dict, teacher: str, model: str):
    config = TrainConfig(**settings)
    assert config.trains_teacher
    assert config.begins_from[-1] == model
    first = config.of_teacher()
    assert first.begins_from == (teacher,)
    assert not first.is_ensemble and not first.trains_teacher


def test_a_named_teacher_is_not_trained():
    assert not TrainConfig(distill=Path("teacher.keras")).trains_teacher


def test_unknown_settings_fail():
    with pytest.raises(TypeError):
        TrainConfig(learning_rate=1)


@pytest.mark.parametrize(
    ("num_faces", "asked", "expected"),
    [
        (40, None, 0.15),  # Six faces.
        (1000, None, 0.15),
        (2000, None, 0.075),
        (3000, None, 0.05),
        (100_000, None, 0.05),
        (100_000, 0.2, 0.2),
    ],
)
def test_as_many_validation_faces_as_are_enough(num_faces: int, asked, expected: float):
    config = TrainConfig(val_fraction=asked)
    assert config.val_fraction_of(num_faces) == pytest.approx(expected)
