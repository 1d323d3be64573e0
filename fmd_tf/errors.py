"""Errors that are the user's to mend, and how a command ends with one."""

from __future__ import annotations

import sys


class UserError(ValueError):
    """Input that cannot be used; the message says what was expected, what came and what to do."""


USER_ERRORS = (UserError, OSError)
"""What a command reports in place of a traceback: files that cannot be read or written too."""


def report_error(error: Exception) -> int:
    """Print the message of one of `USER_ERRORS`; return the process' exit code."""
    print(f"error: {error}", file=sys.stderr)
    return 2
