"""The settings of a training run: one frozen dataclass, its flags and its checks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from fmd_tf import CLASS_NAMES, MIN_IMAGE_SIZE

IMAGENET, NO_WEIGHTS = "imagenet", "none"


class ConfigError(ValueError):
    """A setting of the run is not usable."""


def _setting(default: Any, text: str, choices: Sequence[str] | None = None) -> Any:
    """Declare a setting: its default, its help, and the few values it may have."""
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `python -m fmd_tf.train`; every field is a flag of the same name.

    Raises:
        ConfigError: A value is out of its range, or two settings contradict each other.
    """

    data_dir: Path | None = _setting(
        None, "VOC folder with images/ and annotations/; default: data/raw, else a download"
    )
    sample: bool = _setting(False, "train on the drawn sample data, made under data/sample")
    class_names: tuple[str, ...] = _setting(CLASS_NAMES, "names of the classes, in order")
    skip_invalid: bool = _setting(False, "leave out invalid annotations instead of stopping")
    min_face_size: int = _setting(0, "leave out faces with a shorter side of fewer pixels")
    padding: float = _setting(0.1, "part of the face's size added on each side of the crop")
    square: bool = _setting(True, "cut squares with context; --no-square squashes the box")
    val_fraction: float = _setting(0.15, "part of the faces for validation")
    test_fraction: float = _setting(0.15, "part of the faces for the test; 0 for none")
    split_file: Path | None = _setting(None, "use the split of this file (a run's split.json)")
    folds: int = _setting(0, "train this many grouped folds and pool their test predictions")
    model_name: str = _setting(
        "resnet50", "backbone", choices=("resnet50", "efficientnet", "mobilenet")
    )
    weights: str = _setting(IMAGENET, "imagenet, none, or a .weights.h5 file of the backbone")
    image_size: int = _setting(224, "side of the crops in pixels")
    mixed_precision: str = _setting(
        "auto", "auto uses bfloat16 or float16 where the device is faster", ("auto", "on", "off")
    )
    epochs: int = _setting(15, "epochs of fine-tuning at the most")
    head_epochs: int = _setting(10, "epochs of the head on frozen features at the most")
    batch_size: int = _setting(32, "faces a step")
    lr: float | None = _setting(
        None, "learning rate of fine-tuning; default: 2e-4, or 1e-3 from random weights"
    )
    head_lr: float = _setting(1e-3, "learning rate of the head phase")
    weight_decay: float = _setting(1e-2, "decoupled weight decay of AdamW")
    label_smoothing: float = _setting(0.1, "part of a label shared among all classes")
    dropout: float = _setting(0.3, "dropout before and after the dense layer")
    balance: float = _setting(
        0.5, "class-balanced sampling: 0 as the data is, 0.5 square root, 1 all classes equal"
    )
    scheduler: str = _setting("plateau", "learning rate: plateau or cosine", ("plateau", "cosine"))
    patience: int = _setting(6, "epochs without a better macro-F1 before training stops")
    device: str = _setting("auto", "device to train on", choices=("auto", "cpu", "cuda", "gpu"))
    strategy: str = _setting("single", "mirrored trains on all GPUs", ("single", "mirrored"))
    seed: int = _setting(0, "seed of the split, the order, the augmentation and the weights")
    checkpoint_dir: Path = _setting(Path("checkpoints"), "state of the run, and best_model.keras")
    results_dir: Path = _setting(Path("results"), "metrics, plots and predictions")
    export_dir: Path = _setting(Path("savedmodel/face_mask"), "SavedModel versions for serving")
    overwrite: bool = _setting(False, "discard what checkpoint-dir holds and start anew")

    def __post_init__(self) -> None:
        """Check every setting once, so that no module has to."""
        self._require("image_size", self.image_size >= MIN_IMAGE_SIZE, f"at least {MIN_IMAGE_SIZE}")
        for name in ("epochs", "batch_size", "patience"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("min_face_size", "head_epochs", "weight_decay", "padding", "seed"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        for name in ("lr", "head_lr"):
            value = getattr(self, name)
            self._require(name, value is None or value > 0, "more than 0")
        for name in ("test_fraction", "label_smoothing", "dropout"):
            self._require(name, 0 <= getattr(self, name) < 1, "at least 0 and less than 1")
        self._require("balance", 0 <= self.balance <= 1, "0 to 1")
        self._require("val_fraction", 0 < self.val_fraction < 1, "more than 0 and less than 1")
        self._require("folds", self.folds == 0 or self.folds >= 2, "0 or at least 2")
        self._check_choices()
        self._check_together()

    def _require(self, name: str, fulfilled: bool, expected: str) -> None:
        if not fulfilled:
            raise ConfigError(f"{_flag(name)}: expected {expected}, got {getattr(self, name)}")

    def _check_choices(self) -> None:
        for setting in fields(self):
            choices = setting.metadata["choices"]
            if choices and getattr(self, setting.name) not in choices:
                self._require(setting.name, False, f"one of {', '.join(choices)}")

    def _check_together(self) -> None:
        names = self.class_names
        if len(names) < 2 or len(set(names)) != len(names) or "" in names:
            self._require("class_names", False, "at least two different names")
        if self.val_fraction + self.test_fraction >= 1:
            raise ConfigError(
                "--val-fraction and --test-fraction: expected a sum of less than 1, got "
                f"{self.val_fraction} + {self.test_fraction}"
            )
        if self.folds and self.split_file:
            raise ConfigError("--folds makes its own splits; leave out --split-file")
        if self.sample and self.data_dir:
            raise ConfigError("--sample draws its own data; leave out --data-dir")


def parse_config(argv: Sequence[str] | None, prog: str) -> TrainConfig:
    """Read a configuration from the command line.

    Args:
        argv: Arguments without the program's name; None takes those of the process.
        prog: Name shown in the help.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: See `TrainConfig`. Unknown flags end the process with code 2, as argparse
            does.
    """
    parser = argparse.ArgumentParser(
        prog=prog, description="Train, evaluate and export a face-mask classifier."
    )
    hints = get_type_hints(TrainConfig)
    for setting in fields(TrainConfig):
        _add_flag(parser, setting, hints[setting.name])
    return TrainConfig(**vars(parser.parse_args(argv)))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _add_flag(parser: argparse.ArgumentParser, setting: Field, hint: Any) -> None:
    """Add the flag of one setting, with its type, default and help."""
    default = setting.default
    if default is MISSING:
        raise TypeError(f"setting {setting.name} has no default")
    text = setting.metadata["help"] + ("" if default is None else " (default: %(default)s)")
    options: dict[str, Any] = {"default": default, "help": text}
    if hint is bool:
        options["action"] = argparse.BooleanOptionalAction if default else "store_true"
    elif hint == tuple[str, ...]:
        options |= {"nargs": "+", "action": _TupleAction, "metavar": "NAME"}
    else:
        optional = {Path | None: Path, float | None: float}
        options["type"] = optional.get(hint, hint)
        options["choices"] = setting.metadata["choices"]
    parser.add_argument(_flag(setting.name), **options)


class _TupleAction(argparse.Action):
    """Keep a list of values as a tuple: the configuration is frozen."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, tuple(values))
