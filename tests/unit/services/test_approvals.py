"""The confirm service where a delivery needs the OK of two operators."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from tests.support.executions import STARTER, Setup, confirm
from worker.domain.approval import Approval, ApprovalRule
from worker.domain.authority import Bearer
from worker.domain.operators import Role

RULE = ApprovalRule(above=3, within=timedelta(hours=24))


def setup_of_two(**changes: object) -> Setup:
    return Setup(approvals=RULE, **changes)  # type: ignore[arg-type]


async def test_the_first_ok_is_recorded_and_the_second_starts_the_delivery() -> None:
    setup = setup_of_two()
    now = setup.execution.time
    first = await setup.service.handle(confirm("c1"))
    assert (first.status, first.reason, first.state) == ("refused", "awaiting_approval", "ready")
    given = Approval("ana", False, 2, now, now + timedelta(hours=24))
    assert setup.did == [("approve", 7, given)]
    second = await setup.service.handle(confirm("c2", operator="ben"))
    assert (second.status, second.reason, second.state) == ("accepted", None, "in_progress")
    assert second.message == "Confirmed by “ana” and “ben”: sending has begun."
    assert setup.did[1:3] == [("authorise", 7, "ben", False), ("confirm", 7, "ben", now + timedelta(days=3))]
    assert setup.answers == {"c1": first, "c2": second}


async def test_the_same_operator_twice_starts_nothing_and_writes_nothing() -> None:
    setup = setup_of_two()
    await setup.service.handle(confirm("c1"))
    did = list(setup.did)
    again = await setup.service.handle(confirm("c2"))
    assert (again.status, again.reason, again.state) == ("refused", "awaiting_approval", "ready")
    assert setup.did == did


async def test_an_ok_that_a_rule_refuses_is_no_first_ok() -> None:
    setup = setup_of_two()
    for message in (confirm("c1", operator="paul"), confirm("c2", preparation=1)):
        reply = await setup.service.handle(message)
        assert reply.reason in {"role_missing", "stale_preparation"}
    assert setup.did == []


async def test_the_button_tells_of_the_first_ok_while_it_counts() -> None:
    setup = setup_of_two()
    before = await setup.service.handle(confirm("b1", definitive=False))
    assert before.message == (
        "“Test” goes to 4 recipients. Confirm to send it; another operator must confirm it too."
    )
    assert before.summary is not None
    assert before.summary.second_approval is not None
    assert before.summary.second_approval.model_dump() == {
        "above": 3,
        "first_by": None,
        "first_at": None,
        "first_until": None,
    }
    await setup.service.handle(confirm("c1"))
    after = await setup.service.handle(confirm("b2", operator="ben", definitive=False))
    assert "“ana” gave the first OK at" in after.message
    assert after.summary is not None
    assert after.summary.second_approval is not None
    assert after.summary.second_approval.first_by == "ana"
    setup.execution.operators["ana"] = replace(setup.execution.operators["ana"], roles=frozenset())
    lost = await setup.service.handle(confirm("b3", operator="ben", definitive=False))
    assert lost.summary is not None
    assert lost.summary.second_approval is not None
    assert lost.summary.second_approval.first_by is None


async def test_a_small_delivery_is_confirmed_by_one_and_its_summary_asks_for_no_more() -> None:
    setup = setup_of_two(to_deliver=3)
    seen = await setup.service.handle(confirm("b1", definitive=False))
    assert seen.summary is not None
    assert seen.summary.second_approval is None
    assert (await setup.service.handle(confirm("c1"))).message == "Confirmed: sending has begun."


async def test_a_first_ok_by_token_needs_no_entry_in_the_directory() -> None:
    setup = setup_of_two(speaker=Bearer("eve", frozenset({Role.START_DELIVERIES})))
    assert (await setup.service.handle(confirm("c1", operator="eve"))).reason == "awaiting_approval"
    setup.authority.speaker = Bearer("ben", STARTER)
    assert (await setup.service.handle(confirm("c2", operator="ben"))).status == "accepted"
