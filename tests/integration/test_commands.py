"""Commands: every refusal with its reason, every command once, every answer recorded."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from contracts import routing
from contracts.commands import Reply
from worker.amqp.messages import Incoming
from worker.bootstrap import open_worker
from worker.lifecycle import pause
from worker.operations.prepare import PreparationRefused

if TYPE_CHECKING:
    from tests.support.stack import Stack


def confirm(number: int, **changes: Any) -> dict[str, Any]:
    return {"delivery_id": number, "operator": "ana", "preparation": 1, "definitive": True, **changes}


async def test_the_button_answers_with_the_summary_and_changes_nothing(stack: Stack) -> None:
    number = await stack.prepare(["a@example.org", "b@example.org", "a@example.org", "nobody"], "email")
    async with stack.running("confirm"):
        answer = await stack.request(routing.CONFIRM, confirm(number, definitive=False, preparation=None))
    assert answer["status"] == "finalize"
    assert answer["state"] == "ready"
    assert answer["summary"]["to_deliver"] == 2
    assert answer["summary"]["excluded"] == {"duplicate": 1, "invalid": 1}
    assert answer["summary"]["preparation"] == 1
    assert (await stack.deployment(number))["state"] == "ready"


async def test_the_ok_starts_the_delivery_and_is_recorded(stack: Stack) -> None:
    number = await stack.prepare(3)
    async with stack.running("confirm"):
        answer = await stack.confirm(number, message_id="the-ok")
    assert (answer["status"], answer["state"]) == ("accepted", "in_progress")
    (logged,) = await stack.rows("SELECT * FROM sendoff.command_log")
    assert logged["command_id"] == "the-ok"
    assert (logged["operator"], logged["delivery_id"], logged["status"]) == ("ana", number, "accepted")
    moves = await stack.rows(
        "SELECT from_state, to_state FROM sendoff.delivery_transition WHERE delivery_id = $1 ORDER BY number",
        number,
    )
    assert [m["to_state"] for m in moves] == ["preparing", "ready", "start_pending", "in_progress"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"operator": "nobody"}, "operator_unknown"),
        ({"operator": "paul"}, "role_missing"),
        ({"operator": "gone"}, "operator_unknown"),
        ({"delivery_id": 4711}, "delivery_unknown"),
        ({"preparation": 2}, "stale_preparation"),
    ],
)
async def test_a_refusal_has_its_reason_and_changes_nothing(
    stack: Stack, change: dict[str, Any], reason: str
) -> None:
    await stack.operator("paul", "prepare_deliveries")
    await stack.operator("gone", "start_deliveries")
    await stack.db.fetchval("set_operator_active", name="gone", active=False)
    number = await stack.prepare(3)
    async with stack.running("confirm"):
        answer = await stack.request(routing.CONFIRM, confirm(number, **change))
    assert (answer["status"], answer["reason"]) == ("refused", reason)
    assert len(answer["message"]) > 20
    assert (await stack.deployment(number))["state"] == "ready"
    assert await stack.rows("SELECT reason FROM sendoff.command_log") == [{"reason": reason}]


async def test_nobody_to_send_to_is_refused(stack: Stack) -> None:
    number = await stack.prepare([])
    async with stack.running("confirm"):
        assert (await stack.confirm(number))["reason"] == "nothing_to_send"


async def test_a_validity_that_is_over_is_refused(stack: Stack) -> None:
    schedule = 'valid_for = "1h"\n[schedule]\ncontact_date = 2020-01-01T09:00:00'
    number = await stack.prepare(1, extra=schedule)
    async with stack.running("confirm"):
        assert (await stack.confirm(number))["reason"] == "validity_over"


async def test_what_is_not_ready_is_refused(stack: Stack) -> None:
    number = await stack.prepare(["a@example.org"], "null")
    async with stack.db.transaction() as tx:
        await tx.connection.execute("UPDATE sendoff.delivery_record SET state = 'preparation_failed'")
    async with stack.running("confirm"):
        answer = await stack.confirm(number)
    assert (answer["reason"], answer["state"]) == ("not_ready", "preparation_failed")


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b'{"delivery_id": "1"}',
        b"{}",
        b'{"delivery_id": 1, "operator": "a\\u0000"}',
    ],
)
async def test_a_malformed_command_is_answered_and_recorded(stack: Stack, body: bytes) -> None:
    async with stack.running("confirm"):
        for key in (routing.CONFIRM, routing.PAUSE):
            answer = await stack.request(key, body)
            assert (answer["status"], answer["reason"]) == ("invalid", "malformed")
            Reply.model_validate(answer, strict=False)
    assert len(await stack.rows("SELECT 1 FROM sendoff.command_log WHERE status = 'invalid'")) == 2
    assert await stack.depth(routing.COMMANDS_QUEUE) == 0


async def test_a_command_without_a_message_id_is_invalid(stack: Stack) -> None:
    number = await stack.prepare(3)
    body = json.dumps(confirm(number)).encode()
    # The client library gives every message an id, so this one is handed to the service directly.
    nameless = Incoming(body, "", routing.CONFIRM, None, None, None, None, {}, 1, None)  # type: ignore[arg-type]
    async with open_worker(stack.settings) as worker:
        (service,) = worker.build("confirm")
        answer = await service.handle(nameless)  # type: ignore[attr-defined]
    assert (answer.status, answer.reason) == ("invalid", "malformed")
    assert "message_id" in answer.message
    assert (await stack.deployment(number))["state"] == "ready"
    assert await stack.rows("SELECT status FROM sendoff.command_log") == [{"status": "invalid"}]


async def test_the_same_message_id_gets_the_same_answer(stack: Stack) -> None:
    number = await stack.prepare(3)
    async with stack.running("confirm"), stack.running("confirm"):
        first = await stack.confirm(number, message_id="once")
        assert first["status"] == "accepted"
        again = await asyncio.gather(*(stack.confirm(number, message_id="once") for _ in range(5)))
    async with stack.running("confirm"):
        again.append(await stack.confirm(number, message_id="once"))
    assert again == [first] * 6
    assert len(await stack.rows("SELECT 1 FROM sendoff.delivery_page")) == 1


async def test_another_body_under_the_same_message_id_is_refused(stack: Stack) -> None:
    number = await stack.prepare(3)
    async with stack.running("confirm"):
        await stack.request(routing.CONFIRM, confirm(number, definitive=False), message_id="once")
        answer = await stack.request(routing.CONFIRM, confirm(number), message_id="once")
    assert (answer["status"], answer["reason"]) == ("invalid", "malformed")
    assert (await stack.deployment(number))["state"] == "ready"


async def test_of_many_confirms_at_once_one_is_accepted(stack: Stack) -> None:
    number = await stack.prepare(3)
    async with stack.running("confirm"), stack.running("confirm"), stack.running("confirm"):
        answers = await asyncio.gather(*(stack.confirm(number) for _ in range(12)))
    outcomes = sorted((a["status"], a["reason"] or "") for a in answers)
    assert outcomes == [("accepted", "")] + [("refused", "already_confirmed")] * 11


async def test_control_in_a_wrong_state_says_the_present_one(stack: Stack) -> None:
    number = await stack.prepare(3)
    async with stack.running("confirm"):
        answer = await stack.control(routing.RESUME, number)
        assert (answer["reason"], answer["state"]) == ("wrong_state", "ready")
        answer = await stack.control(routing.PAUSE, number, "nobody")
        assert answer["reason"] == "operator_unknown"
        answer = await stack.control(routing.STOP, 4711)
        assert answer["reason"] == "delivery_unknown"


@pytest.mark.parametrize(
    ("before", "key", "state", "moves"),
    [
        ((), routing.RESUME, "in_progress", 0),
        ((routing.PAUSE,), routing.PAUSE, "paused", 1),
        ((routing.PAUSE, routing.RESUME), routing.RESUME, "in_progress", 2),
        ((routing.STOP,), routing.STOP, "stopped", 1),
    ],
)
async def test_control_again_is_accepted_and_changes_nothing(
    stack: Stack, before: tuple[str, ...], key: str, state: str, moves: int
) -> None:
    number = await stack.prepare(3)
    async with stack.running("confirm"):
        await stack.confirm(number)
        for earlier in before:
            assert (await stack.control(earlier, number))["status"] == "accepted"
        then = await stack.rows("SELECT * FROM sendoff.delivery_record")
        answer = await stack.control(key, number)
    assert (answer["status"], answer["reason"], answer["state"]) == ("accepted", None, state)
    assert answer["message"] == f"Nothing to do: the delivery is {state.replace('_', ' ')} already."
    assert await stack.rows("SELECT * FROM sendoff.delivery_record") == then
    made = await stack.rows(
        "SELECT operator, reason FROM sendoff.delivery_transition WHERE reason IS NOT NULL"
    )
    assert made == [{"operator": "ana", "reason": "a test"}] * moves


@pytest.mark.parametrize("key", [routing.PAUSE, routing.RESUME])
async def test_what_is_stopped_stays_stopped(stack: Stack, key: str) -> None:
    number = await stack.prepare(3)
    async with stack.running("confirm"):
        await stack.control(routing.STOP, number)
        answer = await stack.control(key, number)
    assert (answer["status"], answer["reason"], answer["state"]) == ("refused", "wrong_state", "stopped")
    assert answer["message"].endswith("the delivery is stopped.")


async def test_a_contact_date_in_the_future_waits(stack: Stack) -> None:
    number = await stack.prepare(3, extra="[schedule]\ncontact_date = 2099-01-01T09:00:00Z")
    async with stack.running():
        assert (await stack.confirm(number))["state"] == "start_pending"
        async with stack.db.transaction() as tx:
            await tx.connection.execute("UPDATE sendoff.delivery_record SET contact_date = now()")
        assert (await stack.finished(number))["sent"] == 3


async def test_a_command_that_raises_goes_to_the_dead_queue_and_holds_up_nobody(stack: Stack) -> None:
    number = await stack.prepare(3)
    async with stack.db.transaction() as tx:
        await tx.connection.execute(
            "ALTER TABLE sendoff.command ADD CHECK (operator <> 'ana' OR command <> 'delivery.pause')"
        )
    async with stack.running("confirm"):
        await stack.publish(
            routing.COMMANDS, routing.PAUSE, {"delivery_id": number, "operator": "ana", "reason": "x"}
        )
        assert (await stack.confirm(number))["status"] == "accepted"
    ((_, reason),) = await stack.dead()
    assert reason.startswith("It could not be handled: Unstorable")
    assert "violates check constraint" in reason


@pytest.mark.parametrize("moment", range(8))
async def test_an_ok_and_a_new_preparation_at_once_never_send_what_was_not_seen(
    stack: Stack, moment: int
) -> None:
    number = await stack.prepare(["old@example.org"])
    async with stack.running("confirm", "fanout", "send", "results"):

        async def prepare_again_in_a_moment() -> bool:
            await pause(asyncio.Event(), 0.006 * moment)
            try:
                await stack.prepare(["new@example.org"], delivery=number)
            except PreparationRefused:
                return False
            return True

        prepared, answer = await asyncio.gather(prepare_again_in_a_moment(), stack.confirm(number))
        if answer["status"] == "accepted":
            await stack.finished(number)
    sent = await stack.rows("SELECT address FROM sendoff.sending_log WHERE status = 'sent'")
    if answer["status"] == "accepted":
        assert not prepared
        assert sent == [{"address": "old@example.org"}]
    else:
        assert prepared
        assert answer["reason"] in {"stale_preparation", "not_ready"}
        assert sent == []
