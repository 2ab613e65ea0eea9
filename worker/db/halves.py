"""Writing rows of which one may be bad: halves, until it is alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import asyncpg

from worker.db.outage import outlast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

T = TypeVar("T")

ROWS_AT_ONCE: Final = 2_000
"""Rows in one statement; 500 a statement cost 10 % more each, 5,000 gain nothing."""

_LEFT: Final = "the delivery has left by retention"


async def write_by_halves(
    rows: Sequence[T],
    write: Callable[[Sequence[T]], Awaitable[int]],
    bury: Callable[[Sequence[T], str], Awaitable[None]],
    doing: str,
) -> int:
    """Writes rows; one that the database will not take must not hold up the others: halves until it is alone.

    Args:
        rows: Of one delivery, in the order of their keys.
        write: Writes rows in one transaction, idempotent, and returns a count.
        bury: Keeps rows that cannot be stored, with the database's reason.
        doing: What is being done, for the log.

    Returns:
        The sum of the counts.
    """
    try:
        return await outlast(lambda: write(rows), doing)
    except (asyncpg.PostgresError, ValueError) as error:
        # An outage and a collision are waited for; what comes here is about the rows.
        left = _finds_no_partition(error)  # as all of a delivery do, or none
        if left or len(rows) == 1:
            await bury(rows, _LEFT if left else str(error))
            return 0
    middle = len(rows) // 2
    return sum([await write_by_halves(half, write, bury, doing) for half in (rows[:middle], rows[middle:])])


def _finds_no_partition(error: Exception) -> bool:
    """Whether a row has no partition to go into; it is a violated check without a name."""
    return isinstance(error, asyncpg.CheckViolationError) and error.constraint_name is None
