import base64
import gzip
import http.client
import json
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from fmd_tf.client import Client, ServingError
from fmd_tf.export import export_saved_model
from fmd_tf.input_pipeline import crop_faces, decode_photo
from fmd_tf.servable import ModelVersions, Servable
from fmd_tf.serve import Limits, main
from fmd_tf.voc import read_folder
from tests import fuzz_serving, soak_serving
from tests.serving import CARD, SIZE, Running, encode, faces, process, running, tiny_model

LIMITS = Limits(max_body_bytes=1_000_000, max_batch=60, request_timeout=1.0, threads=4)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return tiny_model()


@pytest.fixture(scope="module")
def base_dir(model: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("serve") / "face_mask"
    export_saved_model(model, CARD, path)
    return path


@pytest.fixture(scope="module")
def server(base_dir: Path) -> Iterator[Running]:
    versions = ModelVersions(base_dir, "face_mask")
    versions.sync()
    with running({"face_mask": versions}, LIMITS) as server:
        yield server
    versions.close()


def request(
    server: Running, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, str]:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=20)
    try:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, headers or {})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def predict(server: Running, body: Any, **options: Any) -> tuple[int, Any]:
    status, text = request(server, "POST", "/v1/models/face_mask:predict", body, **options)
    return status, json.loads(text)


def b64(data: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(data).decode()}


def test_row_and_columnar_format_agree(model: keras.Model, server: Running) -> None:
    crops = faces(3)
    expected = model.predict(crops.astype(np.float32), verbose=0)
    images = [b64(encode(crop)) for crop in crops]
    _, rows = predict(server, {"instances": images})
    _, columns = predict(server, {"inputs": {"image_bytes": images}})
    _, pixels = predict(server, {"signature_name": "pixels", "inputs": crops.tolist()})
    by_row = [row["probabilities"] for row in rows["predictions"]]
    for answer in (
        by_row,
        columns["outputs"]["probabilities"],
        pixels["outputs"]["probabilities"],
    ):
        np.testing.assert_allclose(answer, expected, atol=1e-4)


def test_faces_by_row_and_by_column(model: keras.Model, server: Running) -> None:
    (photo,) = faces(1, shape=(60, 80))
    boxes = [[0, 0, 30, 40], [20, 10, 80, 60]]
    crops = crop_faces(photo, np.array(boxes), SIZE, CARD.padding, CARD.square)
    expected = model.predict(tf.cast(crops, tf.float32), verbose=0)
    fields = {"image_bytes": b64(encode(photo)), "boxes": boxes}
    _, rows = predict(server, {"signature_name": "faces", "instances": [fields]})
    _, columns = predict(server, {"signature_name": "faces", "inputs": fields})
    by_row = [row["probabilities"] for row in rows["predictions"]]
    np.testing.assert_allclose(by_row, expected, atol=1e-4)
    np.testing.assert_allclose(columns["outputs"]["probabilities"], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"instances": [1]}, "is not of expected type: string"),
        ({"inputs": b64(b"x")}, "not compatible with expected shape"),
        ({"instances": [b64(b"x")]}, "Unknown image file format"),
        ({"signature_name": "pixels", "instances": [[[1, 2, 3]]]}, "not compatible with expected"),
        (
            {"signature_name": "pixels", "instances": [[[[-1, 0, 0]]]]},
            "expected pixels of 0 to 255",
        ),
        ({"signature_name": "nope", "instances": [1]}, 'signature name: "nope" not found'),
        ({"signature_name": "n" * 999}, f'name: "{"n" * 200}..." not found'),
        ({"signature_name": 1}, "must be a string value"),
        ({"instances": [b64(b"x")] * 61}, "expected at most 60 rows in a request, got 61"),
        ({"instances": [1] * 61}, "expected at most 60 rows in a request, got 61"),
        (
            {
                "signature_name": "faces",
                "inputs": {"image_bytes": [b64(b"x")], "boxes": [[[0, 0, 9, 9]] * 61]},
            },
            "expected at most 60 rows in a request, got 61",
        ),
        (b'{"signature_name": "\\ud800", "instances": [1]}', "surrogate pair in string is invalid"),
        (b'{"instances": [{"\\ud800": 1}]}', "surrogate pair in string is invalid"),
        (b"[" * 100, "nesting of at most 64 levels, got 100"),
        (b"\0\1\2", "JSON Parse error"),
    ],
)
def test_bad_requests_are_400_with_a_reason(server: Running, body: Any, expected: str) -> None:
    status, answer = predict(server, body)
    assert status == 400
    assert expected in answer["error"]


def test_the_order_of_checks(server: Running) -> None:
    # Each request has two faults; the one that TF Serving finds first is answered.
    for path, body, expected in (
        ("/v1/models/none:predict", b"{", "JSON Parse error"),
        ("/v1/models/none:predict", b'{"signature_name": 1}', "must be a string"),
        ("/v1/models/none:predict", b'{"signature_name": "x"}', "Latest(none)"),
        ("/v1/models/none/labels/x:predict", b"{}", "version label: x"),
        ("/v1/models/face_mask:predict", b'{"signature_name": "x"}', "not found in signature"),
        ("/v1/models/face_mask:classify", b"{}", "tensorflow/serving/classify"),
    ):
        _, text = request(server, "POST", path, body)
        assert expected in json.loads(text)["error"]


def test_paths_and_methods(server: Running) -> None:
    for method, path, expected in (
        ("GET", "/v1/models/face_mask", 200),
        ("GET", "/V1/models/face_mask/versions/1", 200),
        ("GET", "/v1/models/face_mask/metadata", 200),
        ("GET", "/v1/models/face_mask/METADATA", 200),
        ("GET", "/v1/models/face_mask/versions/2", 404),
        ("GET", "/v1/models/face_mask/versions/2/metadata", 404),
        ("GET", "/v1/models", 400),
        ("GET", "/v1/models/metadata/metadata", 404),
        ("GET", "/v1/models/face_mask/", 400),
        ("DELETE", "/v1/models/face_mask:predict", 400),
        ("POST", "/v1/models/face_mask:predict?x=1", 400),
        ("GET", "/monitoring/prometheus/metrics", 200),
        ("GET", "/index", 404),
        ("GET", "/v1", 404),
    ):
        status, _ = request(server, method, path)
        assert (method, path, status) == (method, path, expected)


def test_gzip(server: Running) -> None:
    body = json.dumps({"instances": [b64(encode(faces(1)[0]))]}).encode()
    headers = {"Content-Encoding": "gzip"}
    assert predict(server, gzip.compress(body), headers=headers)[0] == 200
    # 1,100,000 bytes of zeros compress to a thousand: the limit counts what comes out.
    for bad in (b"no gzip", gzip.compress(bytes(1_100_000))):
        status, answer = predict(server, bad, headers=headers)
        assert status == 400
        assert "The document is empty" in answer["error"]


def test_huge_bodies_are_refused_at_once(server: Running) -> None:
    started = time.perf_counter()
    status, answer = predict(server, b"x" * 5_000_000)
    assert status == 413
    assert answer["error"] == "expected a body of at most 1000000 bytes"
    # Its size is said in the head: the answer comes before the body.
    with socket.create_connection((server.host, server.port), timeout=5) as connection:
        connection.sendall(
            b"POST /v1/models/face_mask:predict HTTP/1.1\r\nHost: x\r\n"
            b"Content-Length: 99999999999999999999\r\n\r\n"
        )
        assert connection.recv(12) == b"HTTP/1.1 413"
    assert time.perf_counter() - started < 5


def test_chunked_bodies_have_the_same_limit(server: Running) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(120):
            yield bytes(10_000)

    connection = http.client.HTTPConnection(server.host, server.port, timeout=20)
    connection.request("POST", "/v1/models/face_mask:predict", chunks(), encode_chunked=True)
    status = connection.getresponse().status
    connection.close()
    assert status == 413


def test_slow_bodies_are_refused(server: Running) -> None:
    with socket.create_connection((server.host, server.port), timeout=5) as connection:
        connection.sendall(
            b"POST /v1/models/face_mask:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"
        )
        assert connection.recv(12) == b"HTTP/1.1 408"


def test_dropped_connections_disturb_nobody(server: Running) -> None:
    for sent in (
        b"POST",
        b"POST /v1/models/face_mask:predict HTTP/1.1\r\nContent-Length: 9\r\n\r\n{",
    ):
        with socket.create_connection((server.host, server.port)) as connection:
            connection.sendall(sent)
    assert predict(server, {"instances": [b64(encode(faces(1)[0]))]})[0] == 200


def test_metrics_count_requests(server: Running) -> None:
    predict(server, {"instances": [b64(encode(faces(1)[0]))]})
    _, page = request(server, "GET", "/monitoring/prometheus/metrics")
    assert "# TYPE fmd_tf_request_seconds histogram" in page
    (line,) = [x for x in page.splitlines() if 'requests_total{kind="predict",status="200"}' in x]
    assert float(line.split()[-1]) >= 1


def test_metrics_count_errors_where_they_belong(base_dir: Path) -> None:
    versions = ModelVersions(base_dir, "face_mask")
    versions.sync()
    with running({"face_mask": versions}) as server:
        for method, path in (
            ("GET", "/v1/models/nope"),
            ("GET", "/v1/models/nope/metadata"),
            ("POST", "/v1/models/nope:predict"),
            ("GET", "/v1/bogus"),
        ):
            assert request(server, method, path)[0] in (400, 404)
        _, page = request(server, "GET", "/monitoring/prometheus/metrics")
    found = re.findall(r'requests_total\{kind="(\w+)",status="40[04]"\} 1\.0', page)
    assert sorted(found) == ["metadata", "other", "predict", "status"]


class Held(ModelVersions):
    """Versions that answer once they are let go."""

    let_go = threading.Event()

    def use(self, version: int | None, label: str | None) -> Any:
        assert self.let_go.wait(60)
        return super().use(version, label)


def test_too_many_and_too_slow_requests(base_dir: Path) -> None:
    versions = Held(base_dir, "face_mask")
    versions.sync()
    body = {"instances": [b64(encode(faces(1)[0]))]}
    statuses: list[int] = []
    with running({"face_mask": versions}, Limits(threads=1, max_pending=2)) as server:
        clients = [
            threading.Thread(target=lambda: statuses.append(predict(server, body)[0]))
            for _ in range(4)
        ]
        for client in clients:
            client.start()
        wait_for(lambda: statuses == [429, 429])
        # The event loop is free while the others wait.
        assert request(server, "GET", "/v1/models/face_mask")[0] == 200
        versions.let_go.set()
        for client in clients:
            client.join()
        assert statuses == [429, 429, 200, 200]
    versions.let_go.clear()
    with running({"face_mask": versions}, Limits(threads=1, request_timeout=0.1)) as server:
        status, answer = predict(server, body)
        assert status == 504
        assert answer["error"] == "no answer within 0.1 s"
        versions.let_go.set()
    versions.let_go.clear()
    limits = Limits(threads=1, request_timeout=0.1, max_pending=1)
    with running({"face_mask": versions}, limits) as server:
        # Its client has an answer, and still it works: there is no room for another.
        assert [predict(server, body)[0] for _ in range(2)] == [504, 429]
        versions.let_go.set()
        wait_for(lambda: predict(server, body)[0] == 200)
    versions.close()


def test_bodies_held_at_a_time_are_limited(base_dir: Path) -> None:
    versions = ModelVersions(base_dir, "face_mask")
    versions.sync()
    body = {"instances": [b64(encode(faces(1)[0]))]}
    with running({"face_mask": versions}, Limits(max_held_bytes=100_000)) as server:
        with socket.create_connection((server.host, server.port)) as holding:
            head = "POST /v1/models/face_mask:predict HTTP/1.1\r\nContent-Length: 99999\r\n"
            holding.sendall(f"{head}Host: x\r\n\r\n".encode() + b" " * 99_998)
            wait_for(lambda: predict(server, body)[0] == 429)
            assert "try again later" in predict(server, body)[1]["error"]
        # The connection is closed: its bytes count no more.
        wait_for(lambda: predict(server, body)[0] == 200)
    versions.close()


def test_faults_in_the_server_are_500_without_details(base_dir: Path) -> None:
    class Faulty(ModelVersions):
        def use(self, version: int | None, label: str | None) -> Any:
            raise KeyError("secret")

    versions = Faulty(base_dir, "face_mask")
    with running({"face_mask": versions}) as server:
        status, answer = predict(server, {"instances": [b64(b"")]})
    assert status == 500
    assert "secret" not in answer["error"]


def test_the_process_swaps_versions_and_drains_on_sigterm(base_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "face_mask"
    shutil.copytree(base_dir, folder)
    images = [encode(face) for face in faces(4)]
    answers, errors = [0], list[Exception]()
    stop = threading.Event()

    def ask(client: Client) -> None:
        while not stop.is_set():
            try:
                answers[0] += len(client.predict_bytes(images))
            except Exception as error:
                errors.append(error)

    arguments = ("--model-dir", str(folder), "--poll", "0.1")
    with process(*arguments) as (server, url), Client(url, retries=0) as client:
        threads = [threading.Thread(target=ask, args=(client,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        (folder / "2").mkdir()
        wait_for(lambda: any(state["state"] == "END" for state in client.status()))
        (folder / "2").rmdir()
        shutil.copytree(base_dir / "1", folder / ".partial")
        (folder / ".partial").rename(folder / "3")
        wait_for(lambda: [state["version"] for state in client.status()] == ["3"])
        stop.set()
        for thread in threads:
            thread.join()
        assert errors == []
        assert answers[0] > 0
        # A request whose body is still coming is answered before the process ends.
        body = json.dumps({"instances": [b64(images[0])]}).encode()
        host, port = url.removeprefix("http://").split(":")
        late = http.client.HTTPConnection(host, int(port), timeout=10)
        late.putrequest("POST", "/v1/models/face_mask:predict")
        late.putheader("Content-Length", str(len(body)))
        late.endheaders(body[:10])
        time.sleep(0.3)
        server.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        late.send(body[10:])
        assert late.getresponse().status == 200
        late.close()
        assert server.wait(timeout=20) == 0


def write_endless(path: Path) -> None:
    """A model that counts up to its input."""
    spec = tf.TensorSpec([None], tf.float32, name="x")

    @tf.function(input_signature=[spec])
    def count(x: tf.Tensor) -> dict[str, tf.Tensor]:
        least = tf.reduce_min(tf.cast(x, tf.float64))
        steps = tf.while_loop(lambda i: i < least, lambda i: [i + 1.0], [tf.zeros([], tf.float64)])
        return {"y": x + tf.cast(steps[0], tf.float32)}

    tf.saved_model.save(tf.Module(), str(path), signatures={"serving_default": count})


def test_the_process_ends_though_a_request_does_not(tmp_path: Path) -> None:
    write_endless(tmp_path / "face_mask" / "1")
    arguments = ("--model-dir", str(tmp_path / "face_mask"), "--request-timeout", "3")
    with process(*arguments) as (server, url):
        with Client(url, retries=0) as client:
            path = "/v1/models/face_mask:predict"
            assert client._request("POST", path, {"instances": [3]})["predictions"] == [6.0]
            # At a step a nanosecond it would take years.
            with pytest.raises(ServingError, match="504: no answer within"):
                client._request("POST", path, {"instances": [1e18]})
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=30) == 0


def test_fifty_crops_agree_in_python_in_the_session_and_over_rest(
    model: keras.Model, base_dir: Path, server: Running, real_dir: Path
) -> None:
    annotations = [each for each in read_folder(real_dir).annotations if each.faces]
    servable = Servable(base_dir / "1")
    count = 0
    with Client(server.url) as client:
        for annotation in annotations:
            boxes = np.array([face.box for face in annotation.faces[: 50 - count]], np.float32)
            photo = decode_photo(tf.io.read_file(str(annotation.photo)))
            crops = crop_faces(photo, boxes, SIZE, CARD.padding, CARD.square)
            expected = model.predict(tf.cast(crops, tf.float32), verbose=0)
            encoded = np.array([annotation.photo.read_bytes()], object)
            by_session = servable.signature("faces").run({"image_bytes": encoded, "boxes": boxes})
            by_rest = client.predict_faces(annotation.photo, boxes)
            scores = [list(face.probabilities.values()) for face in by_rest]
            np.testing.assert_allclose(by_session["probabilities"], expected, atol=1e-4)
            np.testing.assert_allclose(scores, expected, atol=1e-4)
            labels = [CARD.class_names[index] for index in expected.argmax(axis=1)]
            assert [face.label for face in by_rest] == labels
            assert [label.decode() for label in by_session["label"]] == labels
            count += len(boxes)
            if count == 50:
                break
    servable.release()
    assert count == 50


def test_a_short_soak() -> None:
    soak = soak_serving.run(6.0)
    assert soak.failures == []
    assert soak.counts["good requests answered"] > 10
    assert soak.counts["huge bodies refused"] > 0


def test_a_short_fuzz() -> None:
    statuses = fuzz_serving.run(600)
    assert statuses.total() >= 600
    assert max(status for _, status in statuses) < 500


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_bad_starts_are_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model-dir", str(tmp_path), "--port", "0"]) == 2
    assert "no version in" in capsys.readouterr().err
    (tmp_path / "1").mkdir()
    assert main(["--model-dir", str(tmp_path), "--port", "0"]) == 2
    assert "can be loaded" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["--model-dir", str(tmp_path), "--port", port]) == 2
    assert "try another --port" in capsys.readouterr().err
    for arguments in (["--label", "x"], ["--threads", "0"]):
        with pytest.raises(SystemExit):
            main(arguments)
