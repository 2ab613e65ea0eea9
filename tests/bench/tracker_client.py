"""People who click, for the bench of the tracker: as fast as they are answered, or so many a second.

A process of its own, so that it takes none of the tracker's time. It prints what it saw as JSON. At a fixed
rate a click's time counts from the moment at which it was due: a tracker that stalls is late for all of them.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, cast

import uvloop

from tests.bench.tracker_links import LINKS, RECIPIENTS

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 120
CONNECTIONS = 64
_END = b"\r\n\r\n"


class Reader(asyncio.Protocol):
    """One kept connection, with one click at a time."""

    def __init__(self, answered: Callable[[Reader, bytes], None]) -> None:
        self._answered = answered
        self._transport: asyncio.Transport
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def click(self, request: bytes) -> None:
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._head += data
        if _END in self._head:  # a redirect has no body
            head, self._head = self._head, b""
            self._answered(self, head)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - it is asyncio's
        self._answered(self, b"")


class Crowd:
    """All readers, and what they saw."""

    def __init__(self, requests: list[bytes]) -> None:
        self._requests = requests
        self._next = 0
        self._due: dict[Reader, float] = {}
        self._free: deque[Reader] = deque()
        self._late: deque[float] = deque()
        self._wanted = 0
        self._over = asyncio.Event()
        self._greedy = True
        self.delays: list[float] = []

    async def connect(self, port: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(CONNECTIONS):
            _, reader = await loop.create_connection(lambda: Reader(self._answered), "127.0.0.1", port)
            self._free.append(reader)

    async def click(self, count: int, rate: float) -> float:
        """Clicks so often, at a rate, or at 0 as fast as it goes; returns the seconds that it took."""
        self.delays = []
        self._wanted = count
        self._greedy = not rate
        self._over.clear()
        started = time.perf_counter()
        if self._greedy:
            for _ in range(min(count, len(self._free))):
                self._send(self._free.popleft(), time.perf_counter())
        else:
            await self._at(rate, count, started)
        await asyncio.wait_for(self._over.wait(), SECONDS)
        return time.perf_counter() - started

    async def _at(self, rate: float, count: int, started: float) -> None:
        sent = 0
        while sent < count:
            now = time.perf_counter()
            while sent < count and started + sent / rate <= now:
                due = started + sent / rate
                if self._free:
                    self._send(self._free.popleft(), due)
                else:
                    self._late.append(due)
                sent += 1
            await asyncio.sleep(max(0.0, started + sent / rate - time.perf_counter()))

    def _send(self, reader: Reader, due: float) -> None:
        self._due[reader] = due
        reader.click(self._requests[self._next % len(self._requests)])
        self._next += 1

    def _answered(self, reader: Reader, head: bytes) -> None:
        if not head.startswith(b"HTTP/1.1 302 "):
            raise SystemExit(f"A click was answered with {head[:80]!r}.")
        now = time.perf_counter()
        self.delays.append(now - self._due.pop(reader))
        if self._late:
            self._send(reader, self._late.popleft())
        elif self._greedy and len(self.delays) + len(self._due) < self._wanted:
            self._send(reader, now)
        else:
            self._free.append(reader)
        if len(self.delays) == self._wanted:
            self._over.set()


async def main(port: int, count: int, rate: float) -> None:
    """Clicks and prints the figures."""
    urls = [LINKS.clicks(1, recipient, [1])[0] for recipient in range(1, RECIPIENTS + 1)]
    agent = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
    rest = f" HTTP/1.1\r\nhost: t\r\nuser-agent: {agent}\r\naccept: */*\r\n\r\n"
    requests = [f"GET /{url.split('/', 3)[3]}{rest}".encode() for url in urls]
    crowd = Crowd(requests)
    await crowd.connect(port)
    await crowd.click(min(count, 2 * CONNECTIONS), 0)
    seconds = await crowd.click(count, rate)
    centiles = statistics.quantiles([1000 * delay for delay in crowd.delays], n=100)
    print(json.dumps({"rate": count / seconds, "p50": centiles[49], "p99": centiles[98]}))  # noqa: T201


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
