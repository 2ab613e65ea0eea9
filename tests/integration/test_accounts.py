"""The one function that moves counters: every status has one, and what leaves one arrives at another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.test_results import confirmed
from worker.domain.outcomes import OutcomeStatus

if TYPE_CHECKING:
    from tests.stack import Stack

FACTS = ("opened", "clicked", "mirror", "optout", "human_opened", "human_clicked", "complained")
COUNTERS = "SELECT xmin::text AS written, * FROM sendoff.delivery_counter WHERE delivery_id = $1"


async def move(stack: Stack, number: int, *moves: tuple[str | None, str, int]) -> None:
    async with stack.db.session() as session:
        await session.connection.execute("SELECT sendoff.count_moves($1, $2::sendoff.move[])", number, moves)


async def balance(stack: Stack, number: int) -> dict[str, int]:
    """The KPIs that are not 0, of those that a move may change."""
    row: dict[str, Any] = await stack.deployment(number)
    names = ("pending", "sending", "retrying", "bounced", "cancelled", "excluded_late", "errors", *FACTS)
    return {name: row[name] for name in (*names, "sent", "unknown") if row[name]}


async def test_every_status_has_a_counter_and_takes_its_recipients_from_where_they_were(stack: Stack) -> None:
    number = await confirmed(stack, 100)
    claimed = [(None, status, 1) for status in OutcomeStatus]
    await move(stack, number, *claimed)
    await move(stack, number, *claimed)  # into the same row
    async with stack.db.session():
        await move(stack, number, *claimed)  # over another connection, and mostly into another row
    assert await balance(stack, number) == {
        "pending": 100 - 3 * len(OutcomeStatus),
        "bounced": 9,
        **dict.fromkeys(("sending", "sent", "errors", "unknown", "excluded_late", "retrying"), 3),
    }
    await move(stack, number, *((status, "sent", 3) for status in OutcomeStatus))
    assert await balance(stack, number) == {"pending": 100 - 3 * len(OutcomeStatus), "sent": 27}


async def test_who_has_no_row_is_cancelled_once_the_delivery_is(stack: Stack) -> None:
    number = await confirmed(stack, 5)
    await move(stack, number, ("pending", "cancelled", 5))
    async with stack.db.session() as session:
        await session.connection.execute("UPDATE sendoff.delivery_record SET cancelled_at = now()")
    await move(stack, number, (None, "sent", 2), ("sent", "bounced_soft", 1))
    assert await balance(stack, number) == {"cancelled": 3, "sent": 1, "bounced": 1}


async def test_facts_are_beside_the_balance_and_drift_may_be_less_than_nothing(stack: Stack) -> None:
    number = await confirmed(stack, 9)
    await move(stack, number, *(("nothing", fact, 1) for fact in FACTS))
    await move(stack, number, *(("nothing", fact, 3) for fact in FACTS))
    assert await balance(stack, number) == {"pending": 9, **dict.fromkeys(FACTS, 4)}
    await move(
        stack, number, ("pending", "errors", 2), ("pending", "excluded_late", -1), ("nothing", "mirror", -4)
    )
    row = await stack.deployment(number)
    assert (row["errors"], row["excluded_late"], row["mirror"], row["pending"]) == (2, -1, 0, 8)


@pytest.mark.parametrize(
    "moves", [[], [("sent", "sent", 3)], [("sending", "sent", 0), ("nothing", "opened", 0)]]
)
async def test_nothing_is_written_where_nothing_moves(
    stack: Stack, moves: list[tuple[str, str, int]]
) -> None:
    number = await confirmed(stack, 1)
    await move(stack, number, *moves)
    assert await stack.rows(COUNTERS, number) == []
    await move(stack, number, (None, "sending", 1))
    before = await stack.rows(COUNTERS, number)
    await move(stack, number, *moves)
    assert await stack.rows(COUNTERS, number) == before
