import json
from functools import partial
from pathlib import Path

import pytest

from fmd_tf import benchmark_recipe
from fmd_tf.benchmark import main
from fmd_tf.benchmark_infer import format_infer
from fmd_tf.benchmark_serving import format_serving
from fmd_tf.config import TrainConfig
from fmd_tf.detector import DetectorCard, build_detector
from fmd_tf.export import export_saved_model
from fmd_tf.formats import FORMATS
from fmd_tf.sample_data import write_sample
from tests.conftest import add_photo
from tests.serving import CARD, tiny_model

pytestmark = pytest.mark.usefixtures("shallow_backbone")


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
    shown = capsys.readouterr().out
    # Two lines of heading, a line for each number of clients, an empty one, and the machine.
    assert len(shown.splitlines()) == 6
    assert main(["report", str(output)]) == 0
    assert capsys.readouterr().out.strip() == shown.strip()


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
    report = {"levels": [level]}
    line = format_serving(report).splitlines()[2]
    assert line == "| 4 | 40.0 | 38.0 | 0.950 | 20.0 / 21.5 (+1.5) | 33.0 / 34.0 |"


def test_no_model_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serving", "--model-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: no SavedModel in {tmp_path}")
    assert main(["serving", "--model-dir", str(tmp_path), "--image", str(tmp_path / "x")]) == 2


def test_a_report_of_something_else_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in ("{}", "[]", "not JSON", '{"command": "other"}'):
        (tmp_path / "x.json").write_text(text)
        assert main(["report", str(tmp_path / "x.json")]) == 2
        assert "holds no figures of this command" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "missing.json")]) == 2


def test_input_stands_beside_its_limits(sample_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "input.json"
    flags = ["--data-dir", str(sample_dir), "--image-size", "32", "--rounds", "1"]
    assert main(["input", *flags, "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    rates = {row["way"]: row["crops_per_second"] for row in report["rows"]}
    assert min(rates.values()) > 0
    for row in report["rows"]:
        if row["beside"]:
            expected = rates[row["way"]] / rates[row["beside"]]
            assert row["ratio"] == pytest.approx(expected)
    assert {row["way"] for row in report["rows"] if not row["beside"]} == {"decoding", "NumPy copy"}


def test_train_tells_the_inputs_share(sample_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "train.json"
    flags = ["--data-dir", str(sample_dir), "--image-size", "38", "--rounds", "1", "--steps", "3"]
    model = ["--model-name", "mobilenet", "--batch-size", "4"]
    assert main(["train", *flags, *model, "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    assert report["recipe"] is None
    share = 1 - report["memory_step_ms"] / report["step_ms"]
    assert report["input_share"] == pytest.approx(share)
    assert report["faces_per_second"] == pytest.approx(4000 / report["step_ms"])


def test_one_step_has_no_time(sample_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A step's time is that between the ends of two."""
    with pytest.raises(SystemExit):
        main(["train", "--data-dir", str(sample_dir), "--steps", "1"])
    assert "--steps: expected a whole number of at least 2" in capsys.readouterr().err


def test_whole_runs_are_timed_to_the_same_macro_f1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark_recipe, "_PEER_MODEL", "mobilenet")  # ResNet50 takes a minute.
    monkeypatch.setattr(benchmark_recipe, "_PEER_SIZE", 64)
    monkeypatch.setattr(benchmark_recipe, "TrainConfig", partial(TrainConfig, epochs=2))
    few = write_sample(tmp_path / "voc", num_photos=8, seed=1)
    report = benchmark_recipe.benchmark_recipe(few, 1, "mobilenet", 38, ["none"], "none")
    peer, own = report["peer"], report["own"]
    assert len(peer["curve"]) == 1 and peer["seconds"] == peer["curve"][0][0]
    assert report["target"] == peer["best"]
    reached = [seconds for seconds, value in own["curve"] if value >= report["target"]]
    assert own["seconds"] == (reached[0] if reached else None)
    seconds = [each for each, _ in own["curve"]]
    assert seconds == sorted(seconds) and seconds[0] > 0


def test_the_table_of_whole_runs_says_what_was_not_reached() -> None:
    peer = {"curve": [(50.0, 0.5), (100.0, 0.6)], "best": 0.6, "seconds": 100.0}
    own = {"curve": [(9.0, 0.4), (10.0, 0.7)], "best": 0.7, "seconds": 10.0}
    report = {"model_name": "mobilenet", "image_size": 96, "target": 0.6, "peer": peer}
    line = benchmark_recipe.format_recipe(report | {"own": own, "ratio": 0.1}).splitlines()[-1]
    assert line == "| mobilenet at 96 px, this project's | 2 | 0.700 | 10 | 0.10 |"
    own |= {"seconds": None}
    line = benchmark_recipe.format_recipe(report | {"own": own, "ratio": None}).splitlines()[-1]
    assert line.endswith("| not reached |  |")


def test_infer_measures_every_format(
    tiny_classifier: Path, sample_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", str(tiny_classifier), "--data-dir", str(sample_dir), "--rounds", "1"]
    assert main(["infer", *flags, "--output", str(tmp_path / "infer.json")]) == 0
    report = json.loads((tmp_path / "infer.json").read_text())
    assert report["rows"].keys() == {".keras", "savedmodel, variables", "savedmodel", *FORMATS}
    for row in report["rows"].values():
        assert row["batch_1"]["ms"] > 0 and row["batch_32"]["cpu_ms"] > 0
        assert row["same_label"] > 0.5 and row["megabytes"] > 0
    assert "| litert-int8 |" in capsys.readouterr().out


def test_what_is_not_installed_says_so() -> None:
    times = {"ms": 10.0, "cpu_ms": 20.0}
    row = {"megabytes": 1.0, "macro_f1_loss": 0.0, "same_label": 1.0}
    row |= {"batch_1": times, "batch_32": times}
    report = {"rows": {"savedmodel": row, "onnx": {"missing": "pip install -e .[onnx]"}}}
    lines = format_infer(report).splitlines()
    # 32 faces in 10 ms are 3200 a second; its ratio to itself is 1.
    expected = "| savedmodel | 1.0 | 10.0 | 1.00 | 10 | 1.00 | 3200 | 20 | 1.00 | 0.000 | 100.0% |"
    assert lines[2] == expected
    assert len({line.count("|") for line in lines}) == 1
    assert lines[3].startswith("| onnx | pip install -e .[onnx] |")


def test_photo_measures_sizes_and_crowds(tmp_path: Path) -> None:
    detector = (build_detector("none"), DetectorCard(96))
    export_saved_model(tiny_model(), CARD, tmp_path / "face_mask", detector=detector)
    for name in ("images", "annotations"):
        (tmp_path / "voc" / name).mkdir(parents=True)
    for stem, number in (("a", 2), ("b", 12)):
        add_photo(tmp_path / "voc", stem, [("with_mask", (1, 1, 9, 9))] * number)
    flags = ["--model-dir", str(tmp_path / "face_mask"), "--data-dir", str(tmp_path / "voc")]
    output = tmp_path / "photo.json"
    assert main(["photo", *flags, "--rounds", "1", "--output", str(output)]) == 0
    rows = json.loads(output.read_text())["rows"]
    assert [(row["width"], row["crowd"]) for row in rows] == [
        (640, "few"), (640, "many"), (1920, "few"), (1920, "many")
    ]  # fmt: skip
    assert all(row["decode_p50_ms"] > 0 and row["p95_ms"] >= row["p50_ms"] > 0 for row in rows)


def test_photo_needs_a_detector(
    tiny_export: Path, sample_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model-dir", str(tiny_export), "--data-dir", str(sample_dir)]
    assert main(["photo", *flags]) == 2
    assert "export it with --detector" in capsys.readouterr().err
