"""The final dot: what was sent, what was not, and what nobody can know.

The server here is written by hand, byte for byte, to break off at exact places.
"""

from __future__ import annotations

import asyncio

import pytest

from contracts.results import BounceKind
from tests.support.scripted_smtp import DROP, HOLD, LARGE, MESSAGE, SILENCE, Server, running, send
from worker.channels.email.smtp import SmtpPool
from worker.channels.email.timeouts import Timeouts
from worker.channels.protocol import ChannelUnreachable
from worker.domain.verdicts import Accepted, Bounced, Failed, Unsure


@pytest.fixture(autouse=True, params=["one by one", "pipelining"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test holds for servers that offer PIPELINING, and for others."""
    monkeypatch.setattr(Server, "pipelining", request.param == "pipelining")


def message_for(moment: str) -> bytes:
    """A small body, and the dot after it, are in the network's hands before a loss can be noticed."""
    return LARGE if moment == "BODY" else MESSAGE


async def test_an_accepted_message_arrives_as_it_was() -> None:
    server = Server()
    async with running(server) as pool:
        verdict = await send(pool)
    assert verdict == Accepted("250 2.0.0 Ok: queued as 4F6B1234", "4F6B1234")
    assert server.bodies == [b"Subject: hello\r\n\r\n..a line with a dot\r\n...\r\nend\r\n.\r\n"]
    assert server.commands[1:] == [
        f"MAIL FROM:<news@example.org> SIZE={len(MESSAGE)}",
        "RCPT TO:<ana@example.net>",
        "DATA",
        "QUIT",
    ]
    assert server.hasty == (["MAIL", "RCPT"] if Server.pipelining else [])


async def test_bare_line_ends_cannot_smuggle_a_second_message() -> None:
    server = Server()
    async with running(server) as pool:
        await send(pool, b".first\n.\r\nMAIL FROM:<eve@example.org>\r.\n")
    assert server.bodies == [b"..first\r\n..\r\nMAIL FROM:<eve@example.org>\r\n..\r\n.\r\n"]


@pytest.mark.parametrize("moment", ["MAIL", "RCPT", "DATA", "BODY"])
async def test_lost_once_before_the_dot_is_sent_over_a_fresh_connection(moment: str) -> None:
    server = Server(**{moment: [DROP, ""]})
    async with running(server) as pool:
        assert isinstance(await send(pool, message_for(moment)), Accepted)
    assert len(server.bodies) == 1
    assert server.seen["CONNECT"] == 2


@pytest.mark.parametrize("moment", ["MAIL", "RCPT", "DATA", "BODY"])
async def test_lost_again_before_the_dot_is_given_up_for_now(moment: str) -> None:
    server = Server(**{moment: [DROP]})
    async with running(server) as pool:
        verdict = await send(pool, message_for(moment))
    assert isinstance(verdict, Failed)
    assert (verdict.reason, verdict.retryable) == ("connection", True)
    assert server.seen["CONNECT"] == 2
    assert server.bodies == []


@pytest.mark.parametrize("moment", ["MAIL", "RCPT", "DATA", "BODY"])
async def test_no_answer_in_time_before_the_dot_counts_as_lost(moment: str) -> None:
    server = Server(**{moment: [SILENCE]})
    async with running(server, seconds=0.2) as pool:
        verdict = await send(pool, message_for(moment))
    assert isinstance(verdict, Failed)
    assert (verdict.reason, verdict.retryable) == ("connection", True)
    assert server.bodies == []


@pytest.mark.parametrize("end", [DROP, SILENCE, "not a reply", "354 go on"])
async def test_no_answer_after_the_dot_leaves_the_outcome_open(end: str) -> None:
    server = Server(DOT=[end])
    async with running(server, seconds=0.2) as pool:
        verdict = await send(pool)
    assert isinstance(verdict, Unsure)
    assert len(server.bodies) == 1, "never sent again"
    assert server.seen["CONNECT"] == 1


async def test_the_answer_to_the_dot_may_take_longer_than_any_other() -> None:
    server = Server(DOT=[HOLD])
    async with running(server, timeouts=Timeouts(0.1, 0.1, 0.1, 0.1, dot=30)) as pool:
        sending = asyncio.create_task(send(pool))
        await asyncio.wait_for(server.silent.wait(), 10)
        await asyncio.wait([sending], timeout=0.5)
        assert not sending.done()
        server.release.set()
        assert isinstance(await sending, Accepted)


@pytest.mark.parametrize("end", ["250 2.0.0 " + "x" * 9_000, "250-" + "x" * 9_000 + "\r\n250 2.0.0 Ok"])
async def test_a_long_answer_to_the_dot_counts_as_what_its_code_says(end: str) -> None:
    async with running(Server(DOT=[end])) as pool:
        verdict = await send(pool)
        assert isinstance(verdict, Accepted)
        assert isinstance(await send(pool), Accepted), "the connection goes on"


@pytest.mark.parametrize("answer", ["500 what?", "502 5.5.1 EHLO is not known", "504 no"])
async def test_a_server_that_does_not_know_ehlo_is_greeted_with_helo(answer: str) -> None:
    server = Server(EHLO=[answer])
    async with running(server) as pool:
        await pool.ready()
        assert isinstance(await send(pool), Accepted)
    assert server.seen["HELO"] == 1
    assert server.seen["CONNECT"] == 1
    assert not any("SIZE" in command for command in server.commands), "nothing was offered"


async def test_what_waits_too_long_for_a_connection_is_not_sent_any_more() -> None:
    server = Server(MAIL=[SILENCE])
    async with running(server, seconds=0.2) as pool:
        first, *others = await asyncio.gather(*(send(pool) for _ in range(3)))
    assert isinstance(first, Failed)
    assert "lost before anything was sent" in first.detail
    for verdict in others:
        assert isinstance(verdict, Failed)
        assert (verdict.reason, verdict.retryable) == ("connection", True)
        assert "came free within" in verdict.detail
    assert server.seen["CONNECT"] == 2, "both for the first"


async def test_the_pool_goes_on_after_an_open_outcome() -> None:
    server = Server(DOT=[DROP, ""])
    async with running(server) as pool:
        assert isinstance(await send(pool), Unsure)
        assert isinstance(await send(pool), Accepted)
    assert server.seen["CONNECT"] == 2


async def test_a_large_message_goes_through_in_pieces() -> None:
    server = Server()
    async with running(server) as pool:
        assert isinstance(await send(pool, LARGE), Accepted)
    assert server.bodies == [LARGE + b".\r\n"]


@pytest.mark.parametrize(
    ("verb", "reply", "expected"),
    [
        ("MAIL", "550 5.1.8 Sender address rejected", Bounced),
        ("RCPT", "550 5.1.1 User unknown", Bounced),
        ("RCPT", "450 4.2.0 Greylisted", Bounced),
        ("DATA", "554 5.7.1 no", Bounced),
        ("DOT", "554 5.7.1 spam", Bounced),
        ("DOT", "451 4.3.0 later", Bounced),
        ("MAIL", "530 5.7.0 Authentication required", Failed),
        ("RCPT", "503 5.5.1 Bad sequence", Failed),
        ("DOT", "421 4.3.2 closing", Failed),
    ],
)
async def test_after_a_refusal_the_next_message_goes_out(verb: str, reply: str, expected: type) -> None:
    server = Server(**{verb: [reply, ""]})
    async with running(server) as pool:
        verdict = await send(pool)
        assert isinstance(verdict, expected)
        assert isinstance(await send(pool), Accepted)
    if isinstance(verdict, Bounced):
        assert verdict.reply == reply
        assert server.seen["CONNECT"] == 1, "the connection is kept"
        assert server.seen["RSET"] == (verb != "DOT")


async def test_a_refusal_of_mail_is_no_hard_bounce() -> None:
    async with running(Server(MAIL=["550 5.1.1 User unknown"])) as pool:
        verdict = await send(pool)
    assert isinstance(verdict, Bounced)
    assert verdict.kind is BounceKind.SOFT


@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA"])
async def test_a_server_that_is_closing_is_tried_once_more(verb: str) -> None:
    server = Server(**{verb: ["421 4.3.2 closing", ""]})
    async with running(server) as pool:
        assert isinstance(await send(pool), Accepted)
    server = Server(**{verb: ["421 4.3.2 closing"]})
    async with running(server) as pool:
        verdict = await send(pool)
    assert isinstance(verdict, Failed)
    assert verdict.retryable
    assert "421 4.3.2 closing" in verdict.detail


async def test_a_failed_reset_drops_the_connection() -> None:
    server = Server(RCPT=["550 5.1.1 User unknown", ""], RSET=["500 what?"])
    async with running(server) as pool:
        assert isinstance(await send(pool), Bounced)
        assert isinstance(await send(pool), Accepted)
    assert server.seen["CONNECT"] == 2


async def test_a_connection_closed_while_idle_costs_nothing() -> None:
    server = Server()
    async with running(server) as pool:
        assert isinstance(await send(pool), Accepted)
        server.drop_all()
        assert isinstance(await send(pool), Accepted)
        server.drop_all()
        await pool.ready()
    assert len(server.bodies) == 2


async def test_a_connection_known_to_be_closed_does_not_count_as_a_try() -> None:
    server = Server(MAIL=["", DROP, ""])
    async with running(server) as pool:
        assert isinstance(await send(pool), Accepted)
        server.drop_all()
        async with asyncio.timeout(5):
            while pool._idle[0].usable:  # noqa: ASYNC110, SLF001 - the loss is an event of the event loop's own
                await asyncio.sleep(0)
        assert isinstance(await send(pool), Accepted)
    assert server.seen["CONNECT"] == 3


async def test_a_cancelled_send_leaves_no_connection_in_the_middle() -> None:
    server = Server(RCPT=[SILENCE, ""])
    async with running(server, seconds=60) as pool:
        sending = asyncio.create_task(send(pool))
        await asyncio.wait_for(server.silent.wait(), 5)
        sending.cancel()
        await asyncio.wait([sending])
        async with asyncio.timeout(5):
            assert isinstance(await send(pool), Accepted)
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ({"CONNECT": ["554 5.7.1 go away"]}, "554 5.7.1 go away"),
        ({"CONNECT": ["421 4.3.2 too busy"]}, "421 4.3.2 too busy"),
        ({"CONNECT": [DROP]}, "cannot be used"),
        ({"CONNECT": [SILENCE]}, "cannot be used"),
        ({"EHLO": ["550 no"]}, "550 no"),
        ({"EHLO": [SILENCE]}, "cannot be used"),
    ],
)
async def test_a_server_that_refuses_or_breaks_off_at_the_start_is_unreachable(
    script: dict[str, list[str]], words: str
) -> None:
    async with running(Server(**script), seconds=0.2) as pool:
        with pytest.raises(ChannelUnreachable, match=words):
            await pool.ready()
        verdict = await send(pool)
    assert isinstance(verdict, Failed)
    assert (verdict.reason, verdict.retryable) == ("connection", True)


async def test_the_pool_is_not_ready_while_every_connection_hangs() -> None:
    server = Server(RCPT=[SILENCE])
    async with running(server, seconds=0.3) as pool:
        sending = asyncio.create_task(send(pool))
        await asyncio.wait_for(server.silent.wait(), 5)
        pool._heard_at = float("-inf")  # noqa: SLF001 - as if a while ago
        with pytest.raises(ChannelUnreachable, match="came free within"):
            await pool.ready()
        assert isinstance(await sending, Failed)


async def test_ready_asks_a_server_that_was_quiet_for_long() -> None:
    server = Server(NOOP=["", DROP, ""])
    async with running(server) as pool:
        await pool.ready()
        for connections in (1, 2):  # the first NOOP is answered, the second costs the connection
            pool._heard_at = float("-inf")  # noqa: SLF001 - as if a while ago
            await pool.ready()
            assert server.seen["CONNECT"] == connections


async def test_a_closed_port_is_unreachable_and_named() -> None:
    closed = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = closed.sockets[0].getsockname()[1]
    closed.close()
    await closed.wait_closed()
    pool = SmtpPool(f"smtp://127.0.0.1:{port}", size=1, timeouts=Timeouts.all(5))
    with pytest.raises(ChannelUnreachable, match=f"The SMTP server 127.0.0.1:{port} cannot be used"):
        await pool.ready()
