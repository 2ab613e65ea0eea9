"""Results at odd moments and of odd form: in a race with their claim, days late, after a stop, unreadable."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from contracts import routing
from tests.support.claims import claim, expire
from tests.support.database import waits_for_a_row
from tests.support.deliveries import agrees, confirmed, counted, log
from tests.support.reports import NOON, RETRIES, Report, snapshot
from tests.support.results import bounced, drained, result
from tests.support.stack import until
from worker.db.accounts import Accounts
from worker.db.deliveries import Deliveries
from worker.domain.outcomes import REPLY_LIMIT, facts

if TYPE_CHECKING:
    from tests.support.stack import Stack


async def _started(stack: Stack, recipients: int) -> int:
    number = await confirmed(stack, recipients)
    await stack.finished(number, "in_progress")
    return number


def _reported(number: int, recipient: int, kind: str, attempt: int = 1) -> dict[int, Any]:
    return {recipient: facts(Report(recipient, attempt, kind).result(number))}


async def test_a_result_comes_before_its_claim_is_committed(stack: Stack) -> None:
    number = await _started(stack, 1)
    async with stack.db.transaction() as tx:
        await tx.execute("lock_claims", delivery_id=number)
        granted = await tx.fetchval(
            "claim",
            delivery_id=number,
            recipients=[1],
            attempts=[1],
            address_keys=["a"],
            token=1,
            lease=timedelta(seconds=60),
            handed_over=True,
        )
        assert granted == [1]
        recording = asyncio.create_task(
            Accounts(stack.db).record(number, _reported(number, 1, "sent"), RETRIES)
        )
        await until(lambda: waits_for_a_row(stack))
        row, rows = await snapshot(stack, number)
        assert (row["pending"], rows) == (1, {})
    assert await recording == 1
    row, rows = await snapshot(stack, number)
    assert (row["sent"], row["sending"], rows[1]["claimed_at"] is not None) == (1, 0, True)


async def test_a_claim_comes_while_the_result_is_being_recorded(stack: Stack) -> None:
    number = await _started(stack, 1)
    async with stack.db.transaction() as tx:
        await tx.execute("lock_claims", delivery_id=number)
        nothing = (
            "bounced_at",
            "error_at",
            "reasons",
            "codes",
            "faults",
            "replies",
            "provider_ids",
            "retry_at",
        )
        moved = await tx.fetchval(
            "record_outcomes",
            delivery_id=number,
            recipients=[1],
            attempts=[1],
            statuses=["sent"],
            precedences=[20],
            sent_at=[NOON],
            max_attempts=4,
            **dict.fromkeys(nothing, ()),
        )
        assert moved == 1
        claiming = asyncio.create_task(claim(stack.db, number, {1: (1, "a")}))
        await until(lambda: waits_for_a_row(stack))
    assert await claiming == set()
    row, _ = await snapshot(stack, number)
    assert (row["sent"], row["sending"]) == (1, 0)


async def test_what_comes_days_later_is_recorded_like_any_other(stack: Stack) -> None:
    """A finished delivery of nine days ago: an old attempt, a settled unknown, a bounce long after sent."""
    number = await _started(stack, 6)
    db = stack.db
    await claim(db, number, dict.fromkeys(range(1, 7), (1, "a")))
    early = {**_reported(number, 1, "sent"), **_reported(number, 2, "soft"), **_reported(number, 3, "sent")}
    early |= {**_reported(number, 5, "error"), **_reported(number, 6, "sent")}
    await Accounts(db).record(number, early, RETRIES)
    assert await claim(db, number, {2: (2, "a")}) == {2}
    await Accounts(db).record(number, _reported(number, 2, "sent", 2), RETRIES)
    await expire(db, number)
    assert await Deliveries(db).finish(number)
    async with db.transaction() as tx:
        for change in (
            "outcome SET claimed_at = claimed_at - interval '9 days', sent_at = sent_at - interval '9 days'",
            "delivery_record SET valid_until = now() - interval '6 days'",
        ):
            await tx.connection.execute(f"UPDATE sendoff.{change}")
    async with stack.running("results", "stats"):
        await stack.publish(routing.RESULTS, "bounce", bounced(number, 1, reply="550 5.1.1 no such user"))
        await stack.publish(routing.RESULTS, "bounce", bounced(number, 2, "soft"))
        await stack.publish(routing.RESULTS, "bounce", bounced(number, 3, "soft"))
        await stack.publish(routing.RESULTS, "sent", result(number, 4))
        await stack.publish(routing.RESULTS, "sent", result(number, 5))
        await stack.publish(routing.RESULTS, "error", result(number, 6, reason="late", retryable=True))
        row = await until(lambda: counted(stack, number, bounced_hard=1, bounced_soft=1, sent=4))
        await until(lambda: drained(stack))
        assert await agrees(stack, number)
    assert (row["state"], row["unknown"], row["errors"], row["retrying"]) == ("finished", 0, 0, 0)
    rows = await log(stack, number)
    assert {r: rows[r]["status"] for r in rows} == {
        1: "bounced",
        2: "sent",
        3: "bounced",
        4: "sent",
        5: "sent",
        6: "sent",
    }
    assert rows[1]["reply"] == "550 5.1.1 no such user"
    assert all(fact is not None for fact in (rows[2]["bounced_at"], rows[5]["error_at"], rows[6]["error_at"]))
    assert await stack.dead() == []


async def test_results_for_a_stopped_delivery_leave_the_cancelled(stack: Stack) -> None:
    number = await _started(stack, 4)
    await claim(stack.db, number, {1: (1, "a")})
    async with stack.running("confirm", "results", "stats"):
        await stack.control(routing.STOP, number)
        assert (await stack.deployment(number))["cancelled"] == 3
        await stack.publish(routing.RESULTS, "sent", json.dumps([result(number, r) for r in (1, 2)]).encode())
        await stack.publish(routing.RESULTS, "bounce", bounced(number, 3, "soft"))
        row = await until(lambda: counted(stack, number, sent=2, bounced_soft=1, cancelled=1))
        assert await agrees(stack, number)
    assert (row["state"], row["sending"], row["pending"]) == ("stopped", 0, 0)


async def test_texts_of_any_kind_are_kept_within_their_bounds(stack: Stack) -> None:
    number = await confirmed(stack, 5)
    many = [
        bounced(number, 1, reply="550\u0000 no"),
        bounced(number, 2, reply="😀" * 70_000),
        bounced(number, 3, reply="cut in the middle of a smile \ud83d"),
        bounced(number, 4, reply="\u202e\x1b[2J\r\n\t"),
        bounced(number, 5, reply=""),
    ]
    await stack.publish(routing.RESULTS, "bounce", json.dumps(many).encode())
    async with stack.running("results"):
        await stack.finished(number)
    rows = await log(stack, number)
    assert [rows[r]["reply"] for r in range(1, 6)] == [
        "550\ufffd no",
        "😀" * REPLY_LIMIT,
        "cut in the middle of a smile \ufffd",
        "\u202e\x1b[2J\r\n\t",
        None,
    ]


async def test_a_row_that_the_database_refuses_does_not_hold_up_the_others(stack: Stack) -> None:
    number = await confirmed(stack, 50)
    async with stack.db.transaction() as tx:
        await tx.connection.execute("ALTER TABLE sendoff.outcome ADD CHECK (reply <> 'poison')")
    many = [result(number, r, reply="poison" if r in (1, 17, 50) else "fine") for r in range(1, 51)]
    await stack.publish(routing.RESULTS, "sent", json.dumps(many).encode())
    async with stack.running("results"):
        row = await until(lambda: counted(stack, number, sent=47))
        await until(lambda: drained(stack))
    assert row["pending"] == 3
    dead = await stack.dead()
    assert sorted(json.loads(body)[0]["recipient"] for body, _ in dead) == [1, 17, 50]
    assert all(reason.startswith("The result cannot be stored") for _, reason in dead)
