"""A stop counts who waits for a retry as cancelled; their rows are given the status that stands in steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from contracts import routing
from tests.support.database import change
from tests.support.deliveries import agrees, confirmed, counted, log
from tests.support.results import bounced
from tests.support.stack import until
from worker.db import accounts
from worker.db.accounts import Accounts
from worker.db.deliveries import Deliveries

if TYPE_CHECKING:
    import pytest

    from tests.support.stack import Stack

WAIT = """
    INSERT INTO sendoff.outcome (delivery_id, recipient, attempt, status, precedence, bounced_at, retry_at)
    SELECT $1, r, 1, 'retrying', 19, now(), now() + interval '1 hour' FROM generate_series(1, $2::int) r
"""


async def waiting(stack: Stack, recipients: int, waiting: int) -> int:
    """A delivery in which some have bounced softly and wait for a retry."""
    number = await confirmed(stack, recipients)
    await change(stack, WAIT, number, waiting)
    moved = "SELECT sendoff.count_moves($1, ARRAY[('pending', 'retrying', $2)::sendoff.move])"
    await change(stack, moved, number, waiting)
    return number


async def test_the_accounts_balance_at_every_step_of_the_end(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "_RETRIES_AT_ONCE", 4)
    number = await waiting(stack, 12, 10)
    async with stack.running("confirm", "stats", "results"):
        await stack.control(routing.STOP, number)
        assert await counted(stack, number, cancelled=12, retrying=0, bounced_soft=0)
        assert await agrees(stack, number)
        assert {row["status"] for row in (await log(stack, number)).values()} == {"cancelled"}
        assert await Accounts(stack.db).end_retries(number)
        assert await counted(stack, number, cancelled=8, retrying=0, bounced_soft=4)
        assert await agrees(stack, number)
        # A result for one whose row is yet to be ended, and for one without a row.
        await stack.publish(routing.RESULTS, "bounce", bounced(number, 9))
        await stack.publish(routing.RESULTS, "bounce", bounced(number, 12))
        await until(lambda: counted(stack, number, cancelled=6, bounced_hard=2, bounced_soft=4))
        assert await agrees(stack, number)
        assert await Accounts(stack.db).end_retries(number)
        assert not await Accounts(stack.db).end_retries(number)
        assert await counted(stack, number, cancelled=1, bounced_soft=9, bounced_hard=2)
        assert await agrees(stack, number)
    assert await Accounts(stack.db).ending_retries() == []


async def test_a_delivery_whose_validity_is_over_finishes_after_its_retries_are_ended(stack: Stack) -> None:
    number = await waiting(stack, 3, 2)
    await Accounts(stack.db).cancel(number)
    assert await Accounts(stack.db).ending_retries() == [number]
    assert not await Deliveries(stack.db).finish(number)
    async with stack.running("schedule"):
        row = await stack.finished(number)
    assert (row["bounced_soft"], row["cancelled"], row["retrying"]) == (2, 1, 0)


async def test_retries_of_a_delivery_that_is_not_cancelled_are_not_ended(stack: Stack) -> None:
    number = await waiting(stack, 3, 2)
    assert not await Accounts(stack.db).end_retries(number)
    assert await counted(stack, number, retrying=2)
