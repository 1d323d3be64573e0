"""The settings of a training run: one frozen dataclass, its flags and its checks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from fmd_tf import CLASS_NAMES, MIN_IMAGE_SIZE, MIN_MULTI_VIEW_SIZE, UNCERTAIN
from fmd_tf.arguments import make_parser
from fmd_tf.errors import UserError
from fmd_tf.splits import HASH_BITS, MAX_DISTANCE

IMAGENET, CENTERFACE, NO_WEIGHTS = "imagenet", "centerface", "none"
WEIGHTS_HINT = (
    "give centerface or its .onnx file, imagenet or a .weights.h5 file of the Keras application, "
    "or none"
)
# A classifier learns more from a face than its validation does, from some 150 faces on.
_MIN_VAL_FRACTION, _MAX_VAL_FRACTION, _VAL_FACES = 0.05, 0.15, 150
RunConfigT = TypeVar("RunConfigT", bound="RunConfig")


class ConfigError(UserError):
    """A setting of the run is not usable."""


def _setting(default: Any, text: str, choices: Sequence[str] | None = None) -> Any:
    """Declare a setting: its default, its help, and the few values it may have."""
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of any training: where the data is, its split, and where the results go.

    Raises:
        ConfigError: A value is out of its range, or two settings contradict each other.
    """

    data_dir: Path | None = _setting(
        None, "VOC folder with images/ and annotations/; default: data/raw, else a download"
    )
    sample: bool = _setting(False, "train on the drawn sample data, made under data/sample")
    class_names: tuple[str, ...] = _setting(CLASS_NAMES, "names of the classes, in order")
    skip_invalid: bool = _setting(False, "leave out invalid annotations instead of stopping")
    val_fraction: float | None = _setting(
        None, "part of the faces for validation; default: that of 150 faces, but 5 to 15 %"
    )
    test_fraction: float = _setting(0.15, "part of the faces for the test; 0 for none")
    split_file: Path | None = _setting(None, "use the split of this file (a run's split.json)")
    group_distance: int = _setting(
        MAX_DISTANCE, "photos that differ in so many of 256 bits or fewer are one group"
    )
    seed: int = _setting(0, "seed of the split, the order, the augmentation and the weights")
    device: str = _setting("auto", "device to train on", choices=("auto", "cpu", "cuda", "gpu"))
    overwrite: bool = _setting(
        False, "discard what checkpoint-dir holds and start anew; without it a run goes on"
    )

    def __post_init__(self) -> None:
        """Check every setting once, so that no module has to."""
        for setting in fields(self):
            choices = setting.metadata["choices"]
            if choices and getattr(self, setting.name) not in choices:
                self._require(setting.name, False, f"one of {', '.join(choices)}")
        self._require("seed", 0 <= self.seed < 2**31, "0 to 2147483647")
        self._require("group_distance", 0 <= self.group_distance <= HASH_BITS, f"0 to {HASH_BITS}")
        self._require("test_fraction", 0 <= self.test_fraction < 1, "at least 0 and less than 1")
        val_fraction = _MAX_VAL_FRACTION if self.val_fraction is None else self.val_fraction
        self._require("val_fraction", 0 < val_fraction < 1, "more than 0 and less than 1")
        names = self.class_names
        if len(names) < 2 or len(set(names)) != len(names) or "" in names:
            self._require("class_names", False, "at least two different names")
        if UNCERTAIN in names:
            self._require("class_names", False, f"no {UNCERTAIN!r}, as unsure answers are called")
        if val_fraction + self.test_fraction >= 1:
            raise ConfigError(
                "--val-fraction and --test-fraction: expected a sum of less than 1, got "
                f"{val_fraction} + {self.test_fraction}"
            )
        if self.sample and self.data_dir:
            raise ConfigError("--sample draws its own data; leave out --data-dir")

    def _require(self, name: str, fulfilled: bool, expected: str) -> None:
        if not fulfilled:
            raise ConfigError(f"{_flag(name)}: expected {expected}, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """Settings of `python -m fmd_tf.train`; every field is a flag of the same name.

    `docs/results.md` has what was measured of the defaults and of each change that was tried.

    Raises:
        ConfigError: See `RunConfig`.
    """

    min_face_size: int = _setting(0, "leave out faces with a shorter side of fewer pixels")
    padding: float = _setting(0.2, "part of the face's size added on each side of the crop")
    square: bool = _setting(True, "cut squares with context; --no-square squashes the box")
    folds: int = _setting(0, "train this many grouped folds and pool their test predictions")
    model_name: str = _setting(
        "mobilenet", "backbone", choices=("mobilenet", "resnet50", "efficientnet")
    )
    weights: tuple[str, ...] | None = _setting(
        None,
        "centerface or its .onnx file (mobilenet alone), imagenet or a .weights.h5 file of the "
        "backbone, or none; two make two models kept as one, the second of which learns from the "
        "first; default: centerface imagenet for mobilenet without a teacher, else imagenet",
    )
    distill: Path | None = _setting(
        None,
        "teacher, a best_model.keras of the same split, whose answers are learnt; "
        "with --folds, the --checkpoint-dir of such folds",
    )
    self_distill: bool = _setting(
        False,
        "train twice: a teacher of the same kind first, then the model, which learns its answers",
    )
    image_size: int = _setting(112, "side of the crops in pixels")
    multi_view: bool = _setting(
        True, "look at the middle of a crop at three zooms and mirrored, and average the six"
    )
    mixed_precision: str = _setting(
        "auto", "auto uses bfloat16 or float16 where the device is faster", ("auto", "on", "off")
    )
    epochs: int = _setting(30, "epochs of fine-tuning at the most")
    head_epochs: int = _setting(10, "epochs of the head on frozen features at the most")
    batch_size: int = _setting(32, "faces a step; fewer where an epoch would have under 8 steps")
    lr: float | None = _setting(
        None, "learning rate of fine-tuning; default: 5e-4, or 1e-3 from random weights"
    )
    head_lr: float = _setting(1e-3, "learning rate of the head phase")
    weight_decay: float = _setting(1e-2, "decoupled weight decay of AdamW")
    label_smoothing: float = _setting(0.1, "part of a label shared among all classes")
    dropout: float = _setting(0.3, "dropout before and after the dense layer")
    balance: float = _setting(
        0.5, "class-balanced sampling: 0 as the data is, 0.5 square root, 1 all classes equal"
    )
    logit_adjustment: float = _setting(
        0.25, "how much rarer classes are favoured after training: 0 not, 1 as if all were equal"
    )
    scheduler: str = _setting("plateau", "learning rate: plateau or cosine", ("plateau", "cosine"))
    patience: int = _setting(12, "epochs without better validation before training stops")
    ema: float = _setting(
        0.99, "momentum of the moving average of the weights, which is what is kept; 0 for none"
    )
    strategy: str = _setting("single", "mirrored trains on all GPUs", ("single", "mirrored"))
    checkpoint_dir: Path = _setting(Path("checkpoints"), "state of the run, and best_model.keras")
    results_dir: Path = _setting(Path("results"), "metrics, plots and predictions")
    export_dir: Path = _setting(Path("savedmodel/face_mask"), "SavedModel versions for serving")

    def __post_init__(self) -> None:
        """Check what only a classifier has."""
        super().__post_init__()
        least = MIN_MULTI_VIEW_SIZE if self.multi_view else MIN_IMAGE_SIZE
        self._require("image_size", self.image_size >= least, f"at least {least}")
        for name in ("epochs", "batch_size", "patience"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("min_face_size", "head_epochs", "weight_decay", "padding"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        for name in ("lr", "head_lr"):
            value = getattr(self, name)
            self._require(name, value is None or value > 0, "more than 0")
        for name in ("label_smoothing", "dropout", "ema"):
            self._require(name, 0 <= getattr(self, name) < 1, "at least 0 and less than 1")
        for name in ("balance", "logit_adjustment"):
            self._require(name, 0 <= getattr(self, name) <= 1, "0 to 1")
        self._require("folds", self.folds == 0 or self.folds >= 2, "0 or at least 2")
        most = 1 - 1 / self.folds if self.folds else 1
        self._require("val_fraction", (self.val_fraction or 0) < most, f"less than {most:g}")
        if self.self_distill and self.distill:
            raise ConfigError("--distill has its own teacher; leave out --self-distill")
        self._require("weights", 1 <= len(self.begins_from) <= 2, "one, or two for two models")
        if self.is_ensemble and (self.distill or self.self_distill):
            raise ConfigError("--weights of two models: the first teaches; name one with a teacher")
        if self.folds and self.split_file:
            raise ConfigError("--folds makes its own splits; leave out --split-file")

    @property
    def begins_from(self) -> tuple[str, ...]:
        """The weights that were asked for, or the best ones that there are.

        Two models that begin from different weights err on different faces, and are kept as one.
        Of a teacher more is learnt from ImageNet's weights than from CenterFace's.
        """
        if self.weights is not None:
            return self.weights
        has_teacher = self.distill or self.self_distill
        if self.model_name == "mobilenet" and not has_teacher:
            return (CENTERFACE, IMAGENET)
        return (IMAGENET,)

    @property
    def is_ensemble(self) -> bool:
        """Whether two models are kept as one, the first of which teaches the second."""
        return len(self.begins_from) > 1

    @property
    def trains_teacher(self) -> bool:
        """Whether a teacher is trained first, in the same run."""
        return self.self_distill or self.is_ensemble

    def of_teacher(self) -> TrainConfig:
        """Return the settings of the teacher that is trained first."""
        return replace(self, self_distill=False, weights=self.begins_from[:1])

    def val_fraction_of(self, num_faces: int) -> float:
        """Return the part for validation that was asked for, or that of as many as are enough."""
        if self.val_fraction is not None:
            return self.val_fraction
        return min(max(_VAL_FACES / num_faces, _MIN_VAL_FRACTION), _MAX_VAL_FRACTION)


@dataclass(frozen=True, kw_only=True)
class DetectorConfig(RunConfig):
    """Settings of `python -m fmd_tf.train_detector`; every field is a flag of the same name.

    Raises:
        ConfigError: See `RunConfig`.
    """

    # Photos are fewer than faces, and set the threshold too.
    val_fraction: float = _setting(0.15, "part of the faces for validation")
    weights: str = _setting(
        CENTERFACE,
        "centerface or its .onnx file, imagenet or a .weights.h5 file of MobileNetV2, or none",
    )
    image_size: int = _setting(1024, "pixels that the longer side of a photo is scaled to")
    view_size: int = _setting(416, "side of the training views in pixels, a multiple of 32")
    epochs: int = _setting(8, "epochs, of one view a face, at most 16 a photo")
    batch_size: int = _setting(16, "views a step")
    lr: float = _setting(5e-4, "highest learning rate; it warms up and falls as a cosine")
    weight_decay: float = _setting(1e-3, "decoupled weight decay of AdamW")
    balance: float = _setting(
        0.5, "class-balanced views and loss: 0 as the data is, 0.5 square root, 1 all equal"
    )
    precision: float = _setting(0.9, "precision on validation photos that sets the threshold")
    peer: str = _setting("none", "detector to compare with on the test photos", ("none", "mtcnn"))
    checkpoint_dir: Path = _setting(Path("checkpoints/detector"), "state, and best_detector.keras")
    results_dir: Path = _setting(Path("results/detector"), "metrics")

    def __post_init__(self) -> None:
        """Check what only a detector has."""
        super().__post_init__()
        for name in ("epochs", "batch_size"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("image_size", "view_size"):
            value = getattr(self, name)
            self._require(name, value >= 32 and value % 32 == 0, "a multiple of 32")
        self._require("lr", self.lr > 0, "more than 0")
        self._require("weight_decay", self.weight_decay >= 0, "at least 0")
        self._require("balance", 0 <= self.balance <= 1, "0 to 1")
        self._require("precision", 0 < self.precision < 1, "more than 0 and less than 1")


def parse_config(
    config_class: type[RunConfigT], argv: Sequence[str] | None, command: str, description: str
) -> RunConfigT:
    """Read a configuration from the command line.

    Args:
        config_class: `TrainConfig` or `DetectorConfig`.
        argv: Arguments without the program's name; None takes those of the process.
        command: Name of the module that is run.
        description: What the program does, for the help.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: See `RunConfig`. Unknown flags end the process with code 2, as argparse
            does.
    """
    parser = make_parser(command, description)
    hints = get_type_hints(config_class)
    for setting in fields(config_class):
        _add_flag(parser, setting, hints[setting.name])
    return config_class(**vars(parser.parse_args(argv)))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _add_flag(parser: argparse.ArgumentParser, setting: Field, hint: Any) -> None:
    """Add the flag of one setting, with its type, default and help."""
    default = setting.default
    if default is MISSING:
        raise TypeError(f"setting {setting.name} has no default")
    # In help argparse takes % for the beginning of a name.
    text = setting.metadata["help"].replace("%", "%%")
    options: dict[str, Any] = {"default": default, "help": text}
    if hint is bool:
        options["action"] = argparse.BooleanOptionalAction if default else "store_true"
    elif hint in (tuple[str, ...], tuple[str, ...] | None):
        options |= {"nargs": "+", "action": _TupleAction, "metavar": "NAME"}
    else:
        optional = {Path | None: Path, float | None: float, str | None: str}
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
