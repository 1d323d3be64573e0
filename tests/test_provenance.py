import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fmd_tf import provenance


def git(folder: Path, *arguments: str) -> str:
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    command = ["git", *author, *arguments]
    # Nothing of the user's settings, nor of a hook that runs the tests.
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    own |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        ("processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx2\n", "AMD EPYC"),
        (
            "model name\t: AMD EPYC\nflags\t\t: avx512_vnni bmi2\nflags: avx512_vnni\n",
            "AMD EPYC with VNNI",
        ),
        ("model name: AMD EPYC\nflags: avx_vnni\n", "AMD EPYC with VNNI"),
        ("processor\t: 0\nFeatures\t: fp asimd\n", ""),
    ],
)
def test_a_processor_is_named_with_its_instructions_for_int8(cpuinfo: str, name: str) -> None:
    assert provenance.processor_name(cpuinfo) == name


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_the_commit_is_that_of_the_package_and_of_no_project_around_it(tmp_path: Path) -> None:
    package = tmp_path / ".venv" / "fmd_tf"
    package.mkdir(parents=True)
    file = Path(shutil.copy(provenance.__file__, package))
    spec = importlib.util.spec_from_file_location("installed", file)
    assert spec and spec.loader
    installed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(installed)

    (tmp_path / "main.py").touch()
    git(tmp_path, "init")
    git(tmp_path, "add", "main.py")
    git(tmp_path, "commit", "-m", "another project")
    assert installed.provenance()["commit"] is None
    git(tmp_path, "add", str(file))
    git(tmp_path, "commit", "-m", "the package")
    assert installed.provenance()["commit"] == git(tmp_path, "describe", "--always")
