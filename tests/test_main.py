import subprocess
import sys
from pathlib import Path

import fmd_tf


def test_all_commands_are_listed():
    modules = Path(fmd_tf.__file__).parent.glob("[!_]*.py")
    runnable = {path.stem for path in modules if '__name__ == "__main__"' in path.read_text()}
    command = [sys.executable, "-m", "fmd_tf"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert {line.split()[0] for line in said.splitlines() if line.startswith("  ")} == runnable
