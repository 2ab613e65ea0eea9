"""A TCP proxy that can be cut: what a server looks like when the network to it is gone."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class CutProxy:
    """Forwards to one server; `cut` drops every connection and takes no other until `mend`.

    `mute` swallows what clients say from then on; they still hear the server, which waits for them. It is to
    be cut before it is mended, since a part of what was said is missing.
    """

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self._open: set[asyncio.StreamWriter] = set()
        self._cut = False
        self._mute = False
        self.url = ""
        self.connections = 0
        """How many were taken so far."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[CutProxy]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        user = f"{self._target.username}:{self._target.password}@"
        self.url = self._target._replace(netloc=f"{user}127.0.0.1:{port}").geturl()
        try:
            yield self
        finally:
            server.close()
            self.cut()

    def cut(self) -> None:
        self._cut = True
        for writer in self._open:
            writer.transport.abort()

    def mend(self) -> None:
        self._cut = self._mute = False

    def mute(self) -> None:
        self._mute = True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._cut:
            writer.transport.abort()
            return
        self.connections += 1
        there_reader, there = await asyncio.open_connection(self._target.hostname, self._target.port)
        self._open |= {writer, there}
        await asyncio.gather(
            _pump(reader, there, lambda: self._mute), _pump(there_reader, writer, lambda: False)
        )
        self._open -= {writer, there}


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, muted: Callable[[], bool]
) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            if muted():
                continue
            writer.write(data)
            await writer.drain()
    writer.transport.abort()
