import json
from pathlib import Path

import pytest

from fmd_tf.benchmark import format_serving, main
from fmd_tf.export import export_saved_model
from tests.serving import CARD, tiny_model


def test_serving_measures_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_saved_model(tiny_model(), CARD, tmp_path / "face_mask")
    output = tmp_path / "serving.json"
    arguments = ["serving", "--model-dir", str(tmp_path / "face_mask"), "--clients", "1", "2"]
    assert main([*arguments, "--seconds", "0.4", "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    assert [level["clients"] for level in report["levels"]] == [1, 2]
    for level in report["levels"]:
        for way in ("session", "http"):
            figures = level[way]
            assert figures["requests"] > 0
            assert 0 < figures["p50_ms"] <= figures["p95_ms"] <= figures["p99_ms"]
        assert level["throughput_ratio"] > 0
        added = level["http"]["p50_ms"] - level["session"]["p50_ms"]
        assert level["added_p50_ms"] == pytest.approx(added)
    # A heading, two lines for each number of clients, and the machine.
    assert len(capsys.readouterr().out.splitlines()) == 6


def test_the_table_shows_ratio_and_added_time() -> None:
    session = {"throughput": 40.0, "p50_ms": 20.0, "p95_ms": 30.0, "p99_ms": 31.0}
    over_http = {"throughput": 38.0, "p50_ms": 21.5, "p95_ms": 33.0, "p99_ms": 34.0}
    level = {
        "clients": 4,
        "session": session,
        "http": over_http,
        "throughput_ratio": 0.95,
        "added_p50_ms": 1.5,
    }
    report = {"levels": [level], "cores": 2, "load_average": [[1.0], [2.0]]}
    line = format_serving(report).splitlines()[2]
    assert line.split() == ["4", "http", "38.0", "21.5", "33.0", "34.0", "0.950", "1.5", "ms"]


def test_no_model_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serving", "--model-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: no version in {tmp_path}")
    assert main(["serving", "--model-dir", str(tmp_path), "--image", str(tmp_path / "x")]) == 2
