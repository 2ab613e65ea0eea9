"""Messages that are begun behind the final dot of the message before, on one connection (RFC 2920)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.test_smtp_hand_over import Right
from tests.integration.test_smtp_pipelining import ENVELOPE, LATER, scripts
from tests.support.scripted_smtp import DROP, HOLD, MESSAGE, Server, expect_true, running
from tests.support.stack import until
from worker.channels.email import session
from worker.channels.email.timeouts import Timeouts
from worker.domain.verdicts import Accepted, Bounced, Failed, Unsure
from worker.lifecycle import beside

if TYPE_CHECKING:
    from worker.channels.email.smtp import SmtpPool
    from worker.domain.verdicts import Verdict

UNKNOWN_USER = "550 5.1.1 User unknown"
PATIENT = Timeouts.all(20)


class Noting(Server):
    """Notes for each body whether more came behind it in the same piece."""

    pipelining = True

    def __init__(self, **script: list[str]) -> None:
        super().__init__(**script)
        self.behind: list[bool] = []

    async def _read_body(self, reader: asyncio.StreamReader) -> None:
        await super()._read_body(reader)
        self.behind.append(bool(reader._buffer))  # noqa: SLF001 - what came with the body

    def holds(self, number: int) -> list[bytes]:
        return [body for body in self.bodies if b"hello %d," % number in body]

    async def stands_still(self) -> bool:
        return self.silent.is_set()


@pytest.fixture(autouse=True)
def _always_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_SOON", 60)


async def hand(pool: SmtpPool, number: int, right: Right | None = None, *, smtputf8: bool = False) -> Verdict:
    message = MESSAGE.replace(b"hello", b"hello %d," % number)
    recipient = f"user{number}@example.net"
    return await pool.send("news@example.org", recipient, message, smtputf8=smtputf8, hand_over=right)


async def hand_all(pool: SmtpPool, *numbers: int) -> list[type]:
    return [type(verdict) for verdict in await asyncio.gather(*(hand(pool, n) for n in numbers))]


async def test_who_waits_is_begun_behind_the_message_before_and_nobody_behind_the_first_or_last() -> None:
    server = Noting()
    async with running(server) as pool:
        assert await hand_all(pool, 1, 2, 3, 4) == [Accepted] * 4
    assert server.behind == [False, True, True, False]
    assert server.seen["CONNECT"] == 1
    assert [len(server.holds(n)) for n in (1, 2, 3, 4)] == [1] * 4


async def test_a_server_that_answers_late_gets_one_message_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_SOON", 0)
    server = Noting()
    async with running(server) as pool:
        assert await hand_all(pool, 1, 2, 3) == [Accepted] * 3
    assert server.behind == [False] * 3


async def test_what_is_begun_behind_is_marked_only_when_the_message_before_is_answered() -> None:
    server = Noting(DOT=["", HOLD, ""])
    before, behind = Right(answer=True), Right(answer=True)
    async with (
        running(server, timeouts=PATIENT) as pool,
        beside(hand(pool, 1), "first"),
        beside(hand(pool, 2, before), "before") as sending,
        beside(hand(pool, 3, behind), "behind") as waiting,
    ):
        await until(server.stands_still)
        assert (before.begun, behind.begun) == (1, 0)
        assert server.behind == [False, True]
        server.release.set()
        assert isinstance(await sending, Accepted)
        assert isinstance(await waiting, Accepted)
    assert behind.begun == 1


@pytest.mark.parametrize(
    ("answer", "expected"),
    [(DROP, Unsure), ("421 4.3.2 closing", Failed), ("503 5.5.1 what?", Failed), ("what", Unsure)],
)
async def test_who_is_behind_a_message_that_ends_the_session_goes_another_way(
    answer: str, expected: type
) -> None:
    server = Noting(DOT=["", answer, ""])
    async with running(server, timeouts=PATIENT) as pool:
        assert await hand_all(pool, 1, 2, 3, 4) == [Accepted, expected, Accepted, Accepted]
    assert server.seen["CONNECT"] == 2
    assert [len(server.holds(n)) for n in (3, 4)] == [1, 1]


async def test_a_refusal_of_the_body_before_or_of_the_envelope_behind_costs_no_connection() -> None:
    server = Noting(DOT=["", "554 5.7.1 spam", ""], RCPT=["", "", "", UNKNOWN_USER, ""])
    async with running(server) as pool:
        found = await hand_all(pool, 1, 2, 3, 4, 5)
    assert found == [Accepted, Bounced, Accepted, Bounced, Accepted]
    assert server.seen["CONNECT"] == 1
    assert server.holds(4) == []


async def test_who_waits_behind_for_too_long_is_put_off_and_never_sent_there() -> None:
    server = Noting(DOT=["", HOLD, ""])
    timeouts = Timeouts(connect=0.3, command=20, data=20, block=20, dot=20)
    async with (
        running(server, timeouts=timeouts) as pool,
        beside(hand(pool, 1), "first"),
        beside(hand(pool, 2), "before") as sending,
        beside(hand(pool, 3), "behind") as waiting,
    ):
        verdict = await waiting
        assert isinstance(verdict, Failed)
        assert verdict.waits
        server.release.set()
        assert isinstance(await sending, Accepted)
        assert isinstance(await hand(pool, 4), Accepted)
    assert server.behind[1]
    assert (server.holds(3), server.seen["CONNECT"]) == ([], 2)


async def test_who_gives_up_behind_another_is_never_sent_and_keeps_nobody() -> None:
    server = Noting(DOT=["", HOLD, ""])
    async with (
        running(server, timeouts=PATIENT) as pool,
        beside(hand(pool, 1), "first"),
        beside(hand(pool, 2), "before") as sending,
    ):
        async with beside(hand(pool, 3), "gives up"):
            await until(server.stands_still)
        server.release.set()
        assert isinstance(await sending, Accepted)
        assert await hand_all(pool, 4, 5) == [Accepted] * 2
    assert server.behind[1]
    assert server.holds(3) == []


async def test_who_is_behind_waits_for_a_pause_that_the_message_before_was_answered_with() -> None:
    server = Noting(DOT=["", "450 4.7.1 too many messages", ""])
    async with running(server, timeouts=PATIENT) as pool:
        begun = asyncio.get_running_loop().time()
        _, slowed, behind = await asyncio.gather(*(hand(pool, n) for n in (1, 2, 3)))
        waited = asyncio.get_running_loop().time() - begun
    assert isinstance(slowed, Failed)
    assert slowed.waits
    assert isinstance(behind, Accepted)
    assert waited >= 1  # the shortest pause
    assert len(server.holds(3)) == 1


async def test_nobody_is_begun_behind_the_last_message_of_a_connection() -> None:
    server = Noting()
    async with running(server) as pool:
        pool._messages_per_connection = 2  # noqa: SLF001
        assert await hand_all(pool, 1, 2, 3, 4) == [Accepted] * 4
    assert server.seen["CONNECT"] == 2
    assert server.seen["QUIT"] == 2


async def test_who_needs_what_the_server_does_not_offer_is_not_begun() -> None:
    server = Noting()
    async with running(server) as pool:
        sending = [hand(pool, n, smtputf8=n == 3) for n in (1, 2, 3, 4)]
        verdicts = await asyncio.gather(*sending)
    assert [type(verdict) for verdict in verdicts] == [Accepted, Accepted, Failed, Accepted]
    assert "RCPT TO:<user3@example.net>" not in server.commands
    assert server.seen["CONNECT"] == 1


async def test_when_the_process_stops_who_is_behind_is_put_off_at_once() -> None:
    server = Noting(DOT=["", HOLD, ""])
    async with (
        running(server, timeouts=PATIENT) as pool,
        beside(hand(pool, 1), "first"),
        beside(hand(pool, 2), "before") as sending,
        beside(hand(pool, 3), "behind") as waiting,
    ):
        await until(server.stands_still)
        pool.stop_waiting()
        verdict = await waiting
        assert isinstance(verdict, Failed)
        assert verdict.waits
        server.release.set()
        assert isinstance(await sending, Accepted)
    assert server.holds(3) == []


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    script=st.fixed_dictionaries(
        scripts(("MAIL", "RCPT"), ENVELOPE) | scripts(("DATA", "DOT", "RSET"), LATER)
    ),
    piecemeal=st.booleans(),
)
def test_whatever_is_answered_nothing_goes_out_twice_or_is_falsely_reported(
    *, script: dict[str, list[str]], piecemeal: bool
) -> None:
    async def exchange() -> tuple[Server, list[Verdict]]:
        server = Noting(**{verb: [*replies, ""] for verb, replies in script.items()})
        server.piecemeal = piecemeal
        async with running(server, seconds=0.2) as pool, asyncio.timeout(60):
            return server, await asyncio.gather(*(hand(pool, n) for n in range(8)))

    server, verdicts = asyncio.run(exchange())
    expect_true(server, verdicts)
