import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import fmd_tf
from fmd_tf.__main__ import COMMANDS


def test_all_commands_are_listed():
    modules = Path(fmd_tf.__file__).parent.glob("[!_]*.py")
    runnable = {path.stem for path in modules if '__name__ == "__main__"' in path.read_text()}
    command = [sys.executable, "-m", "fmd_tf"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert {line.split()[0] for line in said.splitlines() if line.startswith("  ")} == runnable


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(f"fmd_tf.{command}").main(["--help"])
    assert stop.value.code == 0
    assert f"usage: python -m fmd_tf.{command}" in capsys.readouterr().out
