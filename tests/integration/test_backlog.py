"""The view backlog: what may be sent now, and nothing that may not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from contracts import routing
from tests.support.claims import claim
from tests.support.database import change
from tests.support.stack import until

if TYPE_CHECKING:
    from tests.support.stack import Stack

WAVES = """\
[[waves]]
share = "60%"
[[waves]]
share = "rest"
after = "2h"
"""


async def backlog(stack: Stack) -> dict[str, tuple[int, int, int]]:
    rows = await stack.rows("SELECT * FROM sendoff.backlog")
    return {row.pop("channel"): tuple(row.values()) for row in rows}


async def test_only_what_may_be_sent_now_counts(stack: Stack) -> None:
    assert await backlog(stack) == {}
    numbers = [
        await stack.prepare(10),
        await stack.prepare(7, channel="email"),
        await stack.prepare(5, extra="[limits]\nmessages_per_hour = 3600"),
        await stack.prepare(3, extra="[schedule]\ncontact_date = 2098-01-01T00:00:00Z"),
        await stack.prepare(100),
    ]
    assert await backlog(stack) == {}
    plain, email, limited, later, paused = numbers
    async with stack.running("confirm", "schedule", tick=0.05):
        for number in numbers:
            assert (await stack.confirm(number))["status"] == "accepted"
        for number in (plain, email, limited, paused):
            await stack.finished(number, "in_progress")
        assert await backlog(stack) == {"null": (2, 110, 2), "email": (1, 7, 1)}
        await stack.control(routing.PAUSE, paused)
        assert await backlog(stack) == {"null": (1, 10, 1), "email": (1, 7, 1)}
        await claim(stack.db, plain, {n: (1, f"user{n}@example.org") for n in range(1, 5)})
        assert await backlog(stack) == {"null": (1, 6, 1), "email": (1, 7, 1)}
        await stack.control(routing.STOP, email)
        await change(
            stack, "UPDATE sendoff.delivery_record SET valid_until = now() WHERE delivery_id = $1", plain
        )
        assert await backlog(stack) == {"null": (0, 0, 0)}
    assert (await stack.deployment(later))["state"] == "start_pending"


async def test_waves_and_retries_count_when_they_are_due(stack: Stack) -> None:
    number = await stack.prepare(10, extra=WAVES)
    async with stack.running("confirm", "schedule", tick=0.05):
        await stack.confirm(number)
        await stack.finished(number, "in_progress")
        assert await backlog(stack) == {"null": (1, 6, 1)}
    await change(stack, "UPDATE sendoff.delivery_page SET due_at = now() WHERE delivery_id = $1", number)
    assert await backlog(stack) == {"null": (1, 10, 2)}
    # One is under way elsewhere, so that the delivery is not finished.
    assert await claim(stack.db, number, {10: (1, "user10@example.org")}) == {10}
    async with stack.running("fanout", "send", "results", tick=0.05):

        async def sent() -> bool:
            return (await backlog(stack))["null"][1] == 0

        await until(sent)
    later = (
        "UPDATE sendoff.outcome SET retry_at = now() + $2::interval WHERE recipient <= 3 AND delivery_id = $1"
    )
    for after, due in (("1 hour", 0), ("-1 second", 3)):
        await change(stack, later.replace("$2", f"'{after}'"), number)
        assert (await backlog(stack))["null"][1] == due
