"""What the serving tests share: a tiny classifier, its export, encoded images, a server."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
import uvicorn
from PIL import Image

from fmd_tf import CLASS_NAMES
from fmd_tf.model import ModelCard
from fmd_tf.servable import ModelVersions
from fmd_tf.serve import Application, Limits, listen

SIZE = 32
CARD = ModelCard(CLASS_NAMES, SIZE, padding=0.1, square=True, model_name="tiny")


def tiny_model(seed: int = 0) -> keras.Model:
    """A classifier with the real one's contract whose answers differ from image to image."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = keras.layers.Rescaling(1 / 32, -4.0)(image)
    x = keras.layers.Conv2D(6, 5, strides=4, activation="relu")(x)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(len(CLASS_NAMES))(x)
    return keras.Model(image, keras.layers.Softmax(name="probabilities")(x))


def faces(count: int, seed: int = 0, shape: tuple[int, int] = (SIZE, SIZE)) -> np.ndarray:
    """Smooth images, so that scaling and compression keep most of them."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    size = (shape[1], shape[0])
    return np.stack([np.asarray(Image.fromarray(each).resize(size)) for each in coarse])


def encode(image: np.ndarray, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form, **options)
    return buffer.getvalue()


def write_half_plus_two(path: Path) -> None:
    """The model of TF Serving's own tests: y = 0.5 x + 2."""
    module = tf.Module()
    spec = tf.TensorSpec([None, 1], tf.float32, name="x")
    function = tf.function(lambda x: {"y": 0.5 * x + 2.0}, input_signature=[spec])
    tf.saved_model.save(module, str(path), signatures={"serving_default": function})


@dataclass(frozen=True)
class Running:
    """A server in a thread of this process."""

    host: str
    port: int
    application: Application

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


@contextmanager
def running(
    models: Mapping[str, ModelVersions], limits: Limits | None = None, metrics: bool = True
) -> Iterator[Running]:
    """Serve on a free port of this machine until the block ends."""
    application = Application(models, limits, metrics)
    config = uvicorn.Config(application, lifespan="off", log_level="error", access_log=False)
    server = uvicorn.Server(config)
    listener = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield Running("127.0.0.1", listener.getsockname()[1], application)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
        application.close()


@contextmanager
def process(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `python -m fmd_tf.serve` on a free port; gives the process and its URL."""
    command = [sys.executable, "-m", "fmd_tf.serve", "--port", "0", *arguments]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            assert line.startswith("Serving http://"), line
            yield server, line.split()[1].split("/v1/")[0]
        finally:
            if server.poll() is None:
                server.kill()
