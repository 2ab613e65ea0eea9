"""The confirm service: what each command does within its transaction, and how it is answered."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from contracts import routing
from contracts.commands import Reply
from contracts.states import State
from tests.support.fakes import (
    FakeConsumer,
    FakeDead,
    FakePublisher,
    FakeRetrying,
    counts,
    incoming,
    metrics,
)
from worker.db.commands import RecordedCommand
from worker.db.retrying import Unstorable
from worker.domain.authority import Bearer, not_allowed
from worker.domain.deliveries import Delivery, Waves
from worker.domain.failures import Broken, Busy
from worker.domain.operators import Operator, Role
from worker.domain.states import Move, sources, target
from worker.services.commands import ConfirmLimits, ConfirmParts, ConfirmService

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from worker.amqp.messages import Incoming
    from worker.domain.refusals import Refused

PAST, FUTURE = datetime(2020, 1, 1, tzinfo=UTC), datetime(2099, 1, 1, tzinfo=UTC)
STARTER = frozenset({Role.START_DELIVERIES})
DELIVERY = Delivery(
    delivery_id=7,
    label="Test",
    channel="null",
    state=State.READY,
    preparation=2,
    to_deliver=4,
    contact_date=None,
    time_zone=None,
    valid_for=timedelta(days=3),
    valid_until=None,
    confirmed_at=None,
    messages_per_hour=600,
)


def confirm(message_id: str | None = "c1", **changes: Any) -> Incoming:
    body = {"delivery_id": 7, "operator": "ana", "preparation": 2, "definitive": True}
    return command(routing.CONFIRM, body | changes, message_id)


def control(key: str, message_id: str = "c1", **changes: Any) -> Incoming:
    return command(key, {"delivery_id": 7, "operator": "ana", "reason": "a test"} | changes, message_id)


def command(key: str, body: dict[str, Any], message_id: str | None = "c1") -> Incoming:
    return incoming(json.dumps(body).encode(), key, message_id=message_id, user_id="upstream")


class FakeExecution:
    """A transaction over one delivery, the operators and the answers; `did` lists what was done in it."""

    def __init__(self, delivery: Delivery | None) -> None:
        self.present = delivery
        self.operators = {
            "ana": Operator("ana", active=True, roles=STARTER),
            "paul": Operator("paul", active=True, roles=frozenset({Role.PREPARE_DELIVERIES})),
        }
        self.answers: dict[str, RecordedCommand] = {}
        self.operator_of: dict[str, str | None] = {}
        self.did: list[Any] = []
        self.paused: State | None = None
        self.overtaken = False
        """Somebody else moves the delivery first."""
        self.fault: Exception | None = None

    async def recorded(self, command_id: str) -> RecordedCommand | None:
        return self.answers.get(command_id)

    async def record(
        self, *, command: str, operator: str | None, publisher: str | None, body: str, reply: Reply
    ) -> None:
        if self.fault:
            raise self.fault
        assert reply.command_id not in self.answers
        self.answers[reply.command_id] = RecordedCommand(command, publisher, body, reply)
        self.operator_of[reply.command_id] = operator

    async def operator(self, name: str) -> Operator | None:
        return self.operators.get(name)

    async def close_claims(self, delivery_id: int) -> None:
        self.did.append(("close claims", delivery_id))

    async def delivery(self, delivery_id: int) -> Delivery | None:
        self.did.append(("lock", delivery_id))
        return self.present if self.present and self.present.delivery_id == delivery_id else None

    async def excluded_by_cause(self, delivery_id: int) -> dict[str, int]:
        return {"invalid": delivery_id}

    async def waves(self, delivery_id: int) -> Waves:  # noqa: ARG002
        return Waves(0, ())

    async def authorise(self, delivery_id: int, operator: str, *, by_token: bool) -> None:
        self.did.append(("authorise", delivery_id, operator, by_token))

    async def confirm(self, delivery_id: int, operator: str, valid_until: datetime) -> None:
        self.did.append(("confirm", delivery_id, operator, valid_until))

    async def move(
        self,
        delivery_id: int,
        by: Move,
        *,
        to: State | None = None,
        operator: str | None = None,
        reason: str | None = None,
        command_id: str | None = None,
    ) -> State | None:
        assert self.present is not None
        state = to or target(by)
        if self.overtaken or self.present.state not in sources(by):
            return None
        self.present = replace(self.present, state=state)
        self.did.append((by, delivery_id, state, operator, reason, command_id))
        return state

    async def paused_in(self, delivery_id: int) -> State | None:  # noqa: ARG002
        return self.paused

    async def create_pages(self, delivery_id: int, page_size: int, messages_per_hour: int | None) -> None:
        self.did.append(("create pages", delivery_id, page_size, messages_per_hour))

    async def reopen_pages(self, delivery_id: int) -> None:
        self.did.append(("reopen pages", delivery_id))

    async def cancel_remaining(self, delivery_id: int) -> None:
        self.did.append(("cancel remaining", delivery_id))


class FakeExecutions:
    """Transactions one after the other; what one did that raised is undone."""

    def __init__(self, delivery: Delivery | None) -> None:
        self.now = FakeExecution(delivery)

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[FakeExecution]:
        before = self.now.present, dict(self.now.answers), list(self.now.did)
        try:
            yield self.now
        except BaseException:
            self.now.present, self.now.answers, self.now.did = before
            raise


class FakeAuthority:
    """Says the same of everybody."""

    def __init__(self, speaker: Bearer | Refused | None = None) -> None:
        self.speaker = speaker
        self.asked: list[str | None] = []

    def identify(self, message: Incoming, operator: str | None) -> Bearer | Refused | None:  # noqa: ARG002
        self.asked.append(operator)
        return self.speaker


class Setup:
    """A service on fakes."""

    def __init__(
        self,
        delivery: Delivery | None = DELIVERY,
        *,
        speaker: Bearer | Refused | None = None,
        messages: Iterable[Incoming] = (),
        retrying: FakeRetrying | None = None,
        **changes: Any,
    ) -> None:
        self.executions = FakeExecutions(delivery and replace(delivery, **changes))
        self.consumer = FakeConsumer(messages)
        self.publisher = FakePublisher()
        self.dead = FakeDead()
        self.authority = FakeAuthority(speaker)
        self.metrics = metrics()
        self.service = ConfirmService(
            ConfirmParts(
                consumer=self.consumer,
                publisher=self.publisher,
                dead=self.dead,
                executions=self.executions,
                retrying=retrying or FakeRetrying(),
                authority=self.authority,
                metrics=self.metrics,
            ),
            ConfirmLimits(page_size=100),
        )

    @property
    def execution(self) -> FakeExecution:
        return self.executions.now

    @property
    def did(self) -> list[Any]:
        """What was written; locks are left out."""
        return [done for done in self.execution.did if done[0] not in ("close claims", "lock")]

    @property
    def answers(self) -> dict[str, Reply]:
        return {name: known.reply for name, known in self.execution.answers.items()}


async def test_the_button_is_answered_with_the_summary_and_writes_nothing_else() -> None:
    setup = Setup()
    reply = await setup.service.handle(confirm(definitive=False, preparation=None))
    assert (reply.status, reply.state, reply.reason) == ("finalize", "ready", None)
    assert reply.message == "“Test” goes to 4 recipients. Confirm to send it."
    assert reply.summary is not None
    assert (reply.summary.preparation, reply.summary.excluded) == (2, {"invalid": 7})
    assert (setup.did, setup.answers) == ([], {"c1": reply})


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
        ("create pages", 7, 100, 600),
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


@pytest.mark.parametrize("message", [confirm(), command(routing.PAUSE, {})])
async def test_who_may_not_speak_is_refused_whatever_they_say(message: Incoming) -> None:
    setup = Setup(speaker=not_allowed("Not you."))
    reply = await setup.service.handle(message)
    assert (reply.status, reply.reason, reply.message) == ("refused", "publisher_not_allowed", "Not you.")
    assert reply.delivery_id == (7 if message.routing_key == routing.CONFIRM else None)
    assert (setup.execution.did, setup.answers) == ([], {"c1": reply})


@pytest.mark.parametrize(
    ("key", "body", "says"),
    [
        (routing.CONFIRM, b"{", "The command could not be read: "),
        (routing.PAUSE, b'{"delivery_id": 7}', "The command could not be read: operator: Field required"),
        (routing.CONFIRM, b'{"delivery_id": "7"}', "The command could not be read: delivery_id"),
        ("delivery.explode", b"{}", "There is no command “delivery.explode”."),
    ],
)
async def test_what_cannot_be_read_is_answered_and_recorded_without_an_operator(
    key: str, body: bytes, says: str
) -> None:
    setup = Setup()
    reply = await setup.service.handle(incoming(body, key, message_id="c1"))
    assert (reply.status, reply.reason, reply.delivery_id) == ("invalid", "malformed", None)
    assert reply.message.startswith(says)
    assert (setup.answers, setup.execution.operator_of) == ({"c1": reply}, {"c1": None})
    assert (setup.execution.did, setup.authority.asked) == ([], [None])


async def test_a_command_without_a_message_id_is_recorded_under_a_name_of_its_own() -> None:
    setup = Setup()
    replies = [await setup.service.handle(confirm(message_id=None)) for _ in range(2)]
    assert {(r.status, r.reason) for r in replies} == {("invalid", "malformed")}
    assert len({r.command_id for r in replies}) == len(setup.answers) == 2
    assert all(r.command_id.startswith("unidentified-") for r in replies)
    assert setup.execution.did == []


async def test_what_a_text_column_cannot_hold_is_replaced_and_what_is_too_long_is_cut() -> None:
    setup = Setup()
    reply = await setup.service.handle(incoming(b"\x00\xff" + b"x" * 20_000, message_id="\x00" + "i" * 300))
    (recorded,) = setup.execution.answers.values()
    assert reply.command_id == "\ufffd" + "i" * 199
    assert recorded.body == "\ufffd\ufffd" + "x" * 9_998


async def test_the_same_command_again_gets_the_same_answer_and_does_nothing() -> None:
    setup = Setup()
    first = await setup.service.handle(confirm())
    did = list(setup.execution.did)
    assert await setup.service.handle(confirm()) == first
    assert setup.execution.did == did
    (recorded,) = setup.execution.answers.values()
    assert (recorded.command, recorded.publisher, recorded.reply) == (routing.CONFIRM, "upstream", first)
    assert json.loads(recorded.body)["operator"] == "ana"
    assert setup.execution.operator_of == {"c1": "ana"}


@pytest.mark.parametrize(
    "other",
    [
        confirm(preparation=3),
        command(routing.STOP, json.loads(confirm().body)),
        replace(confirm(), user_id="another"),
    ],
)
async def test_another_command_under_the_same_message_id_is_refused(other: Incoming) -> None:
    setup = Setup(contact_date=FUTURE)
    first = await setup.service.handle(confirm())
    did = list(setup.execution.did)
    reply = await setup.service.handle(other)
    assert (reply.command_id, reply.status, reply.reason) == ("c1", "invalid", "malformed")
    assert reply.message.startswith("Another command was sent with this message_id.")
    assert (setup.execution.did, setup.answers) == (did, {"c1": first})


@pytest.mark.parametrize("message", [confirm(), control(routing.STOP)])
async def test_a_transaction_that_is_repeated_after_its_commit_does_nothing_more(message: Incoming) -> None:
    setup = Setup(retrying=FakeRetrying(times=2))
    reply = await setup.service.handle(message)
    assert reply.status == "accepted"
    moves = [done[0] for done in setup.did if isinstance(done[0], Move)]
    assert len(moves) == len(set(moves))
    assert counts(setup.metrics.commands) == {(message.routing_key, "accepted", ""): 1}


async def test_a_command_whose_answer_cannot_be_recorded_is_not_executed() -> None:
    setup = Setup()
    setup.execution.fault = LookupError("no room")
    with pytest.raises(LookupError):
        await setup.service.handle(confirm())
    assert setup.execution.present == DELIVERY
    assert (setup.execution.did, setup.answers, counts(setup.metrics.commands)) == ([], {}, {})


async def test_the_answer_goes_to_who_asked_for_one() -> None:
    setup = Setup()
    reply = await setup.service.handle(replace(confirm(), reply_to="answers", correlation_id="x1"))
    (published,) = setup.publisher.published
    assert (published.exchange, published.routing_key, published.mandatory) == ("", "answers", False)
    assert (published.message.type, published.message.correlation_id) == (routing.TYPE_REPLY, "x1")
    assert Reply.model_validate_json(published.message.body) == reply
    await setup.service.handle(control(routing.PAUSE, "c2"))
    assert len(setup.publisher.published) == 1


async def test_answers_are_counted_by_command_status_and_reason() -> None:
    setup = Setup(state=State.IN_PROGRESS)
    for name, key in enumerate([routing.RESUME, routing.PAUSE, routing.PAUSE, routing.CONFIRM]):
        message = confirm(str(name)) if key == routing.CONFIRM else control(key, str(name))
        await setup.service.handle(message)
    assert counts(setup.metrics.commands) == {
        (routing.RESUME, "accepted", ""): 1,
        (routing.PAUSE, "accepted", ""): 2,
        (routing.CONFIRM, "refused", "not_ready"): 1,
    }


async def test_commands_are_answered_in_their_order_and_settled() -> None:
    messages = [confirm("c1"), control(routing.PAUSE, "c2"), control(routing.STOP, "c3")]
    setup = Setup(messages=messages)
    await setup.service.run(asyncio.Event())
    assert [done[0] for done in setup.did if isinstance(done[0], Move)] == [
        Move.CONFIRM,
        Move.START,
        Move.PAUSE,
        Move.STOP,
    ]
    assert (setup.consumer.acknowledged, setup.dead.buried) == (messages, [])
    assert not setup.consumer.consuming


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Busy("The database was too busy for it."), "The database was too busy for it."),
        (Unstorable("no such time"), "It could not be handled: Unstorable('no such time')"),
        (KeyError("x"), "It could not be handled: KeyError('x')"),
    ],
)
async def test_a_command_that_cannot_be_executed_is_buried_and_holds_up_nobody(
    fault: Exception, reason: str
) -> None:
    messages = [confirm("c1"), confirm("c2")]
    setup = Setup(messages=messages, retrying=FakeRetrying({"answering a command": fault}))
    await setup.service.run(asyncio.Event())
    assert [message for message, _, _ in setup.dead.buried] == messages
    assert setup.dead.reasons == [reason] * 2
    assert (setup.consumer.acknowledged, setup.publisher.published) == (messages, [])
    assert counts(setup.metrics.commands) == {}


async def test_a_broken_database_ends_the_service_and_settles_nothing() -> None:
    broken = FakeRetrying({"answering a command": Broken("forbidden")})
    setup = Setup(messages=[confirm()], retrying=broken)
    with pytest.raises(ExceptionGroup) as died:
        await setup.service.run(asyncio.Event())
    assert died.group_contains(Broken)
    assert (setup.consumer.acknowledged, setup.dead.buried) == ([], [])
