"""Servers that limit connections, messages and speed, or want something first: no message is at fault."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from contracts.results import BounceReason
from tests.support.scripted_smtp import MESSAGE, Server, running, send
from worker.channels.email import capacity
from worker.channels.protocol import ChannelUnreachable
from worker.domain.verdicts import Accepted, Bounced, Failed

if TYPE_CHECKING:
    from worker.channels.email.smtp import SmtpPool
    from worker.domain.verdicts import Verdict

THROTTLED = "454 Throttling failure: Maximum sending rate exceeded."


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "SHORTEST_PAUSE", 0.01)


@pytest.fixture(autouse=True, params=[False, True], ids=["one by one", "pipelining"])
def _pipelining(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "pipelining", request.param)


class Several(Server):
    """Several sessions at a time, each with an envelope of its own; they follow the script together."""

    open = peak = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        one = Server(**self.script)
        one.seen, one.ends, one.bodies = self.seen, self.ends, self.bodies
        self._writers.add(writer)
        self.open += 1
        self.peak = max(self.peak, self.open)
        try:
            await self.follow(one, reader, writer)
        finally:
            self.open -= 1

    async def follow(self, one: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await one.serve(reader, writer)


class Few(Several):
    """Takes a few connections at a time, and so many messages on each."""

    most = 3
    messages = 1_000
    extra = "421 4.7.0 mx.example.org Error: too many connections from 127.0.0.1"
    refused = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.open < self.most:
            await super().serve(reader, writer)
            return
        self.refused += 1
        writer.write(self.extra.encode() + b"\r\n" if self.extra else b"")
        writer.close()

    async def follow(self, one: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        one.seen = Counter()
        one.script["MAIL"] = ["250 2.1.0 Ok"] * self.messages + ["421 too many messages in this connection"]
        await one.serve(reader, writer)


async def deliver(pool: SmtpPool, recipient: str) -> Verdict:
    """Sends as the send service does: what waits for the server is tried again when it is ready."""
    while True:
        verdict = await pool.send("news@example.org", recipient, MESSAGE)
        if not (isinstance(verdict, Failed) and verdict.waits):
            return verdict
        await pool.ready()


@pytest.mark.parametrize("extra", [Few.extra, "450 4.7.1 too many", ""], ids=["421", "450", "closed"])
async def test_the_pool_shrinks_to_the_connections_that_are_taken(extra: str) -> None:
    server = Few()
    server.extra = extra
    async with running(server, size=10, seconds=10) as pool:
        verdicts = await asyncio.gather(
            *(pool.send("news@example.org", f"{n}@example.net", MESSAGE) for n in range(200))
        )
    assert all(isinstance(verdict, Accepted) for verdict in verdicts)
    assert len(server.bodies) == 200
    assert server.peak == 3
    assert server.refused <= 10, "it remembers"


async def test_a_server_that_takes_no_connection_is_named_with_its_limit_and_not_with_the_url() -> None:
    server = Few()
    server.most = 0
    async with running(server) as pool:
        with pytest.raises(ChannelUnreachable, match="takes no more connections from here: 421") as told:
            await pool.ready()
        assert "URL" not in str(told.value)
        verdict = await send(pool)
    assert isinstance(verdict, Failed)
    assert verdict.waits


async def test_a_session_that_has_done_enough_is_replaced_and_the_next_ends_in_time() -> None:
    server = Few()
    server.messages = 3
    async with running(server, size=1) as pool:
        for number in range(10):
            verdict = await pool.send("news@example.org", f"{number}@example.net", MESSAGE)
            assert isinstance(verdict, Accepted)
        assert pool._messages_per_connection == 3  # noqa: SLF001 - what it learnt
    assert len(server.bodies) == 10


@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA"])
async def test_a_421_to_one_recipient_costs_no_attempt(verb: str) -> None:
    server = Server(**{verb: ["", "421 4.3.2 try later", ""]})
    async with running(server) as pool:
        verdicts = [await deliver(pool, f"{n}@example.net") for n in range(3)]
    assert all(isinstance(verdict, Accepted) for verdict in verdicts)
    assert len(server.bodies) == 3


async def test_a_421_for_each_message_of_one_recipient_is_its_own_in_the_end() -> None:
    class Choosy(Server):
        def _default(self, verb: str) -> str:
            if verb == "RCPT" and "choosy@" in self.commands[-1]:
                return "421 4.3.2 not this one"
            return super()._default(verb)

    server = Choosy()
    async with running(server) as pool:
        verdict: Verdict = Accepted("")
        for number in range(4):
            verdict = await pool.send("news@example.org", "choosy@example.net", MESSAGE)
            assert isinstance(verdict, Failed)
            assert verdict.waits == (number < 3)
            assert isinstance(await deliver(pool, "ana@example.net"), Accepted)
    assert isinstance(verdict, Failed)
    assert (verdict.reason, verdict.retryable) == ("connection", True)
    assert "421 4.3.2 not this one" in verdict.detail


@pytest.mark.parametrize(
    ("verb", "reply"),
    [
        ("DOT", THROTTLED),
        ("MAIL", "450 4.7.1 Error: too much mail from 127.0.0.1"),
        ("RCPT", "450 4.7.1 Error: too many recipients from 127.0.0.1"),
        ("DATA", "451 4.7.1 rate limit exceeded"),
    ],
)
async def test_throttling_is_answered_with_a_pause_and_the_session_is_kept(verb: str, reply: str) -> None:
    server = Server(**{verb: [reply, reply, reply, ""]})
    async with running(server) as pool:
        first = await send(pool)
        assert isinstance(first, Failed)
        assert (first.reason, first.retryable, first.waits) == ("rate_limited", True, True)
        assert reply in first.detail
        loop = asyncio.get_running_loop()
        assert pool._slots.paused(loop.time())  # noqa: SLF001 - the next message waits
        assert isinstance(await deliver(pool, "ana@example.net"), Accepted)
        assert not pool._slots.pace.feeling  # noqa: SLF001 - it goes on as before
    assert server.seen["CONNECT"] == 1


async def test_while_it_is_throttled_one_message_at_a_time_finds_out() -> None:
    server = Several(DOT=[THROTTLED] * 8 + [""])
    async with running(server, size=5) as pool:
        verdicts = await asyncio.gather(*(deliver(pool, f"{n}@example.net") for n in range(40)))
    assert all(isinstance(verdict, Accepted) for verdict in verdicts)
    refused = sum(1 for _, reply in server.ends if reply == THROTTLED)
    assert refused == 8
    assert server.seen["CONNECT"] <= 5


async def test_a_limit_of_one_recipient_holds_up_nobody() -> None:
    reply = "450 4.2.1 The user you are trying to contact is receiving mail at a rate that is too fast."
    server = Server(RCPT=[reply, ""])
    async with running(server) as pool:
        verdict = await send(pool)
        assert isinstance(verdict, Bounced)
        assert (verdict.reason, verdict.status) == (BounceReason.RATE_LIMITED, "4.2.1")
        assert not pool._slots.paused(asyncio.get_running_loop().time())  # noqa: SLF001
        assert isinstance(await send(pool), Accepted)


@pytest.mark.parametrize(
    ("offer", "reply", "advice"),
    [
        ("STARTTLS", "530 5.7.0 Must issue a STARTTLS command first", r"smtp\+starttls://"),
        ("AUTH PLAIN LOGIN", "530 5.7.1 Authentication required", "a user and a password"),
    ],
)
async def test_what_the_server_wants_first_is_a_sentence_at_the_start(
    offer: str, reply: str, advice: str
) -> None:
    server = Server(EHLO=[f"250-here\r\n250-{offer}\r\n250 SIZE 1000000"], MAIL=[reply])
    async with running(server) as pool:
        with pytest.raises(ChannelUnreachable, match=advice) as told:
            await pool.ready()
        assert reply in str(told.value)
        verdict = await send(pool)
        assert isinstance(verdict, Failed)
        assert (verdict.reason, verdict.waits) == ("authentication", True)
    assert server.seen["RCPT"] == 0, "nobody was tried"


async def test_a_login_that_is_wanted_later_costs_no_attempt_and_is_asked_for_again() -> None:
    offer = "250-here\r\n250-AUTH PLAIN\r\n250 SIZE 1000000"
    server = Server(EHLO=[offer], MAIL=["", "", "530 5.7.0 log in", "530 5.7.0 log in", ""])
    async with running(server) as pool:
        assert isinstance(await send(pool), Accepted)
        verdict = await send(pool)
        assert isinstance(verdict, Failed)
        assert (verdict.reason, verdict.waits) == ("authentication", True)
        with pytest.raises(ChannelUnreachable, match="log in"):
            await pool.ready()
        assert isinstance(await deliver(pool, "ana@example.net"), Accepted)
