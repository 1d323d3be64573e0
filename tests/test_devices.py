import pytest
import tensorflow as tf

from fmd_tf import devices
from fmd_tf.devices import faster_graphs, make_strategy, precision_policy, select_device


@pytest.mark.parametrize("device", ["cuda", "gpu"])
def test_a_missing_gpu_is_said(device: str, capsys: pytest.CaptureFixture):
    select_device(device)
    assert f"--device {device}: TensorFlow sees no GPU; using the CPU" in capsys.readouterr().err


def test_precision_that_was_asked_for():
    assert precision_policy("off") == "float32"
    assert precision_policy("on") == "mixed_bfloat16"


@pytest.mark.parametrize("has_amx", [True, False])
def test_auto_takes_bfloat16_for_dense_convolutions_on_tiles(monkeypatch, has_amx: bool):
    monkeypatch.setattr(devices, "_has_amx", lambda: has_amx)
    assert precision_policy("auto") == ("mixed_bfloat16" if has_amx else "float32")
    assert precision_policy("auto", depthwise=True) == "float32"


@pytest.mark.parametrize("has_amx", [True, False])
def test_graphs_are_in_bfloat16_within_only(monkeypatch, has_amx: bool):
    def is_on() -> bool:
        options = tf.config.optimizer.get_experimental_options()
        return bool(options.get("auto_mixed_precision_onednn_bfloat16"))

    monkeypatch.setattr(devices, "_has_amx", lambda: has_amx)
    with pytest.raises(KeyError), faster_graphs():
        assert is_on() == has_amx
        raise KeyError
    assert not is_on()


def test_single_strategy_is_tensorflows_default():
    assert make_strategy("single") is tf.distribute.get_strategy()


def test_cpu_hides_all_gpus(monkeypatch):
    hidden = []
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda *of: hidden.append(of))
    select_device("cpu")
    assert hidden == [([], "GPU")]
