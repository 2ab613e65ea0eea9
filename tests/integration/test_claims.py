"""Claims under their token and lease: handed over, given back, run out, taken by another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.database import change
from tests.support.deliveries import agrees, confirmed
from worker.db.accounts import Accounts, Expired

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.support.stack import Stack

OURS, THEIRS = 11, 12


async def _started(stack: Stack, recipients: int) -> int:
    number = await confirmed(stack, recipients)
    await stack.finished(number, "in_progress")
    return number


async def _claim(stack: Stack, number: int, recipients: Iterable[int], token: int) -> set[int]:
    asked = {r: (1, f"r{r}") for r in recipients}
    return await Accounts(stack.db).claim(number, asked, token, lease=60)


async def _hand_over(stack: Stack, number: int, recipients: Iterable[int], token: int) -> set[int]:
    return await Accounts(stack.db).hand_over(number, dict.fromkeys(recipients, token), margin=6)


async def _expire(stack: Stack, number: int, *, result_lease: float = 0) -> Expired:
    await change(stack, "UPDATE sendoff.claim_lease SET expires_at = now() - interval '1 s'")
    return await Accounts(stack.db).expire(number, result_lease=result_lease)


async def _statuses(stack: Stack, number: int) -> dict[int, str]:
    rows = await stack.rows(
        "SELECT recipient, status FROM sendoff.sending_log WHERE delivery_id = $1", number
    )
    return {row["recipient"]: row["status"] for row in rows}


async def test_of_an_expired_lease_what_was_handed_over_is_unknown_and_the_rest_is_pending(
    stack: Stack,
) -> None:
    number = await _started(stack, 4)
    await _claim(stack, number, range(1, 5), OURS)
    assert await _hand_over(stack, number, [2], OURS) == {2}
    assert await _hand_over(stack, number, [2, 4], OURS) == {2, 4}, "a repeat marks the same"
    assert await _expire(stack, number) == Expired(given_back=2, unknown=2)
    assert await _statuses(stack, number) == {1: "pending", 2: "unknown", 3: "pending", 4: "unknown"}
    async with stack.running("stats"):
        assert await agrees(stack, number)
    assert not await stack.rows("SELECT FROM sendoff.claim_lease")


async def test_a_lease_that_waits_for_a_result_hands_nothing_over_any_more(stack: Stack) -> None:
    number = await _started(stack, 3)
    await _claim(stack, number, range(1, 4), OURS)
    await _hand_over(stack, number, [1], OURS)
    assert await _expire(stack, number, result_lease=600) == Expired(given_back=2, unknown=0)
    assert await stack.rows("SELECT FROM sendoff.claim_lease WHERE expires_at > now() + interval '9 min'")
    assert await _hand_over(stack, number, [1, 2, 3], OURS) == set()
    assert await _claim(stack, number, [2, 3], THEIRS) == {2, 3}
    assert await _expire(stack, number, result_lease=0) == Expired(given_back=2, unknown=1)
    async with stack.running("stats"):
        assert await agrees(stack, number)


async def test_what_its_holder_gave_back_is_the_next_holders(stack: Stack) -> None:
    """Both leases expire together, and one of them still names the recipient as not handed over."""
    number = await _started(stack, 2)
    await _claim(stack, number, [1, 2], OURS)
    assert await Accounts(stack.db).give_back(number, {1: OURS}) == 1
    assert await _claim(stack, number, [1], THEIRS) == {1}
    assert await Accounts(stack.db).give_back(number, {1: OURS}) == 0
    assert await _hand_over(stack, number, [1], THEIRS) == {1}
    assert await _expire(stack, number) == Expired(given_back=1, unknown=1)
    assert await _statuses(stack, number) == {1: "unknown", 2: "pending"}


async def test_tokens_are_marked_together_each_under_its_own_lease(stack: Stack) -> None:
    number = await _started(stack, 4)
    await _claim(stack, number, [1, 3], OURS)
    await _claim(stack, number, [2, 4], THEIRS)
    await change(
        stack, "UPDATE sendoff.claim_lease SET expires_at = now() + interval '5 s' WHERE token = $1", OURS
    )
    claims = {1: OURS, 2: THEIRS, 3: OURS, 4: THEIRS}
    assert await Accounts(stack.db).hand_over(number, claims, margin=6) == {2, 4}


@pytest.mark.parametrize(("state", "in_hand", "becomes"), [
    ("closed", True, "published"),
    ("published", True, "published"),
    ("closed", False, "open"),
    ("published", False, "open"),
])  # fmt: skip
async def test_what_stays_in_hand_is_not_published_again_and_its_page_is_looked_at(
    stack: Stack, state: str, becomes: str, *, in_hand: bool
) -> None:
    number = await _started(stack, 2)
    await _claim(stack, number, [1, 2], OURS)
    assert await _hand_over(stack, number, [1], OURS) == {1}, "a relay refused it after this"
    await change(
        stack,
        "UPDATE sendoff.delivery_page SET state = $1, published_at = now(),"
        " look_at = CASE $1 WHEN 'published' THEN now() + interval '1 hour' END",
        state,
    )
    assert await Accounts(stack.db).give_back(number, {1: OURS}, in_hand=in_hand) == 1
    assert await _statuses(stack, number) == {1: "pending", 2: "sending"}
    (page,) = await stack.rows(
        "SELECT state, look_at <= now() AS looked_at, due_at <= now() AS due FROM sendoff.delivery_page"
    )
    assert page["state"] == becomes
    # A page that was closed is looked at: if the holder dies and the queue is lost, its recipients are found.
    assert page["looked_at"] is (None if becomes == "open" else state == "closed")
    assert await _claim(stack, number, [1], THEIRS) == {1}
    assert await _expire(stack, number) == Expired(given_back=2, unknown=0)
