"""The confirm service: each command is answered once, recorded and settled, or buried with a reason."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from contracts import routing
from contracts.commands import Reply
from contracts.states import State
from tests.support.executions import DELIVERY, FUTURE, Setup, command, confirm, control
from tests.support.fakes import FakeRetrying, counts, incoming
from worker.db.retrying import Unstorable
from worker.domain.authority import not_allowed
from worker.domain.failures import Broken, Busy
from worker.domain.states import Move

if TYPE_CHECKING:
    from worker.amqp.messages import Incoming


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


async def test_commands_that_do_not_exist_are_counted_as_one() -> None:
    setup = Setup()
    for n in range(500):
        await setup.service.handle(incoming(b"{}", f"key-{n}\x00", message_id=f"id-{n}"))
    assert counts(setup.metrics.commands) == {("other", "invalid", "malformed"): 500}


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
