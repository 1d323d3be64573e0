"""Memory that TensorFlow has given back is kept for its next step.

On a processor TensorFlow takes its tensors from the C library. That of GNU gives large ones back to
the system at once, and a step begins with the system clearing the same pages again.
"""

from __future__ import annotations

import ctypes
import platform

# Of malloc.h: https://man7.org/linux/man-pages/man3/mallopt.3.html
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_NEVER = 2**31 - 1


def keep_memory() -> None:
    """Let this process keep what it has freed: it cost half of the time of 32 faces.

    It is for commands that ask a model again and again: their peak stays what it was, but nothing
    is given back before their end. Threads have one pool, as only that one can keep blocks of any
    size; training, which has more small ones, gains nothing. To be called before the first step;
    with other C libraries nothing changes.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for option, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER)):
        libc.mallopt(option, value)
