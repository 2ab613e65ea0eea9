"""A tracker in this process, and a client that talks HTTP to it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import SecretStr

from worker.bootstrap_tracker import open_tracker
from worker.domain.keys import read_keys
from worker.domain.links import Keys, Links
from worker.lifecycle import run_services
from worker.operations.prepare import PreparationRequest, prepare

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.stack import Stack
    from worker.bootstrap_tracker import Tracker
    from worker.settings import Settings

KEY = f"1:{'k' * 32}"
BASE = "https://track.example.org/t"
SECONDS = 20

MAIL = """
[email]
from = "news@example.org"
subject = "Hello {{ name }}"
text = "Hello {{ name }}"
html = \'\'\'<html lang="de"><body><p>Hallo {{ name }}</p>
<a href="https://example.org/fixed?a=1&amp;b=2">1</a>
<a href="https://example.org/{{ name }}?to={{ recipient }}">2</a>
<a href="{{ site }}">3</a> <a href="{{ mirror_url }}">m</a> <a href="{{ unsubscribe_url }}">u</a>
</body></html>\'\'\'
"""
PEOPLE = """address,profile_id,name,site
ana@example.org,P1,Ana,https://ana.example.org/
zoe@example.org,P2,Zoë & co,javascript:alert(1)
kim@example.org,P3,Kim,
"""


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Site:
    """A running tracker."""

    port: int
    links: Links
    tracker: Tracker

    async def ask(self, url: str, method: str = "GET", body: bytes = b"", **headers: str) -> Answer:
        """Sends a request to one of the tracker's URLs, over a connection of its own."""
        path = url.removeprefix(BASE.removesuffix("/t"))
        own = {"host": "track.example.org", "connection": "close", "content-length": str(len(body))}
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(
            f"{name.replace('_', '-')}: {value}\r\n" for name, value in (own | headers).items()
        )
        async with asyncio.timeout(SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(head.encode() + b"\r\n" + body)
            answer = await reader.read()
            writer.close()
        start, _, content = answer.partition(b"\r\n\r\n")
        first, *rest = start.decode("latin-1").split("\r\n")
        pairs = (line.split(": ", 1) for line in rest)
        return Answer(int(first.split()[1]), {name.lower(): value for name, value in pairs}, content)

    async def click(self, delivery: int, recipient: int, link: int, **headers: str) -> Answer:
        return await self.ask(self.links.clicks(delivery, recipient, [link])[0], **headers)


def tracked(settings: Settings, spool: Path, **changes: Any) -> Settings:
    """Returns the settings of an installation with a tracker."""
    own = {
        "tracker_url": BASE,
        "tracker_keys": SecretStr(KEY),
        "tracker_port": 0,
        "tracker_spool": str(spool),
    }
    return settings.model_copy(update={**own, **changes})


@asynccontextmanager
async def tracking(settings: Settings, **changes: Any) -> AsyncIterator[Site]:
    """Runs a tracker; it must end well."""
    stop = asyncio.Event()
    async with open_tracker(settings.model_copy(update=changes), stop) as tracker:
        running = asyncio.create_task(run_services(tracker.services, stop, grace=SECONDS))
        try:
            yield Site(tracker.server.port, Links(BASE, Keys(read_keys(KEY))), tracker)
        finally:
            stop.set()
            await running


async def prepare_tracked(stack: Stack, mail: str = MAIL, people: str = PEOPLE) -> int:
    """Prepares a delivery with tracked links for the channel `email`; returns its number."""
    file, csv = stack.folder / "tracked.toml", stack.folder / "tracked.csv"
    file.write_text(
        f'label = "Tracked"\nchannel = "email"\n[tracking]\nopens = true\nclicks = true\n{mail}', "utf-8"
    )
    csv.write_text(people, "utf-8")
    done = await prepare(
        stack.db, PreparationRequest(file, csv, "ana", None, ("email", "null"), tracker=True)
    )
    assert done.problems == ()
    return done.delivery_id
