"""The command line of a training: its settings, its errors and its exit codes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fmd_tf.checkpoints import LOCK, RunFolder
from fmd_tf.config import (
    CENTERFACE,
    IMAGENET,
    NO_WEIGHTS,
    RunConfig,
    RunConfigT,
    parse_config,
)
from fmd_tf.download import find_data
from fmd_tf.errors import DownloadError
from fmd_tf.publish import locked
from fmd_tf.sample_data import SAMPLE_DIR, write_sample


def find_folder(config: RunConfig) -> Path:
    """Return the VOC folder to train on: drawn, named, or found.

    Raises:
        DataNotFoundError: There is none, see `download.find_data`.
    """
    return write_sample(SAMPLE_DIR) if config.sample else find_data(config.data_dir)


def weights_at_hand(
    weights: Sequence[str], config: RunConfig, run: RunFolder, build: Callable[[str], Any]
) -> tuple[str, ...]:
    """Fail before anything is discarded where the weights of a new run cannot be had.

    The quick start begins from random weights where none can be downloaded, and goes on so.

    Args:
        weights: What the models of the run are to begin from, see `model.build_model`.
        config: The run.
        run: Its checkpoint folder.
        build: Builds the run's model from weights.

    Returns:
        What they begin from, which is part of what the run is.

    Raises:
        ModelError: Weights that cannot be had.
    """
    held = {} if config.overwrite else run.identity()
    may_do_without = config.sample and {*weights} <= {IMAGENET, CENTERFACE}
    if may_do_without and held.get("weights") in (NO_WEIGHTS, [NO_WEIGHTS]):
        print("Going on with the quick start from random weights; --overwrite begins anew.")
        return (NO_WEIGHTS,)
    if held and (run.has_state() or run.teacher.has_state()):
        return tuple(weights)
    try:
        for each in weights:
            build(each)
    except DownloadError as error:
        if not may_do_without:
            raise
        print(f"{error}.\nThis quick start begins from random weights instead, which is worse.")
        return (NO_WEIGHTS,)
    return tuple(weights)


@contextmanager
def locked_folders(*folders: Path) -> Iterator[None]:
    """Hold the locks of a run's folders, which may be one and the same.

    Raises:
        PublishError: Another run writes to one of them, or it cannot be written.
    """
    with ExitStack() as stack:
        for folder in dict.fromkeys(each.resolve() for each in folders):
            stack.enter_context(locked(folder / LOCK))
        yield


def run_training(
    train: Callable[[RunConfigT], Any],
    config_class: type[RunConfigT],
    argv: Sequence[str] | None,
    command: str,
    description: str,
) -> int:
    """Run a training from the command line.

    Args:
        train: The training.
        config_class: Its settings.
        argv: Arguments without the program's name; None takes those of the process.
        command: Name of the module that is run.
        description: What it does, for the help.

    Returns:
        The exit code 0.

    Raises:
        UserError: The input is unusable.
        KeyboardInterrupt: Ctrl-C; its message says how the run goes on.
    """
    # It warns that prediction is traced anew for each model, as it must be.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    again = "The same command"
    try:
        config = parse_config(config_class, argv, command, description)
        if config.overwrite:
            again += " without --overwrite"
        train(config)
    except KeyboardInterrupt as stop:
        message = f"\nStopped. {again} goes on at the last saved epoch."
        raise KeyboardInterrupt(message) from stop
    return 0
