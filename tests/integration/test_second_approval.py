"""A delivery to many recipients starts only after two operators confirmed the same preparation."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from contracts import routing
from worker.db.operators import revoke_role
from worker.domain.operators import Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.processes import Sendoff
    from tests.support.stack import Stack

TWO: dict[str, Any] = {"second_approval_above": 2}
DELIVERY = """SELECT state, first_approval_by, first_approval_at, first_approval_until FROM sendoff.delivery
              WHERE delivery_id = $1"""


@pytest.fixture
async def stack_of_two(stack: Stack) -> Stack:
    await stack.operator("ben", "start_deliveries")
    return stack


async def ok(stack: Stack, number: int, operator: str, preparation: int = 1, **properties: Any) -> Any:
    body = {"delivery_id": number, "operator": operator, "preparation": preparation, "definitive": True}
    return await stack.request(routing.CONFIRM, body, **properties)


async def button(stack: Stack, number: int, operator: str = "ben") -> Any:
    body = {"delivery_id": number, "operator": operator, "definitive": False}
    return await stack.request(routing.CONFIRM, body)


def outcome(answer: dict[str, Any]) -> tuple[str, str | None, str]:
    return answer["status"], answer["reason"], answer["state"]


AWAITING = ("refused", "awaiting_approval", "ready")
STARTED = ("accepted", None, "in_progress")


async def approvals(stack: Stack, number: int) -> dict[str, Any]:
    (row,) = await stack.rows(DELIVERY, number)
    return row


async def lapse(stack: Stack, number: int) -> None:
    """The time limit passes: the first OK was given so much earlier."""
    async with stack.db.transaction() as tx:
        await tx.connection.execute(
            "UPDATE sendoff.delivery_record SET first_approval_at = first_approval_at - interval '1 day',"
            " first_approval_until = first_approval_until - interval '1 day' WHERE delivery_id = $1",
            number,
        )


async def commands(stack: Stack) -> Sequence[tuple[str, str, str | None]]:
    query = "SELECT operator, status, reason FROM sendoff.command_log ORDER BY received_at"
    return [(row["operator"], row["status"], row["reason"]) for row in await stack.rows(query)]


async def test_the_first_ok_waits_for_the_second_which_starts_it_and_both_are_logged(
    stack_of_two: Stack,
) -> None:
    stack = stack_of_two
    number = await stack.prepare(3)
    async with stack.running(**TWO):
        assert outcome(await ok(stack, number, "ana")) == AWAITING
        row = await approvals(stack, number)
        assert (row["state"], row["first_approval_by"]) == ("ready", "ana")
        assert (row["first_approval_until"] - row["first_approval_at"]).total_seconds() == 86_400
        assert await stack.rows("SELECT FROM sendoff.delivery_page") == []
        second = await ok(stack, number, "ben")
        assert outcome(second) == STARTED
        assert second["message"] == "Confirmed by “ana” and “ben”: sending has begun."
        assert (await stack.finished(number))["sent"] == 3
    row = await approvals(stack, number)
    assert row["first_approval_by"] == "ana"
    assert await commands(stack) == [
        ("ana", "refused", "awaiting_approval"),
        ("ben", "accepted", None),
    ]


async def test_the_button_says_that_two_are_needed_and_who_was_first(stack_of_two: Stack) -> None:
    stack = stack_of_two
    number = await stack.prepare(3)
    async with stack.running("confirm", **TWO):
        before = (await button(stack, number))["summary"]["second_approval"]
        assert before == {"above": 2, "first_by": None, "first_at": None, "first_until": None}
        await ok(stack, number, "ana")
        answer = await button(stack, number)
    assert answer["summary"]["second_approval"]["first_by"] == "ana"
    assert "“ana” gave the first OK at" in answer["message"]


async def test_up_to_the_limit_one_ok_starts_it(stack_of_two: Stack) -> None:
    stack = stack_of_two
    number = await stack.prepare(2)
    async with stack.running("confirm", **TWO):
        assert (await button(stack, number))["summary"]["second_approval"] is None
        assert outcome(await ok(stack, number, "ana")) == STARTED


async def test_the_same_operator_twice_is_one_ok(stack_of_two: Stack) -> None:
    stack = stack_of_two
    number = await stack.prepare(3)
    async with stack.running("confirm", **TWO), stack.running("confirm", **TWO):
        answers = await asyncio.gather(*(ok(stack, number, "ana") for _ in range(8)))
        assert {outcome(answer) for answer in answers} == {AWAITING}
        first = await approvals(stack, number)
        assert outcome(await ok(stack, number, "ana")) == AWAITING
        assert await approvals(stack, number) == first
        again = await ok(stack, number, "ben", message_id="the-second")
        assert await ok(stack, number, "ben", message_id="the-second") == again
    assert outcome(again) == STARTED


@pytest.mark.parametrize("_", range(5))
async def test_of_two_oks_at_once_one_is_the_first_and_the_other_starts_it(
    stack_of_two: Stack, _: int
) -> None:
    stack = stack_of_two
    number = await stack.prepare(3)
    async with stack.running("confirm", **TWO), stack.running("confirm", **TWO):
        answers = await asyncio.gather(ok(stack, number, "ana"), ok(stack, number, "ben"))
    assert sorted(map(str, map(outcome, answers))) == sorted([str(AWAITING), str(STARTED)])
    first = "ana" if outcome(answers[0]) == AWAITING else "ben"
    assert (await approvals(stack, number))["first_approval_by"] == first
    assert len(await stack.rows("SELECT FROM sendoff.delivery_page")) == 1


async def test_the_first_ok_lapses_by_the_clock_of_the_database(stack_of_two: Stack) -> None:
    stack = stack_of_two
    number = await stack.prepare(3)
    async with stack.running("confirm", **TWO):
        await ok(stack, number, "ana")
        await lapse(stack, number)
        assert (await approvals(stack, number))["first_approval_by"] is None
        assert (await button(stack, number))["summary"]["second_approval"]["first_by"] is None
        answer = await ok(stack, number, "ben")
        assert outcome(answer) == AWAITING
        assert answer["message"].startswith("The OK of “ana” does not count any more: it was given at ")
        assert (await approvals(stack, number))["first_approval_by"] == "ben"
        assert outcome(await ok(stack, number, "ana")) == STARTED


async def test_the_first_ok_lapses_with_a_new_preparation(stack_of_two: Stack) -> None:
    stack = stack_of_two
    number = await stack.prepare(3)
    async with stack.running("confirm", **TWO):
        await ok(stack, number, "ana")
        await stack.prepare(4, delivery=number)
        assert (await approvals(stack, number))["first_approval_by"] is None
        assert (await ok(stack, number, "ben", preparation=1))["reason"] == "stale_preparation"
        answer = await ok(stack, number, "ben", preparation=2)
        assert outcome(answer) == AWAITING
        assert "it was given for preparation 1" in answer["message"]
        assert outcome(await ok(stack, number, "ana", preparation=2)) == STARTED


async def test_the_first_ok_ends_with_a_stop(stack_of_two: Stack) -> None:
    stack = stack_of_two
    number = await stack.prepare(3)
    async with stack.running("confirm", **TWO):
        await ok(stack, number, "ana")
        assert (await stack.control(routing.STOP, number))["state"] == "stopped"
        assert (await approvals(stack, number))["first_approval_by"] is None
        assert outcome(await ok(stack, number, "ben")) == ("refused", "wrong_state", "stopped")


async def test_the_first_ok_of_who_lost_the_role_since_counts_no_more(stack_of_two: Stack) -> None:
    stack = stack_of_two
    await stack.operator("cleo", "start_deliveries")
    number = await stack.prepare(3)
    async with stack.running("confirm", **TWO):
        await ok(stack, number, "ana")
        await revoke_role(stack.db, "ana", Role.START_DELIVERIES)
        answer = await ok(stack, number, "ben")
        assert outcome(answer) == AWAITING
        assert "“ana” no longer holds the Start deliveries role" in answer["message"]
        await revoke_role(stack.db, "ben", Role.START_DELIVERIES)
        assert (await ok(stack, number, "ben"))["reason"] == "role_missing"
        assert outcome(await ok(stack, number, "cleo")) == AWAITING


@pytest.mark.parametrize("_", range(5))
async def test_a_revocation_and_a_second_ok_at_once_have_one_order(stack_of_two: Stack, _: int) -> None:
    stack = stack_of_two
    number = await stack.prepare(3)
    async with stack.running("confirm", **TWO):
        await ok(stack, number, "ana")
        revoked, answer = await asyncio.gather(
            revoke_role(stack.db, "ana", Role.START_DELIVERIES), ok(stack, number, "ben")
        )
    assert revoked
    assert outcome(answer) in (AWAITING, STARTED)
    by = (await approvals(stack, number))["first_approval_by"]
    assert by == ("ana" if outcome(answer) == STARTED else "ben")


async def test_where_the_rule_is_gone_one_ok_is_enough_and_the_other_is_forgotten(
    stack_of_two: Stack,
) -> None:
    stack = stack_of_two
    number = await stack.prepare(3)
    async with stack.running("confirm", **TWO):
        await ok(stack, number, "ana")
    async with stack.running("confirm"):
        assert outcome(await ok(stack, number, "ben")) == STARTED
    assert (await approvals(stack, number))["first_approval_by"] is None


async def test_the_command_line_says_what_happened_and_what_is_needed(
    stack_of_two: Stack, sendoff: Sendoff
) -> None:
    stack = stack_of_two
    number = await stack.prepare(3)
    async with stack.running("confirm", **TWO):

        async def call(operator: str, *options: str) -> Any:
            return await asyncio.to_thread(
                sendoff, "confirm", number, "--operator", operator, "--yes", *options
            )

        first = await call("ana")
        assert first.returncode == 1
        assert "two operators must confirm it, and none has" in " ".join(first.stdout.split())
        assert "Your OK is recorded, and nothing is sent yet" in " ".join(first.stderr.split())
        again = await call("ana", "--json")
        assert (again.returncode, json.loads(again.stdout)["reason"]) == (1, "awaiting_approval")
        second = await call("ben")
    assert second.returncode == 0
    assert "; ana has at " in " ".join(second.stdout.split())
    assert second.stdout.endswith("Confirmed by “ana” and “ben”: sending has begun.\n")
