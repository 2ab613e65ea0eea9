"""Retries: soft bounces and retryable errors are tried again, within limits, and the accounts stay exact."""

from __future__ import annotations

import asyncio
import json
import random
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from contracts import results, routing
from contracts.results import Bounce, BounceKind, BounceReason, Error, Fault, Sent
from tests.support.channels import Counting
from tests.support.claims import claim
from tests.support.deliveries import LATER, SOON, agrees, confirmed, counted, log, states
from tests.support.results import bounced, drained, result
from tests.support.stack import until
from worker.db.accounts import Accounts
from worker.db.deliveries import Deliveries
from worker.db.pages import Pages
from worker.domain.outcomes import facts
from worker.domain.retry import Retries
from worker.domain.verdicts import Accepted, Bounced, Failed

if TYPE_CHECKING:
    from contracts.sends import Send
    from tests.support.stack import Stack
    from worker.channels.protocol import HandOver
    from worker.domain.verdicts import Verdict

FULL = Bounced(BounceKind.SOFT, BounceReason.MAILBOX_FULL, "4.2.2", "452 full", Fault.RECIPIENT)
BUSY = Failed("connection", retryable=True, detail="the line went dead")


class Failing(Counting):
    """Gives each recipient its verdicts, one an attempt; the last for all further ones."""

    def __init__(self, verdicts: dict[int, list[Verdict]]) -> None:
        super().__init__()
        self.verdicts = verdicts
        self.attempts: list[tuple[int, int]] = []

    async def send(self, compiled: None, send: Send, hand_over: HandOver) -> Verdict:
        self.attempts.append((send.recipient, send.attempt))
        await super().send(compiled, send, hand_over)
        own = self.verdicts.get(send.recipient, [Accepted("fine")])
        return own[min(send.attempt, len(own)) - 1]


async def test_soft_bounces_and_retryable_errors_are_tried_again_until_sent_or_the_limit_is_reached(
    stack: Stack,
) -> None:
    number = await stack.prepare(30)
    channel = Failing(
        {3: [FULL, Accepted("fine")], 4: [FULL], 5: [BUSY, BUSY, Accepted("fine")], 6: [BUSY, FULL]}
    )
    async with stack.running(channel=channel, page_size=10, max_attempts=3, **SOON):
        await stack.confirm(number)
        row = await stack.finished(number)
        assert await agrees(stack, number)
    assert (row["sent"], row["bounced_soft"], row["errors"], row["retrying"]) == (28, 2, 0, 0)
    assert {r: n for r, n in channel.tries.items() if n > 1} == {3: 2, 4: 3, 5: 3, 6: 3}
    assert len(set(channel.attempts)) == len(channel.attempts)
    rows = await log(stack, number)
    assert [(rows[r]["status"], rows[r]["attempt"]) for r in (3, 4, 5)] == [
        ("sent", 2),
        ("bounced", 3),
        ("sent", 3),
    ]
    assert rows[3]["bounced_at"] < rows[3]["sent_at"]
    assert (rows[4]["reason"], rows[4]["code"], rows[4]["reply"]) == ("mailbox_full", "4.2.2", "452 full")
    assert all(r["retry_at"] is None for r in rows.values())
    assert (await states(stack, number))[-2:] == ["retry_pending", "finished"]


async def test_a_retry_is_tried_when_it_is_due_and_not_when_its_page_is_looked_at_next(stack: Stack) -> None:
    number = await stack.prepare(1)
    channel = Failing({1: [FULL, Accepted("fine")]})
    settings = SOON | {"retry_delays": (1,), "page_look_after": 300}
    async with stack.running(channel=channel, **settings):
        await stack.confirm(number)
        await stack.finished(number, "retry_pending")
        (row,) = (await log(stack, number)).values()
        assert row["status"] == "retrying"
        assert 0.8 <= (row["retry_at"] - row["bounced_at"]).total_seconds() <= 1.2
        assert (row["reason"], row["reply"]) == ("mailbox_full", "452 full")
        await stack.finished(number, seconds=10)
    (done,) = (await log(stack, number)).values()
    assert row["retry_at"] <= done["sent_at"] < row["retry_at"] + timedelta(seconds=3)


async def test_a_delivery_may_have_a_limit_of_its_own(stack: Stack) -> None:
    number = await stack.prepare(3, extra="[limits]\nmax_attempts = 1")
    channel = Failing({2: [FULL]})
    async with stack.running(channel=channel, **SOON):
        await stack.confirm(number)
        row = await stack.finished(number)
    assert (row["bounced_soft"], channel.tries.total()) == (1, 3)


async def test_no_retry_is_planned_for_after_the_validity(stack: Stack) -> None:
    number = await stack.prepare(2, extra='valid_for = "30m"')
    async with stack.running(channel=Failing({1: [FULL]}), **LATER):
        await stack.confirm(number)
        row = await stack.finished(number)
    assert (row["sent"], row["bounced_soft"]) == (1, 1)


async def test_a_retry_lost_with_its_queue_is_published_again(stack: Stack) -> None:
    number = await stack.prepare(1)
    quick = SOON | {"page_look_after": 0.2}
    async with stack.running("confirm", "fanout", "results", "schedule", **quick):
        await stack.confirm(number)
        async with stack.running("send", channel=Failing({1: [FULL]})):
            await until(lambda: counted(stack, number, retrying=1))
        await until(lambda: _queued(stack))
        queue = await stack.channel.get_queue(stack.names.queue(routing.send_queue("null")), ensure=False)
        await queue.purge()
        async with stack.running("send", channel=Failing({})):
            assert (await stack.finished(number))["sent"] == 1


async def test_a_stop_leaves_those_who_wait_with_what_stands(stack: Stack) -> None:
    number = await stack.prepare(5)
    async with stack.running(channel=Failing({1: [FULL], 2: [BUSY], 3: [BUSY, FULL]}), **LATER):
        await stack.confirm(number)
        await until(lambda: counted(stack, number, retrying=3, state="retry_pending"))
        assert (await stack.control(routing.STOP, number))["state"] == "stopped"
        await until(lambda: counted(stack, number, sent=2, bounced_soft=1, errors=2, cancelled=0))
        assert await agrees(stack, number)
        # A result that comes later is recorded, and plans nothing.
        await stack.publish(routing.RESULTS, "bounce", bounced(number, 4, "soft"))
        await until(lambda: counted(stack, number, sent=1, bounced_soft=2, retrying=0))


async def test_a_result_that_wins_ends_a_planned_retry_and_one_that_does_not_leaves_it(stack: Stack) -> None:
    """What wins over the fact ends its retry; what does not leaves it; a later attempt stands over both."""
    number = await stack.prepare(6)
    first = {1: FULL, 2: BUSY, 3: FULL, 4: BUSY, 5: FULL, 6: FULL}
    async with stack.running(channel=Failing({r: [v] for r, v in first.items()}), **LATER):
        await stack.confirm(number)
        await until(lambda: counted(stack, number, retrying=6, state="retry_pending"))
        await stack.publish(routing.RESULTS, "sent", result(number, 1))
        await stack.publish(routing.RESULTS, "sent", result(number, 2))
        await stack.publish(routing.RESULTS, "bounce", bounced(number, 3))
        await stack.publish(routing.RESULTS, "error", result(number, 4, reason="template", retryable=False))
        await stack.publish(routing.RESULTS, "sent", result(number, 5, attempt=2))
        await stack.publish(routing.RESULTS, "bounce", bounced(number, 6, "soft", attempt=4))
        row = await until(
            lambda: counted(stack, number, retrying=1, bounced_hard=1, bounced_soft=1, errors=1)
        )
        assert (row["sent"], row["state"]) == (2, "retry_pending")
        assert await agrees(stack, number)
    rows = await log(stack, number)
    assert rows[1]["status"] == "retrying"
    assert rows[1]["sent_at"] is not None
    assert [r for r, found in rows.items() if found["retry_at"] is not None] == [1]


async def test_what_comes_back_after_the_end_is_not_taken_up_again(stack: Stack) -> None:
    number = await confirmed(stack, 1)
    async with stack.running("results", "schedule", **SOON):
        await stack.publish(routing.RESULTS, "sent", result(number, 1))
        await stack.finished(number)
        await stack.publish(routing.RESULTS, "bounce", bounced(number, 1, "soft"))
        row = await until(lambda: counted(stack, number, bounced_soft=1))
    assert (row["state"], row["retrying"]) == ("finished", 0)


async def test_a_retry_that_is_being_planned_keeps_a_delivery_from_finishing(stack: Stack) -> None:
    number = await confirmed(stack, 1)
    retries = Retries((3_600,), 4)

    async def record(one: Sent | Bounce) -> int:
        return await Accounts(stack.db).record(number, {1: facts(one)}, retries)

    at = datetime.now(UTC)
    await record(Sent(delivery_id=number, recipient=1, attempt=1, at=at))
    async with stack.db.transaction() as tx:
        await tx.connection.execute("SELECT FROM sendoff.outcome FOR UPDATE")
        soft = Bounce(delivery_id=number, recipient=1, attempt=1, at=at, kind=BounceKind.SOFT)
        recording = asyncio.create_task(record(soft))
        await until(lambda: _waiting(stack, "transactionid"))
        finishing = asyncio.create_task(Deliveries(stack.db).finish(number))
        await until(lambda: _waiting(stack, "advisory"))
    assert (await recording, await finishing) == (1, False)
    row = await stack.deployment(number)
    assert (row["state"], row["retrying"]) == ("in_progress", 1)


async def test_what_comes_back_to_a_closed_page_is_tried_again(stack: Stack) -> None:
    number = await stack.prepare(4)
    channel = Failing({3: [FULL, FULL, Accepted("fine")]})
    settings = SOON | {"page_look_after": 0.05, "retry_delays": (0.2, 2)}
    async with stack.running(channel=channel, page_size=2, **settings):
        await stack.confirm(number)
        await until(lambda: _closed(stack, 1))
        await stack.publish(routing.RESULTS, "bounce", bounced(number, 1, "soft", at=_now()))
        row = await stack.finished(number)
    assert (row["sent"], channel.tries[1]) == (4, 2)


async def test_who_waits_in_the_queue_is_not_published_at_every_tick(stack: Stack) -> None:
    number = await stack.prepare(1)
    async with stack.running("confirm", "fanout", "results", "schedule", **SOON) as worker:
        await stack.confirm(number)
        async with stack.running("send", channel=Failing({1: [FULL]})):
            await until(lambda: counted(stack, number, retrying=1))
        await until(lambda: _queued(stack))
        assert await Pages(worker.db).open_due_retries(number) == 0
        (page,) = await stack.rows("SELECT state FROM sendoff.delivery_page")
    assert page["state"] == "published"


async def test_every_order_of_results_and_claims_ends_alike_and_balances(stack: Stack) -> None:
    """Random histories over two recorders, while those who wait are claimed: every account is exact."""
    number = await confirmed(stack, 40)
    chance = random.Random(11)  # noqa: S311 - a test's dice
    history = [_any(chance, number, r) for r in range(1, 41) for _ in range(3)] * 2
    chance.shuffle(history)
    async with (
        stack.running("results", "stats", result_batch=7, **SOON),
        stack.running("results", result_batch=3, **SOON),
    ):
        for place, one in enumerate(history):
            await stack.publish(routing.RESULTS, results.routing_key(one), one)
            if place % 20 == 0:
                rows = await log(stack, number)
                wanted = {r: (f["attempt"] + 1, f["address"]) for r, f in rows.items()}
                await claim(stack.db, number, wanted)
                await stack.deployment(number)
        await until(lambda: drained(stack))
        assert await agrees(stack, number)
    rows = await stack.rows("SELECT status, retry_at FROM sendoff.outcome")
    assert len(rows) == 40
    assert all((row["status"] == "retrying") == (row["retry_at"] is not None) for row in rows)


def _any(chance: random.Random, number: int, recipient: int) -> Sent | Bounce | Error:
    common = json.dumps(result(number, recipient, attempt=chance.randint(1, 2)))
    fields = Sent.model_validate_json(common).model_dump(
        include={"delivery_id", "recipient", "attempt", "at"}
    )
    match chance.randrange(3):
        case 0:
            return Sent(**fields)
        case 1:
            return Bounce(**fields, kind=chance.choice(list(BounceKind)), reason=BounceReason.SPAM)
        case _:
            return Error(**fields, reason="connection", retryable=chance.random() < 0.8)


def _now() -> str:
    return datetime.now(UTC).isoformat()


async def _waiting(stack: Stack, kind: str) -> bool:
    query = (
        "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND wait_event = $1"
        " AND datname = current_database()"
    )
    return bool(await stack.rows(query, kind))


async def _queued(stack: Stack) -> bool:
    pages = await stack.rows("SELECT state FROM sendoff.delivery_page")
    return await stack.depth(routing.send_queue("null")) == 1 and pages == [{"state": "published"}]


async def _closed(stack: Stack, page: int) -> bool:
    found = await stack.rows("SELECT state FROM sendoff.delivery_page WHERE page = $1", page)
    return found == [{"state": "closed"}]
