import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from fmd_tf import CLASS_NAMES
from fmd_tf.client import Client, ServingError
from fmd_tf.export import export_saved_model
from fmd_tf.input_pipeline import crop_faces
from fmd_tf.servable import ModelVersions
from tests.serving import CARD, SIZE, Running, encode, faces, running, tiny_model


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return tiny_model()


@pytest.fixture(scope="module")
def server(model: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    base_dir = tmp_path_factory.mktemp("client") / "face_mask"
    export_saved_model(model, CARD, base_dir)
    versions = ModelVersions(base_dir, "face_mask")
    versions.sync()
    with running({"face_mask": versions}) as server:
        yield server
    versions.close()


@pytest.fixture
def connect() -> Iterator[Callable[..., Client]]:
    """Make clients that are closed at the end."""
    with ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(Client(*args, **options))


def test_files_arrays_and_faces_agree_with_the_model(
    model: keras.Model, server: Running, tmp_path: Path, connect: Callable[..., Client]
) -> None:
    crops = faces(5)
    expected = model.predict(crops.astype(np.float32), verbose=0)
    files = [tmp_path / f"{index}.png" for index in range(5)]
    for file, crop in zip(files, crops, strict=True):
        file.write_bytes(encode(crop))
    # Two faces a request: three requests.
    client = connect(server.url, batch_size=2)
    for predictions in (
        client.predict_files(files),
        client.predict_arrays(crops),
        client.predict_arrays(crops.astype(np.float32)),
    ):
        answer = [list(prediction.probabilities.values()) for prediction in predictions]
        np.testing.assert_allclose(answer, expected, atol=1e-4)
        labels = [CLASS_NAMES[index] for index in expected.argmax(axis=1)]
        assert [prediction.label for prediction in predictions] == labels
        assert list(predictions[0].probabilities) == list(CLASS_NAMES)


def test_a_photo_and_its_boxes(
    model: keras.Model, server: Running, tmp_path: Path, connect: Callable[..., Client]
) -> None:
    (photo,) = faces(1, shape=(60, 80))
    boxes = [(0, 0, 30, 40), (20.5, 10, 80, 60)]
    crops = crop_faces(photo, tf.constant(boxes, tf.float32), SIZE, CARD.padding, CARD.square)
    expected = model.predict(tf.cast(crops, tf.float32), verbose=0)
    file = tmp_path / "photo.png"
    file.write_bytes(encode(photo))
    client = connect(server.url, batch_size=1)  # A request a box.
    for source in (file, str(file), encode(photo), photo):
        answer = client.predict_faces(source, boxes)
        scores = [list(prediction.probabilities.values()) for prediction in answer]
        np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert client.predict_faces(file, []) == []


def test_status_and_metadata(server: Running, connect: Callable[..., Client]) -> None:
    client = connect(server.url)
    assert client.status()[0]["state"] == "AVAILABLE"
    assert client.is_ready()
    assert client.metadata()["model_spec"]["name"] == "face_mask"
    assert not connect(server.url, "other").is_ready()
    assert not connect("http://127.0.0.1:9", "face_mask").is_ready()


def test_what_the_server_refuses(server: Running, connect: Callable[..., Client]) -> None:
    client = connect(server.url)
    with pytest.raises(ServingError, match=r"400: .*Unknown image file format") as caught:
        client.predict_bytes([b"no image"])
    assert caught.value.status == 400
    with pytest.raises(ServingError, match=r"404: Servable not found for request: Specific\(face"):
        connect(server.url, version=7).predict_bytes([b""])
    with pytest.raises(ServingError, match="Unrecognized servable version label: stable"):
        connect(server.url, label="stable").predict_bytes([b""])


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8501",
        "ftp://host",
        "http://",
        "http://[::1",
        "http://host:port",
        "http://192.168.1..5",
        "http://ho st",
        "http://host/\udcff",
    ],
)
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ServingError, match="expected a URL"):
        Client(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://me:secret@host:8501/path",
        "https://:secret@host",
        "http://me:se/cret@host",
        "me:secret@host",
        "http://me:secret@[::1",
    ],
)
def test_passwords_are_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ServingError, match="got one with a user name or password") as caught:
        Client(url)
    assert "cret" not in str(caught.value)


def test_bad_arguments_never_reach_the_server(
    tmp_path: Path, connect: Callable[..., Client]
) -> None:
    client = connect("http://127.0.0.1:9")
    with pytest.raises(ServingError, match="cannot be read"):
        client.predict_files([tmp_path / "none.png"])
    with pytest.raises(
        ServingError, match=r"expected RGB \[height, width, 3\], got shape \[4, 4\]"
    ):
        client.predict_arrays([np.zeros((4, 4), np.uint8)])
    with pytest.raises(ServingError, match=r"expected boxes \[num_faces, 4\], got shape \[4\]"):
        client.predict_faces(b"", [1, 2, 3, 4])
    with pytest.raises(ServingError, match="expected a photo of uint8, got float64"):
        client.predict_faces(np.zeros((4, 4, 3)), [[0, 0, 1, 1]])
    with pytest.raises(ServingError, match="a version or a label"):
        connect(version=1, label="stable")


def test_no_server_is_a_clear_error(connect: Callable[..., Client]) -> None:
    # Port 9 (discard) is not served here.
    client = connect("http://127.0.0.1:9", retries=1, backoff=0.01)
    with pytest.raises(ServingError, match=r"after 2 attempts .*is the server running"):
        client.status()


class Flaky(BaseHTTPRequestHandler):
    """Drops the first connection, is busy once, and answers then."""

    calls = 0

    def do_GET(self) -> None:
        type(self).calls += 1
        if self.calls == 1:
            self.connection.close()
            return
        body = b'{"model_version_status": []}' if self.calls > 2 else b"<html>busy</html>"
        self.send_response(200 if self.calls > 2 else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_dropped_connections_and_busy_servers_are_tried_again(
    connect: Callable[..., Client],
) -> None:
    Flaky.calls = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Flaky) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        assert connect(url, backoff=0.01).status() == []
        assert Flaky.calls == 3
        Flaky.calls = 1
        with pytest.raises(ServingError, match="503: <html>busy</html>"):
            connect(url, retries=0).status()
        server.shutdown()


class Stranger(BaseHTTPRequestHandler):
    """Answers 200 with what its path does not say."""

    body = b""
    paths: list[str] = []

    def do_GET(self) -> None:
        self.paths.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


def test_what_is_no_model_server_is_named(connect: Callable[..., Client]) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = connect(f"http://127.0.0.1:{server.server_address[1]}")
        for body in (b"<html></html>", b"[]", b"{}", b"\xff", b'{"model_version_status": [1]}'):
            Stranger.body = body
            assert not client.is_ready()
            with pytest.raises(ServingError, match=r"http://127.*is it a model server\?"):
                client.predict_bytes([b"x"])
        server.shutdown()


def test_what_a_path_must_not_hold_is_quoted(connect: Callable[..., Client]) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        Stranger.body, Stranger.paths[:] = b'{"model_version_status": []}', []
        url = f"http://127.0.0.1:{server.server_address[1]}"
        for path in ("/m\u00fcll", "/a b", "/a%20b/@c:d"):
            assert connect(url + path, "x y", retries=0).status() == []
        server.shutdown()
    prefixes = [path.removesuffix("/v1/models/x%20y") for path in Stranger.paths]
    assert prefixes == ["/m%C3%BCll", "/a%20b", "/a%20b/@c:d"]


class Impatient(BaseHTTPRequestHandler):
    """Answers, and closes the idle connection without having said that it would."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = b'{"model_version_status": [{"state": "AVAILABLE"}]}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


def test_long_lived_clients(connect: Callable[..., Client]) -> None:
    """Idle connections may be closed by the server, and threads come and go."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Impatient) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = connect(f"http://127.0.0.1:{server.server_address[1]}", retries=0)
        assert [client.is_ready() for _ in range(3)] == [True] * 3
        assert [len(client.status()) for _ in range(3)] == [1] * 3
        for _ in range(20):
            thread = threading.Thread(target=client.is_ready)
            thread.start()
            thread.join()
        assert len(client._opened) <= 2
        server.shutdown()


@pytest.mark.parametrize("module", ["client", "boxes", "voc", "splits", "config"])
def test_some_modules_need_no_tensorflow(module: str) -> None:
    code = f"import sys, fmd_tf.{module}; print(*({{'tensorflow', 'keras'}} & {{*sys.modules}}))"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout == "\n"
