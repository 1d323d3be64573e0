"""The command line of a training: its settings, its errors and its exit codes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

from fmd_tf.checkpoints import CheckpointError
from fmd_tf.config import ConfigError, RunConfigT, parse_config
from fmd_tf.detect import DetectorError
from fmd_tf.download import DataNotFoundError
from fmd_tf.model import ModelError
from fmd_tf.publish import PublishError
from fmd_tf.splits import SplitError
from fmd_tf.voc import AnnotationError

_USER_ERRORS = (
    AnnotationError,
    CheckpointError,
    ConfigError,
    DataNotFoundError,
    DetectorError,
    ModelError,
    OSError,
    PublishError,
    SplitError,
)


def run_training(
    train: Callable[[RunConfigT], Any],
    config_class: type[RunConfigT],
    argv: Sequence[str] | None,
    prog: str,
    description: str,
) -> int:
    """Run a training from the command line.

    Args:
        train: The training.
        config_class: Its settings.
        argv: Arguments without the program's name; None takes those of the process.
        prog: Name shown in the help.
        description: What it does, for the help.

    Returns:
        The exit code: 0; 2 for unusable input, which is named in one line; 130 for Ctrl-C.
    """
    # It warns that prediction is traced anew for each model, as it must be.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    again = "The same command"
    try:
        config = parse_config(config_class, argv, prog, description)
        if config.overwrite:
            again += " without --overwrite"
        train(config)
    except _USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nStopped. {again} goes on at the last saved epoch.", file=sys.stderr)
        return 130
    return 0
