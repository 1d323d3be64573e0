"""Errors that are the user's to mend, and how a command ends with one."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any


class UserError(ValueError):
    """Input that cannot be used; the message says what was expected, what came and what to do."""


class ModelError(UserError):
    """A model or its weights cannot be built, read or written."""


class DownloadError(ModelError):
    """Published weights could not be downloaded."""


def install_command(extra: str) -> str:
    """Return the command that installs an extra of `pyproject.toml` where this Python finds it."""
    return f'{sys.executable} -m pip install -e ".[{extra}]"'


def first_line(error: Exception) -> str:
    """Return what another library's error says, short enough for a message."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say for a message which settings are others now; "" where they are the same."""
    names = sorted({*before, *now})
    return ", ".join(
        f"{name} {before.get(name)} (now {now.get(name)})"
        for name in names
        if before.get(name) != now.get(name)
    )


def command_line(main: Callable[[Sequence[str] | None], int]) -> Callable[..., int]:
    """Decorate a command's main function, so that it ends with a message and no traceback.

    Of what goes wrong, the user's errors are reported, and files that cannot be read or written.
    What the console cannot show, of names of files and classes, is escaped.

    Args:
        main: Takes the arguments without the program's name, or None for those of the process;
            returns the process' exit code.

    Returns:
        The same, with the exit code 2 after such an error, and 130 after Ctrl-C.
    """

    @wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            return main(argv)
        except (UserError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt as stop:
            print(*(stop.args or ("stopped",)), file=sys.stderr)
            return 130

    return run
