"""Clicks on one tracker process: as many as it answers, and how long an answer takes at half of the goal.

Each click is answered after its event is with the broker, or on the disk where the broker is away. The second
case is that: the tracker has read the delivery, and then both broker and database go.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from contracts.routing import TRACKING_QUEUE, Names
from tests.bench.installation import SECONDS, free_port, opened
from tests.bench.machine import Case, CaseFailed, Measured
from tests.bench.tracker_links import BASE, KEYS, RECIPIENTS
from tests.support.proxy import CutProxy
from worker.db.migrate import migrate
from worker.operations import prepare as preparing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.bench.installation import Installation

THERE = "tracker, one process"
AWAY = "tracker, one process, broker and database away"
RATE = "clicks/s"
P99 = "p99 at 1,500/s, ms"
GOAL = 3_000
"""Clicks a second of one process."""
GOALS = {RATE: {"least": GOAL}, P99: {"most": 20}}

_DELIVERY = """
label = "Bench"
channel = "email"
[tracking]
opens = true
clicks = true
[email]
from = "News <news@example.org>"
subject = "Hello"
html = '<p><a href="https://example.org/article/1?of=27">Read</a></p>'
"""


def cases(installation: Installation, *, clicks: int, rounds: int) -> list[Case]:
    """Returns both cases, of so many clicks as fast as it goes, and as many at half of the goal."""
    return [
        Case("tracker", THERE, partial(measure, installation, clicks, away=False), rounds),
        Case("tracker", AWAY, partial(measure, installation, clicks, away=True), rounds),
    ]


async def measure(installation: Installation, clicks: int, *, away: bool) -> Measured:
    """Runs a tracker, and a process that clicks."""
    async with _tracker(installation, away=away) as port:
        fast = await _click(port, clicks, 0)
        steady = await _click(port, clicks, GOAL / 2)
    return Measured(figures={RATE: fast["rate"], "p50 at 1,500/s, ms": steady["p50"], P99: steady["p99"]})


@asynccontextmanager
async def _tracker(installation: Installation, *, away: bool) -> AsyncIterator[int]:
    """Yields the port of a tracker that has read its delivery; its events are thrown away in the end."""
    template = await installation.template("tracked", partial(_prepare, installation))
    settings = installation.settings
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(installation.cloned(template))
        database = await stack.enter_async_context(CutProxy(url).running())
        broker = await stack.enter_async_context(CutProxy(settings.amqp_url).running())
        port = free_port()
        variables = {
            "SENDOFF_DATABASE_URL": url,
            "SENDOFF_TRACKER_URL": BASE,
            "SENDOFF_TRACKER_KEYS": KEYS,
            "SENDOFF_TRACKER_PORT": str(port),
            "SENDOFF_TRACKER_SPOOL": stack.enter_context(tempfile.TemporaryDirectory()),
        }
        async with installation.services(variables, [("confirm", ["confirm"])]):
            await installation.confirm(1)
        if away:
            variables |= {"SENDOFF_DATABASE_URL": database.url, "SENDOFF_AMQP_URL": broker.url}
        stack.push_async_callback(_purge, installation)
        await stack.enter_async_context(installation.services(variables, [("tracker", ["tracker"])]))
        await _click(port, 1_000, 0)
        if away:
            database.cut()
            broker.cut()
        yield port


async def _prepare(installation: Installation, url: str) -> None:
    await migrate(url, timeout=installation.settings.connect_timeout)
    file, csv = installation.folder / "tracked.toml", installation.folder / "tracked.csv"
    await asyncio.to_thread(file.write_text, _DELIVERY)
    addresses = "".join(f"user{number}@mail.example.org\n" for number in range(RECIPIENTS))
    await asyncio.to_thread(csv.write_text, f"address\n{addresses}")
    async with opened(url) as db:
        async with db.transaction() as tx:
            await tx.execute("add_operator", name="ana")
            await tx.execute("grant_role", name="ana", role="start_deliveries")
        channels = installation.settings.channels
        await preparing.prepare(
            db, preparing.PreparationRequest(file, csv, "ana", None, channels, tracker=True)
        )


async def _click(port: int, clicks: int, rate: float) -> dict[str, float]:
    command = (sys.executable, "-m", "tests.bench.tracker_client", str(port), str(clicks), str(rate))
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    said, _ = await asyncio.wait_for(process.communicate(), SECONDS)
    if process.returncode:
        raise CaseFailed("The process that clicks failed; a line above says why.")
    figures: dict[str, float] = json.loads(said)
    return figures


async def _purge(installation: Installation) -> None:
    async with await installation.connection.channel() as channel:
        name = Names(installation.settings.queue_prefix).queue(TRACKING_QUEUE)
        await (await channel.get_queue(name, ensure=False)).purge()
