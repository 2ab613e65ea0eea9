"""A delivery over a real Postfix that limits connections and messages: one attempt each reaches everybody."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from contracts import routing
from tests.support import postfix
from tests.support.stack import until
from worker.channels.email import capacity
from worker.channels.email.smtp import SmtpPool
from worker.channels.email.timeouts import Timeouts
from worker.channels.null import NullChannel
from worker.channels.protocol import ChannelUnreachable
from worker.domain.verdicts import Accepted, Failed

if TYPE_CHECKING:
    from contracts.sends import Send
    from tests.support.stack import Stack
    from worker.channels.protocol import HandOver
    from worker.domain.verdicts import Verdict

BODY = b"Subject: hello\r\n\r\nhello\r\n"


class OverPool(NullChannel):
    """Sends a short message over a pool, and counts what becomes of it."""

    def __init__(self, pool: SmtpPool) -> None:
        self.pool = pool
        self.concurrency = pool.size
        self.lanes = pool.lanes
        self.seen: Counter[str] = Counter()

    async def ready(self) -> None:
        await self.pool.ready()

    def stop_waiting(self) -> None:
        self.pool.stop_waiting()

    async def send(self, compiled: None, send: Send, hand_over: HandOver) -> Verdict:  # noqa: ARG002
        recipient = f"{send.recipient}@example.net"
        verdict = await self.pool.send("news@example.org", recipient, BODY, hand_over=hand_over)
        self.seen[type(verdict).__name__] += 1
        return verdict

    async def close(self) -> None:
        await self.pool.close()


def pool_to(relay: postfix.Postfix, size: int = 10) -> SmtpPool:
    return SmtpPool(f"smtp://127.0.0.1:{relay.port}", size=size, timeouts=Timeouts.all(20))


async def attempts(stack: Stack) -> list[tuple[Any, ...]]:
    rows = await stack.rows(
        "SELECT status, attempt, count(*) AS n FROM sendoff.sending_log GROUP BY status, attempt"
    )
    return [tuple(row.values()) for row in rows]


async def test_a_limit_of_connections_costs_nobody_an_attempt(stack: Stack) -> None:
    with postfix.running(smtpd_client_connection_count_limit="3") as relay:
        channel = OverPool(pool_to(relay))
        number = await stack.prepare(600)
        async with stack.running(channel=channel, tick=0.1, send_batch=50):
            await stack.confirm(number)
            row = await stack.finished(number)
        assert (row["sent"], row["errors"], row["bounced"]) == (600, 0, 0)
        assert await attempts(stack) == [("sent", 1, 600)]
        assert relay.logged("Connection concurrency limit exceeded") <= 12


async def test_limits_of_connections_and_messages_together_cost_nobody_an_attempt(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "SHORTEST_PAUSE", 0.2)
    limits = {
        "smtpd_client_connection_count_limit": "3",
        "smtpd_client_message_rate_limit": "60",
        "anvil_rate_time_unit": "2s",
    }
    with postfix.running(**limits) as relay:
        channel = OverPool(pool_to(relay))
        number = await stack.prepare(200)
        async with stack.running(channel=channel, tick=0.1, send_batch=50):
            await stack.confirm(number)
            row = await stack.finished(number)
        assert (row["sent"], row["errors"], row["bounced"], row["unknown"]) == (200, 0, 0, 0)
        assert await attempts(stack) == [("sent", 1, 200)]
        assert relay.logged("Message delivery request rate limit exceeded") > 0, "it was met"


async def test_a_stop_holds_for_those_who_wait_for_the_relay(stack: Stack) -> None:
    with postfix.running(smtpd_client_message_rate_limit="5", anvil_rate_time_unit="600s") as relay:
        channel = OverPool(pool_to(relay))
        number = await stack.prepare(50)
        async with stack.running(channel=channel, tick=0.1, send_batch=20):
            await stack.confirm(number)
            await until(lambda: _waits(channel))
            assert (await stack.control(routing.STOP, number))["state"] == "stopped"
        taken = channel.seen["Accepted"]
    assert taken <= 5

    async def recorded() -> bool:
        return (await stack.deployment(number))["sent"] == taken

    async with stack.running("results"):
        await until(recorded)
    row = await stack.deployment(number)
    assert (row["sent"], row["cancelled"], row["sending"], row["errors"]) == (taken, 50 - taken, 0, 0)


async def _waits(channel: OverPool) -> bool:
    return channel.seen["Failed"] > 0


async def test_one_recipient_who_gets_421_holds_up_nobody(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "SHORTEST_PAUSE", 0.05)
    # Postfix answers 421 and closes the connection, each time.
    access = "inline:{ {17@example.net = 421 4.3.2 not now} }"
    with postfix.running(smtpd_recipient_restrictions=f"check_recipient_access {access}") as relay:
        channel = OverPool(pool_to(relay, size=3))
        number = await stack.prepare(100)
        async with stack.running(channel=channel, tick=0.1, send_batch=20):
            await stack.confirm(number)
            row = await until(lambda: _sent(stack, number, 99))
            assert row["errors"] == 0
            await stack.control(routing.STOP, number)


async def _sent(stack: Stack, number: int, count: int) -> dict[str, Any] | None:
    row = await stack.deployment(number)
    return row if row["sent"] == count else None


async def test_a_relay_that_wants_tls_is_a_sentence_at_the_start() -> None:
    with postfix.running(smtpd_tls_security_level="encrypt") as relay:
        pool = pool_to(relay, size=1)
        with pytest.raises(ChannelUnreachable, match=r"Must issue a STARTTLS command first.*smtp\+starttls"):
            await pool.ready()
        await pool.close()


async def test_the_pool_grows_again_when_the_relay_takes_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "SHORTEST_REST", 0.1)
    monkeypatch.setattr(capacity, "STEP_SECONDS", 0.0)
    with postfix.running(smtpd_client_connection_count_limit="4") as relay:
        other, pool = pool_to(relay, size=3), pool_to(relay, size=4)

        async def some(of: SmtpPool) -> None:
            verdicts = await asyncio.gather(
                *(of.send("news@example.org", f"{n}@example.net", BODY) for n in range(30))
            )
            assert all(isinstance(v, Accepted) or (isinstance(v, Failed) and v.waits) for v in verdicts)

        await some(other)
        await some(pool)
        assert pool._slots.connections.limit < 4  # noqa: SLF001 - the other has them
        await other.close()

        async def grown() -> bool:
            await some(pool)
            return pool._slots.connections.limit == 4  # noqa: SLF001

        await until(grown)
        await pool.close()
