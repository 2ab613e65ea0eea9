"""Runs an ASGI application as a service of the process, with uvicorn.

uvicorn parses and answers HTTP. Here it gets our start and stop, and the limits that it lacks with its fast
parser: on the head of a request, on the body, and on clients that open a connection and are silent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import structlog
import uvicorn
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = structlog.get_logger(__name__)

_HEAD_BYTES: Final = 32_768
"""The most that a request line and headers may take. Browsers send up to 16 KiB of cookies."""
_HEAD_REFUSED: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
)


class AddressUnavailable(Exception):
    """We cannot listen on the address; the message names the settings."""


@dataclass(frozen=True, slots=True)
class WebLimits:
    """What clients may ask of a server.

    Attributes:
        body: Bytes of a request's body.
        connections: Connections at once; more are answered with 503.
        idle: Seconds until a connection is closed that asks nothing, or a body that does not come is given
            up.
        grace: Seconds that open requests may take after the stop. Then they are cut off.
    """

    body: int = 65_536
    connections: int = 1_000
    idle: float = 10
    grace: float = 5


async def listen(host: str, port: int, *, named: str, shared: bool = False) -> socket.socket:
    """Opens a socket to listen on. Connections wait in it until a server takes them.

    Args:
        host: The address, or a name of this machine; one with a colon is IPv6.
        port: 0 picks a free one.
        named: The settings that the address comes from, for the message.
        shared: Whether further processes of this user may listen there too. The system shares the connections
            out between them (SO_REUSEPORT).

    Raises:
        AddressUnavailable: the address is in use, or is not this machine's.
    """
    try:
        # In a thread, since it may look up a name.
        return await asyncio.to_thread(
            socket.create_server,
            (host, port),
            family=socket.AF_INET6 if ":" in host else socket.AF_INET,
            backlog=2_048,
            reuse_port=shared and hasattr(socket, "SO_REUSEPORT"),
        )
    except OSError as error:
        raise _unavailable(named, host, port, error) from error


async def check_address(host: str, port: int, *, named: str) -> None:
    """Checks that a process could listen at an address, alone or beside others of this user; takes nothing.

    Raises:
        AddressUnavailable: the address is in use by another user or program, or is not this machine's.
    """

    def bind() -> None:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if hasattr(socket, "SO_REUSEPORT"):
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            # Without listening: a process that runs there must lose no connection to us.
            tried.bind((host, port))

    try:
        await asyncio.to_thread(bind)
    except OSError as error:
        raise _unavailable(named, host, port, error) from error


def _unavailable(named: str, host: str, port: int, error: OSError) -> AddressUnavailable:
    # The error of a bind tells the address once more; one of a name has no number of the system's.
    known = error.errno is not None and error.errno > 0
    why = os.strerror(error.errno) if known else error.strerror  # type: ignore[arg-type]
    return AddressUnavailable(f"{named}: {host}:{port} cannot be listened on: {why}.")


class WebServer:
    """A service that serves one ASGI application on one socket."""

    def __init__(self, name: str, app: ASGIApp, on: socket.socket, limits: WebLimits | None = None) -> None:
        """Takes what to serve and where.

        Args:
            name: The service's name, for logs.
            app: The application. Its bodies are limited; it need not look.
            on: Where it listens, of `listen`. The server closes it.
            limits: What clients may ask.
        """
        self.name = name
        limits = limits or WebLimits()
        self.port: int = on.getsockname()[1]
        self._socket = on
        self._server = _Server(
            uvicorn.Config(
                LimitedBody(app, size=limits.body, seconds=limits.idle),
                http=_protocol(limits.idle),
                ws="none",
                loop="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                # The application decides which proxy it believes about the client's address.
                proxy_headers=False,
                limit_concurrency=limits.connections,
                timeout_keep_alive=round(limits.idle),
                timeout_graceful_shutdown=limits.grace,  # type: ignore[arg-type] # handed to wait_for
            )
        )
        # Its warnings are of requests that are no HTTP. Everybody on the internet could fill the log so.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until `stop`, then finishes the open requests."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.serve())
            await stop.wait()
            self.end()

    async def serve(self) -> None:
        """Serves until `end`."""
        await self._server.serve(sockets=[self._socket])

    def end(self) -> None:
        """Asks the server to finish its open requests and to end; any thread may call it."""
        self._server.should_exit = True


class LimitedBody:
    """Refuses bodies that are too long (413) or do not come (408), before they are in memory."""

    def __init__(self, app: ASGIApp, *, size: int, seconds: float) -> None:
        """Takes the application, the most bytes of a body, and how long its next part may take."""
        self._app = app
        self._size = size
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on."""
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if int(announced) > self._size:
            refusal = PlainTextResponse(
                "The body is too long.", status_code=413, headers={"connection": "close"}
            )
            await refusal(scope, receive, send)
            return
        read, whole = 0, False
        started = False

        async def noticed(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        async def limited() -> Message:
            nonlocal read, whole
            if whole:  # the next message is that the client has gone, which may be hours later
                return await receive()
            try:
                async with asyncio.timeout(self._seconds):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, headers={"connection": "close"}) from None
            read += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if read > self._size:
                raise HTTPException(413, headers={"connection": "close"})
            return message

        try:
            await self._app(scope, limited, noticed)
        except HTTPException as refused:  # of an application without Starlette, which answers it itself
            if started:
                raise
            refusal = PlainTextResponse(refused.detail, refused.status_code, refused.headers)
            await refusal(scope, receive, send)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves the signals to the process."""
        yield


def _protocol(idle: float) -> type[HttpToolsProtocol]:
    """Returns uvicorn's protocol with a limit on heads, and without silent connections."""

    class Limited(HttpToolsProtocol):
        def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - passed on
            super().__init__(*args, **options)
            self._head = 0
            self._seen: object = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.loop.call_later(idle, self._look)

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            in_body = before is not None and before.more_body
            super().data_received(data)
            if self.cycle is not before:
                self._head = 0
            elif not in_body:
                self._head += len(data)
                if self._head > _HEAD_BYTES and not self.transport.is_closing():
                    self.transport.write(_HEAD_REFUSED)
                    self.transport.close()

        def _look(self) -> None:
            """Closes the connection if nothing was asked, answered or read since the last look."""
            if self.parser is None:
                return  # it is lost
            now = (self.cycle, self.transport.get_write_buffer_size())
            open_request = self.cycle is not None and not self.cycle.response_complete
            if now == self._seen and not open_request:
                self.transport.abort()
                return
            self._seen = now
            self.loop.call_later(idle, self._look)

    return Limited
