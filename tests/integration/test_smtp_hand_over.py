"""The hand-over in an SMTP session: asked for with the envelope, and answered before the body.

The server is written by hand, to stand still at exact places.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.support.channels import Right
from tests.support.scripted_smtp import DROP, HOLD, LARGE, MESSAGE, Server, running, send
from tests.support.stack import until
from worker.domain.verdicts import Accepted, Bounced, Failed, Unsure, Withheld
from worker.lifecycle import beside

if TYPE_CHECKING:
    from worker.channels.email.smtp import SmtpPool
    from worker.domain.verdicts import Verdict

UNKNOWN_USER = "550 5.1.1 User unknown"


@pytest.fixture(autouse=True, params=["one by one", "pipelining"])
def _offered(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "pipelining", request.param == "pipelining")


async def hand(pool: SmtpPool, right: Right, message: bytes = MESSAGE, *, smtputf8: bool = False) -> Verdict:
    return await pool.send("news@example.org", "ana@example.net", message, smtputf8=smtputf8, hand_over=right)


@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA"])
async def test_the_mark_is_begun_before_the_envelope_is_answered(verb: str) -> None:
    server = Server(**{verb: [HOLD]})
    right = Right(answer=True)
    async with running(server) as pool, beside(hand(pool, right), "send") as sending:
        await asyncio.wait_for(server.silent.wait(), 10)
        assert right.begun == 1
        server.release.set()
        assert isinstance(await sending, Accepted)
    assert right.begun == 1
    assert len(server.bodies) == 1


@pytest.mark.parametrize("message", [MESSAGE, LARGE], ids=["small", "large"])
async def test_the_body_waits_for_the_mark(message: bytes) -> None:
    server = Server()
    right = Right()

    async def leave_is_given() -> bool:
        return server.seen["BODY"] == 1

    async with running(server, seconds=20) as pool, beside(hand(pool, right, message), "send") as sending:
        await until(leave_is_given)
        assert not server.ends
        right.answer.set_result(True)
        assert isinstance(await sending, Accepted)
    assert len(server.bodies) == 1


@pytest.mark.parametrize("message", [MESSAGE, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("late", [False, True], ids=["at once", "after the leave to send"])
async def test_what_is_not_marked_is_withheld_and_the_connection_dropped(
    message: bytes, *, late: bool
) -> None:
    server = Server()
    right = Right(answer=None if late else False)

    async def leave_is_given() -> bool:
        return server.seen["BODY"] == 1

    async with running(server) as pool:
        async with beside(hand(pool, right, message), "send") as sending:
            if late:
                await until(leave_is_given)
                right.answer.set_result(False)
            assert await sending == Withheld()
        assert (server.ends, server.empty) == ([], 0), "no lone dot either"
        assert isinstance(await send(pool), Accepted)
    assert server.seen["CONNECT"] == 2
    assert (server.seen["DATA"], len(server.bodies)) == (2, 1)


async def test_past_the_lease_nothing_is_sent_though_it_is_marked() -> None:
    server = Server()
    async with running(server) as pool:
        verdict = await hand(pool, Right(answer=True, expired=True))
        assert isinstance(verdict, Failed)
        assert (verdict.reason, verdict.retryable) == ("suspended", True)
        assert (server.ends, server.empty) == ([], 0)
        assert isinstance(await send(pool), Accepted)
    assert (server.seen["CONNECT"], len(server.bodies)) == (2, 1)


@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA"])
async def test_a_refusal_is_a_bounce_and_waits_for_no_mark(verb: str) -> None:
    server = Server(**{verb: [UNKNOWN_USER, ""]})
    right = Right()
    async with running(server) as pool:
        async with asyncio.timeout(10):
            verdict = await hand(pool, right)
        assert isinstance(verdict, Bounced)
        assert verdict.reply == UNKNOWN_USER
        assert not right.answer.done()
        assert isinstance(await send(pool), Accepted)
    assert (server.seen["CONNECT"], len(server.bodies)) == (1, 1)


@pytest.mark.parametrize("answered", [True, False], ids=["marked before", "marked after"])
@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA"])
async def test_over_a_second_connection_it_is_begun_again_and_sent_once(verb: str, *, answered: bool) -> None:
    server = Server(**{verb: [DROP, ""]})
    right = Right(answer=True if answered else None)

    async def begun_again() -> bool:
        return right.begun == 2

    async with running(server) as pool, beside(hand(pool, right), "send") as sending:
        await until(begun_again)
        if not answered:
            right.answer.set_result(True)
        assert isinstance(await sending, Accepted)
    assert (right.begun, len(server.bodies)) == (2, 1)


async def test_over_a_second_connection_nothing_is_sent_where_it_is_not_marked() -> None:
    server = Server(RCPT=[DROP, ""])
    right = Right(answer=False)
    async with running(server) as pool:
        assert await hand(pool, right) == Withheld()
    assert (right.begun, server.ends, server.empty) == (2, [], 0)


async def test_what_was_handed_over_and_has_no_answer_is_not_begun_again() -> None:
    server = Server(DOT=[DROP, ""])
    right = Right(answer=True)
    async with running(server) as pool:
        assert isinstance(await hand(pool, right), Unsure)
    assert (right.begun, server.seen["CONNECT"], len(server.bodies)) == (1, 1, 1)


async def test_what_begins_no_envelope_is_not_marked() -> None:
    right = Right()
    async with running(Server()) as pool:
        verdict = await hand(pool, right, smtputf8=True)
        assert isinstance(verdict, Failed)
        assert verdict.reason == "smtputf8_unsupported"
    async with running(Server(CONNECT=["554 5.7.1 go away"])) as pool:
        verdict = await hand(pool, right)
        assert isinstance(verdict, Failed)
        assert verdict.reason == "connection"
    assert right.begun == 0
