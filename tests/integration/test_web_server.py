"""The server under all that is served over HTTP: its limits, its stop, and an address that is taken."""

from __future__ import annotations

import asyncio
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from worker.lifecycle import ServiceDied, run_services
from worker.web.server import AddressUnavailable, WebLimits, WebServer, listen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

SECONDS = 20
PART = b"GET / HTTP/1.1\r\nhost: a\r\n"


class Site:
    """Two pages: one answers with the length of the body, one waits until it is let go."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.let_go = asyncio.Event()
        self.stop = asyncio.Event()
        self.port = 0
        self.app = Starlette(
            routes=[Route("/", self._length, methods=["GET", "POST"]), Route("/wait", self._wait)]
        )

    async def _length(self, request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await request.body())))

    async def _wait(self, _: Request) -> PlainTextResponse:
        self.asked.set()
        await self.let_go.wait()
        return PlainTextResponse("gone")

    @asynccontextmanager
    async def served(self, limits: WebLimits, *, grace: float = SECONDS) -> AsyncIterator[asyncio.Task[None]]:
        server = WebServer("site", self.app, await listen("127.0.0.1", 0, named="SITE"), limits)
        self.port = server.port
        running = asyncio.create_task(run_services([server], self.stop, grace=grace))
        try:
            yield running
        finally:
            self.stop.set()
            await asyncio.wait([running], timeout=SECONDS)
            assert running.done()

    async def ask(self, *parts: bytes) -> bytes:
        """Sends the parts and returns all that comes until the server closes the connection."""
        async with asyncio.timeout(SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                for part in parts:
                    writer.write(part)
                    await writer.drain()
                return await reader.read()
            except ConnectionResetError:
                return b""
            finally:
                writer.close()


@pytest.fixture
async def site() -> Site:
    return Site()


def post(length: int, body: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s" % (length, body)


async def test_a_body_up_to_the_limit_is_read_and_one_beyond_it_is_not(site: Site) -> None:
    async with site.served(WebLimits(body=10)):
        assert (await site.ask(post(10, b"x" * 10))).endswith(b"\r\n\r\n10")
        assert b" 413 " in await site.ask(post(11, b"x" * 11))


async def test_a_body_that_does_not_say_its_length_is_cut_at_the_limit(site: Site) -> None:
    async with site.served(WebLimits(body=10)):
        head = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
        assert b" 413 " in await site.ask(head, b"8\r\n12345678\r\n8\r\n12345678\r\n")


async def test_a_body_that_does_not_come_is_given_up(site: Site) -> None:
    async with site.served(WebLimits(idle=0.2)):
        assert b" 408 " in await site.ask(post(10, b"x"))


async def test_a_head_without_end_is_refused(site: Site) -> None:
    async with site.served(WebLimits()):
        assert b" 431 " in await site.ask((PART + b"x: ").ljust(32_769, b"y"))


async def test_silent_connections_are_closed(site: Site) -> None:
    async with site.served(WebLimits(idle=0.2)):
        assert await site.ask() == b""
        assert await site.ask(PART) == b""
        assert b" 200 " in await site.ask(PART + b"\r\n")
        assert b" 200 " in await site.ask(PART + b"\r\n" + PART)


async def test_what_is_no_http_is_refused_and_the_server_goes_on(site: Site) -> None:
    async with site.served(WebLimits(idle=0.2)):
        assert b" 400 " in await site.ask(b"\x16\x03\x01\x00\xff rubbish\r\n\r\n")
        answer = await site.ask(PART + b"connection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"server:" not in answer.lower()


async def test_more_connections_than_the_limit_get_503(site: Site) -> None:
    async with site.served(WebLimits(connections=2)):
        waiting = asyncio.create_task(site.ask(b"GET /wait HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"))
        await asyncio.wait_for(site.asked.wait(), SECONDS)
        assert b" 503 " in await site.ask(PART + b"connection: close\r\n\r\n")
        site.let_go.set()
        assert b" 200 " in await waiting


async def test_the_stop_lets_open_requests_finish_and_leaves_the_signals_alone(site: Site) -> None:
    before = signal.getsignal(signal.SIGTERM)
    async with site.served(WebLimits()) as running:
        waiting = asyncio.create_task(site.ask(b"GET /wait HTTP/1.1\r\nhost: a\r\n\r\n"))
        await asyncio.wait_for(site.asked.wait(), SECONDS)
        assert signal.getsignal(signal.SIGTERM) == before
        site.stop.set()
        site.let_go.set()
        assert b" 200 " in await waiting
        await asyncio.wait_for(running, SECONDS)


async def test_a_request_that_takes_longer_than_the_grace_is_cut_off(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    async with site.served(WebLimits(grace=0.2)) as running:
        waiting = asyncio.create_task(site.ask(b"GET /wait HTTP/1.1\r\nhost: a\r\n\r\n"))
        await asyncio.wait_for(site.asked.wait(), SECONDS)
        site.stop.set()
        await asyncio.wait_for(running, SECONDS)
        assert b" 200 " not in await waiting
    assert "Cancel 1 running task" in caplog.text


async def test_an_address_that_is_taken_is_a_sentence_with_the_settings() -> None:
    taken = await listen("127.0.0.1", 0, named="A_PORT")
    with taken, pytest.raises(AddressUnavailable, match=r"^A_PORT: 127\.0\.0\.1:\d+ cannot .* in use\.$"):
        await listen("127.0.0.1", taken.getsockname()[1], named="A_PORT")
    with pytest.raises(AddressUnavailable, match=r"^A_HOST: no\.such\.host\.invalid:0 cannot"):
        await listen("no.such.host.invalid", 0, named="A_HOST")


async def test_a_server_that_cannot_serve_stops_the_process(site: Site) -> None:
    listening = await listen("127.0.0.1", 0, named="SITE")
    server = WebServer("site", site.app, listening, WebLimits())
    listening.close()
    with pytest.raises(ServiceDied, match="site"):
        await asyncio.wait_for(run_services([server], site.stop, grace=SECONDS), SECONDS)
