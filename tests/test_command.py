import json
from pathlib import Path

import pytest

from fmd_tf.checkpoints import RunFolder
from fmd_tf.command import locked_folders, weights_at_hand
from fmd_tf.config import TrainConfig
from fmd_tf.errors import DownloadError, ModelError
from fmd_tf.publish import PublishError


def _offline(weights: str) -> None:
    raise (DownloadError if weights in ("imagenet", "centerface") else ModelError)(f"no {weights}")


def _unfit(weights: str) -> None:
    raise ModelError(f"{weights} is for mobilenet alone")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def _hold(run: RunFolder, weights: str | list[str], epochs: int = 0) -> None:
    """Let the folder hold a run that began from these weights."""
    run.open({"weights": weights})
    for epoch in range(epochs):
        folder = run.path / f"state-fine_tune-{epoch:03d}"
        folder.mkdir()
        state = {"phase": "fine_tune", "epoch": epoch, "done": False, "callbacks": {}}
        (folder / "state.json").write_text(json.dumps({**state, "history": []}))


def test_weights_that_cannot_be_had_end_a_run_before_it_begins(run):
    for weights, is_sample in (("imagenet", False), ("gone.onnx", True)):
        with pytest.raises(ModelError, match=weights):
            weights_at_hand([weights], TrainConfig(sample=is_sample), run, _offline)
    both = ("centerface", "imagenet")
    assert weights_at_hand(both, TrainConfig(), run, str) == both
    with pytest.raises(ModelError, match="mobilenet alone"):
        weights_at_hand(["centerface"], TrainConfig(sample=True), run, _unfit)


def test_one_folder_may_be_both(tmp_path: Path):
    with (
        locked_folders(tmp_path / "a", tmp_path / "b" / ".." / "a"),
        pytest.raises(PublishError, match="another run writes to"),
        locked_folders(tmp_path / "b", tmp_path / "a"),
    ):
        pass


def test_a_run_that_goes_on_needs_them_no_longer(run):
    _hold(run, "imagenet", epochs=1)
    assert weights_at_hand(["imagenet"], TrainConfig(), run, _offline) == ("imagenet",)
    with pytest.raises(ModelError):
        weights_at_hand(["imagenet"], TrainConfig(overwrite=True), run, _offline)


@pytest.mark.parametrize("held", ["none", ["none"]], ids=["detector", "classifier"])
def test_the_quick_start_begins_from_random_weights_and_goes_on_so(held, run, capsys):
    sample, both = TrainConfig(sample=True), ("centerface", "imagenet")
    assert weights_at_hand(both, sample, run, _offline) == ("none",)
    assert "begins from random weights instead" in capsys.readouterr().out
    _hold(run, held)
    # There is internet now, and it is the same run all the same.
    assert weights_at_hand(both, sample, run, str) == ("none",)
    assert "from random weights; --overwrite begins anew" in capsys.readouterr().out
    assert weights_at_hand(["my.weights.h5"], sample, run, str) == ("my.weights.h5",)
    assert weights_at_hand(both, TrainConfig(sample=True, overwrite=True), run, str) == both
