"""What a figure was measured with: versions, commit and machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

_PACKAGES = ("tensorflow", "keras", "tensorflow-datasets", "numpy", "scikit-learn")


def provenance() -> dict[str, Any]:
    """Return `versions`, `commit` (None outside a git checkout), `processor` and `cores`."""
    return {
        "versions": {
            "python": sys.version.split()[0],
            **{name: version(name) for name in _PACKAGES},
        },
        "commit": _commit(),
        "processor": _processor(),
        "cores": os.cpu_count(),
    }


def _commit() -> str | None:
    """Return the commit of the source tree, None where it is not a git checkout."""
    # Installed into a folder of another project's checkout, it is not of that project's commit.
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    return _git("describe", "--always", "--dirty") or None


def _git(*arguments: str) -> str | None:
    """Return what git says in this package's folder, None where it fails or is missing."""
    command = ["git", *arguments]
    here = Path(__file__).parent
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    """Return the processor's name as Linux reports it, else what Python knows."""
    return processor_name(read_cpuinfo()) or platform.processor() or platform.machine()


def read_cpuinfo() -> str:
    """Return what Linux says of its processors, "" elsewhere."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else ""


def processor_name(cpuinfo: str) -> str:
    """Name the processor, and whether it has the instructions that int8 models gain by.

    Virtual machines often leave the generation out of the name: of two "AMD EPYC", one may take
    half of the other's time for products of int8.

    Args:
        cpuinfo: The text of Linux' `/proc/cpuinfo`.

    Returns:
        As "AMD EPYC with VNNI"; "" where no name is given, as on ARM.
    """
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    fields = {name.strip(): value.strip() for name, _, value in lines}
    name = fields.get("model name", "")
    has_vnni = any(flag.endswith("vnni") for flag in fields.get("flags", "").split())
    return f"{name} with VNNI" if name and has_vnni else name
