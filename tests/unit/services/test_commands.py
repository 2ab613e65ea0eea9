"""The confirm service: what each command does within its transaction."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from contracts import routing
from contracts.commands import Status
from contracts.states import State
from tests.support.executions import FUTURE, PAST, STARTER, Setup, confirm, control
from worker.domain.authority import Bearer
from worker.domain.preflight import Found, Others
from worker.domain.states import Move


async def test_the_button_is_answered_with_the_summary_and_writes_nothing_else() -> None:
    setup = Setup()
    reply = await setup.service.handle(confirm(definitive=False, preparation=None))
    assert (reply.status, reply.state, reply.reason) == ("finalize", "ready", None)
    assert reply.message == "“Test” goes to 4 recipients. Confirm to send it."
    assert reply.summary is not None
    assert (reply.summary.preparation, reply.summary.excluded) == (2, {"invalid": 7})
    assert (setup.did, setup.answers) == ([], {"c1": reply})


async def test_what_the_preflight_found_is_in_the_summary_and_blocks_only_where_it_is_told_to() -> None:
    found = Others((Found("no_text", "No text."), Found("spf", "No SPF.")), last_id=3, last_to_deliver=1)
    setup = Setup()
    setup.execution.found = found
    asked = await setup.service.handle(confirm(definitive=False, preparation=None))
    assert asked.summary is not None
    assert [(one.check, one.blocks) for one in asked.summary.findings] == [("no_text", False), ("spf", False)]
    assert (await setup.service.handle(confirm("c2"))).status == "accepted"

    setup = Setup(blocks=("spf", "dns"))
    setup.execution.found = found
    asked = await setup.service.handle(confirm(definitive=False, preparation=None))
    assert asked.summary is not None
    assert [(one.check, one.blocks) for one in asked.summary.findings] == [("spf", True), ("no_text", False)]
    refused = await setup.service.handle(confirm("c2"))
    assert (refused.status, refused.reason, refused.state) == ("refused", "preflight", "ready")
    assert refused.message == "The preflight found what this installation does not send: No SPF."
    assert setup.did == []


async def test_one_recipient_is_no_plural() -> None:
    reply = await Setup(to_deliver=1).service.handle(confirm(definitive=False))
    assert reply.message == "“Test” goes to 1 recipient. Confirm to send it."


@pytest.mark.parametrize("contact_date", [None, PAST])
async def test_the_ok_starts_a_delivery_that_is_due(contact_date: datetime | None) -> None:
    setup = Setup(contact_date=contact_date, valid_for=timedelta(days=40_000), valid_until=FUTURE)
    reply = await setup.service.handle(confirm())
    assert (reply.status, reply.state) == ("accepted", "in_progress")
    assert reply.message == "Confirmed: sending has begun."
    assert setup.did == [
        ("authorise", 7, "ana", False),
        ("confirm", 7, "ana", FUTURE),
        (Move.CONFIRM, 7, State.START_PENDING, "ana", None, "c1"),
        ("create pages", 7, 4, 100, 600),
        (Move.START, 7, State.IN_PROGRESS, None, None, None),
    ]
    assert setup.answers == {"c1": reply}


async def test_the_ok_of_a_later_contact_date_leaves_the_start_to_the_clock() -> None:
    setup = Setup(contact_date=FUTURE)
    reply = await setup.service.handle(confirm())
    assert (reply.status, reply.state) == ("accepted", "start_pending")
    assert reply.message == "Confirmed: sending begins at the contact date."
    assert ("confirm", 7, "ana", FUTURE + timedelta(days=3)) in setup.did
    assert [done[0] for done in setup.did] == ["authorise", "confirm", Move.CONFIRM, "create pages"]


@pytest.mark.parametrize(
    ("changes", "reason", "state"),
    [
        ({"operator": "eve"}, "operator_unknown", "ready"),
        ({"operator": "paul"}, "role_missing", "ready"),
        ({"delivery_id": 8}, "delivery_unknown", None),
        ({"preparation": 1}, "stale_preparation", "ready"),
    ],
)
async def test_a_refused_ok_says_why_and_moves_nothing(
    changes: dict[str, Any], reason: str, state: str | None
) -> None:
    setup = Setup()
    reply = await setup.service.handle(confirm(**changes))
    assert (reply.status, reply.reason, reply.state) == ("refused", reason, state)
    assert reply.delivery_id == changes.get("delivery_id", 7)
    assert (setup.did, setup.answers) == ([], {"c1": reply})


@pytest.mark.parametrize(
    ("key", "before", "after", "did"),
    [
        (routing.PAUSE, State.IN_PROGRESS, State.PAUSED, []),
        (routing.STOP, State.IN_PROGRESS, State.STOPPED, [("cancel remaining", 7)]),
        (routing.STOP, State.READY, State.STOPPED, [("cancel remaining", 7)]),
        (routing.RESUME, State.PAUSED, State.RETRY_PENDING, [("reopen pages", 7)]),
    ],
)
async def test_control_moves_the_delivery_with_who_and_why(
    key: str, before: State, after: State, did: list[Any]
) -> None:
    setup = Setup(state=before)
    setup.execution.paused = State.RETRY_PENDING
    reply = await setup.service.handle(control(key))
    assert (reply.status, reply.state, reply.delivery_id) == ("accepted", after, 7)
    done = {routing.PAUSE: "paused", routing.RESUME: "resumed", routing.STOP: "stopped"}[key]
    assert reply.message == f"The delivery is {done}."
    move = (Move(key.removeprefix("delivery.")), 7, after, "ana", "a test", "c1")
    authorised = [("authorise", 7, "ana", False)] if key == routing.RESUME else []
    assert setup.did == [*authorised, move, *did]


@pytest.mark.parametrize("key", [routing.PAUSE, routing.RESUME, routing.STOP])
async def test_control_closes_the_claims_before_it_locks_the_delivery(key: str) -> None:
    setup = Setup(state=State.IN_PROGRESS)
    await setup.service.handle(control(key))
    assert setup.execution.did[:2] == [("close claims", 7), ("lock", 7)]


@pytest.mark.parametrize(
    ("key", "state"),
    [
        (routing.PAUSE, State.PAUSED),
        (routing.RESUME, State.IN_PROGRESS),
        (routing.RESUME, State.START_PENDING),
        (routing.STOP, State.STOPPED),
    ],
)
async def test_control_that_was_done_before_is_accepted_and_does_nothing(key: str, state: State) -> None:
    setup = Setup(state=state)
    reply = await setup.service.handle(control(key))
    assert (reply.status, reply.state) == ("accepted", state)
    assert reply.message == f"Nothing to do: the delivery is {state.value.replace('_', ' ')} already."
    assert setup.did == []


@pytest.mark.parametrize(
    ("key", "state", "done"),
    [
        (routing.PAUSE, State.READY, "paused"),
        (routing.RESUME, State.STOPPED, "resumed"),
        (routing.STOP, State.FINISHED, "stopped"),
    ],
)
async def test_control_in_a_wrong_state_says_the_present_one(key: str, state: State, done: str) -> None:
    setup = Setup(state=state)
    reply = await setup.service.handle(control(key))
    assert (reply.status, reply.reason, reply.state) == ("refused", "wrong_state", state)
    assert reply.message == f"It cannot be {done}: the delivery is {state.value}."
    assert setup.did == []


async def test_control_that_somebody_else_overtakes_is_refused() -> None:
    setup = Setup(state=State.IN_PROGRESS)
    setup.execution.overtaken = True
    reply = await setup.service.handle(control(routing.STOP))
    assert (reply.status, reply.reason) == ("refused", "wrong_state")
    assert setup.did == []


@pytest.mark.parametrize(
    ("changes", "reason", "state"),
    [
        ({"operator": "eve"}, "operator_unknown", "paused"),
        ({"operator": "paul"}, "role_missing", "paused"),
        ({"delivery_id": 8}, "delivery_unknown", None),
    ],
)
@pytest.mark.parametrize("key", [routing.PAUSE, routing.RESUME, routing.STOP])
async def test_refused_control_says_why_and_moves_nothing(
    key: str, changes: dict[str, Any], reason: str, state: str | None
) -> None:
    setup = Setup(state=State.PAUSED)
    reply = await setup.service.handle(control(key, **changes))
    assert (reply.status, reply.reason, reply.state) == ("refused", reason, state)
    assert setup.did == []


@pytest.mark.parametrize("key", [routing.CONFIRM, routing.RESUME])
async def test_with_a_token_its_roles_count_and_it_is_recorded_that_it_gave_them(key: str) -> None:
    setup = Setup(
        state=State.READY if key == routing.CONFIRM else State.PAUSED, speaker=Bearer("paul", STARTER)
    )
    setup.execution.paused = State.IN_PROGRESS
    message = confirm(operator="paul") if key == routing.CONFIRM else control(key, operator="paul")
    reply = await setup.service.handle(message)
    assert (reply.status, setup.authority.asked) == ("accepted", ["paul"])
    assert setup.did[0] == ("authorise", 7, "paul", True)


@pytest.mark.parametrize("days", [-4, 4])
async def test_a_confirm_goes_by_the_clock_of_the_database_and_not_by_ours(days: int) -> None:
    now = datetime.now(UTC) + timedelta(days=days)
    setup = Setup(contact_date=now + timedelta(hours=1))
    setup.execution.time = now
    reply = await setup.service.handle(confirm())
    assert (reply.status, reply.state) == (Status.ACCEPTED, State.START_PENDING)
