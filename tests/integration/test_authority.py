"""The right to start is looked at again when a scheduled delivery starts; who resumes it stands for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from contracts import routing
from tests.support.events import CONFIRMED, FINISHED, PAUSED, RESUMED, SCHEDULED, STARTED, heard, listener
from tests.support.tokens import TOKENS, bearing, token
from worker.db import operators
from worker.domain.operators import Role

if TYPE_CHECKING:
    from tests.support.stack import Stack

REVOKED = (
    "It was not started: “ana”, who confirmed or resumed it, no longer holds the Start deliveries role"
    " (start_deliveries)."
)
DEACTIVATED = "It was not started: “ana”, who confirmed or resumed it, has been deactivated."


async def scheduled(stack: Stack, **properties: Any) -> int:
    number = await stack.prepare(3, extra=SCHEDULED)
    assert (await stack.confirm(number, **properties))["state"] == "start_pending"
    return number


async def due(stack: Stack) -> None:
    async with stack.db.transaction() as tx:
        await tx.connection.execute("UPDATE sendoff.delivery_record SET contact_date = now()")


async def reason(stack: Stack) -> str:
    (row,) = await stack.rows("SELECT state_reason FROM sendoff.delivery")
    found: str = row["state_reason"]
    return found


async def test_whose_role_was_revoked_starts_nothing_and_another_may_resume_it(stack: Stack) -> None:
    await stack.operator("bob", "start_deliveries")
    queue = await listener(stack)
    # Several clocks: each finds it due, and it is paused once.
    async with stack.running(tick=0.05), stack.running("schedule", tick=0.05):
        number = await scheduled(stack)
        await operators.revoke_role(stack.db, "ana", Role.START_DELIVERIES)
        await due(stack)
        row = await stack.finished(number, "paused")
        assert (await reason(stack), row["started_at"], row["pending"]) == (REVOKED, None, 3)
        assert (await stack.control(routing.RESUME, number))["reason"] == "role_missing"
        assert (await stack.control(routing.RESUME, number, "bob"))["state"] == "start_pending"
        assert (await stack.finished(number))["sent"] == 3
        events = await heard(queue, 5)
    assert [(e.event.value, e.operator) for e in events] == [
        (CONFIRMED, "ana"),
        (PAUSED, None),
        (RESUMED, "bob"),
        (STARTED, None),
        (FINISHED, None),
    ]
    assert events[1].reason == REVOKED
    stands = await stack.rows("SELECT confirmed_by, authorised_by FROM sendoff.delivery_record")
    assert stands == [{"confirmed_by": "ana", "authorised_by": "bob"}]


async def test_who_was_deactivated_starts_nothing(stack: Stack) -> None:
    async with stack.running("confirm", "schedule", tick=0.05):
        number = await scheduled(stack)
        await operators.set_operator_active(stack.db, "ana", active=False)
        await due(stack)
        await stack.finished(number, "paused")
    assert await reason(stack) == DEACTIVATED


async def test_a_pause_and_a_resume_by_another_put_it_under_their_authority(stack: Stack) -> None:
    await stack.operator("bob", "start_deliveries")
    async with stack.running(tick=0.05):
        number = await scheduled(stack)
        await stack.control(routing.PAUSE, number)
        # This one changes nothing of who stands for it: it is resumed already.
        for operator in ("bob", "ana"):
            assert (await stack.control(routing.RESUME, number, operator))["state"] == "start_pending"
        await operators.revoke_role(stack.db, "ana", Role.START_DELIVERIES)
        await due(stack)
        assert (await stack.finished(number))["sent"] == 3


@pytest.mark.parametrize("active", [True, False])
async def test_a_token_stands_unless_its_operator_was_deactivated(stack: Stack, *, active: bool) -> None:
    await operators.revoke_role(stack.db, "ana", Role.START_DELIVERIES)
    await operators.grant_role(stack.db, "ana", Role.PREPARE_DELIVERIES)
    async with stack.running(tick=0.05, **TOKENS):
        number = await scheduled(stack, **bearing(token()))
        await operators.set_operator_active(stack.db, "ana", active=active)
        await due(stack)
        if active:
            assert (await stack.finished(number))["sent"] == 3
            return
        await stack.finished(number, "paused")
        assert await reason(stack) == DEACTIVATED
