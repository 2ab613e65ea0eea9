"""A tracker is killed among many clicks: every click that was answered is recorded, once."""

from __future__ import annotations

import asyncio
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from tests.support.processes import worker
from tests.support.proxy import CutProxy
from tests.support.stack import until
from tests.support.tracker import BASE, KEY, prepare_tracked, tracked

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.stack import Stack
    from worker.settings import Settings

from worker.domain.keys import read_keys
from worker.domain.links import Keys, Links

READERS = 20
ANSWERED = 400


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return tracked(settings, tmp_path / "spool")


class Readers:
    """People who click again and again, each click with a name of its own, until nobody answers."""

    def __init__(self, port: int, path: str) -> None:
        self._port = port
        self._path = path
        self.answered: set[str] = set()

    async def click(self, reader: int) -> None:
        answers, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            for number in range(100_000):
                name = f"reader {reader} {number}"
                writer.write(f"GET {self._path} HTTP/1.1\r\nhost: t\r\nuser-agent: {name}\r\n\r\n".encode())
                head = await answers.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 302 ")
                self.answered.add(name)
        except (OSError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    async def reached(self, count: int) -> None:
        async def enough() -> bool:
            return len(self.answered) >= count

        await until(enough)


async def listening(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


@pytest.mark.parametrize("away", [False, True], ids=["with the broker", "without the broker"])
async def test_a_killed_tracker_loses_no_click_that_it_answered(stack: Stack, *, away: bool) -> None:
    number = await prepare_tracked(stack)
    async with stack.running("confirm"):
        await stack.confirm(number)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (url,) = Links(BASE, Keys(read_keys(KEY))).clicks(number, 1, [1])
    readers = Readers(port, url.removeprefix("https://track.example.org"))
    env = {
        "TRACKER_URL": BASE,
        "TRACKER_KEYS": KEY,
        "TRACKER_PORT": port,
        "TRACKER_SPOOL": stack.settings.tracker_spool,
    }
    async with CutProxy(stack.settings.amqp_url).running() as proxy, asyncio.TaskGroup() as group:
        with worker(stack.settings, "tracker", AMQP_URL=proxy.url, **env) as victim:
            await until(lambda: listening(port))
            for reader in range(READERS):
                group.create_task(readers.click(reader))
            await readers.reached(ANSWERED)
            if away:
                proxy.cut()
                await readers.reached(2 * ANSWERED)
            victim.send_signal(signal.SIGKILL)
            victim.wait()

    with worker(stack.settings, "tracker", **env):
        async with stack.running("tracking"):

            async def all_recorded() -> bool:
                rows = await stack.rows("SELECT user_agent FROM sendoff.tracking_log")
                return readers.answered <= {row["user_agent"] for row in rows}

            await until(all_recorded)
    (row,) = await stack.rows(
        "SELECT count(*) AS all, count(DISTINCT user_agent) AS names FROM sendoff.tracking_log"
    )
    assert row["all"] == row["names"] <= len(readers.answered) + READERS
    assert (await stack.deployment(number))["clicked"] == 1
