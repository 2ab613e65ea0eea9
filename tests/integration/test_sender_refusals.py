"""Refusals that blame the sender pause a delivery early, and who was refused is tried after a resume."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from contracts import routing
from contracts.results import Bounce, BounceKind, BounceReason, Fault
from tests.support.channels import Counting
from tests.support.database import change
from tests.support.deliveries import confirmed
from tests.support.events import PAUSED, heard, listener
from tests.support.results import drained, result
from tests.support.stack import until
from worker.db.accounts import Accounts
from worker.db.deliveries import Deliveries
from worker.domain.outcomes import facts
from worker.domain.retry import Retries
from worker.domain.verdicts import Accepted, Bounced

if TYPE_CHECKING:
    from contracts.sends import Send
    from tests.support.stack import Stack
    from worker.channels.protocol import HandOver
    from worker.domain.verdicts import Verdict

REJECTED = Bounced(BounceKind.SOFT, BounceReason.REFUSED, "5.7.1", "553 5.7.1 sender rejected", Fault.SENDER)


class Refusing(Counting):
    """Refuses the sender, to some or to all, until it is told otherwise."""

    def __init__(self, every: int = 1) -> None:
        super().__init__()
        self.every = every
        self.refuses = True
        self.refused: set[int] = set()

    async def send(self, compiled: None, send: Send, hand_over: HandOver) -> Verdict:
        await super().send(compiled, send, hand_over)
        if not self.refuses or send.recipient % self.every:
            return Accepted("fine")
        self.refused.add(send.recipient)
        return REJECTED


def refused(number: int, recipient: int, **more: Any) -> dict[str, Any]:
    fields = {"kind": "soft", "reason": "spam", "status": "5.7.1", "fault": "sender", "reply": "550 listed"}
    return result(number, recipient, **fields, **more)


async def publish(stack: Stack, key: str, results: list[dict[str, Any]]) -> None:
    await stack.publish(routing.RESULTS, key, json.dumps(results).encode())
    await until(lambda: drained(stack))


async def counted(stack: Stack, number: int, **wanted: int) -> dict[str, Any] | None:
    row = await stack.deployment(number)
    return row if all(row[name] == count for name, count in wanted.items()) else None


async def statuses(stack: Stack, number: int, order: str = "recipient") -> list[str]:
    rows = await stack.rows(
        f"SELECT status FROM sendoff.sending_log WHERE delivery_id = {number} ORDER BY {order}"  # noqa: S608
    )
    return [row["status"] for row in rows]


@pytest.mark.parametrize("every", [1, 2])
async def test_a_refused_sender_pauses_the_delivery_and_a_resume_reaches_everybody(
    stack: Stack, every: int
) -> None:
    queue = await listener(stack, PAUSED)
    number = await stack.prepare(400)
    channel = Refusing(every)
    async with stack.running(channel=channel, tick=0.05, send_batch=20, page_size=50, result_batch=20):
        await stack.confirm(number)
        await stack.finished(number, "paused")
        (event,) = await heard(queue, 1)
        row = await until(lambda: counted(stack, number, sending=0))
        assert row["retrying"] > 0
        assert row["bounced"] < row["retrying"]  # those that were under way when it paused
        channel.refuses = False
        await stack.control(routing.RESUME, number)
        row = await stack.finished(number)
    assert (row["sent"], row["bounced"], row["errors"]) == (400, 0, 0)
    assert {r for r, tries in channel.tries.items() if tries > 1} == channel.refused
    assert max(channel.tries.values()) == 2
    assert event.figures is not None
    assert event.figures.refused >= 10 * event.figures.attempted / 100
    assert event.reason is not None
    assert "refusals that blame the sender" in event.reason
    assert "limit 10 %; most at example." in event.reason


async def test_who_was_refused_in_the_last_batch_is_not_lost_to_the_end_of_the_delivery(stack: Stack) -> None:
    number = await confirmed(stack, 120)
    async with stack.running("confirm", "results"):
        await publish(stack, "bounce", [refused(number, r) for r in range(1, 121)])
        row = await stack.finished(number, "paused")
        assert (row["retrying"], row["bounced"]) == (120, 0)
        # The same again changes nothing.
        await publish(stack, "bounce", [refused(number, r) for r in range(1, 121)])
        assert await counted(stack, number, retrying=120, bounced=0)


async def test_what_is_refused_during_the_pause_is_given_back_by_the_resume(stack: Stack) -> None:
    number = await confirmed(stack, 200)
    async with stack.running("confirm", "results"):
        await publish(stack, "bounce", [refused(number, r) for r in range(1, 101)])
        await stack.finished(number, "paused")
        await publish(stack, "bounce", [refused(number, r) for r in range(101, 131)])
        assert await until(lambda: counted(stack, number, retrying=100, bounced_soft=30))
        assert (await stack.control(routing.RESUME, number))["state"] == "in_progress"
        assert await counted(stack, number, retrying=130, bounced_soft=0)
        # From here on the operator has seen the figures, and refusals are final.
        await publish(stack, "bounce", [refused(number, r, attempt=2) for r in range(1, 131)])
        row = await until(lambda: counted(stack, number, bounced_soft=130))
        assert row["state"] == "in_progress"
        assert not (await stack.rows("SELECT spares_refused AS s FROM sendoff.delivery_record"))[0]["s"]


async def test_an_attempt_that_was_refused_for_our_fault_does_not_count(stack: Stack) -> None:
    number = await stack.prepare(100, extra="[limits]\nmax_attempts = 2")
    retries = Retries((3_600,), 4)
    at = datetime.now(UTC)

    async def record(recipient: int, attempt: int) -> None:
        one = Bounce(
            delivery_id=number,
            recipient=recipient,
            attempt=attempt,
            at=at,
            kind=BounceKind.SOFT,
            reason=BounceReason.MAILBOX_FULL,
            status="4.2.2",
        )
        await Accounts(stack.db).record(number, {recipient: facts(one)}, retries)

    async with stack.running("confirm", "results"):
        await stack.confirm(number)
        await publish(stack, "bounce", [refused(number, r) for r in range(1, 101)])
        await stack.finished(number, "paused")
        await stack.control(routing.RESUME, number)
        for attempt in (2, 3):
            await record(1, attempt)
            await record(2, attempt)
    rows = await stack.rows(
        "SELECT status, attempt FROM sendoff.outcome WHERE recipient <= 3 ORDER BY recipient"
    )
    # Two attempts count: the second and the third.
    assert [tuple(row.values()) for row in rows] == [
        ("bounced_soft", 3),
        ("bounced_soft", 3),
        ("retrying", 1),
    ]


@pytest.mark.parametrize(
    "off", [{"breaker_minimum": 0}, {"breaker_refused_pct": 0, "breaker_domain_refused_pct": 0}]
)
async def test_a_limit_of_0_lets_refusals_of_the_sender_pass(stack: Stack, off: dict[str, int]) -> None:
    number = await stack.prepare(150)
    async with stack.running(channel=Refusing(), tick=0.05, **off):
        await stack.confirm(number)
        assert (await stack.finished(number))["bounced_soft"] == 150


async def test_a_deliverys_own_limit_stands_before_the_setting(stack: Stack) -> None:
    number = await stack.prepare(150, extra="[limits]\nrefused_pct = 60")
    off = {"breaker_refused_pct": 1, "breaker_domain_refused_pct": 0}
    async with stack.running(channel=Refusing(2), tick=0.05, **off):
        await stack.confirm(number)
        assert (await stack.finished(number))["bounced_soft"] == 75


async def test_a_stop_leaves_those_who_were_given_back_with_their_refusal(stack: Stack) -> None:
    number = await confirmed(stack, 120)
    async with stack.running("confirm", "results", "schedule", tick=0.05):
        await publish(stack, "bounce", [refused(number, r) for r in range(1, 111)])
        await stack.finished(number, "paused")
        await stack.control(routing.STOP, number)
        row = await until(lambda: counted(stack, number, bounced_soft=110, cancelled=10, retrying=0))
    assert row["state"] == "stopped"
    assert set(await statuses(stack, number)) == {"bounced", "cancelled"}


async def test_one_domain_that_refuses_the_sender_pauses_the_delivery_by_its_own_share(stack: Stack) -> None:
    some = [f"u{n}@small.example" if n % 10 == 0 else f"u{n}@big.example" for n in range(1, 2_001)]
    number = await stack.prepare(some)
    async with stack.running("confirm", "results"):
        await stack.confirm(number)
        small = range(10, 2_001, 10)
        # 99 are too few to judge by, and 10 % of all are no more than the delivery's limit.
        for first in (1, 1_000):
            await publish(stack, "sent", [result(number, r) for r in range(first, first + 999) if r % 10])
        await publish(stack, "bounce", [refused(number, r) for r in small[:99]])
        row = await until(lambda: counted(stack, number, bounced_soft=99))
        assert row["state"] == "in_progress"
        await publish(stack, "bounce", [refused(number, r) for r in small[99:125]])
        await stack.finished(number, "paused")
        row = await until(lambda: counted(stack, number, bounced_soft=0))
        assert row["retrying"] >= 100
    (pause,) = await stack.rows(
        "SELECT reason, figures::text FROM sendoff.delivery_transition WHERE to_state = 'paused'"
    )
    assert "100 % of " in pause["reason"]
    assert "attempted at small.example, limit 50 %" in pause["reason"]
    assert json.loads(pause["figures"])["refused_limit_pct"] == 10


async def test_a_small_share_of_a_domain_lets_the_delivery_go_on(stack: Stack) -> None:
    number = await confirmed(stack, 2_000)
    async with stack.running("confirm", "results", breaker_refused_pct=0):
        await publish(stack, "sent", [result(number, r) for r in range(1, 151)])
        await publish(stack, "bounce", [refused(number, r) for r in range(151, 301)])
        row = await until(lambda: counted(stack, number, bounced_soft=150))
        assert row["state"] == "in_progress"


async def test_the_scheduler_leaves_a_complete_delivery_to_the_breaker_first(stack: Stack) -> None:
    number = await confirmed(stack, 120)
    await stack.finished(number, "in_progress")
    at = datetime.now(UTC)
    rejected = {
        r: facts(
            Bounce(
                delivery_id=number,
                recipient=r,
                attempt=1,
                at=at,
                kind=BounceKind.SOFT,
                status="5.7.1",
                fault=Fault.SENDER,
            )
        )
        for r in range(1, 121)
    }
    assert await Accounts(stack.db).record(number, rejected, Retries((60,), 4)) == 120
    assert await Deliveries(stack.db).complete() == []
    await change(stack, "UPDATE sendoff.delivery_counter SET updated_at = updated_at - interval '3 s'")
    await change(stack, "UPDATE sendoff.delivery_record SET updated_at = updated_at - interval '3 s'")
    assert await Deliveries(stack.db).complete() == [number]


async def test_a_small_delivery_that_is_refused_as_a_whole_waits_for_a_resume(stack: Stack) -> None:
    number = await stack.prepare(30)
    channel = Refusing()
    async with stack.running(channel=channel, tick=0.05):
        await stack.confirm(number)
        row = await stack.finished(number, "paused")
        assert (row["retrying"], row["bounced"]) == (30, 0)
        channel.refuses = False
        await stack.control(routing.RESUME, number)
        assert (await stack.finished(number))["sent"] == 30
