"""What stands between a client and a server, or in its place: a proxy that fails, a scripted broker."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import pamqp.frame
import pamqp.header
import pamqp.heartbeat
from pamqp import commands

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from pamqp.frame import FrameTypes

SECONDS = 20


async def until(condition: Callable[[], Any], seconds: float = SECONDS) -> None:
    """Waits until a condition holds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for knows nothing of its being tested
            await asyncio.sleep(0.005)


class Proxy:
    """Passes bytes between a client and the server of a URL, until it is told to fail."""

    def __init__(self, url: str, tls: ssl.SSLContext | None = None) -> None:
        self._target = urlsplit(url)
        self._tls = tls
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._passing = asyncio.Event()
        self._passing.set()
        self.cut_after: int | None = None  # bytes from the client, counted from when this is set
        self.connections = 0
        self.heartbeats = {"client": 0, "broker": 0}

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        port = self._server.sockets[0].getsockname()[1]
        login = self._target.netloc.rpartition("@")[0]
        scheme, host = ("amqps", "localhost") if self._tls else (self._target.scheme, "127.0.0.1")
        self.url = self._target._replace(scheme=scheme, netloc=f"{login}@{host}:{port}").geturl()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Breaks every connection."""
        for writer in self._writers:
            writer.transport.abort()

    def hold(self) -> None:
        """Passes nothing any more, and closes nothing either."""
        self._passing.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        ends = {writer}
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                back, forth = await asyncio.open_connection(self._target.hostname, self._target.port)
                ends.add(forth)
                self._writers |= ends
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pass("client", reader, forth, ends))
                    group.create_task(self._pass("broker", back, writer, ends))
        finally:
            self._writers -= ends
            for end in ends:
                end.transport.abort()

    async def _pass(
        self,
        side: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        ends: set[asyncio.StreamWriter],
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                await self._passing.wait()
                self.heartbeats[side] += data == pamqp.heartbeat.Heartbeat().marshal()
                if side == "client" and self.cut_after is not None:
                    self.cut_after -= len(data)
                    if self.cut_after < 0:
                        self.cut_after = None
                        break
                writer.write(data)
                await writer.drain()
        for end in ends:
            end.transport.abort()


class Peer:
    """One connection to a scripted broker, logged in, with its channel open."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.publishes: list[bytes] = []
        self.heartbeats = 0

    async def read(self) -> FrameTypes:
        """The next frame that is no heartbeat."""
        async with asyncio.timeout(SECONDS):
            while True:
                head = await self._reader.readexactly(7)
                rest = await self._reader.readexactly(int.from_bytes(head[3:7], "big") + 1)
                _, _, frame = pamqp.frame.unmarshal(head + rest)
                if not isinstance(frame, pamqp.heartbeat.Heartbeat):
                    return frame
                self.heartbeats += 1

    async def expect(self, name: str) -> Any:
        """The next frame, which is of this name."""
        frame = await self.read()
        assert frame.name == name
        return frame

    async def publish(self) -> bytes:
        """The body of the next publish."""
        await self.expect("Basic.Publish")
        header = await self.expect("ContentHeader")
        body = b""
        while len(body) < header.body_size:
            body += (await self.expect("ContentBody")).value
        self.publishes.append(body)
        return body

    def send(self, *frames: Any, channel: int = 1) -> None:
        """Sends frames."""
        self._writer.write(b"".join(pamqp.frame.marshal(frame, channel) for frame in frames))

    def send_bytes(self, data: bytes) -> None:
        """Sends whatever it is."""
        self._writer.write(data)

    def deliver(self, consumer: str, tag: int) -> None:
        """Delivers an empty message without properties."""
        self.send(commands.Basic.Deliver(consumer, tag, False, "x", "k"))
        self.send_bytes(b"\x02\x00\x01\x00\x00\x00\x0e\x00\x3c" + bytes(12) + b"\xce")

    async def welcome(
        self, frame_max: int, heartbeat: int, capabilities: dict[str, bool] | None = None
    ) -> None:
        """Does the broker's part of the handshake."""
        assert await self._reader.readexactly(8) == pamqp.header.ProtocolHeader().marshal()
        properties = {"capabilities": capabilities or {}}
        self.send(commands.Connection.Start(server_properties=properties, mechanisms="PLAIN"), channel=0)
        self.login = await self.expect("Connection.StartOk")
        self.send(commands.Connection.Tune(2047, frame_max, heartbeat), channel=0)
        self.tuned = await self.expect("Connection.TuneOk")
        await self.expect("Connection.Open")
        self.send(commands.Connection.OpenOk(), channel=0)
        await self.expect("Channel.Open")
        self.send(commands.Channel.OpenOk())

    async def welcome_publisher(self, frame_max: int = 131_072, heartbeat: int = 60) -> None:
        """The same, up to a channel with confirms."""
        await self.welcome(frame_max, heartbeat)
        await self.expect("Confirm.Select")
        self.send(commands.Confirm.SelectOk())

    async def welcome_consumer(self, capabilities: dict[str, bool] | None = None) -> None:
        """The same, up to a channel that is consumed."""
        await self.welcome(131_072, 60, capabilities)
        await self.expect("Basic.Qos")
        self.send(commands.Basic.QosOk())
        consume = await self.expect("Basic.Consume")
        self.send(commands.Basic.ConsumeOk(consume.consumer_tag))


class FakeBroker:
    """Listens; every connection is a `Peer` to be played by the test."""

    def __init__(self) -> None:
        self._peers: deque[Peer] = deque()
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"amqp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def peer(self) -> Peer:
        """The next connection."""
        await until(lambda: self._peers)
        return self._peers.popleft()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        self._peers.append(Peer(reader, writer))
