import platform
import subprocess
import sys

import pytest

# How many pages the system had to clear for a block that was freed before, in each of two threads.
_SCRIPT = """
import resource, sys, threading
import numpy as np
from fmd_tf.memory import keep_memory

def fill():
    for _ in range(3):
        np.ones(100_000_000, np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        np.ones(100_000_000, np.uint8)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

if sys.argv[1] == "keep":
    keep_memory()
fill()
thread = threading.Thread(target=fill)
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library is told")
def test_what_was_freed_is_taken_again_without_clearing_it():
    def faults(what: str) -> list[int]:
        command = [sys.executable, "-c", _SCRIPT, what]
        return list(map(int, subprocess.check_output(command, text=True).split()))

    # Pages may be of 4 KB or, where the system has huge ones, of 2 MB.
    assert min(faults("give back")) >= 4 * 40
    assert max(faults("keep")) < 40
