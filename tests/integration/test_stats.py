"""Compute stats: one snapshot for many who ask, a deadline, repairs beside a stop, and no drift ever."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from contracts import routing
from contracts.tracking import TrackingEvent
from tests.support.deliveries import confirmed, counted
from tests.support.reports import RETRIES, Report, snapshot
from tests.support.results import result
from tests.support.stack import until
from tests.support.tracking import event
from worker.cli import app
from worker.db import accounts, stats
from worker.db.accounts import Accounts
from worker.db.pool import open_database
from worker.db.stats import Statistics
from worker.db.tracking import TrackingLog
from worker.domain.machines import own_rules
from worker.domain.outcomes import facts
from worker.domain.tracking import judge

if TYPE_CHECKING:
    from aio_pika.abc import AbstractQueue

    from tests.support.stack import Stack

PARTS = (
    "sent",
    "bounced",
    "errors",
    "unknown",
    "excluded_late",
    "cancelled",
    "retrying",
    "sending",
    "pending",
)


class Asker:
    """Asks many times and collects the answers."""

    def __init__(self, stack: Stack, answers: AbstractQueue) -> None:
        self.stack = stack
        self.answers = answers
        self.asked: dict[str, datetime] = {}

    @classmethod
    async def open(cls, stack: Stack) -> Asker:
        return cls(stack, await stack.channel.declare_queue(exclusive=True))

    async def ask(self, body: bytes | dict[str, Any]) -> str:
        name = f"q{len(self.asked)}"
        self.asked[name] = datetime.now(UTC)
        await self.stack.publish(
            routing.COMMANDS,
            routing.COMPUTE_STATS,
            body,
            reply_to=self.answers.name,
            message_id=name,
            correlation_id=name,
        )
        return name

    async def heard(self, count: int) -> dict[str, dict[str, Any]]:
        """Waits for so many answers; no question gets two, and no snapshot is older than its question."""
        found: dict[str, dict[str, Any]] = {}
        async with asyncio.timeout(30):
            async with self.answers.iterator(no_ack=True) as messages:
                async for message in messages:
                    name = str(message.correlation_id)
                    assert name not in found
                    found[name] = json.loads(message.body)
                    if "as_of" in found[name]:
                        assert datetime.fromisoformat(found[name]["as_of"]) >= self.asked[name]
                    if len(found) == count:
                        return found
        raise AssertionError("unreachable")


def balanced(answer: dict[str, Any]) -> bool:
    return bool(answer["to_deliver"] == sum(answer[p] for p in PARTS)) and min(answer[p] for p in PARTS) >= 0


async def blocked(stack: Stack, event: str) -> bool:
    query = "SELECT FROM pg_stat_activity WHERE wait_event = $1 AND datname = current_database()"
    return bool(await stack.rows(query, event))


async def test_a_flood_is_answered_by_a_few_recounts(stack: Stack) -> None:
    number, other = await confirmed(stack, 3), await confirmed(stack, 2)
    asker = await Asker.open(stack)
    await asyncio.gather(*(asker.ask({"delivery_id": number}) for _ in range(1_000)))
    await asker.ask({"delivery_id": other})
    await asker.ask({"delivery_id": 4711})
    await asker.ask(b"{")
    async with stack.running("stats"):
        answers = await asker.heard(1_003)
        own = [a for a in answers.values() if a.get("delivery_id") == number]
        assert len(own) == 1_000
        assert all(a["to_deliver"] == 3 and a["exact"] for a in own)
        assert len({a["as_of"] for a in own}) < 50
        rest = [answers[f"q{i}"] for i in (1_000, 1_001, 1_002)]
        assert [a.get("reason", a.get("to_deliver")) for a in rest] == [2, "delivery_unknown", "malformed"]
        assert rest[1]["command_id"] == "q1001"

        async def empty() -> bool:
            return await stack.depth(routing.STATS_QUEUE) == 0

        await until(empty)


async def test_who_asks_during_a_recount_waits_for_the_next(stack: Stack) -> None:
    number = await confirmed(stack, 2)
    asker = await Asker.open(stack)
    async with stack.running("stats"):
        async with stack.db.transaction() as tx:
            # The snapshot is taken, and what comes after it in the recount is held up.
            await tx.connection.execute("LOCK TABLE sendoff.exclusion")
            first = await asker.ask({"delivery_id": number})
            await until(lambda: blocked(stack, "relation"))
            await Accounts(stack.db).record(number, {1: facts(Report(1, 1, "sent").result(number))}, RETRIES)
            late = [await asker.ask({"delivery_id": number}) for _ in range(5)]
        answers = await asker.heard(6)
    assert answers[first]["sent"] == 0
    assert [answers[name]["sent"] for name in late] == [1] * 5
    assert all(a["drift"] == {} for a in answers.values())


async def test_deliveries_are_recounted_side_by_side(stack: Stack) -> None:
    held, free = await confirmed(stack, 2), await confirmed(stack, 3)
    asker = await Asker.open(stack)
    async with stack.running("stats"):
        async with stack.db.session() as session:
            await session.execute("lock_stats", delivery_id=held)
            await asker.ask({"delivery_id": held})
            await until(lambda: blocked(stack, "advisory"))
            name = await asker.ask({"delivery_id": free})
            assert (await asker.heard(1))[name]["to_deliver"] == 3
            await session.execute("unlock_stats", delivery_id=held)
        assert (await asker.heard(1))["q0"]["to_deliver"] == 2


async def test_a_recount_that_takes_too_long_is_cancelled_and_answered_from_the_counters(
    stack: Stack,
) -> None:
    number = await confirmed(stack, 4)
    await Accounts(stack.db).record(number, {1: facts(Report(1, 1, "sent").result(number))}, RETRIES)
    async with stack.running("stats", stats_deadline=0.5):
        async with stack.db.transaction() as tx:
            await tx.connection.execute("LOCK TABLE sendoff.outcome")
            answer = await stack.request(routing.COMPUTE_STATS, {"delivery_id": number})
            assert not await blocked(stack, "relation")
            env = {"SENDOFF_QUEUE_PREFIX": stack.settings.queue_prefix}
            shown = await asyncio.to_thread(CliRunner().invoke, app, ["stats", str(number)], env=env)
            assert (shown.exit_code, "live counters at" in shown.output) == (0, True), shown.output
        assert (answer["status"], answer["exact"], answer["drift"]) == ("accepted", False, {})
        assert (answer["sent"], answer["pending"], answer["sent_pct"]) == (1, 3, 25)
        answer = await stack.request(routing.COMPUTE_STATS, {"delivery_id": number})
    assert (answer["exact"], answer["sent"]) == (True, 1)


async def test_a_repair_that_races_with_a_stop_leaves_no_drift(stack: Stack) -> None:
    number = await confirmed(stack, 5)
    await Accounts(stack.db).record(number, {1: facts(Report(1, 1, "sent").result(number))}, RETRIES)
    async with stack.db.transaction() as tx:
        await tx.connection.execute(
            "UPDATE sendoff.delivery_counter SET sent = sent + 2, errors = errors - 1"
        )
    async with stack.db.transaction() as tx:
        await accounts.close_claims(tx, number)
        repairing = asyncio.create_task(Statistics(stack.db).recount(number, deadline=20))
        await until(lambda: blocked(stack, "advisory"))
        await accounts.cancel_remaining(tx, number)
    found = await repairing
    assert found is not None
    assert found.drift == {"sent": -2, "errors": 1, "cancelled": 1}
    row, _ = await snapshot(stack, number)
    assert (row["sent"], row["cancelled"], row["pending"]) == (1, 4, 0)
    again = await Statistics(stack.db).recount(number, deadline=20)
    assert again is not None
    assert again.drift == {}


async def test_a_recount_that_races_with_retention_changes_no_counter(stack: Stack) -> None:
    number = await confirmed(stack, 5)
    await Accounts(stack.db).record(number, {1: facts(Report(1, 1, "sent").result(number))}, RETRIES)
    async with stack.db.transaction() as tx:
        await accounts.close_claims(tx, number)
        async with stack.db.transaction() as other:
            # As a snapshot sees it whose partition left between two statements.
            await other.connection.execute("DELETE FROM sendoff.outcome")
        recounting = asyncio.create_task(Statistics(stack.db).recount(number, deadline=20))
        await until(lambda: blocked(stack, "advisory"))
        await tx.connection.execute("UPDATE sendoff.delivery_record SET purged_at = now()")
    found = await recounting
    assert found is not None
    assert (found.exact, found.drift) == (False, {})
    assert (await stack.deployment(number))["sent"] == 1


async def test_two_connections_see_one_moment(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is committed after the snapshot is in neither count: its counter is no drift."""
    monkeypatch.setattr(stats, "_LARGE", 0)
    number = await confirmed(stack, 3)
    db = await open_database(
        stack.settings.database_url, size=2, connect_timeout=20, command_timeout=20, application="two"
    )

    async def one_is_counted() -> bool:
        query = (
            "SELECT FROM pg_stat_activity WHERE application_name = 'two' AND state = 'idle in transaction'"
        )
        return bool(await stack.rows(query))

    async with db.session():  # so that the second connection is not to be had yet
        recounting = asyncio.create_task(Statistics(db).recount(number, deadline=20))
        await until(one_is_counted)
        opened = judge(
            TrackingEvent.model_validate_json(json.dumps(event(number, 1, "open", "a"))), own_rules()
        )
        await TrackingLog(stack.db).record(number, [opened], "1")
    found = await recounting
    await db.close()
    assert found is not None
    assert (found.drift, found.deployment["opened"]) == ({}, 0)
    assert (await stack.deployment(number))["opened"] == 1


@pytest.mark.usefixtures("counting")
async def test_under_load_every_answer_is_exact_and_every_look_agrees(stack: Stack) -> None:
    """A recount finds no drift while results pour in, and a reader never sees counters and rows apart."""
    number = await stack.prepare(4_000)
    asker = await Asker.open(stack)
    over = asyncio.Event()
    seen: list[int] = []

    async def watch() -> None:
        while not over.is_set():
            row, rows = await snapshot(stack, number)
            seen.append(row["sent"])
            assert len(rows) == row["to_deliver"] - row["pending"]

    async with (
        stack.running(result_batch=50, send_batch=50, page_size=200),
        stack.running("send", "results", result_batch=20, send_batch=50),
        stack.running("results", "stats", result_batch=70),
    ):
        await stack.confirm(number)
        watching = asyncio.create_task(watch())
        answers: list[dict[str, Any]] = []
        while not await counted(stack, number, state="finished"):
            name = await asker.ask({"delivery_id": number})
            answers.append((await asker.heard(1))[name])
        over.set()
        await watching
        name = await asker.ask({"delivery_id": number})
        last = (await asker.heard(1))[name]
    assert (last["sent"], last["drift"]) == (4_000, {})
    assert answers
    assert all(balanced(a) and a["exact"] and a["drift"] == {} for a in answers)
    assert [a["sent"] for a in answers] == sorted(a["sent"] for a in answers)
    assert seen == sorted(seen)
    assert len({sent for sent in seen if 0 < sent < 4_000}) > 0


async def test_an_outcome_is_there_for_readers_once_its_result_is_committed(stack: Stack) -> None:
    number = await confirmed(stack, 50)
    for recipient in range(1, 51):
        kind = ("sent", "hard", "error")[recipient % 3]
        known = facts(Report(recipient, 1, kind).result(number))
        await Accounts(stack.db).record(number, {recipient: known}, RETRIES)
        row, rows = await snapshot(stack, number)
        assert (row["sent"] + row["bounced"] + row["errors"], len(rows)) == (recipient, recipient)


async def test_recounts_of_two_processes_repair_a_drift_once(stack: Stack) -> None:
    number = await confirmed(stack, 3)
    async with stack.running("results", "stats"), stack.running("stats"):
        await stack.publish(routing.RESULTS, "sent", result(number, 1))
        await until(lambda: counted(stack, number, sent=1))
        async with stack.db.transaction() as tx:
            await tx.connection.execute("UPDATE sendoff.delivery_counter SET sent = sent + 7")
        asker = await Asker.open(stack)
        await asyncio.gather(*(asker.ask({"delivery_id": number}) for _ in range(20)))
        answers = await asker.heard(20)
    drifted = {a["as_of"] for a in answers.values() if a["drift"]}
    assert len(drifted) == 1
    assert all(a["sent"] == 1 for a in answers.values())
    assert (await stack.deployment(number))["sent"] == 1
