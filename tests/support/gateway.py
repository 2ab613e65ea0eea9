"""Gateways for the channel `webhook`.

One is as a program would write it, and one by hand, to break off at exact places.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
from collections import Counter
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from worker.channels.webhook.call import CallTimeouts
from worker.channels.webhook.gateway import Gateway
from worker.domain import standard_webhooks
from worker.domain.webhook_options import GatewayUrl, signing_keys
from worker.lifecycle import pause
from worker.web.server import WebServer, listen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from starlette.requests import Request

SECRET = "whsec_" + "c2VjcmV0" * 6
KEYS = signing_keys(SECRET)
BODY = b'{"to":"+41791234567","text":"Hello"}'

Reply = str | bytes
DROP_HEAD, DROP_BODY, HOLD, SILENT = "drop head", "drop body", "hold", "silent"
TRICKLE, FLOOD = "trickle", "flood"
"""Ends the connection behind the head, ends it behind the body, answers as soon as `release` is set, reads on
and says nothing; answers with a head that never ends, answers with a body that never ends."""


def answer(status: int, body: bytes = b"", *headers: str) -> bytes:
    """An answer as it goes over the wire."""
    lines = [f"HTTP/1.1 {status} Answer", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Early(bytes):
    """An answer to the head alone, whereupon the connection is closed."""

    __slots__ = ()


@dataclass
class Call:
    """A call that came whole."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def signed(self) -> bool:
        names = (standard_webhooks.ID, standard_webhooks.TIMESTAMP)
        call_id, timestamp = (self.headers[name] for name in names)
        given = self.headers[standard_webhooks.SIGNATURE]
        return standard_webhooks.is_signed(KEYS, call_id, timestamp, self.body, given)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Server:
    """Written by hand. It gives its replies in turn, the last one for ever."""

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies) or [answer(200)]
        self.calls: list[Call] = []
        self.heads = 0
        self.connections = 0
        self.release = asyncio.Event()
        self.port = 0
        self.busy = 0
        self.most_busy = 0
        self._writers: set[asyncio.StreamWriter] = set()

    async def called(self) -> bool:
        return bool(self.calls)

    async def asked(self) -> bool:
        """Whether a head came."""
        return bool(self.heads)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        self.busy += 1
        self.most_busy = max(self.busy, self.most_busy)
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                while await self._call(reader, writer):
                    pass
        finally:
            self.busy -= 1
            self._writers.discard(writer)
            writer.close()

    async def _call(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines)}
        self.heads += 1
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, Early) or reply == DROP_HEAD:
            if isinstance(reply, Early):
                writer.write(reply)
            return False
        body = await reader.readexactly(int(headers["content-length"]))
        self.calls.append(Call(first.split()[1], headers, body))
        if reply == DROP_BODY:
            writer.transport.abort()
            return False
        if reply == SILENT:
            await self.release.wait()
            return False
        if reply == TRICKLE:
            writer.write(b"HTTP/1.1 200 OK\r\nx: ")
            while not self.release.is_set():
                writer.write(b"x")
                await writer.drain()
                await pause(self.release, 0.02)
            return False
        if reply == FLOOD:
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            while not self.release.is_set():
                writer.write(b"y" * 65_536)
                await writer.drain()
            return False
        if reply == HOLD:
            await self.release.wait()
            reply = answer(200)
        assert isinstance(reply, bytes)
        writer.write(reply)
        await writer.drain()
        return b"content-length" in reply

    @asynccontextmanager
    async def running(self, context: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0, ssl=context)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self.release.set()
            server.close()
            for writer in list(self._writers):
                writer.transport.abort()


@asynccontextmanager
async def calling(
    server: Server,
    *,
    size: int = 2,
    seconds: float = 10,
    context: ssl.SSLContext | None = None,
    scheme: str = "http",
    **timeouts: float,
) -> AsyncIterator[Gateway]:
    """A client that calls a running server."""
    gateway = Gateway(
        GatewayUrl.parse(f"{scheme}://127.0.0.1:{server.port}/send?k=v"),
        size=size,
        timeouts=CallTimeouts(seconds, seconds, seconds)._replace(**timeouts),
        allow_private=True,
        context=context or ssl.create_default_context(),
    )
    try:
        yield gateway
    finally:
        await gateway.close()


@asynccontextmanager
async def running(*replies: Reply, **options: Any) -> AsyncIterator[tuple[Server, Gateway]]:
    """A server with a script, and a client that calls it."""
    async with Server(*replies).running() as server, calling(server, **options) as gateway:
        yield server, gateway


@dataclass
class Sms:
    """A gateway as a program would write it: it checks the signature, and drops what it has already."""

    answers: Callable[[Call], Response] = lambda _: JSONResponse({"id": "sms-1"})
    port: int = 0
    calls: list[Call] = field(default_factory=list)
    taken: dict[str, Any] = field(default_factory=dict)
    """What it sends, by the id of the call."""
    doubles: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/send"

    def to(self) -> Counter[str]:
        """How many messages each address gets."""
        return Counter(message["to"] for message in self.taken.values())

    async def take(self, request: Request) -> Response:
        call = Call(request.url.path, dict(request.headers), await request.body())
        self.calls.append(call)
        if not call.signed:
            return JSONResponse({"error": "not signed"}, 401)
        answer = self.answers(call)
        call_id = call.headers[standard_webhooks.ID]
        if answer.status_code < 300:
            self.doubles += call_id in self.taken
            self.taken.setdefault(call_id, call.json)
        return answer

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Sms]:
        app = Starlette(routes=[Route("/send", self.take, methods=["POST"])])
        server = WebServer("gateway", app, await listen("127.0.0.1", self.port, named="the test"))
        self.port = server.port
        stop = asyncio.Event()
        task = asyncio.create_task(server.run(stop))
        try:
            yield self
        finally:
            stop.set()
            await asyncio.wait_for(task, 20)


def certificate(folder: Path, name: str = "IP:127.0.0.1") -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A certificate that vouches for itself: how a server shows it, and how a client trusts it."""
    key, found = folder / "key.pem", folder / "cert.pem"
    make = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=gateway"
    )
    command = [*make.split(), "-addext", f"subjectAltName={name}", "-keyout", str(key), "-out", str(found)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    shown = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    shown.load_cert_chain(found, key)
    return shown, ssl.create_default_context(cafile=str(found))
