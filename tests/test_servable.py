import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fmd_tf.rest import RestError
from fmd_tf.servable import ModelVersions, VersionStatus
from tests.serving import write_half_plus_two


@pytest.fixture(scope="module")
def half_plus_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("half") / "1"
    write_half_plus_two(path)
    return path


@pytest.fixture
def base_dir(half_plus_two: Path, tmp_path: Path) -> Path:
    """A folder with version 1."""
    add_version(half_plus_two, tmp_path / "model", 1)
    return tmp_path / "model"


@pytest.fixture
def versions(base_dir: Path) -> Iterator[ModelVersions]:
    versions = ModelVersions(base_dir, "half")
    versions.sync()
    yield versions
    versions.close()


def add_version(source: Path, base_dir: Path, version: int) -> None:
    shutil.copytree(source, base_dir / str(version))


def ask(versions: ModelVersions, version: int | None = None, label: str | None = None) -> float:
    """Half of 3 and 2 are 3.5."""
    with versions.use(version, label) as servable:
        outputs = servable.signature("").run({"x": np.float32([3])})
    return float(outputs["y"][0])


def states(versions: ModelVersions) -> list[tuple[int, str]]:
    return [(each.version, each.state) for each in versions.status()]


def test_what_is_loaded_after_the_end_is_not_kept(base_dir: Path) -> None:
    versions = ModelVersions(base_dir, "half")
    versions.close()
    versions.sync()  # As the watcher's, which was loading meanwhile.
    with pytest.raises(RestError, match="Servable not found"):
        ask(versions)


def test_versions_and_labels(versions: ModelVersions) -> None:
    assert ask(versions) == ask(versions, 1) == 3.5
    assert versions.status() == [VersionStatus(1, "AVAILABLE")]
    for arguments, message in (
        ((2, None), r"Servable not found for request: Specific\(half, 2\)"),
        ((None, "x"), "Unrecognized servable version label: x"),
    ):
        with pytest.raises(RestError, match=message):
            ask(versions, *arguments)
    with pytest.raises(RestError, match="Could not find version 2 of model half"):
        versions.status(2)
    with (
        versions.use(None, None) as servable,
        pytest.raises(RestError, match='Serving signature name: "x" not found'),
    ):
        servable.signature("x")


def test_a_new_version_replaces_the_old_and_going_back_works(
    versions: ModelVersions, base_dir: Path, half_plus_two: Path
) -> None:
    add_version(half_plus_two, base_dir, 12)
    (base_dir / ".partial-13").mkdir()
    (base_dir / "notes").mkdir()
    versions.sync()
    assert states(versions) == [(12, "AVAILABLE")]
    shutil.rmtree(base_dir / "12")
    versions.sync()
    assert states(versions) == [(1, "AVAILABLE")]
    assert ask(versions) == 3.5


def test_a_version_with_a_label_stays(base_dir: Path, half_plus_two: Path) -> None:
    versions = ModelVersions(base_dir, "half", labels={"stable": 1, "next": 13})
    add_version(half_plus_two, base_dir, 12)
    versions.sync()
    assert states(versions) == [(12, "AVAILABLE"), (1, "AVAILABLE")]
    assert ask(versions, label="stable") == 3.5
    shutil.rmtree(base_dir / "1")
    versions.sync()
    assert states(versions) == [(12, "AVAILABLE")]
    with pytest.raises(RestError, match=r"Servable not found for request: Specific\(half, 13\)"):
        ask(versions, label="next")
    versions.close()


def test_requests_in_flight_finish_on_the_old_version(
    versions: ModelVersions, base_dir: Path, half_plus_two: Path
) -> None:
    with versions.use(None, None) as servable:
        add_version(half_plus_two, base_dir, 2)
        versions.sync()
        assert states(versions) == [(2, "AVAILABLE")]
        outputs = servable.signature("").run({"x": np.float32([3])})
    assert outputs["y"].tolist() == [3.5]
    assert not servable.acquire()


@pytest.mark.parametrize("damage", ["empty", "cut", "warm-up"])
def test_a_broken_version_is_reported_and_the_old_one_stays(
    versions: ModelVersions, base_dir: Path, half_plus_two: Path, damage: str
) -> None:
    add_version(half_plus_two, base_dir, 2)
    graph = base_dir / "2" / "saved_model.pb"
    intact = graph.read_bytes()
    if damage == "empty":
        graph.unlink()
    elif damage == "cut":
        graph.write_bytes(intact[: len(intact) // 2])
    else:
        warmup = base_dir / "2" / "assets.extra" / "tf_serving_warmup_requests"
        warmup.parent.mkdir()
        warmup.write_bytes(b"no record" * 9)
    versions.sync()
    versions.sync()
    assert states(versions) == [(2, "END"), (1, "AVAILABLE")]
    broken = versions.status(2)[0]
    assert broken.error_code == "UNKNOWN"
    assert broken.error_message
    assert ask(versions) == 3.5
    # Repaired, or copied to the end, it is tried again.
    if damage == "warm-up":
        shutil.rmtree(warmup.parent)
    else:
        graph.write_bytes(intact)
        os.utime(graph, ns=(1, 1))
    versions.sync()
    assert states(versions) == [(2, "AVAILABLE")]


def test_a_version_written_anew_is_loaded_anew(
    versions: ModelVersions, base_dir: Path, half_plus_two: Path
) -> None:
    with versions.use(1, None) as before:
        shutil.rmtree(base_dir / "1")
        add_version(half_plus_two, base_dir, 1)
        os.utime(base_dir / "1" / "saved_model.pb", ns=(1, 1))
        versions.sync()
    with versions.use(1, None) as after:
        assert after is not before


def test_several_versions_at_once(base_dir: Path, half_plus_two: Path) -> None:
    for version in (2, 3):
        add_version(half_plus_two, base_dir, version)
    versions = ModelVersions(base_dir, "half", num_versions=2)
    versions.sync()
    assert states(versions) == [(3, "AVAILABLE"), (2, "AVAILABLE")]
    versions.close()


def test_an_empty_folder_takes_nothing_away(versions: ModelVersions, base_dir: Path) -> None:
    shutil.rmtree(base_dir)
    versions.sync()
    assert ask(versions) == 3.5
    nothing = ModelVersions(base_dir, "none")
    nothing.sync()
    with pytest.raises(RestError, match="Could not find any versions of model none"):
        nothing.status()


def test_swapping_under_load_fails_no_request(
    versions: ModelVersions, base_dir: Path, half_plus_two: Path
) -> None:
    errors: list[Exception] = []
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            try:
                assert ask(versions) == 3.5
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    for version in range(2, 6):
        add_version(half_plus_two, base_dir, version)
        versions.sync()
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert states(versions) == [(5, "AVAILABLE")]
