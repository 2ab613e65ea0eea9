"""Health and metrics over HTTP, from a thread beside the event loop, so that it can report a blocked loop.

`/health/live` fails when the loop is blocked. `/health/ready` fails when a part cannot work now. `/metrics`
is Prometheus's text format, and answers even when the loop is blocked.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import structlog
from prometheus_client import make_asgi_app
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from worker.web.server import WebLimits, WebServer, listen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from prometheus_client import CollectorRegistry
    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

log = structlog.get_logger(__name__)

PART_SECONDS: Final = 2.0
"""Seconds that one part may take to answer."""
_LOOP_SECONDS: Final = 2.0
_LIMITS: Final = WebLimits(body=0, connections=100, idle=5, grace=1)

Probe = Callable[[], Awaitable[str]]
"""Returns what is wrong with a part, as a sentence; empty if nothing is wrong."""


def health_app(
    loop: asyncio.AbstractEventLoop, registry: CollectorRegistry, probes: Mapping[str, Probe]
) -> ASGIApp:
    """Returns the application, which runs in another thread than the loop that the probes run on.

    Args:
        loop: The event loop of the services.
        registry: What `/metrics` shows.
        probes: What `/health/ready` asks, all at the same time.
    """

    async def live() -> dict[str, str]:
        return {"loop": ""}

    async def ready() -> dict[str, str]:
        faults = await asyncio.gather(*(_ask(probe) for probe in probes.values()))
        return dict(zip(probes, faults, strict=True))

    async def on_loop(question: Coroutine[Any, Any, dict[str, str]]) -> Response:
        asked = asyncio.run_coroutine_threadsafe(question, loop)
        try:
            parts = await asyncio.wait_for(asyncio.wrap_future(asked), _LOOP_SECONDS + PART_SECONDS)
        except TimeoutError:
            parts = {"loop": f"The event loop has not turned for {_LOOP_SECONDS + PART_SECONDS:g} s."}
        well = not any(parts.values())
        told = {"ok": well, "parts": {name: fault or "ok" for name, fault in parts.items()}}
        return _answer(200 if well else 503, told)

    async def answer_live(_: Request) -> Response:
        return await on_loop(live())

    async def answer_ready(_: Request) -> Response:
        return await on_loop(ready())

    async def absent(_: Request, __: Exception) -> Response:
        return _answer(404, {"paths": [route.path for route in routes]})

    routes = [
        Route("/metrics", _Metrics(registry)),
        Route("/health/live", answer_live),
        Route("/health/ready", answer_ready),
    ]
    return Starlette(routes=routes, exception_handlers={404: absent})


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
        AddressUnavailable: the address is in use, or is not this machine's.
    """
    listening = await listen(host, port, named="SENDOFF_HTTP_HOST and SENDOFF_HTTP_PORT")
    app = health_app(asyncio.get_running_loop(), registry, probes)
    server = WebServer("health", app, listening, _LIMITS)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), name="health", daemon=True)
    thread.start()
    log.info("health and metrics are served", host=host, port=server.port)
    try:
        yield server.port
    finally:
        server.end()
        await asyncio.to_thread(thread.join)


async def _ask(probe: Probe) -> str:
    try:
        async with asyncio.timeout(PART_SECONDS):
            return await probe()
    except TimeoutError:
        return f"It has not answered within {PART_SECONDS:g} s."
    except Exception as error:  # noqa: BLE001 - the error of a probe is the answer
        return f"It cannot be asked: {error!r}."


def _answer(status: int, body: dict[str, Any]) -> Response:
    raw = json.dumps(body, ensure_ascii=False).encode() + b"\n"
    return Response(raw, status, {"cache-control": "no-store"}, "application/json")


class _Metrics:
    """The library's application, as an object: a route calls a function with a request, and an object so."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._app = make_asgi_app(registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)
