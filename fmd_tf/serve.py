"""Serve a SavedModel with TF Serving's REST API, and a page: `python -m fmd_tf.serve`.

A plain ASGI application over `fmd_tf.rest` and `fmd_tf.servable`, run by uvicorn. Paths:

- `POST /v1/models/NAME[/versions/N|/labels/L]:predict`, row and columnar format
- `GET /v1/models/NAME[/versions/N|/labels/L]` (status) and `.../metadata`
- `GET /monitoring/prometheus/metrics`
- `GET /`: a page that labels the faces of a photo, with `page.css` and `page.js`. It talks to the
  model's path alone, so a proxy that serves the same files makes it work with TF Serving.

Deviations from TF Serving, beside those of `fmd_tf.rest`:

- Limits, all with an answer at once: bodies over `--max-body-mb` (413), a body that takes longer
  than `--request-timeout` to arrive (408) or to answer (504), more than `--max-batch` rows (400),
  JSON deeper than 64 levels (400, where TF Serving crashes), more waiting requests than
  `--max-pending` or more than 512 MiB of bodies at a time (429). The time for a request's head has
  no limit: that is left to a proxy in front.
- `:classify` and `:regress` are answered as for a model without such signatures (400).
- Metrics are on without a configuration file and have their own names (`fmd_tf_...`).
- There is no gRPC, and no CORS.
- A version whose files change under the same number is loaded anew; the newest that loads is
  served where newer ones are broken.
- A gzip body that is damaged or too large is 400 as there, with a clearer message.

On SIGTERM it ends when no request is worked on any more, or a second and twice `--request-timeout`
later.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import html
import json
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import prometheus_client
import uvicorn

from fmd_tf import rest
from fmd_tf.arguments import at_least, duration, make_parser
from fmd_tf.errors import command_line
from fmd_tf.memory import keep_memory
from fmd_tf.rest import ModelPath, RestError
from fmd_tf.servable import ModelVersions, ServableError

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_log = logging.getLogger(__name__)
_JSON = "application/json"
_METRICS_PATH = "/monitoring/prometheus/metrics"
_NOT_FOUND = b"<HTML><HEAD><TITLE>404 Not Found</TITLE></HEAD><BODY>Not Found</BODY></HTML>\n"


@dataclass(frozen=True)
class Limits:
    """What one request, and all together, may take.

    Attributes:
        max_body_bytes: Size of a body, as sent and inflated.
        max_held_bytes: Size of all bodies, as sent, that are held at a time.
        max_batch: Rows of a request.
        request_timeout: Seconds for a body to arrive, and again for the answer.
        threads: Requests that are worked on at a time.
        max_pending: Requests that are worked on or wait for it.
    """

    max_body_bytes: int = 32 * 2**20
    max_held_bytes: int = 512 * 2**20
    max_batch: int = 256
    request_timeout: float = 30.0
    threads: int = 16
    max_pending: int = 256


_PAGE_DIR = Path(__file__).parent / "page"
_PAGE_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
# Nothing from elsewhere, and photos go nowhere else.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_PAGE_HEADERS = (
    (b"content-security-policy", _PAGE_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
)


@dataclass(frozen=True)
class Answer:
    """A response: its body is whole, so that its length is known."""

    status: int
    body: bytes
    content_type: str = _JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Disconnected(Exception):  # noqa: N818
    """The client has gone; there is nobody to answer."""


class Metrics:
    """The figures on the Prometheus page."""

    def __init__(self) -> None:
        self.registry = prometheus_client.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self.registry)
        self.requests = prometheus_client.Counter(
            "fmd_tf_requests",
            "Requests answered",
            ["kind", "status"],
            registry=self.registry,
        )
        self.latency = prometheus_client.Histogram(
            "fmd_tf_request_seconds",
            "Time from the head of a request to its answer",
            ["kind"],
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=self.registry,
        )
        self.pending = prometheus_client.Gauge(
            "fmd_tf_pending_requests", "Requests worked on or waiting", registry=self.registry
        )

    def page(self) -> Answer:
        """Return the page."""
        text = prometheus_client.generate_latest(self.registry)
        return Answer(200, text, prometheus_client.CONTENT_TYPE_LATEST)


class Application:
    """The ASGI application.

    Args:
        models: The models by name.
        limits: See `Limits`.
        metrics: Whether there is a metrics page; default True.
    """

    def __init__(
        self,
        models: Mapping[str, ModelVersions],
        limits: Limits | None = None,
        metrics: bool = True,
    ) -> None:
        self._models = dict(models)
        self._limits = limits or Limits()
        self._metrics = Metrics()
        self._metrics_page = metrics
        self._page = _read_page(next(iter(self._models), ""))
        self._pool = ThreadPoolExecutor(self._limits.threads, thread_name_prefix="predict")
        self._jobs: set[Future] = set()
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        started = time.perf_counter()
        try:
            kind, answer = await self._route(scope, receive)
        except RestError as error:  # Of a path that is none of TF Serving's.
            kind, answer = "other", _error_answer(error)
        except Disconnected:
            return
        await _respond(send, answer, with_body=scope["method"] != "HEAD")
        self._metrics.requests.labels(kind, str(answer.status)).inc()
        self._metrics.latency.labels(kind).observe(time.perf_counter() - started)

    async def _route(self, scope: Scope, receive: Receive) -> tuple[str, Answer]:
        """Choose by path; what is not TF Serving's finds its place here."""
        method, path = scope["method"], _full_path(scope)
        if path.lower().startswith("/v1/"):
            if method == "OPTIONS":
                return "other", Answer(400, b"")
            return await self._route_model(method, path, scope, receive)
        if path == _METRICS_PATH and method == "GET" and self._metrics_page:
            return "metrics", self._metrics.page()
        # What follows a question mark is for the page's script.
        page = self._page.get(path.partition("?")[0])
        if page and method in ("GET", "HEAD"):
            return "page", page
        return "other", Answer(404, _NOT_FOUND, "text/html")

    async def _route_model(
        self, method: str, path: str, scope: Scope, receive: Receive
    ) -> tuple[str, Answer]:
        target = rest.parse_path(method, path)
        kind = target.method
        if method == "GET":
            # TF Serving knows the lower case word only, and takes others for a status request.
            kind = "metadata" if target.subresource == "metadata" else "status"
        elif kind not in ("predict", "classify", "regress"):
            raise RestError("INVALID_ARGUMENT", f"Malformed request: {method} {path}")
        try:
            if kind == "metadata":
                return kind, self._metadata(target)
            if kind == "status":
                return kind, self._status(target)
            return kind, await self._read_and_compute(target, scope, receive)
        except RestError as error:
            return kind, _error_answer(error)

    async def _read_and_compute(self, target: ModelPath, scope: Scope, receive: Receive) -> Answer:
        """Read a request and answer it."""
        body = bytearray()
        try:
            await self._read_body(scope, receive, body)
            return await self._compute(target, _headers(scope), bytes(body))
        finally:
            self._held_bytes -= len(body)

    def _versions(self, target: ModelPath, missing: str) -> ModelVersions:
        if target.model not in self._models:
            raise RestError("NOT_FOUND", missing)
        return self._models[target.model]

    def _status(self, target: ModelPath) -> Answer:
        """A label is ignored here, as in TF Serving."""
        if not target.model:
            raise RestError("INVALID_ARGUMENT", "Missing model name in request.")
        missing = f"Could not find any versions of model {target.model}"
        states = self._versions(target, missing).status(target.version)
        rows = [(each.version, each.state, each.error_code, each.error_message) for each in states]
        return Answer(200, rest.format_status(rows))

    def _metadata(self, target: ModelPath) -> Answer:
        if not target.model:
            raise RestError("INVALID_ARGUMENT", "Missing model name in request.")
        with self._find(target).use(target.version, target.label) as servable:
            document = servable.metadata(target.model)
        return Answer(200, json.dumps(document, indent=1).encode())

    def _find(self, target: ModelPath) -> ModelVersions:
        """Find a model; an unknown label is reported before an unknown model."""
        if target.label is not None and target.model not in self._models:
            message = f"Unrecognized servable version label: {target.label}"
            raise RestError("INVALID_ARGUMENT", message)
        number = "" if target.version is None else f", {target.version}"
        policy = "Latest" if target.version is None else "Specific"
        return self._versions(
            target, f"Servable not found for request: {policy}({target.model}{number})"
        )

    async def _read_body(self, scope: Scope, receive: Receive, body: bytearray) -> None:
        """Read into `body`, within the limits of size and time."""
        limit = self._limits.max_body_bytes
        length = _headers(scope).get(b"content-length", b"")
        if length.isdigit() and (len(length) > 18 or int(length) > limit):
            raise _too_large(limit)
        try:
            async with asyncio.timeout(self._limits.request_timeout):
                async for chunk in _chunks(receive):
                    body += chunk
                    self._held_bytes += len(chunk)
                    if len(body) > limit:
                        raise _too_large(limit)
                    if self._held_bytes > self._limits.max_held_bytes:
                        raise _overloaded(f"{self._held_bytes} bytes of requests are held already")
        except TimeoutError as error:
            text = f"expected the whole body within {self._limits.request_timeout:g} s"
            raise RestError("DEADLINE_EXCEEDED", text, 408) from error

    async def _compute(self, target: ModelPath, headers: dict[bytes, bytes], body: bytes) -> Answer:
        """Work on a request in the thread pool: the event loop never waits for it."""
        if len(self._jobs) >= self._limits.max_pending:
            raise _overloaded(f"{len(self._jobs)} requests are pending already")
        loop = asyncio.get_running_loop()
        job = self._pool.submit(self._answer, target, headers, body)
        self._jobs.add(job)
        self._metrics.pending.set(len(self._jobs))

        def end(job: Future) -> None:
            with suppress(RuntimeError):  # The loop is closed, and nobody counts any longer.
                loop.call_soon_threadsafe(self._end, job)

        # Of the job itself: a request may have gone while its job still works.
        job.add_done_callback(end)
        future = asyncio.wrap_future(job)
        try:
            return await asyncio.wait_for(asyncio.shield(future), self._limits.request_timeout)
        except TimeoutError as error:
            # A call that has not begun is dropped; a running one ends by itself.
            job.cancel()
            text = f"no answer within {self._limits.request_timeout:g} s"
            raise RestError("DEADLINE_EXCEEDED", text) from error

    def _end(self, job: Future) -> None:
        self._jobs.discard(job)
        self._metrics.pending.set(len(self._jobs))

    def _answer(self, target: ModelPath, headers: dict[bytes, bytes], body: bytes) -> Answer:
        """Parse, run and format, in a thread."""
        try:
            return self._predict(target, headers, body)
        except RestError as error:
            return _error_answer(error)
        # The last resort: the traceback goes to the log and not to the client.
        except Exception:
            _log.exception("a request failed")
            return _error_answer(RestError("INTERNAL", "internal error; the server's log has more"))

    def _predict(self, target: ModelPath, headers: dict[bytes, bytes], body: bytes) -> Answer:
        document = rest.parse_json(_decode(headers, body, self._limits.max_body_bytes))
        name = rest.signature_name(document)
        with self._find(target).use(target.version, target.label) as servable:
            if target.method != "predict":
                raise _not_such_method(target.method)
            signature = servable.signature(name)
            max_rows = self._limits.max_batch
            layout, tensors = rest.parse_tensors(document, signature.inputs, max_rows)
            # Each box of a photo is a row too, as each is a face to classify.
            if "boxes" in tensors and tensors["boxes"].ndim == 3:
                rest.require_rows(math.prod(tensors["boxes"].shape[:2]), max_rows)
            return Answer(200, rest.format_predictions(signature.run(tensors), layout))

    def close(self, timeout: float | None = None) -> bool:
        """Wait for the requests that are worked on, those among them whose clients have an answer.

        Args:
            timeout: Seconds to wait at most; default None, without limit.

        Returns:
            Whether all have ended.
        """
        self._pool.shutdown(wait=False, cancel_futures=True)
        # One that is cancelled never ends.
        return not wait([job for job in self._jobs if not job.cancelled()], timeout).not_done


def _read_page(model_name: str) -> dict[str, Answer]:
    """Return the page's files by path; the page asks the model of this name."""
    page = {}
    for path, (name, content_type) in _PAGE_FILES.items():
        text = (_PAGE_DIR / name).read_text(encoding="utf-8")
        quoted = html.escape(model_name)
        text = text.replace('data-model="face_mask"', f'data-model="{quoted}"')
        page[path] = Answer(200, text.encode(), content_type, _PAGE_HEADERS)
    return page


def _full_path(scope: Scope) -> str:
    """Return the path as it was sent, with its query string."""
    query = scope.get("query_string", b"")
    path = scope.get("raw_path") or scope["path"].encode()
    return (path + (b"?" + query if query else b"")).decode("latin-1")


def _headers(scope: Scope) -> dict[bytes, bytes]:
    return dict(scope["headers"])


def _decode(headers: Mapping[bytes, bytes], body: bytes, max_bytes: int) -> bytes:
    """Inflate a gzip body."""
    if b"gzip" not in headers.get(b"content-encoding", b"") or not body:
        return body
    inflated = rest.inflate(body, max_bytes)
    if not inflated:
        raise RestError(
            "INVALID_ARGUMENT",
            "JSON Parse error: The document is empty: the gzip body is damaged, empty, or inflates "
            f"to more than {max_bytes} bytes",
        )
    return inflated


async def _chunks(receive: Receive) -> AsyncIterator[bytes]:
    """Give a body as it comes in."""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        yield message.get("body", b"")
        more = message.get("more_body", False)


def _overloaded(what: str) -> RestError:
    return RestError("RESOURCE_EXHAUSTED", f"{what}; try again later")


def _too_large(limit: int) -> RestError:
    return RestError("INVALID_ARGUMENT", f"expected a body of at most {limit} bytes", 413)


def _not_such_method(method: str | None) -> RestError:
    return RestError(
        "INVALID_ARGUMENT",
        f"Expected a signature with method_name tensorflow/serving/{method}; this server serves "
        "tensorflow/serving/predict",
    )


def _error_answer(error: RestError) -> Answer:
    return Answer(error.http_status, rest.format_error(error.message))


async def _respond(send: Send, answer: Answer, with_body: bool) -> None:
    """Send an answer; uvicorn reads and drops what is still to come of a body refused early."""
    headers = [
        (b"content-type", answer.content_type.encode()),
        (b"content-length", str(len(answer.body)).encode()),
        *answer.headers,
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body if with_body else b""})


@command_line
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the process' exit code."""
    keep_memory()
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    name = options.model_name or Path(os.path.normpath(options.model_dir.absolute())).name
    versions = ModelVersions(options.model_dir, name, options.num_versions, options.label)
    with listen(options.host, options.port) as listener:
        serve(versions, _limits(options), listener, options.poll, options.metrics)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("serve", "Serve a SavedModel with TF Serving's REST API.")
    add, default = parser.add_argument, Limits()
    add("--model-dir", type=Path, default=Path("savedmodel/face_mask"), help="folder of versions")
    add("--model-name", help="name in paths (default: name of the folder)")
    add("--host", default="127.0.0.1", help="address (default: this machine only)")
    add("--port", type=int, default=8501, help="port; 0 takes a free one")
    add("--num-versions", type=at_least(1), default=1, help="serve so many of the newest versions")
    add(
        "--label",
        type=_label,
        action=_Labels,
        default={},
        help="NAME=VERSION, which then stays loaded",
    )
    add("--poll", type=duration, default=1.0, help="seconds between looks for new versions")
    add(
        "--max-body-mb",
        type=at_least(1),
        default=default.max_body_bytes // 2**20,
        help="size of a request in MiB; larger: 413",
    )
    add("--max-batch", type=at_least(1), default=default.max_batch, help="most rows of a request")
    add("--request-timeout", type=duration, default=default.request_timeout, help="in seconds")
    add("--threads", type=at_least(1), default=default.threads, help="requests at a time")
    add(
        "--max-pending",
        type=at_least(1),
        default=default.max_pending,
        help="waiting; more: 429",
    )
    add("--no-metrics", dest="metrics", action="store_false", help="no metrics page")
    return parser


class _Labels(argparse.Action):
    """Collect labels into a dictionary."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        label, version = values
        setattr(namespace, self.dest, {**getattr(namespace, self.dest), label: version})


def _label(text: str) -> tuple[str, int]:
    label, _, version = text.partition("=")
    if not label or not version.isdecimal():
        raise argparse.ArgumentTypeError(f"expected NAME=VERSION, got {text!r}")
    return label, int(version)


def _limits(options: argparse.Namespace) -> Limits:
    max_body_bytes = options.max_body_mb * 2**20
    return Limits(
        max_body_bytes=max_body_bytes,
        max_held_bytes=max(Limits.max_held_bytes, max_body_bytes),
        max_batch=options.max_batch,
        request_timeout=options.request_timeout,
        threads=options.threads,
        max_pending=options.max_pending,
    )


def listen(host: str, port: int) -> socket.socket:
    """Take the port before the model is loaded: one in use is known at once.

    Args:
        host: Address to bind to.
        port: Port; 0 takes a free one.

    Returns:
        A listening socket. Connections inherit that small packets are sent at once: without it
        an answer's second packet waits 40 ms for the client to acknowledge the first.

    Raises:
        ServableError: The address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        raise ServableError(
            f"cannot listen on {host}:{port} ({error}); try another --port"
        ) from error
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def serve(
    versions: ModelVersions,
    limits: Limits,
    listener: socket.socket,
    poll: float = 1.0,
    metrics: bool = True,
) -> None:
    """Load, listen, watch for new versions, and drain on SIGTERM or SIGINT.

    Requests get their time then, and what goes on computing after its client was answered with 504
    gets the same once more. Whatever is not done by then ends with the process, here.

    Args:
        versions: The model; loaded here.
        limits: See `Limits`.
        listener: A listening socket.
        poll: Seconds between looks for new versions.
        metrics: Whether there is a metrics page.

    Raises:
        ServableError: No version can be loaded.
    """
    # What is imported by now stays: collections after a swap need not look at it.
    gc.freeze()
    versions.sync()
    _require_loaded(versions)
    watcher = threading.Thread(target=versions.watch, args=(poll,), daemon=True)
    watcher.start()
    application = Application({versions.name: versions}, limits, metrics)
    host, port = listener.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    print(f"Serving http://{host}:{port}/v1/models/{versions.name}", flush=True)
    print(f"Page    http://{host}:{port}/", flush=True)
    _run(application, limits, listener)
    if not application.close(limits.request_timeout):
        _log.warning("ending, though requests are still worked on after their time is over")
        # Python would wait for their threads.
        os._exit(0)
    versions.close()
    watcher.join(limits.request_timeout)
    if watcher.is_alive():  # It is loading a version.
        os._exit(0)


def _require_loaded(versions: ModelVersions) -> None:
    try:
        states = versions.status()
    except RestError as error:
        raise ServableError(
            f"no version in {versions.base_dir}; expected {versions.base_dir}/1/saved_model.pb as "
            "python -m fmd_tf.export writes it"
        ) from error
    if all(state.error_message for state in states):
        raise ServableError(
            f"no version in {versions.base_dir} can be loaded: {states[0].error_message}"
        )


def _run(application: Application, limits: Limits, listener: socket.socket) -> None:
    """Run uvicorn until a signal; requests in flight get their time."""
    config = uvicorn.Config(
        application,
        lifespan="off",
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(limits.request_timeout) + 1,
    )
    # uvicorn raises the signal once more when it is done; it has no work left to do then.
    before = {
        number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
