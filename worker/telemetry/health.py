"""Health and metrics over HTTP, from a thread beside the event loop, so that it can report a blocked loop.

`/health/live` fails when the loop is blocked. `/health/ready` fails when a part cannot work now. `/metrics`
is Prometheus's text format, and answers even when the loop is blocked.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final
from wsgiref.simple_server import WSGIRequestHandler, make_server

import structlog
from prometheus_client.exposition import ThreadingWSGIServer, make_wsgi_app

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterable
    from wsgiref.types import StartResponse, WSGIEnvironment

    from prometheus_client import CollectorRegistry

log = structlog.get_logger(__name__)

PART_SECONDS: Final = 2.0
"""Seconds that one part may take to answer."""
_LOOP_SECONDS: Final = 2.0
_CLIENT_SECONDS: Final = 5

Probe = Callable[[], Awaitable[str]]
"""Returns what is wrong with a part, as a sentence; empty if nothing is wrong."""


class HealthUnavailable(Exception):
    """We cannot listen on the address."""


class Health:
    """Answers the HTTP requests. The probes run on the event loop, all at the same time."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, registry: CollectorRegistry, probes: Mapping[str, Probe]
    ) -> None:
        self._loop = loop
        self._metrics = make_wsgi_app(registry)
        self._probes = probes

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answers one request, in a thread of its own."""
        path = environ["PATH_INFO"]
        if path == "/metrics":
            answer: Iterable[bytes] = self._metrics(environ, start_response)
            return answer
        questions = {"/health/live": self._live, "/health/ready": self._ready}
        if path not in questions:
            return _answer(start_response, "404 Not Found", {"paths": ["/metrics", *questions]})
        parts = self._on_loop(questions[path]())
        well = not any(parts.values())
        return _answer(
            start_response,
            "200 OK" if well else "503 Service Unavailable",
            {"ok": well, "parts": {name: fault or "ok" for name, fault in parts.items()}},
        )

    def _on_loop(self, question: Coroutine[Any, Any, dict[str, str]]) -> dict[str, str]:
        asked = asyncio.run_coroutine_threadsafe(question, self._loop)
        try:
            return asked.result(_LOOP_SECONDS + PART_SECONDS)
        except TimeoutError:
            asked.cancel()
            return {"loop": f"The event loop has not turned for {_LOOP_SECONDS + PART_SECONDS:g} s."}

    async def _live(self) -> dict[str, str]:
        return {"loop": ""}

    async def _ready(self) -> dict[str, str]:
        faults = await asyncio.gather(*(_ask(probe) for probe in self._probes.values()))
        return dict(zip(self._probes, faults, strict=True))


@asynccontextmanager
async def serving(
    host: str, port: int, registry: CollectorRegistry, probes: Mapping[str, Probe]
) -> AsyncIterator[int]:
    """Serves while the block runs.

    Args:
        host: The address to listen on; one with a colon is IPv6.
        port: 0 picks a free one.
        registry: What `/metrics` shows.
        probes: What `/health/ready` asks, by the names of the parts.

    Yields:
        The port.

    Raises:
        HealthUnavailable: the address is in use, or is not this machine's.
    """
    health = Health(asyncio.get_running_loop(), registry, probes)
    kind = _Server6 if ":" in host else _Server
    try:
        # In a thread, since it looks up its own host name.
        server = await asyncio.to_thread(make_server, host, port, health, kind, _Handler)
    except OSError as error:
        raise HealthUnavailable(
            f"SENDOFF_HTTP_HOST and SENDOFF_HTTP_PORT: {host}:{port} cannot be listened on: {error.strerror}."
        ) from error
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="health", daemon=True)
    thread.start()
    log.info("health and metrics are served", host=host, port=server.server_port)
    try:
        yield server.server_port
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()


async def _ask(probe: Probe) -> str:
    try:
        async with asyncio.timeout(PART_SECONDS):
            return await probe()
    except TimeoutError:
        return f"It has not answered within {PART_SECONDS:g} s."
    except Exception as error:  # noqa: BLE001 - the error of a probe is the answer
        return f"It cannot be asked: {error!r}."


def _answer(start_response: StartResponse, status: str, body: dict[str, Any]) -> list[bytes]:
    raw = json.dumps(body, ensure_ascii=False).encode() + b"\n"
    headers = [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(raw))),
        ("Cache-Control", "no-store"),
    ]
    start_response(status, headers)
    return [raw]


class _Server(ThreadingWSGIServer):
    def handle_error(self, *_: object) -> None:
        """Logs nothing about a client that closed or stalled its connection."""


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = _CLIENT_SECONDS

    def log_message(self, *_: object) -> None:
        """Logs nothing: probes ask every few seconds."""
