"""A confirmed delivery, and what it came to: its log, its counters, its states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from contracts import routing
from tests.support.stack import until

if TYPE_CHECKING:
    from tests.support.stack import Stack


SOON: dict[str, Any] = {"retry_delays": (0.2,), "tick": 0.05}
LATER: dict[str, Any] = {"retry_delays": (3_600,), "tick": 0.05}


async def confirmed(stack: Stack, recipients: Any, **more: Any) -> int:
    """Prepares and confirms a delivery, to be run by services of the test's own; returns its number."""
    number = await stack.prepare(recipients, **more)
    async with stack.running("confirm"):
        assert (await stack.confirm(number))["status"] == "accepted"
    return number


async def log(stack: Stack, number: int) -> dict[int, dict[str, Any]]:
    found = await stack.rows("SELECT * FROM sendoff.sending_log WHERE delivery_id = $1", number)
    return {row["recipient"]: row for row in found}


async def counted(stack: Stack, number: int, **expected: int | str) -> dict[str, Any] | None:
    row = await stack.deployment(number)
    return row if all(row[k] == v for k, v in expected.items()) else None


async def counts(stack: Stack, number: int, **expected: int | str) -> dict[str, Any]:
    """Waits until the deployment has these figures; returns it."""
    found: dict[str, Any] = await until(lambda: counted(stack, number, **expected))
    return found


async def sent(stack: Stack, recipients: Any, **more: Any) -> int:
    """Prepares a delivery, and sends it to all; returns its number."""
    number = await stack.prepare(recipients, **more)
    async with stack.running():
        await stack.confirm(number)
        row = await stack.finished(number)
    assert row["sent"] == row["to_deliver"]
    return number


async def states(stack: Stack, number: int) -> list[str]:
    query = "SELECT to_state FROM sendoff.delivery_transition WHERE delivery_id = $1 ORDER BY number"
    return [row["to_state"] for row in await stack.rows(query, number)]


async def agrees(stack: Stack, number: int) -> bool:
    """Whether a recount finds the counters as they are."""
    answer = await stack.request(routing.COMPUTE_STATS, {"delivery_id": number})
    return bool(answer["drift"] == {})
