"""Recording: any order, any number of times, with or without a claim, and nothing bad is swallowed."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from contracts import results, routing
from contracts.results import Bounce, BounceKind, BounceReason, Error, Fault, Sent
from tests.support.deliveries import confirmed
from tests.support.results import bounced, drained, result
from tests.support.stack import until
from worker.domain.outcomes import REPLY_LIMIT, fold

if TYPE_CHECKING:
    from datetime import datetime

    from tests.support.stack import Stack

LATER = "2026-11-25T10:00:00Z"
_COUNTED = (
    *(("sent", "sent"), ("errors", "error"), ("retrying", "retrying"), ("bounced_hard", "bounced_hard")),
    *(("bounced_soft", "bounced_soft"), ("bounced_ignored", "bounced_ignored")),
)


async def test_a_result_without_a_claim_is_recorded_all_the_same(stack: Stack) -> None:
    number = await confirmed(stack, 3)
    await stack.publish(routing.RESULTS, "sent", result(number, 2, reply="250 ok", provider_id="abc"))
    async with stack.running("results"):
        row = await until(lambda: _when(stack, number, sent=1))
    assert row["pending"] == 2
    (logged,) = await stack.rows("SELECT * FROM sendoff.sending_log WHERE recipient = 2")
    assert (logged["status"], logged["reply"], logged["provider_id"]) == ("sent", "250 ok", "abc")


async def test_an_array_of_results_is_recorded_together(stack: Stack) -> None:
    number = await confirmed(stack, 1_000)
    body = json.dumps([result(number, r) for r in range(1, 1_001)]).encode()
    await stack.publish(routing.RESULTS, "sent", body)
    async with stack.running("results"):
        assert (await stack.finished(number))["sent"] == 1_000


async def test_a_bounce_after_sent_stands_even_after_the_end(stack: Stack) -> None:
    number = await confirmed(stack, 1)
    async with stack.running("results"):
        await stack.publish(routing.RESULTS, "sent", result(number, 1))
        await stack.finished(number)
        await stack.publish(routing.RESULTS, "bounce", bounced(number, 1, at=LATER, reply="550 5.1.1 no"))
        row = await until(lambda: _when(stack, number, bounced_hard=1))
        await stack.publish(routing.RESULTS, "sent", result(number, 1))
        await until(lambda: drained(stack))
    assert (row["sent"], row["bounced"], row["state"]) == (0, 1, "finished")
    (logged,) = await stack.rows("SELECT * FROM sendoff.sending_log")
    assert (logged["status"], logged["bounce_kind"], logged["code"]) == ("bounced", "hard", "5.1.1")
    assert logged["sent_at"] < logged["bounced_at"]


@pytest.mark.parametrize("attempts", [1, 3])
async def test_every_order_ends_in_the_same_accounts(stack: Stack, attempts: int) -> None:
    """Random histories, doubled, shuffled, over two recorders at once, against the pure fold."""
    limits = {"max_attempts": attempts}
    number = await confirmed(stack, 60)
    chance = random.Random(7)  # noqa: S311 - a test's dice
    history: list[Sent | Bounce | Error] = []
    for recipient in range(1, 61):
        history += [_any_result(chance, number, recipient) for _ in range(chance.randint(1, 5))]
    doubled = history * 2
    chance.shuffle(doubled)
    async with (
        stack.running("results", result_batch=7, **limits),
        stack.running("results", result_batch=3, **limits),
    ):
        for one in doubled:
            await stack.publish(routing.RESULTS, results.routing_key(one), one)
        await until(lambda: drained(stack))
    expected = {
        r: "retrying" if f.retryable and f.attempt < attempts else f.status.value
        for (_, r), f in fold(history).items()
    }
    found = await stack.rows("SELECT recipient, status FROM sendoff.outcome")
    assert {row["recipient"]: row["status"] for row in found} == expected
    row = await stack.deployment(number)
    for counter, status in _COUNTED:
        assert row[counter] == sum(s == status for s in expected.values()), counter
    assert row["state"] == ("finished" if attempts == 1 else "in_progress")


async def test_a_backlog_of_full_messages_is_recorded_once(stack: Stack) -> None:
    number = await confirmed(stack, 3_000)
    thousands = [[result(number, r) for r in range(first, first + 1_000)] for first in (1, 1_001, 2_001)]
    for one in thousands * 2:
        await stack.publish(routing.RESULTS, "sent", json.dumps(one).encode())
    async with stack.running("results"):
        await until(lambda: _when(stack, number, sent=3_000))
        await until(lambda: drained(stack))
    assert (await stack.deployment(number))["sent"] == 3_000


async def test_all_that_is_said_of_nobody_is_kept_each_message_with_its_own_words(stack: Stack) -> None:
    number = await confirmed(stack, 2)
    said = [result(number, 9, reply="first"), result(number, 9, reply="second")]
    for one in said:
        await stack.publish(routing.RESULTS, "sent", json.dumps([one, result(number, 1)]).encode())
    async with stack.running("results", result_batch_age=0.5):
        await until(lambda: _when(stack, number, sent=1))
        await until(lambda: _dead(stack, 2))
        await until(lambda: drained(stack))
    assert sorted(json.loads(body)[0]["reply"] for body, _ in await stack.dead()) == ["first", "second"]


async def test_a_message_that_speaks_of_nobody_is_one_message_in_the_dead_queue(stack: Stack) -> None:
    said = [result(4711, recipient) for recipient in range(1, 501)]
    await stack.publish(routing.RESULTS, "sent", json.dumps(said).encode())
    async with stack.running("results"):
        await until(lambda: _dead(stack, 1))
        await until(lambda: drained(stack))
    ((body, _),) = await stack.dead()
    assert [one["recipient"] for one in json.loads(body)] == list(range(1, 501))


async def test_what_cannot_be_recorded_goes_to_the_dead_queue_and_the_rest_is_recorded(stack: Stack) -> None:
    number = await confirmed(stack, 2)
    unconfirmed = await stack.prepare(2)
    mixed = [result(number, 1), {"delivery_id": number}, result(number, 3), result(unconfirmed, 1)]
    await stack.publish(routing.RESULTS, "sent", json.dumps(mixed).encode())
    await stack.publish(routing.RESULTS, "bounce", b"not json")
    await stack.publish(routing.RESULTS, "error", result(4711, 1, reason="x", retryable=True))
    async with stack.running("results"):
        await until(lambda: _when(stack, number, sent=1))
        await until(lambda: _dead(stack, 5))
        await until(lambda: drained(stack))
    dead = sorted(await stack.dead(), key=lambda d: d[1])
    assert [reason for _, reason in dead] == [
        "The delivery does not exist, was never confirmed, or has left by retention.",
        "The delivery does not exist, was never confirmed, or has left by retention.",
        "The delivery has 2 recipients, and none of this number.",
        dead[3][1],
        dead[4][1],
    ]
    assert all(reason.startswith("The result could not be read") for _, reason in dead[3:])
    assert [
        r["recipient"] for body, reason in dead if "none of this" in reason for r in json.loads(body)
    ] == [3]


async def test_replies_are_cut_and_free_of_nul(stack: Stack) -> None:
    number = await confirmed(stack, 1)
    await stack.publish(routing.RESULTS, "bounce", bounced(number, 1, reply="5\x0050 " + "ü" * 5_000))
    async with stack.running("results"):
        await stack.finished(number)
    (logged,) = await stack.rows("SELECT reply FROM sendoff.sending_log")
    assert len(logged["reply"]) == REPLY_LIMIT
    assert logged["reply"].startswith("5\ufffd50 ü")


async def test_stats_agree_with_the_view_and_repair_a_planted_drift(stack: Stack) -> None:
    number = await confirmed(stack, 10)
    async with stack.running("results", "stats"):
        body = json.dumps([result(number, r) for r in range(1, 8)]).encode()
        await stack.publish(routing.RESULTS, "sent", body)
        await stack.publish(routing.RESULTS, "bounce", bounced(number, 8))
        await stack.publish(routing.RESULTS, "error", result(number, 9, reason="template", retryable=False))
        row = await until(lambda: _when(stack, number, sent=7, bounced=1, errors=1))
        answer = await stack.request(routing.COMPUTE_STATS, {"delivery_id": number})
        assert answer["exact"] is True
        assert answer["drift"] == {}
        _agree(answer, row)
        async with stack.db.transaction() as tx:
            await tx.connection.execute(
                "UPDATE sendoff.delivery_counter SET sent = sent + 2, errors = errors - 1"
                " WHERE shard = (SELECT min(shard) FROM sendoff.delivery_counter)"
            )
        answer = await stack.request(routing.COMPUTE_STATS, {"delivery_id": number})
        assert answer["drift"] == {"sent": -2, "errors": 1}
        _agree(answer, await stack.deployment(number))
        assert (answer["sent"], answer["errors"]) == (7, 1)
        unknown = await stack.request(routing.COMPUTE_STATS, {"delivery_id": 4711})
        assert (unknown["status"], unknown["reason"]) == ("refused", "delivery_unknown")
        malformed = await stack.request(routing.COMPUTE_STATS, b"{}")
        assert (malformed["status"], malformed["reason"]) == ("invalid", "malformed")


def _agree(answer: dict[str, Any], row: dict[str, Any]) -> None:
    for name, value in row.items():
        if isinstance(value, int | str) and name != "state_reason":
            assert answer[name] == value, name
        elif name.endswith("_pct"):
            assert answer[name] == (None if value is None else float(value)), name


def _any_result(chance: random.Random, number: int, recipient: int) -> Sent | Bounce | Error:
    at: datetime = Sent.model_validate_json(json.dumps(result(number, recipient))).at
    common: dict[str, Any] = {
        "delivery_id": number,
        "recipient": recipient,
        "attempt": chance.randint(1, 3),
        "at": at,
    }
    match chance.randrange(3):
        case 0:
            return Sent(**common)
        case 1:
            kind = chance.choice(list(BounceKind))
            return Bounce(**common, kind=kind, reason=BounceReason.SPAM, fault=Fault.SENDER)
        case _:
            return Error(**common, reason="connection", retryable=chance.random() < 0.5)


async def _dead(stack: Stack, count: int) -> bool:
    return await stack.depth(routing.DEAD_QUEUE) >= count


async def _when(stack: Stack, number: int, **expected: int) -> dict[str, Any] | None:
    row = await stack.deployment(number)
    return row if all(row[k] == v for k, v in expected.items()) else None
