"""TF Serving's own behaviour, as vectors: a JSON list in the file that FMD_REST_VECTORS names.

`python -m tests.test_rest_vectors FILE` prints the number passed, and what is out of scope.
"""

from __future__ import annotations

import gzip
import http.client
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmd_tf import rest
from fmd_tf.servable import ModelVersions
from tests.serving import Running, running, write_half_plus_two

_FILE = os.environ.get("FMD_REST_VECTORS")
_NUMBER = re.compile(r"-?Infinity|NaN|-?\d[\d.eE+-]*")
_DTYPES = {"DT_FLOAT": np.float32, "DT_DOUBLE": np.float64, "DT_INT32": np.int32}
# Empty: every vector is of a kind that the embedded server answers.
OUT_OF_SCOPE: dict[str, str] = {}


def run_vector(vector: dict[str, Any], servers: dict[bool, Running]) -> str:
    """Return what differs from the vector; nothing where it passes."""
    try:
        status, body = _ACTIONS[vector["kind"]](vector, servers)
    except rest.RestError as error:
        status, body = error.http_status, error.message
    if vector["expect_status"] not in (None, status):
        return f"expected status {vector['expect_status']}, got {status}: {body!r}"
    expected = vector["expect_body_or_error"]
    return "" if _matches(vector["match"], expected, body) else f"expected {expected}, got {body!r}"


def _matches(match: str, expected: Any, body: Any) -> bool:
    if match == "json_shape":
        fields = json.loads(body)["metadata"]["signature_def"]["signature_def"]
        return fields["serving_default"]["inputs"]["x"]["dtype"] == "DT_FLOAT"
    if match in ("error_contains", "body_contains"):
        return expected in (json.loads(body)["error"] if body[:1] == "{" else body)
    if match == "number_tokens_equal_as_strings":
        return _NUMBER.findall(expected) == _NUMBER.findall(body)
    if match == "json_equal":
        return json.loads(body) == (json.loads(expected) if isinstance(expected, str) else expected)
    return body == expected


def _parse(vector: dict[str, Any], servers: dict[bool, Running]) -> tuple[int, Any]:
    document = rest.parse_json(_nest(vector["request"]["body"]).encode())
    rest.signature_name(document)
    inputs = vector["model_signature"]["inputs"]
    layout, tensors = rest.parse_tensors(document, inputs)
    shown = {name: _show(tensor, inputs[name]) for name, tensor in tensors.items()}
    return 200, {"format": layout, "tensors": shown}


def _nest(body: str) -> str:
    return re.sub(r"@@NEST:(\d+)@@", lambda m: "[" * int(m[1]) + "]" * int(m[1]), body)


def _show(tensor: np.ndarray, dtype: str) -> dict[str, Any]:
    values = [v.decode() if isinstance(v, bytes) else v for v in tensor.reshape(-1).tolist()]
    if dtype == "DT_FLOAT":
        values = [float(rest.format_float(value, np.float32)) for value in values]
    values = [v if np.isreal(v) and np.isfinite(v) else _name(v) for v in values]
    return {"dtype": dtype, "shape": list(tensor.shape), "values": values}


def _name(value: Any) -> str:
    return value if isinstance(value, str) else rest.format_float(value, np.float64)


def _format(vector: dict[str, Any], servers: dict[bool, Running]) -> tuple[int, Any]:
    tensors = {}
    for name, fields in vector["request"]["tensors"].items():
        text = fields["dtype"] == "DT_STRING"
        values = [value.encode() for value in fields["values"]] if text else fields["values"]
        array = np.array(values, object if text else _DTYPES[fields["dtype"]])
        tensors[name] = array.reshape(fields["shape"])
    return 200, rest.format_predictions(tensors, vector["request"]["format"]).decode()


def _parse_path(vector: dict[str, Any], servers: dict[bool, Running]) -> tuple[int, Any]:
    path = rest.parse_path(vector["request"]["method"], vector["request"]["path"])
    return 200, {name: value for name, value in vars(path).items() if value is not None}


def _error_json(vector: dict[str, Any], servers: dict[bool, Running]) -> tuple[int, Any]:
    error = rest.RestError(vector["request"]["status"], vector["request"]["message"])
    return error.http_status, rest.format_error(error.message).decode()


def _http(vector: dict[str, Any], servers: dict[bool, Running]) -> tuple[int, Any]:
    # Two vectors differ by the page of metrics being on or off.
    server = servers["metrics_disabled" not in vector["name"]]
    request = vector["request"]
    connection = http.client.HTTPConnection(server.host, server.port, timeout=20)
    connection.request(request["method"], request["path"], _nest(request["body"]) or None)
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response.status, body


def _http_body(vector: dict[str, Any], servers: dict[bool, Running]) -> tuple[int, Any]:
    data, limit = {
        "<gzip of 12 bytes, limit 11>": (b"x" * 12, 11),
        "<gzip of 1 MiB>": (b"x" * 2**20, 100 * 2**20),
        "<gzip of abcdefg12345>": (b"abcdefg12345", 100 * 2**20),
    }[vector["request"]["raw_body"]]
    body = rest.inflate(gzip.compress(data), limit).decode()
    return 200, {"handler_sees_body": "<1 MiB>" if len(body) == 2**20 else body}


_ACTIONS = {
    "parse": _parse,
    "format": _format,
    "parse_path": _parse_path,
    "error_json": _error_json,
    "http": _http,
    "http_body": _http_body,
}


def half_plus_two_servers(folder: Path) -> Iterator[dict[bool, Running]]:
    """Serve TF Serving's test model under both names that the vectors use."""
    write_half_plus_two(folder / "123")
    names = ("saved_model_half_plus_two_2_versions", "default")
    labels = {"Version_Label": 123}
    models = {name: ModelVersions(folder, name, labels=labels) for name in names}
    for versions in models.values():
        versions.sync()
    with running(models) as on, running(models, metrics=False) as off:
        yield {True: on, False: off}
    for versions in models.values():
        versions.close()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[bool, Running]]:
    yield from half_plus_two_servers(tmp_path_factory.mktemp("half"))


def test_vectors(servers: dict[bool, Running]) -> None:
    if not _FILE:
        pytest.skip("FMD_REST_VECTORS names no file with TF Serving's vectors")
    vectors = json.loads(Path(_FILE).read_text())
    failed, in_scope = _run_all(vectors, servers)
    print(f"\n{in_scope - len(failed)} of {in_scope} vectors in scope pass")
    assert failed == {}


def _run_all(
    vectors: list[dict[str, Any]], servers: dict[bool, Running]
) -> tuple[dict[str, str], int]:
    in_scope = [vector for vector in vectors if vector["name"] not in OUT_OF_SCOPE]
    results = {vector["name"]: run_vector(vector, servers) for vector in in_scope}
    return {name: why for name, why in results.items() if why}, len(in_scope)


def main(file: str) -> int:
    """Print the figures; return 1 where a vector fails."""
    vectors = json.loads(Path(file).read_text())
    with tempfile.TemporaryDirectory() as folder:
        for servers in half_plus_two_servers(Path(folder)):
            failed, in_scope = _run_all(vectors, servers)
    for name, why in failed.items():
        print(f"FAILED {name}: {why}")
    for name, why in OUT_OF_SCOPE.items():
        print(f"out of scope {name}: {why}")
    print(f"{in_scope - len(failed)} of {in_scope} in scope pass; {len(OUT_OF_SCOPE)} out of scope")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
