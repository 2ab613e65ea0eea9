"""The tracker while the broker or the database is away: what goes on, what is kept, what is said."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from contracts import routing
from tests.support.proxy import CutProxy
from tests.support.stack import until
from tests.support.tracker import prepare_tracked, tracked, tracking
from tests.support.tracking import recorded
from worker.web.tracker import catalog

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.stack import Stack
    from tests.support.tracker import Site
    from worker.settings import Settings

ONE_CLICK = b"List-Unsubscribe=One-Click"
ANA, ZOE = 1, 2
FIXED, OWN = 1, 2


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def settings(settings: Settings, spool: Path) -> Settings:
    return tracked(settings, spool, connect_timeout=2)


@pytest.fixture
async def number(stack: Stack) -> int:
    """A confirmed delivery with tracked links."""
    prepared = await prepare_tracked(stack)
    async with stack.running("confirm"):
        assert (await stack.confirm(prepared))["status"] == "accepted"
    return prepared


async def clicks(stack: Stack, number: int) -> dict[str, int]:
    rows = await stack.rows(
        "SELECT kind, count(*) AS events FROM sendoff.tracking_log WHERE delivery_id = $1 GROUP BY kind",
        number,
    )
    return {row["kind"]: row["events"] for row in rows}


def kept(site: Site, where: str) -> float:
    return site.tracker.registry.get_sample_value("sendoff_tracker_events_total", {"kept": where}) or 0.0


def leave(spool: Path) -> None:
    """Writes what a killed process may leave: two events, a spoilt line, and one that was not ended."""
    spool.mkdir()
    one = b'open [{"event_id": "%d", "delivery_id": 1, "recipient": 1, "kind": "open", "at": "%s"}]'
    lines = [one % (number, b"2026-11-27T10:00:00Z") for number in (1, 2, 3)]
    (spool / "left.events").write_bytes(b"\n".join([*lines[:2], b"rubbish \xff", lines[2][:60]]))


async def empty(spool: Path) -> bool:
    return not await asyncio.to_thread(lambda: any(path.stat().st_size for path in spool.glob("*.events")))


async def test_a_broker_that_is_away_loses_nothing_and_gets_all_when_it_is_back(
    stack: Stack, number: int, spool: Path
) -> None:
    async with (
        CutProxy(stack.settings.amqp_url).running() as proxy,
        tracking(stack.settings, amqp_url=proxy.url) as site,
    ):
        assert (await site.click(number, ANA, FIXED)).status == 302
        proxy.cut()
        answers = await asyncio.gather(*(site.click(number, ANA, FIXED) for _ in range(50)))
        assert {answer.status for answer in answers} == {302}
        assert (await site.ask(site.links.optout(number, ZOE), "POST", ONE_CLICK)).status == 200
        assert kept(site, "spool") >= 50
        assert kept(site, "lost") == 0
        assert not await empty(spool)
        proxy.mend()
        await until(lambda: empty(spool))
        assert (await site.click(number, ZOE, FIXED)).status == 302
        async with stack.running("tracking"):
            await recorded(stack, 53)
    assert await clicks(stack, number) == {"click": 52, "optout": 1}


async def test_a_broker_that_does_not_answer_costs_a_moment_and_no_event(
    stack: Stack, number: int, spool: Path
) -> None:
    async with CutProxy(stack.settings.amqp_url).running() as proxy:
        async with tracking(stack.settings, amqp_url=proxy.url) as site:
            proxy.mute()
            for _ in range(5):
                assert (await site.click(number, ANA, FIXED)).status == 302
            assert kept(site, "spool") == 5
        assert not await empty(spool)
    async with tracking(stack.settings) as site:
        await until(lambda: empty(spool))
    async with stack.running("tracking"):
        await recorded(stack, 5)
    assert await clicks(stack, number) == {"click": 5}


async def test_a_full_spool_lets_redirects_go_on_and_refuses_opt_outs(stack: Stack, number: int) -> None:
    async with (
        CutProxy(stack.settings.amqp_url).running() as proxy,
        tracking(stack.settings, amqp_url=proxy.url, tracker_spool_size=300) as site,
    ):
        assert (await site.click(number, ANA, FIXED)).status == 302
        assert await site.tracker.probes(asyncio.Event())["events"]() == ""
        proxy.cut()

        async def lost() -> bool:
            assert (await site.click(number, ANA, FIXED)).status == 302
            return kept(site, "lost") > 0

        await until(lost)
        refused = await site.ask(site.links.optout(number, ANA), "POST", ONE_CLICK)
        assert (refused.status, refused.headers["retry-after"]) == (503, "60")
        proxy.mend()

        async def again() -> bool:
            return (await site.ask(site.links.optout(number, ANA), "POST", ONE_CLICK)).status == 200

        await until(again)


async def test_without_the_database_known_links_and_all_opens_and_opt_outs_go_on(
    stack: Stack, number: int
) -> None:
    other = await prepare_tracked(stack)
    async with (
        CutProxy(stack.settings.database_url).running() as proxy,
        tracking(stack.settings, database_url=proxy.url) as site,
    ):
        assert (await site.click(number, ANA, FIXED)).status == 302
        assert (await site.click(number, ANA, OWN)).status == 302
        proxy.cut()
        for recipient in (ANA, ZOE):
            assert (await site.click(number, recipient, FIXED)).status == 302
        assert (await site.click(number, ANA, OWN)).status == 302
        unread = await site.click(number, ZOE, OWN)
        assert (unread.status, unread.headers["retry-after"]) == (503, "10")
        assert (await site.click(other, ANA, FIXED)).status == 503
        assert (await site.ask(site.links.pixel(other, ANA))).status == 200
        assert (await site.ask(site.links.optout(number, ANA))).status == 200
        assert (await site.ask(site.links.optout(number, ANA), "POST", ONE_CLICK)).status == 200
        assert (await site.ask(site.links.mirror(number, ANA))).status == 503
        assert await site.tracker.probes(asyncio.Event())["events"]() == ""
        proxy.mend()

        async def back() -> bool:
            return (await site.click(number, ZOE, OWN)).status == 302

        await until(back)


async def test_what_was_read_before_the_confirm_hides_no_event_after_it(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proof was looked at; then the delivery is confirmed, and the database goes away."""
    monkeypatch.setattr(catalog, "_UNCONFIRMED_SECONDS", 0)
    number = await prepare_tracked(stack)
    async with (
        CutProxy(stack.settings.database_url).running() as proxy,
        tracking(stack.settings, database_url=proxy.url) as site,
    ):
        assert (await site.ask(site.links.of_proofs().clicks(number, ANA, [FIXED])[0])).status == 302
        async with stack.running("confirm"):
            assert (await stack.confirm(number))["status"] == "accepted"
        proxy.cut()
        # Where the link leads now is not known: it may have been prepared again.
        assert (await site.click(number, ANA, FIXED)).status == 503
        assert (await site.ask(site.links.pixel(number, ANA))).status == 200
        assert (await site.ask(site.links.optout(number, ANA), "POST", ONE_CLICK)).status == 200
        assert kept(site, "broker") == 2


async def test_many_clicks_on_a_link_that_is_not_known_yet_read_it_once(stack: Stack, number: int) -> None:
    async with (
        CutProxy(stack.settings.database_url).running() as proxy,
        tracking(stack.settings, database_url=proxy.url) as site,
    ):
        proxy.cut()
        began = asyncio.get_running_loop().time()
        answers = await asyncio.gather(*(site.click(number, ANA, FIXED) for _ in range(30)))
        assert {answer.status for answer in answers} == {503}
        # One after the other they would take a minute and a half.
        assert asyncio.get_running_loop().time() - began < 30


async def test_it_starts_without_both_and_finds_them_later(stack: Stack, number: int, spool: Path) -> None:
    async with (
        CutProxy(stack.settings.amqp_url).running() as broker,
        CutProxy(stack.settings.database_url).running() as database,
    ):
        broker.cut()
        database.cut()
        async with tracking(stack.settings, amqp_url=broker.url, database_url=database.url) as site:
            assert (await site.ask(site.links.pixel(number, ANA))).status == 200
            assert (await site.click(number, ANA, FIXED)).status == 503
            broker.mend()
            database.mend()

            async def back() -> bool:
                return (await site.click(number, ANA, FIXED)).status == 302

            await until(back)
            await until(lambda: empty(spool))
    assert await stack.depth(routing.TRACKING_QUEUE) >= 2


async def test_two_processes_share_a_port_and_a_spool(stack: Stack, number: int) -> None:
    async with tracking(stack.settings) as one, tracking(stack.settings, tracker_port=one.port) as other:

        async def both() -> bool:
            assert (await one.click(number, ANA, FIXED)).status == 302
            return min(kept(one, "broker"), kept(other, "broker")) > 0

        await until(both)


async def test_the_spool_of_a_process_that_died_is_published_by_another(
    stack: Stack, number: int, spool: Path
) -> None:
    await asyncio.to_thread(leave, spool)
    async with tracking(stack.settings):
        await until(lambda: empty(spool))
    async with stack.running("tracking"):
        await recorded(stack, 2)
        ((body, reason),) = await until(stack.dead)
    assert await clicks(stack, number) == {"open": 2}
    assert (body, "could not be read" in reason) == (b"\xff", True)
