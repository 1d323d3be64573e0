"""Load the server with good and bad clients at once: `python -m tests.soak_serving --seconds 300`.

Good clients must get the right answer every time, while others send corrupt images, huge bodies,
bodies that trickle, and requests that they drop, and while versions are swapped. The memory of
the server must not grow, and it must end cleanly on SIGTERM. Loopback only; ends by itself.
"""

from __future__ import annotations

import argparse
import collections
import http.client
import json
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fmd_tf.client import Client, Prediction, ServingError
from fmd_tf.export import export_saved_model
from tests.serving import CARD, encode, faces, process, tiny_model

_PREDICT = "/v1/models/face_mask:predict"
_MAX_BODY_MB = 4
_BODY_SECONDS = 3
_SWAP_SECONDS = 30.0
_GROWTH = 0.05


class Soak:
    """The clients' shared state: what they count, and when they stop."""

    def __init__(self, url: str, seconds: float) -> None:
        self.url = url
        self.address = url.removeprefix("http://").split(":")[0], int(url.rsplit(":", 1)[1])
        self.end = time.monotonic() + seconds
        self.counts: collections.Counter[str] = collections.Counter()
        self.failures: list[str] = []
        self.memory: list[float] = []
        self._lock = threading.Lock()

    def running(self) -> bool:
        return time.monotonic() < self.end

    def count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def fail(self, what: str) -> None:
        with self._lock:
            self.failures.append(what)

    def raw(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=30)


def good(soak: Soak) -> None:
    """Send good images; each must be answered, and as the first time."""
    forms = ("PNG", "JPEG", "WEBP", "BMP")
    images = [encode(face, form) for face, form in zip(faces(4), forms, strict=True)]
    with Client(soak.url, retries=0) as client:
        expected = client.predict_bytes(images)
        while soak.running():
            try:
                if _same(client.predict_bytes(images), expected):
                    soak.count("good requests answered")
                else:
                    soak.fail("a good request got another answer")
            except ServingError as error:
                soak.fail(f"a good request failed: {error}")


def _same(answers: Sequence[Prediction], expected: Sequence[Prediction]) -> bool:
    """Compare, but for rounding: which images share a batch changes the order of sums."""
    pairs = list(zip(answers, expected, strict=True))
    values = [[list(each.probabilities.values()) for each in pair] for pair in pairs]
    return all(a.label == b.label for a, b in pairs) and np.ptp(values, axis=1).max() < 1e-5


def corrupt(soak: Soak) -> None:
    """Send damaged images; each must be refused with 400, or survive the damage."""
    generator = random.Random(1)
    images = [encode(face, form) for face in faces(2) for form in ("PNG", "JPEG", "WEBP", "BMP")]
    with Client(soak.url, retries=0) as client:
        while soak.running():
            damaged = bytearray(generator.choice(images))
            for _ in range(generator.randint(1, 9)):
                damaged[generator.randrange(len(damaged))] = generator.randrange(256)
            try:
                client.predict_bytes([bytes(damaged[: generator.randrange(9, len(damaged) * 2)])])
                soak.count("corrupt images that still decode")
            except ServingError as error:
                if error.status != 400:
                    soak.fail(f"a corrupt image: {error}")
                soak.count("corrupt images refused")


def huge(soak: Soak) -> None:
    """Send bodies over the limit, with and without a length."""
    block = bytes(2**16)
    blocks = 2 * _MAX_BODY_MB * 2**20 // len(block)
    chunked = False
    while soak.running():
        chunked = not chunked
        connection = http.client.HTTPConnection(*soak.address, timeout=30)
        body = (block for _ in range(blocks)) if chunked else block * blocks
        try:
            connection.request("POST", _PREDICT, body, encode_chunked=chunked)
            status = connection.getresponse().status
            soak.count("huge bodies refused") if status == 413 else soak.fail(f"huge: {status}")
        except OSError:
            soak.count("huge bodies cut off")
        finally:
            connection.close()
        time.sleep(0.2)


def slow(soak: Soak) -> None:
    """Send a byte now and then, until the server has had enough."""
    while soak.running():
        with soak.raw() as connection:
            head = f"POST {_PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
            try:
                connection.sendall(head.encode())
                for _ in range(2 * _BODY_SECONDS):
                    connection.sendall(b"{")
                    time.sleep(0.6)
                status = connection.recv(12)[-3:]
            except OSError:
                status = b"cut"
        ok = status in (b"408", b"cut")
        soak.count("slow bodies refused") if ok else soak.fail(f"slow: {status!r}")


def dropping(soak: Soak) -> None:
    """Close connections in the head, in the body, and before the answer."""
    generator = random.Random(2)
    body = json.dumps({"instances": ["x" * 5000]}).encode()
    head = f"POST {_PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    whole = head.encode() + body
    while soak.running():
        with soak.raw() as connection:
            connection.sendall(whole[: generator.choice([9, len(head) + 9, len(whole)])])
        soak.count("connections dropped")
        time.sleep(0.02)


def watch_memory(soak: Soak) -> None:
    """Read the server's resident memory from its own metrics, in megabytes."""
    while soak.running():
        with urllib.request.urlopen(f"{soak.url}/monitoring/prometheus/metrics") as page:
            match = re.search(r"^process_resident_memory_bytes (\S+)", page.read().decode(), re.M)
        if match:
            soak.memory.append(float(match[1]) / 2**20)
        time.sleep(0.5)


def swap(soak: Soak, base_dir: Path) -> None:
    """Publish the same model under new numbers."""
    version, following = 1, time.monotonic() + _SWAP_SECONDS
    while soak.running():
        time.sleep(0.2)
        if time.monotonic() > following:
            shutil.copytree(base_dir / str(version), base_dir / ".partial")
            (base_dir / ".partial").rename(base_dir / str(version + 1))
            version, following = version + 1, time.monotonic() + _SWAP_SECONDS
            soak.count("versions swapped")


def run(seconds: float) -> Soak:
    """Run all of it; failures are in what is returned.

    Args:
        seconds: Time under load.

    Returns:
        Counts, failures and the server's memory.
    """
    with tempfile.TemporaryDirectory() as folder:
        base_dir = Path(folder) / "face_mask"
        export_saved_model(tiny_model(), CARD, base_dir)
        limits = ("--max-body-mb", str(_MAX_BODY_MB), "--request-timeout", str(_BODY_SECONDS))
        with process("--model-dir", str(base_dir), *limits) as (server, url):
            soak = Soak(url, seconds)
            jobs: list[Callable[[], None]] = [
                *[lambda: good(soak)] * 4,
                *[lambda: slow(soak)] * 2,
                *(lambda f=f: f(soak) for f in (corrupt, huge, dropping, watch_memory)),
                lambda: swap(soak, base_dir),
            ]
            _run_threads(soak, jobs)
            server.send_signal(signal.SIGTERM)
            code = server.wait(timeout=30)
            if code != 0:
                soak.fail(f"SIGTERM: exit code {code}")
    _judge_memory(soak)
    return soak


def _run_threads(soak: Soak, jobs: Sequence[Callable[[], None]]) -> None:
    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:
            soak.fail(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _judge_memory(soak: Soak) -> None:
    """Compare the last quarter with the second: the first is warming up."""
    quarter = len(soak.memory) // 4
    if quarter < 20:
        return
    before = float(np.median(soak.memory[quarter : 2 * quarter]))
    after = float(np.median(soak.memory[-quarter:]))
    if after > before * (1 + _GROWTH):
        soak.fail(f"memory grew from {before:.0f} to {after:.0f} MB")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 where something failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak_serving")
    parser.add_argument("--seconds", type=float, default=300.0)
    soak = run(parser.parse_args(argv).seconds)
    for what, number in sorted(soak.counts.items()):
        print(f"{number:8d}  {what}")
    quarters = [part for part in np.array_split(soak.memory, 8) if len(part)]
    medians = " ".join(f"{np.median(part):.0f}" for part in quarters)
    print(f"memory of the server, MB, medians of eighths: {medians}")
    for failure in soak.failures[:20]:
        print(f"FAILED {failure}")
    print(f"{len(soak.failures)} failures")
    return 1 if soak.failures else 0


if __name__ == "__main__":
    sys.exit(main())
