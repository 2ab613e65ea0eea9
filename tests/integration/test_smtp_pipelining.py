"""SMTP pipelining (RFC 2920): replies in one piece or many, refusals with commands still on their way."""

from __future__ import annotations

import asyncio

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.scripted_smtp import DROP, LARGE, MESSAGE, SILENCE, Server, expect_true, running, send
from worker.domain.verdicts import Accepted, Bounced, Failed

UNKNOWN_USER = "550 5.1.1 User unknown"
GO_AHEAD = "354 go ahead"
CLOSING = "421 4.3.2 closing"


@pytest.fixture(autouse=True)
def _offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "pipelining", True)


class Patient(Server):
    """Answers MAIL and RCPT only when DATA has come too, all in one write."""

    async def _answer(self, writer: asyncio.StreamWriter, verb: str, default: str) -> bool:
        if verb in ("MAIL", "RCPT"):
            self._last = default
            return True
        before = "250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n" if verb == "DATA" else ""
        if not await super()._answer(writer, verb, before + default):
            return False
        self._last = self._last.removeprefix(before)
        return True


async def test_an_envelope_goes_in_one_write_and_its_replies_may_come_in_one() -> None:
    server = Patient()
    async with running(server) as pool:
        for _ in range(3):
            assert isinstance(await send(pool), Accepted)
    assert (len(server.bodies), server.seen["CONNECT"]) == (3, 1)


async def test_replies_that_come_octet_by_octet_are_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "piecemeal", True)
    server = Server(RCPT=["250-2.1.5 yes\r\n250-and\r\n250 Ok", UNKNOWN_USER, ""])
    async with running(server) as pool:
        verdicts = [type(await send(pool)) for _ in range(3)]
    assert verdicts == [Accepted, Bounced, Accepted]
    assert server.seen["CONNECT"] == 1


@pytest.mark.parametrize(
    ("end", "connections"),
    [("250 2.0.0 Ok: queued as 1", 1), ("554 5.5.1 no recipients", 1), (CLOSING, 2), (DROP, 2), (SILENCE, 2)],
)
async def test_leave_to_send_to_nobody_is_answered_with_a_lone_dot(end: str, connections: int) -> None:
    server = Server(RCPT=[UNKNOWN_USER, ""], DATA=[GO_AHEAD], DOT=[end, ""])
    async with running(server, seconds=0.2) as pool:
        verdict = await send(pool)
        assert isinstance(verdict, Bounced), "whatever the server says of the empty message"
        assert verdict.reply == UNKNOWN_USER
        assert isinstance(await send(pool), Accepted)
    assert (server.empty, len(server.bodies)) == (1, 1)
    assert server.seen["CONNECT"] == connections


async def test_no_lone_dot_where_it_could_send_an_empty_message() -> None:
    server = Server(MAIL=["550 5.1.8 Sender rejected", ""], RCPT=["250 2.1.5 Ok"], DATA=[GO_AHEAD])
    async with running(server) as pool:
        assert isinstance(await send(pool), Bounced)
        assert isinstance(await send(pool), Accepted)
    assert (server.empty, len(server.bodies), server.seen["CONNECT"]) == (0, 1, 2)


@pytest.mark.parametrize("end", [DROP, CLOSING, "not a reply"])
async def test_a_refusal_stands_though_the_connection_breaks_right_after_it(end: str) -> None:
    server = Server(RCPT=[UNKNOWN_USER, ""], DATA=[end, ""])
    async with running(server) as pool:
        verdict = await send(pool)
        assert isinstance(verdict, Bounced)
        assert verdict.reply == UNKNOWN_USER
        assert isinstance(await send(pool), Accepted)
    assert (len(server.bodies), server.seen["CONNECT"]) == (1, 2)


@pytest.mark.parametrize(
    ("verb", "reply"),
    [
        ("MAIL", "250 2.1.0 Ok\r\n250 2.1.0 Ok"),
        ("MAIL", GO_AHEAD),
        ("DATA", "354 go ahead\r\n250 2.0.0 Ok: queued as 1"),
        ("DATA", "250 2.0.0 Ok: queued as 1"),
        ("DATA", "250" + "-" * 9000),
    ],
)
async def test_a_reply_too_many_never_passes_for_an_acceptance(verb: str, reply: str) -> None:
    async with running(Server(**{verb: [reply]}), seconds=0.5) as pool:
        verdict = await send(pool)
    assert isinstance(verdict, Failed)
    assert (verdict.reason, verdict.retryable) == ("connection", True)
    server = Server(**{verb: [reply, ""]})
    async with running(server, seconds=0.5) as pool:
        assert isinstance(await send(pool), Accepted)
    assert len(server.bodies) == 1


async def test_words_between_messages_cost_the_connection_and_no_message() -> None:
    server = Server(DOT=["250 2.0.0 Ok: queued as 1\r\n421 4.4.2 idle for too long", ""])
    async with running(server) as pool:
        assert isinstance(await send(pool), Accepted)
        assert isinstance(await send(pool), Accepted)
    assert (len(server.bodies), server.seen["CONNECT"]) == (2, 2)


@pytest.mark.parametrize(
    ("moment", "expected", "bodies"), [("", Accepted, 1), (DROP, Accepted, 1), (SILENCE, Failed, 0)]
)
def test_a_large_body_is_sent_or_given_up_on_uvloop(moment: str, expected: type, bodies: int) -> None:
    async def exchange() -> Server:
        server = Server(BODY=[moment, "" if moment == DROP else moment])
        async with running(server, seconds=0.3 if moment == SILENCE else 20) as pool:
            assert isinstance(await send(pool, LARGE), expected)
        return server

    server = uvloop.run(exchange())
    assert server.bodies.count(LARGE + b".\r\n") == bodies


ENVELOPE = [
    "",
    "",
    "",
    DROP,
    CLOSING,
    "250 2.0.0 Ok",
    "450 4.2.0 later",
    UNKNOWN_USER,
    "503 5.5.1 what?",
    "what",
    "250 one\r\n250 two",
]
LATER = [*ENVELOPE, GO_AHEAD]


def scripts(verbs: tuple[str, ...], replies: list[str]) -> dict[str, st.SearchStrategy[list[str]]]:
    return {verb: st.lists(st.sampled_from(replies), max_size=10) for verb in verbs}


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    script=st.fixed_dictionaries(
        scripts(("MAIL", "RCPT"), ENVELOPE) | scripts(("DATA", "DOT", "RSET"), LATER)
    ),
    offered=st.booleans(),
    piecemeal=st.booleans(),
)
def test_whatever_is_answered_nothing_goes_out_twice_or_is_falsely_reported(
    *, script: dict[str, list[str]], offered: bool, piecemeal: bool
) -> None:
    async def exchange() -> tuple[Server, list[object]]:
        server = Server(**{verb: [*replies, ""] for verb, replies in script.items()})
        server.pipelining, server.piecemeal = offered, piecemeal
        async with running(server, seconds=0.2) as pool:
            return server, [await send(pool, MESSAGE.replace(b"hello", b"hello %d," % n)) for n in range(8)]

    server, verdicts = asyncio.run(exchange())
    expect_true(server, verdicts)
