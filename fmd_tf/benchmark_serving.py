"""Compare the server over HTTP with the bare session in the same run.

Server, session and load each are a process of their own; at each number of clients the two take
turns, so that other work on the machine meets both.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from fmd_tf.errors import UserError
from fmd_tf.memory import keep_memory
from fmd_tf.publish import version_folder

_ROUNDS = 10
_WARM_SECONDS = 0.5


class BenchmarkError(UserError):
    """Something cannot be measured."""


def benchmark_serving(
    model_dir: Path, clients: Sequence[int], seconds: float, image: Path | None = None
) -> dict[str, Any]:
    """Measure throughput and latency of the newest version.

    Args:
        model_dir: Folder of the versions.
        clients: Numbers of clients that each wait for an answer before they ask again.
        seconds: Time for each number of clients and each way.
        image: File to send; None draws one.

    Returns:
        The figures by number of clients, and what they were measured on.

    Raises:
        UserError: There is no model, or a request fails.
    """
    encoded = image.read_bytes() if image else _draw_image()
    version = version_folder(model_dir)
    with (
        _server(model_dir) as url,
        _worker(_serve_bare, version, encoded) as bare,
        _worker(_serve_http, url, encoded) as over_http,
    ):
        levels = [_measure_level(bare, over_http, number, seconds) for number in clients]
    return {
        "command": "serving",
        "model": str(version),
        "image_bytes": len(encoded),
        "seconds": seconds,
        "levels": levels,
    }


def format_serving(report: dict[str, Any]) -> str:
    """Return the figures as a Markdown table, milliseconds and requests a second."""
    lines = [
        "| clients | session requests/s | HTTP requests/s | ratio | p50 session / HTTP "
        "| HTTP p95 / p99 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for level in report["levels"]:
        session, over_http = level["session"], level["http"]
        lines.append(
            f"| {level['clients']} | {session['throughput']:.1f} | {over_http['throughput']:.1f} "
            f"| {level['throughput_ratio']:.3f} | {session['p50_ms']:.1f} / "
            f"{over_http['p50_ms']:.1f} ({level['added_p50_ms']:+.1f}) "
            f"| {over_http['p95_ms']:.1f} / {over_http['p99_ms']:.1f} |"
        )
    return "\n".join(lines)


def _draw_image() -> bytes:
    coarse = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((160, 160)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _measure_level(
    bare: Connection, over_http: Connection, clients: int, seconds: float
) -> dict[str, Any]:
    """Let the two take turns; each turn warms up first.

    The ratio is the median over the rounds: other work on the machine comes and goes.
    """
    latencies: dict[str, list[float]] = {"session": [], "http": []}
    rates: dict[str, list[float]] = {"session": [], "http": []}
    ways = [("session", bare), ("http", over_http)]
    for turn in range(_ROUNDS):
        for name, worker in ways if turn % 2 == 0 else reversed(ways):
            worker.send((clients, seconds / _ROUNDS))
            answer = worker.recv()
            if isinstance(answer, str):
                raise BenchmarkError(f"{name} with {clients} clients: {answer}")
            latencies[name] += answer[0]
            rates[name].append(len(answer[0]) / answer[1])
    session, over = (_figures(latencies[name], rates[name]) for name, _ in ways)
    return {
        "clients": clients,
        "session": session,
        "http": over,
        "throughput_ratio": float(np.median(np.divide(rates["http"], rates["session"]))),
        "added_p50_ms": over["p50_ms"] - session["p50_ms"],
    }


def _figures(latencies: list[float], rates: list[float]) -> dict[str, float]:
    p50, p95, p99 = np.percentile(np.array(latencies) * 1000, [50, 95, 99])
    return {
        "requests": len(latencies),
        "throughput": float(np.mean(rates)),
        "p50_ms": float(p50),
        "p95_ms": float(p95),
        "p99_ms": float(p99),
    }


@contextmanager
def _server(model_dir: Path) -> Iterator[str]:
    """Run the server; gives its URL."""
    command = [sys.executable, "-m", "fmd_tf.serve", "--model-dir", str(model_dir), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line.startswith("Serving "):
                raise BenchmarkError(f"{model_dir}: the server did not start; its message is above")
            yield line.split()[1]
        finally:
            process.terminate()


@contextmanager
def _worker(target: Callable[..., None], *arguments: Any) -> Iterator[Connection]:
    """Run a process that answers (clients, seconds) with latencies and the time taken."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=target, args=(there, *arguments), daemon=True)
    process.start()
    there.close()
    try:
        yield here
    finally:
        here.close()
        process.join(timeout=10)
        if process.is_alive():
            process.kill()


def _serve_bare(commands: Connection, version: Path, encoded: bytes) -> None:
    """Process: call the session, with the memory kept as the server does."""
    keep_memory()
    from fmd_tf.servable import Servable

    servable = Servable(version)
    servable.warm_up(version)
    signature = servable.signature("")
    tensors = {"image_bytes": np.array([encoded], object)}
    _answer_commands(commands, lambda: lambda: signature.run(tensors))


def _serve_http(commands: Connection, url: str, encoded: bytes) -> None:
    """Process: send requests; each client keeps its connection."""
    parts = urlsplit(url)
    path = f"{parts.path}:predict"
    body = json.dumps({"instances": [{"b64": base64.b64encode(encoded).decode()}]}).encode()

    def connect() -> Callable[[], object]:
        connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)

        def ask() -> None:
            connection.request("POST", path, body)
            response = connection.getresponse()
            text = response.read()
            if response.status != 200:
                raise BenchmarkError(f"{response.status} {text[:200]!r}")

        return ask

    _answer_commands(commands, connect)


def _answer_commands(commands: Connection, make_call: Callable[[], Callable[[], object]]) -> None:
    """Measure until the other end is closed."""
    while True:
        try:
            clients, seconds = commands.recv()
        except EOFError:
            return
        try:
            _load(make_call, clients, min(_WARM_SECONDS, seconds))
            commands.send(_load(make_call, clients, seconds))
        # The parent reports it; this process goes on.
        except Exception as error:
            commands.send(f"{type(error).__name__}: {error}")


def _load(
    make_call: Callable[[], Callable[[], object]], clients: int, seconds: float
) -> tuple[list[float], float]:
    """Call from so many threads for some seconds; return all latencies and the time taken."""
    latencies: list[float] = []
    errors: list[Exception] = []
    started = time.perf_counter()

    def client() -> None:
        call = make_call()
        try:
            while time.perf_counter() - started < seconds:
                before = time.perf_counter()
                call()
                latencies.append(time.perf_counter() - before)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return latencies, time.perf_counter() - started
