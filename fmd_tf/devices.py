"""Choice of device, distribution strategy and numeric precision."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf

from fmd_tf.provenance import read_cpuinfo

_BFLOAT16 = "auto_mixed_precision_onednn_bfloat16"


def select_device(device: str) -> None:
    """Make TensorFlow use the device that was asked for; call it before any tensor exists.

    Args:
        device: "auto", "cpu", "cuda" or "gpu". Without a GPU the latter two say so on standard
            error and go on with the CPU.
    """
    if device == "cpu":
        tf.config.set_visible_devices([], "GPU")
    elif device in ("cuda", "gpu") and not tf.config.list_physical_devices("GPU"):
        print(f"--device {device}: TensorFlow sees no GPU; using the CPU", file=sys.stderr)


def make_strategy(strategy: str) -> tf.distribute.Strategy:
    """Return the distribution strategy.

    Args:
        strategy: "single" for one device; "mirrored" for all GPUs, or all logical CPU devices
            where there is no GPU.
    """
    if strategy == "single":
        return tf.distribute.get_strategy()
    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    devices = [device.name for device in tf.config.list_logical_devices(kind)]
    return tf.distribute.MirroredStrategy(devices)


def precision_policy(mixed_precision: str, depthwise: bool = False) -> str:
    """Return the Keras dtype policy to train under.

    Args:
        mixed_precision: "off", "on", or "auto": bfloat16 on GPUs that have it (compute
            capability 8), and on CPUs with AMX tiles, where it halves the time of a step of
            ResNet50; float16 on older GPUs with tensor cores; float32 else.
        depthwise: Whether the backbone is made of depthwise convolutions: those know no tiles,
            and a step of MobileNetV2 takes 1.3 times as long in bfloat16 on such a CPU.
    """
    gpus = tf.config.get_visible_devices("GPU")
    if mixed_precision == "off":
        return "float32"
    if not gpus:
        faster = _has_amx() and not depthwise
        return "mixed_bfloat16" if mixed_precision == "on" or faster else "float32"
    capability = min(
        tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0))
        for gpu in gpus
    )
    if capability >= (8, 0):
        return "mixed_bfloat16"
    return "mixed_float16" if mixed_precision == "on" or capability >= (7, 0) else "float32"


@contextmanager
def faster_graphs() -> Iterator[None]:
    """Let graphs that first run in here compute in bfloat16 what gains by it, on CPUs with AMX.

    TensorFlow chooses the operations (its `auto_mixed_precision_onednn_bfloat16`): a detector takes
    two thirds of the time, and its boxes and scores change a little.
    """
    faster = _has_amx() and not tf.config.get_visible_devices("GPU")
    before = bool(tf.config.optimizer.get_experimental_options().get(_BFLOAT16))
    tf.config.optimizer.set_experimental_options({_BFLOAT16: faster})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({_BFLOAT16: before})


def _has_amx() -> bool:
    """Tell whether Linux reports bfloat16 matrix tiles; unknown elsewhere."""
    return "amx_bf16" in read_cpuinfo()
