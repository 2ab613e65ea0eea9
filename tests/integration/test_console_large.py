"""A large delivery, and many who look: what takes long holds up nothing, and what all see is read once."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.console import line, shown, visiting
from tests.support.deliveries import sent
from tests.support.proxy import CutProxy
from tests.support.stack import until
from worker.db.pool import Database, open_database
from worker.web.console import deliveries

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.stack import Stack

PART = {"hx-request": "true"}
HEAVY = ("curve", "domains", "links", "bounces")


@pytest.fixture
def all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "_LARGE", 2)


@pytest.mark.usefixtures("all_are_large")
async def test_a_page_of_a_large_delivery_comes_before_what_takes_long(stack: Stack) -> None:
    number = await sent(stack, 5)
    base = f"/deliveries/{number}"
    async with visiting(stack) as visitor:
        whole = await visitor.get(base)
        assert "Finished: all 5 recipients" in shown(whole)
        assert shown(whole).count("Reading the outcomes of 5 recipients…") == 2
        for name in HEAVY:
            page = await visitor.get(f"{base}/{name}")
            assert "Reading the outcomes of" in page
            assert f'hx-get="{base}/{name}" hx-trigger="load"' in page
            assert f'<noscript><meta http-equiv="refresh" content="0;url={base}/{name}?whole=yes"' in page
            part = (await visitor.client.get(f"{base}/{name}", headers=PART)).text
            assert "<html" not in part
            assert "Reading" not in part
            for known in (f"{base}/{name}?whole=yes", f"{base}/{name}"):
                page = await visitor.get(known)
                assert part.strip().splitlines()[0] in page
                assert "Reading" not in page


@pytest.mark.usefixtures("all_are_large")
async def test_what_takes_long_holds_up_no_page(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    number = await sent(stack, 5)
    base, going, asked = f"/deliveries/{number}", asyncio.Event(), 0

    async def slow(*_: Any) -> dict[str, Any]:
        nonlocal asked
        asked += 1
        await going.wait()
        return {"curve": None, "domains": [], "urls": [], "reasons": [], "busiest": None, "no_domain": "-"}

    monkeypatch.setattr(deliveries, "_PANELS", dict.fromkeys(HEAVY, slow))
    async with visiting(stack) as visitor:
        parts = [
            asyncio.create_task(visitor.client.get(f"{base}/{name}", headers=PART))
            for name in HEAVY
            for _ in range(5)
        ]
        await until(lambda: _is(lambda: asked == 2))
        for path in ("/", base, f"{base}/log", f"{base}/domains", "/dead"):
            await visitor.get(path)
        going.set()
        assert {part.status_code for part in await asyncio.gather(*parts)} == {200}
        assert asked == len(HEAVY), "each is read once for all who ask"


async def _is(condition: Callable[[], bool]) -> bool:
    return condition()


class Counted:
    """A database that counts what it is asked."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        if name in ("fetch", "fetchrow", "fetchval", "transaction", "session"):
            self.asked += 1
        return getattr(self._db, name)


async def test_many_open_pages_cost_the_database_no_more_than_one(stack: Stack) -> None:
    number = await sent(stack, 5)
    base, db = f"/deliveries/{number}", Counted(stack.db)
    parts = [f"{base}/{name}" for name in ("acts", "curve", "bounces", "story")] + ["/rows"]
    cost = {}
    async with visiting(stack, db=db) as visitor:  # type: ignore[arg-type]
        for viewers in (1, 20):
            async with AsyncExitStack() as open_pages:
                streams = []
                for _ in range(viewers):
                    address = f"{base}/live?state=finished"
                    stream = visitor.client.stream("GET", address, headers=PART)
                    streams.append((await open_pages.enter_async_context(stream)).aiter_lines())
                    await line(streams[-1], "beat")
                began, db.asked = asyncio.get_running_loop().time(), 0
                for _ in range(3):
                    answers = await asyncio.gather(
                        *(visitor.client.get(path, headers=PART) for path in parts for _ in range(viewers))
                    )
                    assert {answer.status_code for answer in answers} == {200}
                took = asyncio.get_running_loop().time() - began
                cost[viewers] = db.asked, took
    few, _ = cost[1]
    many, took = cost[20]
    # What is kept for a second or more is read again after it.
    assert many < few + 12 * (1 + took), cost


async def test_a_part_that_cannot_be_had_is_a_sentence_in_its_place(stack: Stack) -> None:
    number = await stack.prepare(2)
    proxy = CutProxy(stack.settings.database_url)
    async with proxy.running():
        db = await open_database(proxy.url, size=2, connect_timeout=2, command_timeout=2, application="t")
        async with visiting(stack, db=db) as visitor:
            proxy.cut()
            for path in ("/rows", f"/deliveries/{number}/curve"):
                answer = await visitor.client.get(path, headers=PART)
                assert answer.status_code == 503
                assert answer.text.startswith('<p class="warn" role="status">The database is out of reach.')
            proxy.mend()
            await visitor.post("/sign-out")
            answer = await visitor.client.get("/rows", headers=PART)
            assert answer.status_code == 401
            assert answer.text.startswith('<p class="warn" role="status">Open the link that')
        await db.close()
