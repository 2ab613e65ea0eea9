"""A provider that throttles, and one that is slow, beside a fast one: the fast one does not wait."""

from __future__ import annotations

import asyncio
import itertools
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from contracts import routing
from tests.integration.test_relay_limits import OverPool, attempts
from tests.support.scripted_smtp import MESSAGE, Server, running
from tests.support.stack import until
from worker.channels.email import capacity, lane, lanes
from worker.channels.email.providers import read_providers
from worker.channels.protocol import Share, Want
from worker.db.flow import Flow
from worker.domain.verdicts import Accepted, Failed
from worker.services import flow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from contracts.sends import Send
    from tests.support.processes import Sendoff
    from tests.support.stack import Stack
    from worker.channels.email.smtp import SmtpPool
    from worker.channels.protocol import HandOver
    from worker.db.pool import Database
    from worker.domain.verdicts import Verdict

BUSY = "421 4.7.0 [TSS04] Messages temporarily deferred due to unexpected volume"


class Relay(Server):
    """Passes on what providers say: `busy.example` takes a message in so many, `slow.example` none before
    `release`."""

    takes_one_in = 0
    say = "450 4.7.1 too many messages, try later"

    def __init__(self) -> None:
        super().__init__()
        self.order: list[str] = []
        """The domains of the messages that came, in their order."""
        self.refused = 0
        self.hanging = self.most_hanging = 0
        self._asked = itertools.count(1)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        await One(self).serve(reader, writer)


class One(Server):
    """One session of the relay."""

    def __init__(self, relay: Relay) -> None:
        super().__init__()
        self.relay = relay
        self._domain = ""

    async def _answer(self, writer: asyncio.StreamWriter, verb: str, default: str) -> bool:
        relay = self.relay
        if verb == "RCPT":
            self._domain = self.commands[-1].rpartition("@")[2].rstrip(">")
            if self._domain == "slow.example" and not relay.release.is_set():
                relay.hanging += 1
                relay.most_hanging = max(relay.hanging, relay.most_hanging)
                await relay.release.wait()
                relay.hanging -= 1
            if self._domain == "busy.example" and not (
                relay.takes_one_in and next(relay._asked) % relay.takes_one_in == 0  # noqa: SLF001
            ):
                relay.refused += 1
                default = relay.say
        if verb == "DOT":
            relay.order.append(self._domain)
        return await super()._answer(writer, verb, default)


class ToDomains(OverPool):
    """Sends over a pool to the recipients' own addresses."""

    async def send(self, compiled: None, send: Send, hand_over: HandOver) -> Verdict:  # noqa: ARG002
        verdict = await self.pool.send("news@example.org", send.address, MESSAGE, hand_over=hand_over)
        self.seen[type(verdict).__name__] += 1
        return verdict


@asynccontextmanager
async def relaying(relay: Relay, size: int = 8) -> AsyncIterator[SmtpPool]:
    async with running(relay, size=size, seconds=20) as pool:
        yield pool


def mixed(count: int, other: str) -> list[str]:
    """Half of the one, half of the other, in turn."""
    return [f"u{n}@{'fast' if n % 2 else other}.example" for n in range(count)]


@pytest.mark.parametrize("say", [Relay.say, BUSY])
async def test_a_provider_that_throttles_hard_holds_up_nobody_and_costs_no_attempt(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, say: str
) -> None:
    monkeypatch.setattr(capacity, "SHORTEST_PAUSE", 0.2)
    relay = Relay()
    relay.say = say
    async with relaying(relay) as pool:
        number = await stack.prepare(mixed(400, "busy"))
        async with stack.running(channel=ToDomains(pool), tick=0.1, send_batch=100, page_look_after=0.5):
            await stack.confirm(number)
            await until(lambda: _sent(stack, number, 200))
            # No message of the busy one was taken, and the fast ones are all through.
            assert set(relay.order) == {"fast.example"}
            assert relay.refused < 60, "they are not all tried"
            relay.takes_one_in = 1
            row = await stack.finished(number)
    assert (row["sent"], row["bounced"], row["errors"], row["unknown"]) == (400, 0, 0, 0)
    assert await attempts(stack) == [("sent", 1, 400)]


async def test_a_domain_that_says_try_later_is_slowed_too(stack: Stack) -> None:
    relay = Relay()
    relay.say = "451 4.7.1 Please try again later"
    async with relaying(relay) as pool:
        number = await stack.prepare(mixed(200, "busy"))
        async with stack.running(channel=ToDomains(pool), tick=0.1, send_batch=100, page_look_after=0.5):
            await stack.confirm(number)
            await until(lambda: _sent(stack, number, 100))
            row = await stack.deployment(number)
            await stack.control(routing.STOP, number)
    assert relay.refused < 40, "not all are tried at once"
    assert row["retrying"] > 0, "those that were tried are tried again later, as after any refusal for now"


async def _sent(stack: Stack, number: int, count: int) -> bool:
    return bool((await stack.deployment(number))["sent"] >= count)


async def test_a_slow_provider_gets_its_share_of_the_connections(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (lane, lanes):
        monkeypatch.setattr(module, "SLOW_SECONDS", 0.1)
    relay = Relay()
    async with relaying(relay) as pool:
        number = await stack.prepare(mixed(400, "slow"))
        async with stack.running(channel=ToDomains(pool), tick=0.1, send_batch=100, page_look_after=0.5):
            await stack.confirm(number)
            await until(lambda: _sent(stack, number, 200))
            assert set(relay.order) == {"fast.example"}, "all of them, while the slow one answers nothing"
            assert relay.hanging < pool.size
            relay.release.set()
            row = await stack.finished(number)
    assert (row["sent"], row["bounced"], row["errors"], row["unknown"]) == (400, 0, 0, 0)
    assert await attempts(stack) == [("sent", 1, 400)]


async def test_what_is_held_back_is_shown_while_it_is(
    stack: Stack, sendoff: Sendoff, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "SECONDS", 0.05)
    monkeypatch.setattr(capacity, "SHORTEST_PAUSE", 5)
    monkeypatch.setattr(capacity, "LONGEST_PAUSE", 5)
    relay = Relay()

    async def rows(count: int) -> list[dict[str, Any]] | None:
        found = await stack.rows("SELECT * FROM sendoff.domain_flow")
        return found if len(found) == count else None

    async with relaying(relay) as pool:
        number = await stack.prepare(mixed(40, "busy"))
        async with stack.running(channel=ToDomains(pool), tick=0.1, send_batch=100):
            assert (await asyncio.to_thread(sendoff, "flow")).stdout == "Nothing is held back.\n"
            await stack.confirm(number)
            (row,) = await until(lambda: rows(1))
            assert (row["channel"], row["domain"], row["connections"]) == ("null", "busy.example", 0)
            assert row["relay"].startswith("127.0.0.1:")
            assert (row["processes"], row["deferred_until"] is not None) == (1, True)
            assert "too many messages" in row["why"]
            table = await asyncio.to_thread(sendoff, "flow")
            assert "busy.example" in table.stdout, table.stderr
            (shown,) = json.loads((await asyncio.to_thread(sendoff, "flow", "--json")).stdout)
            assert shown["domain"] == "busy.example"
            assert shown.keys() == row.keys()
            relay.takes_one_in = 1
            await stack.finished(number)
            assert await until(lambda: _none(rows)) is True


async def _none(rows: Callable[[int], Awaitable[list[Any] | None]]) -> bool:
    return await rows(0) == []


async def test_a_limit_of_messages_holds_for_its_provider_alone(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "SECONDS", 0.2)
    file = tmp_path / "providers.toml"
    file.write_text('[few]\ndomains = ["few.example"]\nmessages_per_minute = 600\n')
    relay = Relay()
    async with running(relay, size=8, seconds=20, providers=read_providers(file)) as pool:
        first = await stack.prepare([f"u{n}@few.example" for n in range(30)])
        second = await stack.prepare(mixed(60, "few"))
        async with stack.running(channel=ToDomains(pool), tick=0.1, send_batch=100, page_look_after=0.5):
            began = asyncio.get_running_loop().time()
            await stack.confirm(first)
            await stack.confirm(second)
            rows = [await stack.finished(number) for number in (first, second)]
            elapsed = asyncio.get_running_loop().time() - began
    assert [row["sent"] for row in rows] == [30, 60]
    assert set(await attempts(stack)) == {("sent", 1, 90)}
    assert relay.order.count("few.example") == 60 <= 20 + 10 * elapsed, "two seconds' worth at once"
    assert "fast.example" not in relay.order[-20:], "those who are not limited do not wait"


async def test_processes_share_a_limit_of_messages(db: Database, database_url: str) -> None:
    stores = [Flow(db)] * 4
    want = Want("lane few", 60, 5)
    loop = asyncio.get_running_loop()
    assert await stores[0].lease("me", [want], []) == {}, "the first makes it"
    began = loop.time()
    granted = 0
    for _ in range(20):
        found = await asyncio.gather(
            *(store.lease("me", [Want("b", 6_000, 100), want], []) for store in stores)
        )
        granted += sum(one["lane few"] for one in found if one.get("lane few"))
        assert all(0 <= one.get("b", 0) <= 100 for one in found)
    assert 1 <= granted <= 2 + (loop.time() - began), "a burst of two seconds, and one a second"
    # A process that starts later finds what the others left.
    connection = await asyncpg.connect(database_url, timeout=20)
    try:
        left = await connection.fetchval(
            "SELECT available FROM sendoff.message_budget WHERE name = 'lane few'"
        )
    finally:
        await connection.close()
    assert left < 1


async def test_processes_share_a_limit_of_connections(db: Database) -> None:
    store = Flow(db)
    share = Share("few connections", 5)

    async def lease(*owners: str) -> list[int]:
        return [(await store.lease(owner, [], [share]))[share.name] for owner in owners]

    assert await lease("a") == [0], "a new one gets nothing at first"
    assert await lease("a", "a") == [5, 5]
    assert await lease("b", "b") == [0, 0], "the other has them all"
    assert await lease("a", "b", "a") == [3, 2, 3]
    assert await lease("c", "a", "b", "c") == [0, 2, 2, 1]
    for _ in range(5):
        found = await asyncio.gather(*(lease(owner) for owner in "abcdefg"))
    assert sorted(count for (count,) in found) == [0, 0, 1, 1, 1, 1, 1]
    async with db.session() as session:
        await session.connection.execute(
            "UPDATE sendoff.connection_lease SET expires_at = now() WHERE owner <> 'b'"
        )
    assert await lease("b") == [5], "those that are gone have none"


async def test_a_limit_of_connections_holds(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "SECONDS", 0.1)
    file = tmp_path / "providers.toml"
    file.write_text('[slow]\ndomains = ["slow.example"]\nconnections = 2\n')
    relay = Relay()
    async with running(relay, size=8, seconds=20, providers=read_providers(file)) as pool:
        number = await stack.prepare(mixed(60, "slow"))
        async with stack.running(channel=ToDomains(pool), tick=0.1, send_batch=100, page_look_after=0.5):
            await stack.confirm(number)
            await until(lambda: _sent(stack, number, 30))
            await until(lambda: _hang(relay, 2))
            relay.release.set()
            row = await stack.finished(number)
    assert (row["sent"], relay.most_hanging) == (60, 2)


async def _hang(relay: Relay, count: int) -> bool:
    return relay.hanging == count


async def test_a_pause_holds_for_what_is_unclaimed(stack: Stack) -> None:
    relay = Relay()
    async with relaying(relay) as pool:
        number = await stack.prepare(mixed(100, "busy"))
        async with stack.running(channel=ToDomains(pool), tick=0.1, send_batch=100):
            await stack.confirm(number)
            await until(lambda: _sent(stack, number, 50))
            assert (await stack.control(routing.PAUSE, number))["state"] == "paused"
            refused, relay.takes_one_in = relay.refused, 1
            assert not await _sent(stack, number, 51)
            assert (await stack.control(routing.STOP, number))["state"] == "stopped"
            row = await stack.deployment(number)
        assert relay.refused <= refused + pool.size
    assert (row["sent"], row["cancelled"], row["sending"]) == (50, 50, 0)


async def test_a_provider_that_never_takes_a_message_costs_an_attempt_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(capacity, "SHORTEST_PAUSE", 0.001)
    monkeypatch.setattr(capacity, "LONGEST_PAUSE", 0.001)
    relay = Relay()
    async with relaying(relay, size=2) as pool:

        async def one(recipient: str) -> Verdict:
            return await pool.send("news@example.org", recipient, MESSAGE)

        verdicts: list[Verdict] = []
        assert isinstance(await one("a@fast.example"), Accepted)
        while not verdicts or (isinstance(verdicts[-1], Failed) and verdicts[-1].waits):
            verdicts.append(await one("a@busy.example"))
            assert isinstance(await one("a@fast.example"), Accepted)
    assert relay.refused == 9
    assert verdicts[-1].reason == "rate_limited"  # type: ignore[union-attr]
