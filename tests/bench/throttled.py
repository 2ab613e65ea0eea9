"""The rate of a fast provider's messages: alone, beside one that refuses, and beside one that is slow.

    python3 dev/servers.py run -- .venv/bin/python -m tests.bench.throttled

A relay of our own passes on what three domains say: `fast.example` takes each message after a fifth of a
second, `busy.example` refuses all for their number, `slow.example` takes two seconds for each. The audiences
are mixed half and half. Connections bound the rate, not processors, so that another process on the machine
changes little; the three take turns all the same.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import uvloop
from rich.console import Console
from rich.table import Table

from tests.bench.installation import DELIVERY, SECONDS, Installation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CONNECTIONS = 10
FAST, BUSY, SLOW = "fast.example", "busy.example", "slow.example"
TAKES = {FAST: 0.2, SLOW: 2.0}
"""Seconds from the end of a message to its answer."""
REFUSAL = b"450 4.7.1 too many messages, try later\r\n"
GOAL = 0.95


class Relay:
    """Answers for the domains."""

    def __init__(self, expected: int) -> None:
        self.times: list[float] = []
        """When each message to the fast domain was taken."""
        self.refused = 0
        self.done = asyncio.Event()
        """Set when as many were taken as expected."""
        self._expected = expected

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        """Yields the port."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(b"220 ready\r\n")
            domain = ""
            while line := await reader.readline():
                verb = line[:4].upper()
                answer = b"250 2.0.0 Ok\r\n"
                if verb == b"RCPT":
                    domain = line.decode().partition(">")[0].rpartition("@")[2]
                    if domain == BUSY:
                        self.refused += 1
                        answer = REFUSAL
                elif verb == b"DATA":
                    writer.write(b"354 go ahead\r\n")
                    await reader.readuntil(b"\r\n.\r\n")
                    await asyncio.sleep(TAKES[domain])
                    self._taken(domain)
                elif verb == b"QUIT":
                    return
                writer.write(answer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _taken(self, domain: str) -> None:
        if domain == FAST:
            self.times.append(asyncio.get_running_loop().time())
            if len(self.times) == self._expected:
                self.done.set()


async def rate(installation: Installation, count: int, other: str | None) -> float:
    """Returns the messages a second that the fast domain took of a delivery with so many for it."""
    domains = (FAST, other) if other else (FAST,)
    relay = Relay(count)
    async with relay.listening() as port:
        settings = {
            "SENDOFF_SMTP_URL": f"smtp://127.0.0.1:{port}",
            "SENDOFF_SMTP_CONNECTIONS": str(CONNECTIONS),
        }
        recipients = count * len(domains)
        running = installation.running("email", recipients, settings=settings, domains=domains)
        async with running, asyncio.timeout(SECONDS):
            relay.times.clear()  # that of the warm-up
            await installation.confirm(DELIVERY)
            await relay.done.wait()
        await installation.purge("email")  # what the other domain did not take
    return (count - 1) / (relay.times[-1] - relay.times[0])


async def measure(count: int, rounds: int) -> dict[str, list[float]]:
    """Returns the rates by what is beside the fast domain."""
    cases = {"alone": None, "beside one that refuses": BUSY, "beside one that is slow": SLOW}
    rates: dict[str, list[float]] = {name: [] for name in cases}
    async with Installation.open() as installation:
        for _ in range(rounds):
            for name, other in cases.items():
                rates[name].append(await rate(installation, count, other))
    return rates


def main() -> None:
    """Reads how much to measure, and prints it."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.throttled", description=__doc__.splitlines()[0]
    )  # type: ignore[union-attr]
    parser.add_argument("--messages", type=int, default=800, help="to the fast domain, in each run")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rates = uvloop.run(measure(options.messages, options.rounds))
    alone = statistics.median(rates["alone"])
    table = Table("the fast domain", "messages/s, median", "least to most", "of alone", box=None)
    for name, found in rates.items():
        middle = statistics.median(found)
        share = f"{middle / alone:.3f}"
        table.add_row(name, f"{middle:.1f}", f"{min(found):.1f} – {max(found):.1f}", share)
    console = Console(width=120)
    console.print(table)
    refused = statistics.median(rates["beside one that refuses"]) / alone
    console.print(f"Beside one that refuses: {refused:.3f} of alone; the goal is {GOAL} at least.")


if __name__ == "__main__":
    main()
