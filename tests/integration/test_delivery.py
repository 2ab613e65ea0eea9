"""A delivery from its confirmation to its end: nobody lost, nobody twice, accounts that balance."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from contracts import routing
from contracts.sends import Send
from sql import queries
from tests.support.channels import Counting
from tests.support.claims import claim
from tests.support.stack import until
from worker.amqp import topology
from worker.db.pages import Pages, Turn

if TYPE_CHECKING:
    from tests.support.stack import Stack


async def test_every_recipient_is_sent_to_once(stack: Stack) -> None:
    number = await stack.prepare(2_500)
    channel = Counting()
    async with stack.running(channel=channel, page_size=400):
        assert (await stack.confirm(number))["status"] == "accepted"
        row = await stack.finished(number)
    assert (row["sent"], row["sent_pct"], row["pending"]) == (2_500, 100, 0)
    assert channel.tries == Counter(range(1, 2_501))
    counted = await stack.rows("SELECT status, count(*) AS n FROM sendoff.sending_log GROUP BY status")
    assert counted == [{"status": "sent", "n": 2_500}]
    assert await stack.rows("SELECT 1 FROM sendoff.delivery_page WHERE state <> 'closed'") == []


async def test_several_workers_share_several_deliveries(stack: Stack) -> None:
    numbers = [await stack.prepare(n) for n in (1_500, 1, 700)]
    channel = Counting()
    async with stack.running(channel=channel, page_size=100), stack.running(channel=channel, page_size=100):
        await asyncio.gather(*(stack.confirm(n) for n in numbers))
        rows = [await stack.finished(n) for n in numbers]
    assert [r["sent"] for r in rows] == [1_500, 1, 700]
    assert channel.tries.total() == 2_201


async def test_the_bodies_made_in_sql_are_send_messages(stack: Stack) -> None:
    number = await stack.prepare(['"quo\\"te"@example.org', "ünï@exämple.org"], "email", 'valid_for = "2h"')
    async with stack.running("confirm"):
        await stack.confirm(number)
    (page,) = await Pages(stack.db).lease(Turn(0, ["email", "null"]), limit=5, seconds=5, owner="me")
    sends = [Send.model_validate_json(s["body"]) for s in await Pages(stack.db).read_sends(page)]
    (row,) = await stack.rows("SELECT valid_until FROM sendoff.delivery")
    assert [(s.delivery_id, s.recipient, s.attempt, s.channel) for s in sends] == [
        (number, i, 1, "email") for i in range(1, len(sends) + 1)
    ]
    assert sends[-1].address == "ünï@exämple.org"
    assert {s.valid_until for s in sends} == {row["valid_until"]}


async def test_after_a_pause_nothing_is_claimed_and_after_a_resume_nobody_is_missing(stack: Stack) -> None:
    number = await stack.prepare(3_000)
    channel = Counting()
    async with stack.running("confirm", "fanout", "results", "schedule", send_queue_seconds=0):
        await stack.confirm(number)
        await until(lambda: _all_published(stack, 3_000))
        assert (await stack.control(routing.PAUSE, number))["state"] == "paused"
        async with stack.running("send", channel=channel):
            await until(lambda: _empty(stack))
            assert channel.tries.total() == 0
            assert (await stack.deployment(number))["pending"] == 3_000
            assert (await stack.control(routing.RESUME, number))["state"] == "in_progress"
            row = await stack.finished(number)
    assert row["sent"] == 3_000
    assert set(channel.tries.values()) == {1}


async def test_a_page_that_is_being_published_over_a_pause_is_published_again(stack: Stack) -> None:
    number = await stack.prepare(3)
    async with stack.running("confirm"):
        await stack.confirm(number)
        (page,) = await Pages(stack.db).lease(Turn(0, ["email", "null"]), limit=5, seconds=60, owner="me")
        await stack.control(routing.PAUSE, number)
        # Here the senders refuse what was published of it.
        await stack.control(routing.RESUME, number)
    assert not await Pages(stack.db).published(page, "me", 30)
    again = await Pages(stack.db).lease(Turn(0, ["email", "null"]), limit=5, seconds=60, owner="you")
    assert [p.page for p in again] == [page.page]


async def test_a_pause_holds_with_a_hundred_thousand_messages_queued(stack: Stack) -> None:
    number = await stack.prepare(100_000)
    channel = Counting()
    async with stack.running("confirm", "fanout", send_queue_high_water=200_000, send_queue_seconds=0):
        await stack.confirm(number)
        await until(lambda: _all_published(stack, 100_000), 60)
        async with stack.running("send", channel=channel), stack.running("send", channel=channel):
            await until(lambda: _tried(channel, 1_000))
            assert (await stack.control(routing.PAUSE, number))["state"] == "paused"
            row = await stack.deployment(number)
            claimed = row["to_deliver"] - row["pending"]
            await until(lambda: _empty(stack), 60)
    assert channel.tries.total() == claimed < 100_000
    assert (await stack.deployment(number))["pending"] == 100_000 - claimed


async def test_a_stop_cancels_the_rest_for_good(stack: Stack) -> None:
    number = await stack.prepare(1_000)
    channel = Counting()
    async with stack.running("confirm", "fanout", "results", "schedule"):
        await stack.confirm(number)
        await until(lambda: _all_published(stack, 1_000))
        await claim(stack.db, number, {7: (1, "user7@example.org")})
        answer = await stack.control(routing.STOP, number)
        assert (answer["status"], answer["state"]) == ("accepted", "stopped")
        assert (await stack.deployment(number))["cancelled"] == 999
        async with stack.running("send", channel=channel):
            await until(lambda: _empty(stack))
            assert channel.tries.total() == 0
            # What was under way when it was stopped, and what nobody claimed, may still be reported.
            for recipient in (7, 8):
                await stack.publish(routing.RESULTS, "sent", _sent(number, recipient))
            row = await until(lambda: _with(stack, number, sent=2))
    assert (row["cancelled"], row["sending"], row["state"]) == (998, 0, "stopped")
    statuses = await stack.rows("SELECT status, count(*) AS n FROM sendoff.sending_log GROUP BY 1 ORDER BY 1")
    assert statuses == [{"status": "cancelled", "n": 998}, {"status": "sent", "n": 2}]


async def test_a_purged_queue_loses_nobody(stack: Stack) -> None:
    number = await stack.prepare(1_000)
    channel = Counting()
    async with stack.running("confirm", "fanout", "results", "schedule", page_look_after=0.3, tick=0.05):
        await stack.confirm(number)
        await until(lambda: _all_published(stack, 1_000))
        await stack.channel.queue_delete(stack.names.queue(routing.send_queue("null")))
        await _declare_again(stack)
        async with stack.running("send", channel=channel):
            row = await stack.finished(number)
    assert row["sent"] == 1_000
    assert set(channel.tries.values()) == {1}


async def test_messages_that_come_twice_are_sent_once(stack: Stack) -> None:
    number = await stack.prepare(300)
    channel = Counting()
    async with stack.running("confirm"):
        await stack.confirm(number)
    (page,) = await Pages(stack.db).lease(Turn(0, ["email", "null"]), limit=5, seconds=60, owner="me")
    for send in [s for s in await Pages(stack.db).read_sends(page) for _ in range(3)]:
        await stack.publish(routing.SENDS, "null", send["body"].encode())
    async with stack.running("send", "results", "schedule", channel=channel, send_batch=50):
        row = await stack.finished(number)
        await until(lambda: _empty(stack))
    assert row["sent"] == 300
    assert set(channel.tries.values()) == {1}


async def test_a_claim_without_a_result_becomes_unknown_and_a_late_result_settles_it(stack: Stack) -> None:
    number = await stack.prepare(10)
    channel = Counting(unsure=frozenset({3, 4}))
    limits: dict[str, Any] = {"claim_lease": 0.4, "result_lease": 0.4, "page_look_after": 0.2, "tick": 0.05}
    async with stack.running(channel=channel, **limits):
        await stack.confirm(number)
        row = await stack.finished(number)
        assert (row["sent"], row["unknown"]) == (8, 2)
        await stack.publish(routing.RESULTS, "sent", _sent(number, 3))
        row = await until(lambda: _with(stack, number, sent=9))
    assert (row["unknown"], row["state"]) == (1, "finished")
    assert channel.tries == Counter(range(1, 11))


async def test_when_the_validity_is_over_the_rest_is_cancelled(stack: Stack) -> None:
    number = await stack.prepare(50)
    channel = Counting()
    async with stack.running("confirm", "fanout"):
        await stack.confirm(number)
        await until(lambda: _all_published(stack, 50))
    async with stack.db.transaction() as tx:
        await tx.connection.execute("UPDATE sendoff.delivery_record SET valid_until = now()")
    async with stack.running(channel=channel, tick=0.05):
        row = await stack.finished(number)
    assert (row["cancelled"], row["sent"], channel.tries.total()) == (50, 0, 0)


async def test_who_was_quarantined_meanwhile_is_excluded(stack: Stack) -> None:
    number = await stack.prepare(["a@example.org", "B@Example.org"])
    async with stack.db.transaction() as tx:
        await tx.connection.execute(
            "INSERT INTO sendoff.quarantined_address (channel, address_key, address, cause)"
            " VALUES ('null', 'b@example.org', 'b@example.org', 'hard_bounce')"
        )
    async with stack.running(tick=0.05):
        await stack.confirm(number)
        row = await stack.finished(number)
    assert (row["sent"], row["excluded_late"], row["errors"]) == (1, 1, 0)
    late = await stack.rows("SELECT recipient, cause, late FROM sendoff.exclusion_log")
    assert late == [{"recipient": 2, "cause": "hard_bounce", "late": True}]


async def deny(stack: Stack, channel: str, profile: str) -> None:
    async with stack.db.transaction() as tx:
        await tx.connection.execute(
            "INSERT INTO sendoff.denylisted_profile (channel, profile_id, cause) VALUES ($1, $2, 'optout')",
            channel,
            profile,
        )


PROFILES = ("a@example.org,p1", "b@example.org,p2", "c@example.org,p2", "d@example.org,", "e@example.org,p3")


async def test_whose_profile_was_denylisted_meanwhile_is_excluded_at_every_address(stack: Stack) -> None:
    number = await stack.prepare(PROFILES, columns="address,profile_id")
    await deny(stack, "null", "p2")
    await deny(stack, "email", "p3")
    channel = Counting()
    async with stack.running(channel=channel, tick=0.05):
        await stack.confirm(number)
        row = await stack.finished(number)
    assert (row["sent"], row["excluded_late"], row["errors"], row["bounced"]) == (3, 2, 0, 0)
    assert channel.tries == Counter([1, 4, 5])
    late = await stack.rows(
        "SELECT recipient, profile_id, cause, detail, late FROM sendoff.exclusion_log ORDER BY recipient"
    )
    of_p2 = {"profile_id": "p2", "cause": "denylisted", "detail": "optout", "late": True}
    assert late == [{"recipient": 2, **of_p2}, {"recipient": 3, **of_p2}]


async def test_whose_profile_is_denylisted_is_left_out_of_a_preparation(stack: Stack) -> None:
    await deny(stack, "null", "p2")
    await deny(stack, "email", "p3")
    number = await stack.prepare(PROFILES, columns="address,profile_id")
    row = await stack.deployment(number)
    assert (row["to_deliver"], row["excluded"], row["excluded_late"]) == (3, 2, 0)
    left_out = await stack.rows("SELECT line, cause, detail, late FROM sendoff.exclusion_log ORDER BY line")
    of_p2 = {"cause": "denylisted", "detail": "optout", "late": False}
    assert left_out == [{"line": 3, **of_p2}, {"line": 4, **of_p2}]


async def test_a_claim_looks_everything_up_by_key(stack: Stack) -> None:
    query = queries()["claim"]
    asked = query.arguments(
        {
            "delivery_id": 1,
            "recipients": [1, 2],
            "attempts": [1, 1],
            "address_keys": ["a@example.org", "b@example.org"],
            "token": 1,
            "lease": timedelta(seconds=60),
            "handed_over": False,
        }
    )
    async with stack.db.transaction() as tx:
        plan = await tx.connection.fetch("EXPLAIN (COSTS OFF) " + query.text, *asked)
    nodes = "\n".join(row[0] for row in plan)
    assert "denylisted_profile_pkey" in nodes
    assert "Seq Scan" not in nodes
    assert not re.search(r"\bHash\b", nodes)  # a HashAggregate is of the batch alone
    assert "Merge" not in nodes


async def test_the_fan_out_waits_at_the_high_water_mark(stack: Stack) -> None:
    number = await stack.prepare(1_000)
    quick = {"page_size": 100, "send_queue_high_water": 200, "send_queue_seconds": 0}
    async with stack.running("confirm", "fanout", **quick):
        await stack.confirm(number)
        await until(lambda: _all_published(stack, 200))
        assert await stack.depth(routing.send_queue("null")) < 1_000
        async with stack.running("send", "results"):
            assert (await stack.finished(number))["sent"] == 1_000


async def test_without_senders_no_more_waits_than_they_need_to_begin(stack: Stack) -> None:
    number = await stack.prepare(1_000)
    async with stack.running("confirm", "fanout", page_size=100):
        await stack.confirm(number)
        await until(lambda: _all_published(stack, 100))
        small = await stack.prepare(3)
        await stack.confirm(small)
        await until(lambda: _all_published(stack, 103))
        assert await stack.depth(routing.send_queue("null")) < 300
        async with stack.running("send", "results"):
            assert (await stack.finished(small))["sent"] == 3
            assert (await stack.finished(number))["sent"] == 1_000


@pytest.mark.parametrize("transport", ["bulk", "aio-pika"])
async def test_a_send_queue_in_shards_is_sent_whole(stack: Stack, transport: str) -> None:
    shards = routing.sharded(stack.names.queue(routing.send_queue("null")), 3)
    await topology.declare(stack.connection, stack.names, stack.settings.channels, 3)
    number = await stack.prepare(1_000)
    async with stack.running(transport=transport, page_size=100, send_shards=3):
        await stack.confirm(number)
        assert (await stack.finished(number))["sent"] == 1_000
    for channel in stack.settings.channels:
        for queue in routing.sharded(stack.names.queue(routing.send_queue(channel)), 3)[1:]:
            await stack.channel.queue_delete(queue)
    assert shards[1].endswith(".send.null.1")


async def test_send_messages_that_cannot_be_handled_go_to_the_dead_queue(stack: Stack) -> None:
    number = await stack.prepare(2)
    stranger = Send(
        delivery_id=number, recipient=99, attempt=1, channel="null", address="x@example.org", variables={}
    )
    async with stack.running("confirm", "send"):
        await stack.confirm(number)
        await stack.publish(routing.SENDS, "null", b"{]")
        await stack.publish(routing.SENDS, "null", {"delivery_id": number})
        await stack.publish(routing.SENDS, "null", stranger)
        await until(lambda: _dead_count(stack, 3))
    reasons = sorted(reason for _, reason in await stack.dead())
    assert reasons[0] == "The delivery has 2 recipients, and none of this number."
    assert all(r.startswith("The send message could not be read") for r in reasons[1:])


async def _tried(channel: Counting, count: int) -> bool:
    return channel.tries.total() >= count


async def _dead_count(stack: Stack, count: int) -> bool:
    return await stack.depth(routing.DEAD_QUEUE) >= count


async def _all_published(stack: Stack, count: int) -> bool:
    return await stack.depth(routing.send_queue("null")) >= count


async def _empty(stack: Stack) -> bool:
    return await stack.depth(routing.send_queue("null")) == 0


async def _with(stack: Stack, number: int, **expected: int) -> dict[str, Any] | None:
    row = await stack.deployment(number)
    return row if all(row[k] == v for k, v in expected.items()) else None


async def _declare_again(stack: Stack) -> None:
    await topology.declare(stack.connection, stack.names, stack.settings.channels)


def _sent(delivery_id: int, recipient: int) -> dict[str, Any]:
    return {"delivery_id": delivery_id, "recipient": recipient, "attempt": 1, "at": "2026-11-23T10:00:00Z"}
