"""Two OKs: which deliveries need them, what the first is worth, and when it lapses."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from contracts.commands import Reason, SecondApproval
from tests.support.executions import DELIVERY
from worker.cli.control import summary_table
from worker.domain.approval import Approval, ApprovalRule, Decision, ask, decide, lapsed, shown_approval
from worker.domain.confirmation import summary
from worker.domain.deliveries import Waves
from worker.domain.operators import Operator, Role

if TYPE_CHECKING:
    from contracts.commands import Summary

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
DAY = timedelta(days=1)
ANA = Operator("ana", active=True, roles=frozenset({Role.START_DELIVERIES}))
RULE = ApprovalRule(above=3, within=DAY)
"""`DELIVERY` goes to four."""


def approval(operator: str = "ana", at: datetime = NOON, **changes: Any) -> Approval:
    return replace(Approval(operator, False, DELIVERY.preparation, at, at + DAY), **changes)


def decided(
    first: Approval | None,
    operator: str = "ben",
    *,
    listed: Operator | None = ANA,
    now: datetime = NOON,
    rule: ApprovalRule = RULE,
) -> Decision:
    return decide(replace(DELIVERY, first_approval=first), listed, approval(operator, now), rule, now)


@given(st.integers(0, 10), st.integers(0, 10))
def test_a_delivery_needs_two_when_it_goes_to_more_than_the_limit_and_there_is_one(
    above: int, recipients: int
) -> None:
    assert ApprovalRule(above, DAY).needs_second(recipients) == (above > 0 and recipients > above)


def test_the_first_ok_is_recorded_and_starts_nothing() -> None:
    decision = decided(None, "ana")
    assert decision.first == approval("ana")
    assert decision.refused is not None
    assert decision.refused.reason is Reason.AWAITING_APPROVAL
    assert decision.refused.message == (
        "Your OK is recorded, and nothing is sent yet: a delivery to more than 3 recipients needs the OK of"
        " another operator with the Start deliveries role, for the same preparation, until"
        " 2026-11-24T12:00:00+00:00."
    )


def test_the_ok_of_another_operator_starts_it_and_keeps_the_first() -> None:
    assert decided(approval("ana"), "ben") == Decision(approval("ana"))


@given(st.integers(0, 86_399))
def test_the_same_operator_again_changes_nothing_and_extends_nothing(seconds: int) -> None:
    decision = decided(approval("ana"), "ana", now=NOON + timedelta(seconds=seconds))
    assert decision.first == approval("ana")
    assert decision.refused is not None
    assert decision.refused.reason is Reason.AWAITING_APPROVAL
    assert decision.refused.message.startswith("You gave the first OK at 2026-11-23T12:00:00+00:00, and")


LAPSES: list[tuple[Approval, Operator | None, str]] = [
    (approval(preparation=1), ANA, "it was given for preparation 1"),
    (
        approval(at=NOON - DAY),
        ANA,
        "it was given at 2026-11-22T12:00:00+00:00 and counted until 2026-11-23T12:00:00+00:00",
    ),
    (approval(), replace(ANA, active=False), "“ana” has been deactivated"),
    (approval(by_token=True), replace(ANA, active=False), "“ana” has been deactivated"),
    (
        approval(),
        replace(ANA, roles=frozenset()),
        "“ana” no longer holds the Start deliveries role (start_deliveries)",
    ),
    (approval(), None, "“ana” no longer holds the Start deliveries role (start_deliveries)"),
]


@pytest.mark.parametrize(("first", "listed", "why"), LAPSES, ids=[why for *_, why in LAPSES])
@pytest.mark.parametrize("operator", ["ana", "ben"])
def test_a_first_ok_that_lapsed_is_told_and_replaced(
    first: Approval, listed: Operator | None, why: str, operator: str
) -> None:
    decision = decided(first, operator, listed=listed)
    assert decision.first == approval(operator)
    assert decision.refused is not None
    assert decision.refused.message.startswith(
        f"The OK of “ana” does not count any more: {why}. Your OK is recorded"
    )


@given(st.integers(-5, 5))
def test_the_first_ok_counts_until_its_last_moment(seconds: int) -> None:
    now = NOON + DAY + timedelta(seconds=seconds)
    assert (lapsed(approval(), ANA, DELIVERY.preparation, now) is None) == (seconds < 0)


def test_a_token_gave_the_role_and_the_directory_need_not_know_its_operator() -> None:
    assert decided(approval(by_token=True), "ben", listed=None).refused is None


def test_where_one_ok_is_enough_it_starts_the_delivery_and_an_earlier_one_is_forgotten() -> None:
    for rule in (ApprovalRule(0, DAY), ApprovalRule(4, DAY)):
        assert decided(approval("ana"), "ana", rule=rule) == Decision(None)


def test_the_summary_and_the_question_tell_who_gave_the_first() -> None:
    assert shown_approval(None, RULE) == SecondApproval(above=3)
    assert shown_approval(approval(), RULE) == SecondApproval(
        above=3, first_by="ana", first_at=NOON, first_until=NOON + DAY
    )
    assert ask(None, "ben") == "Confirm to send it; another operator must confirm it too."
    assert ask(approval(), "ben") == (
        "“ana” gave the first OK at 2026-11-23T12:00:00+00:00. Confirm to send it."
    )
    assert ask(approval(), "ana") == (
        "You gave the first OK at 2026-11-23T12:00:00+00:00; another operator must confirm it too."
    )


def test_a_person_sees_in_the_terminal_that_two_must_confirm_and_who_has() -> None:
    seen = summary(DELIVERY, {}, Waves(0, ()), NOON, shown_approval(None, RULE))
    lines = [" ".join(line.split()) for line in printed(seen)]
    assert "approvals it goes to more than 3 recipients: two operators must confirm it, and none has" in lines
    lines = [" ".join(line.split()) for line in printed(replace_first(seen, approval()))]
    assert (
        "approvals it goes to more than 3 recipients: two operators must confirm it; ana has at Monday 23"
        " November 2026, 12:00:00 UTC, and another must by Tuesday 24 November 2026, 12:00:00 UTC"
    ) in lines


def printed(seen: Summary) -> list[str]:
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(summary_table(seen))
    return console.export_text().splitlines()


def replace_first(seen: Summary, first: Approval) -> Summary:
    return seen.model_copy(update={"second_approval": shown_approval(first, RULE)})
