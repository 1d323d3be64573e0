"""Send what nobody should: `python -m tests.fuzz_serving --requests 10000`.

Property-based (hypothesis): bodies that are no JSON, JSON of the wrong shape, damaged images,
odd boxes, odd paths. Whatever comes in, the server must answer with no 5xx and must not end.
Loopback only; ends by itself.
"""

from __future__ import annotations

import argparse
import base64
import collections
import http.client
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fmd_tf.export import export_saved_model
from tests.serving import CARD, encode, faces, process, tiny_model

_PREDICT = "/v1/models/face_mask:predict"
_IMAGES = [
    *(encode(image, form) for image in faces(2) for form in ("PNG", "JPEG", "WEBP", "BMP", "GIF")),
    encode(faces(1)[0], "WEBP", lossless=True),
    encode(faces(1)[0], "JPEG", progressive=True),
    encode(faces(1, shape=(3, 300))[0], "PNG"),
]
# By number, as hypothesis now and then writes a strategy down, and warns of long ones.
_ANY_IMAGE = st.integers(0, len(_IMAGES) - 1).map(lambda number: _IMAGES[number])
_NUMBERS = st.one_of(st.integers(), st.integers(-300, 300), st.floats(), st.booleans())
_JSON = st.recursive(
    st.one_of(st.none(), _NUMBERS, st.text(max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.dictionaries(
            st.sampled_from(["b64", "image_bytes", "boxes", "pixels", "instances", "inputs", "x"]),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=30,
)


@st.composite
def _damaged_images(draw: st.DrawFn) -> bytes:
    """An image with some bytes changed, most often in the head, and perhaps cut."""
    data = bytearray(draw(_ANY_IMAGE))
    for _ in range(draw(st.sampled_from([0, 1, 1, 2, 8]))):
        last = draw(st.sampled_from([31, 63, len(data) - 1]))
        place = draw(st.integers(0, min(last, len(data) - 1)))
        data[place] = draw(st.sampled_from([0, 1, 127, 128, 255]) | st.integers(0, 255))
    end = draw(st.sampled_from([len(data)] * 4 + [len(data) // 2, 40, 24, 12]))
    return bytes(data[:end]) + draw(st.sampled_from([b"", b"", b"\0", b"\xff\xd9"]))


_IMAGE_FIELDS = st.one_of(
    _damaged_images(), _damaged_images(), _ANY_IMAGE, st.binary(max_size=80)
).map(lambda data: {"b64": base64.b64encode(data).decode()})
_SIDES = st.floats(width=32) | st.integers(-(2**24), 2**24) | st.integers(-5, 40)
_INSIDE = st.tuples(st.floats(0, 15), st.floats(0, 15), st.floats(16, 32), st.floats(16, 1e9))
_BOXES = st.one_of(
    st.lists(_INSIDE, max_size=4),
    _INSIDE,
    st.lists(st.lists(_SIDES, min_size=4, max_size=4), max_size=4),
    st.lists(_SIDES, max_size=5),
    _JSON,
)
_SIGNATURES = st.sampled_from(["serving_default", "pixels", "faces", "", "nope"])
_PIXELS = st.integers(0, 4).flatmap(
    lambda width: st.lists(
        st.lists(
            st.lists(st.integers(0, 255) | st.floats(0, 255), min_size=3, max_size=3)
            | st.lists(_NUMBERS, min_size=3, max_size=3),
            min_size=width,
            max_size=width,
        ),
        max_size=4,
    )
)


def _document(name: Any, layout: str, values: Any) -> bytes:
    return json.dumps({"signature_name": name, layout: values}).encode()


_LAYOUTS = st.sampled_from(["instances", "inputs"])
_BODIES: dict[str, st.SearchStrategy[bytes]] = {
    "bytes": st.binary(max_size=300),
    "json": st.builds(lambda value: json.dumps(value).encode(), _JSON),
    "mangled json": st.builds(
        lambda value, at, byte: (text := json.dumps(value).encode())[:at] + byte + text[at + 1 :],
        st.fixed_dictionaries({"instances": _JSON, "signature_name": _SIGNATURES}),
        st.integers(0, 80),
        st.binary(min_size=1, max_size=2),
    ),
    "shapes": st.builds(_document, _SIGNATURES | _JSON, _LAYOUTS, _JSON),
    "images": st.builds(
        _document, st.just("serving_default"), _LAYOUTS, st.lists(_IMAGE_FIELDS, max_size=2)
    ),
    "pixels": st.builds(_document, st.just("pixels"), _LAYOUTS, st.lists(_PIXELS, max_size=3)),
    "faces": st.builds(
        lambda image, boxes: _document("faces", "inputs", {"image_bytes": image, "boxes": boxes}),
        st.one_of(_IMAGE_FIELDS, st.lists(_IMAGE_FIELDS, max_size=3)),
        _BOXES,
    ),
    "faces by row": st.builds(
        lambda rows: _document("faces", "instances", rows),
        st.lists(
            st.fixed_dictionaries({"image_bytes": _IMAGE_FIELDS, "boxes": _BOXES}), max_size=3
        ),
    ),
    "strings": st.builds(
        lambda depth, part, times, end: b"[" * depth + b'"' + part * times + end,
        st.integers(60, 70),
        st.sampled_from([b'\\"', b'"', b"\\\\", b'\\"[']),
        st.integers(0, 100_000),
        st.sampled_from([b"", b"\\", b'"', b'\\"', b'\\"]']),
    ),
    "nesting": st.builds(
        lambda kind, depth: b'{"instances": ' + kind * depth,
        st.sampled_from([b"[", b'{"a":', b'["', b"[{"]),
        st.integers(0, 100_000),
    ),
}
_PATHS = st.one_of(
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40).map(
        lambda text: f"/{text}"
    ),
    st.tuples(
        st.sampled_from(["/v1/models", "/V1/Models", "/v1", "//v1/models", ""]),
        st.sampled_from(["/face_mask", "/face%5fmask", "/%00", "/%ff", "/", "", "/x?a=b"]),
        st.sampled_from(["", "/versions/1", "/versions/", f"/versions/{10**20}", "/labels/%2F"]),
        st.sampled_from(["", "/metadata", ":predict", ":classify", ":regress", ":x", "/", "?"]),
    ).map(lambda parts: "".join(parts) or "/"),
)


class Fuzz:
    """Sends requests to one server and counts its answers."""

    def __init__(self, server: subprocess.Popen[str], url: str) -> None:
        self.server = server
        self.host, self.port = url.removeprefix("http://").split(":")
        self.statuses: collections.Counter[tuple[str, int]] = collections.Counter()
        self.connection: http.client.HTTPConnection | None = None

    def send(self, kind: str, method: str, path: str, body: bytes, gzipped: bool = False) -> None:
        """Send one request; fail on a server error, or where there is no server any more."""
        headers = {"Content-Encoding": "gzip"} if gzipped else {}
        status = self._status(method, path, body, headers)
        self.statuses[kind, status] += 1
        if status >= 500:
            raise AssertionError(f"{status} for {method} {path} {body[:2000]!r}")

    def _status(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> int:
        for attempt in range(2):
            if self.connection is None:
                self.connection = http.client.HTTPConnection(self.host, int(self.port), timeout=60)
            try:
                self.connection.request(method, path, body, headers)
                response = self.connection.getresponse()
                response.read()
                return response.status
            except (OSError, http.client.HTTPException) as error:
                self.connection.close()
                self.connection = None
                if attempt or self.server.poll() is not None:
                    state = self.server.poll()
                    text = f"no answer ({error!r}), server {state}: {method} {path} {body!r}"
                    raise AssertionError(text) from error
        raise AssertionError("the second attempt returns or raises")

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()


def _property(strategy: Any, requests: int, send: Callable[[Any], None]) -> None:
    """Check one property on so many examples."""
    examples = settings(
        max_examples=requests,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    examples(given(strategy)(send))()


def run(requests: int) -> collections.Counter[tuple[str, int]]:
    """Send at least so many requests, of each kind a share.

    Args:
        requests: How many at least.

    Returns:
        Answers by kind and status.

    Raises:
        AssertionError: A server error, or the server has ended.
    """
    share = -(-requests // (len(_BODIES) + 2))
    with tempfile.TemporaryDirectory() as folder:
        base_dir = Path(folder) / "face_mask"
        export_saved_model(tiny_model(), CARD, base_dir)
        with process("--model-dir", str(base_dir)) as (server, url):
            fuzz = Fuzz(server, url)
            sent = 0
            while sent < requests:
                _run_kinds(fuzz, share)
                sent = fuzz.statuses.total()
            fuzz.close()
            assert server.poll() is None, "the server has ended"
    return fuzz.statuses


def _run_kinds(fuzz: Fuzz, share: int) -> None:
    for kind, bodies in _BODIES.items():
        _property(bodies, share, _sender(fuzz, kind))
    _property(_BODIES["bytes"], share, _sender(fuzz, "gzip", gzipped=True))
    requests = st.tuples(st.sampled_from(["GET", "POST", "PUT", "OPTIONS", "DELETE"]), _PATHS)
    _property(requests, share, lambda pair: fuzz.send("paths", *pair, b"{}"))


def _sender(fuzz: Fuzz, kind: str, gzipped: bool = False) -> Callable[[bytes], None]:
    return lambda body: fuzz.send(kind, "POST", _PREDICT, body, gzipped)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; an assertion that fails ends it with a traceback."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_serving")
    parser.add_argument("--requests", type=int, default=10_000)
    statuses = run(parser.parse_args(argv).requests)
    for (kind, status), number in sorted(statuses.items()):
        print(f"{number:8d}  {kind}: {status}")
    print(f"{statuses.total()} requests, no server error, no crash")
    return 0


if __name__ == "__main__":
    sys.exit(main())
