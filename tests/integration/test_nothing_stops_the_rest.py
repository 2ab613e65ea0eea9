"""What must not stop a delivery, let alone all of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from contracts import routing
from contracts.sends import Send
from tests.support.database import read_only
from tests.support.results import result
from tests.support.stack import until
from worker.amqp import topology
from worker.channels.null import NullChannel
from worker.domain.verdicts import Accepted, Unsure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.support.stack import Stack
    from worker.channels.protocol import HandOver
    from worker.domain.verdicts import Verdict

QUICK = {"claim_lease": 0.1, "result_lease": 0.1, "page_look_after": 0.1, "tick": 0.05}


class Silent(NullChannel):
    """Claims, and never says what became of it: as a sender that dies."""

    async def send(self, compiled: None, send: Send, hand_over: HandOver) -> Verdict:  # noqa: ARG002
        return Unsure("died")


class Recording(NullChannel):
    """Notes the content that each message would be made of."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def prepare(self, content: Mapping[str, Any]) -> Any:  # type: ignore[override]
        return content

    async def send(self, compiled: Any, send: Send, hand_over: HandOver) -> Verdict:  # noqa: ARG002
        self.seen.append(compiled)
        return Accepted("fine")


async def test_deliveries_with_and_without_a_limit_are_fanned_out_side_by_side(stack: Stack) -> None:
    limited = [await stack.prepare(400, extra="[limits]\nmessages_per_hour = 120000") for _ in range(4)]
    plain = [await stack.prepare(3_000) for _ in range(2)]
    async with stack.running("confirm"):
        for number in [*plain, *limited]:
            assert (await stack.confirm(number))["status"] == "accepted"
    async with stack.running("fanout", "send", "results", page_size=100):
        for number in plain:
            await stack.finished(number)


async def _resumed_with_open_claims(stack: Stack) -> int:
    """A delivery of five claims without a result, whose page waits to be published again."""
    number = await stack.prepare(5)
    async with stack.running("confirm", "fanout", "send", channel=Silent(), result_lease=0.1):
        await stack.confirm(number)
        await until(lambda: _sending(stack, number))
        await stack.control(routing.PAUSE, number)
    async with stack.running("confirm"):
        await stack.control(routing.RESUME, number)
    return number


async def test_claims_of_an_open_page_run_out_after_a_stop(stack: Stack) -> None:
    number = await _resumed_with_open_claims(stack)
    async with stack.running("confirm"):
        await stack.control(routing.STOP, number)
    async with stack.running(**QUICK):
        await until(lambda: _unknown(stack, number))


async def test_claims_of_an_open_page_run_out_after_the_validity(stack: Stack) -> None:
    number = await _resumed_with_open_claims(stack)
    await _execute(stack, "UPDATE sendoff.delivery_record SET valid_until = now()")
    async with stack.running("schedule", page_look_after=0.1, result_lease=0.1):
        await until(lambda: stack.rows("SELECT 1 FROM sendoff.delivery WHERE cancelled_at IS NOT NULL"))
    async with stack.running(**QUICK):
        await stack.finished(number)


async def test_the_content_is_that_of_the_confirmed_preparation(stack: Stack) -> None:
    number = await stack.prepare(["a@example.org"])
    channel = Recording()
    stray = Send(
        delivery_id=number, recipient=1, attempt=1, channel="null", address="a@example.org", variables={}
    )
    async with stack.running(channel=channel):
        await _execute(stack, "UPDATE sendoff.delivery_content SET content = '{\"version\": 1}'")
        await stack.publish(routing.SENDS, "null", stray)
        await until(lambda: stack.depth(routing.DEAD_QUEUE))
        await stack.prepare(["a@example.org"], delivery=number)
        await _execute(stack, "UPDATE sendoff.delivery_content SET content = '{\"version\": 2}'")
        assert (await stack.confirm(number, 2))["status"] == "accepted"
        await stack.finished(number)
    assert channel.seen == [{"version": 2}]


async def test_a_database_that_only_reads_is_waited_for(stack: Stack) -> None:
    number = await stack.prepare(10)
    body = json.dumps([result(number, r) for r in range(1, 11)]).encode()
    async with stack.running(channel=Silent()):
        await stack.confirm(number)
        await until(lambda: _sending(stack, number, 10))
        async with read_only(stack):
            await stack.publish(routing.RESULTS, "sent", body)
            await until(lambda: _drained_or_waiting(stack))
            assert await stack.depth(routing.DEAD_QUEUE) == 0
        assert (await stack.finished(number))["sent"] == 10


async def test_a_channel_without_a_queue_stops_nobody_else(stack: Stack) -> None:
    mail, other = await stack.prepare(3, "email"), await stack.prepare(3)
    async with stack.running("confirm"):
        await stack.confirm(mail)
        await stack.confirm(other)
    await stack.channel.queue_delete(stack.names.queue(routing.send_queue("email")))
    async with stack.running(channels=("null",)):
        await stack.finished(other)


async def test_the_channel_of_a_foreign_sender_is_left_to_it(stack: Stack) -> None:
    stack.settings = stack.settings.model_copy(update={"channels": ("null", "sms")})
    await topology.declare(stack.connection, stack.names, stack.settings.channels)
    number = await stack.prepare(["+336", "+337"], "sms")
    async with stack.running():
        await stack.confirm(number)
        await until(lambda: stack.depth(routing.send_queue("sms")))
        await stack.publish(routing.RESULTS, "sent", json.dumps([result(number, r) for r in (1, 2)]).encode())
        assert (await stack.finished(number))["sent"] == 2
    await stack.channel.queue_delete(stack.names.queue(routing.send_queue("sms")))


async def test_stats_for_the_largest_number_are_refused_as_unknown(stack: Stack) -> None:
    async with stack.running("stats"):
        answer = await stack.request(routing.COMPUTE_STATS, {"delivery_id": 2**63 - 1})
    assert answer["reason"] == "delivery_unknown"


async def test_results_for_nobody_are_buried_by_the_message(stack: Stack) -> None:
    number = await stack.prepare(1)
    async with stack.running(channel=Silent(), result_lease=600):
        await stack.confirm(number)
        await until(lambda: _sending(stack, number, 1))
        for first in range(2**40, 2**40 + 3_000, 1_000):
            strangers = [result(first + n, 1) for n in range(1_000)]
            await stack.publish(routing.RESULTS, "sent", json.dumps(strangers).encode())
        await stack.publish(routing.RESULTS, "sent", json.dumps(result(number, 1)).encode())
        assert (await stack.finished(number))["sent"] == 1
        await until(lambda: stack.depth(routing.DEAD_QUEUE))
    parts = [json.loads(body) for body, _ in await stack.dead()]
    assert [len(part) for part in parts] == [1_000] * 3  # one by one they held the honest one up for 15 s
    assert {one["delivery_id"] for part in parts for one in part} == set(range(2**40, 2**40 + 3_000))


async def test_sends_for_many_unknown_deliveries_are_buried_and_an_honest_one_goes_on(stack: Stack) -> None:
    number = await stack.prepare(1)
    strangers = {2**40 + n for n in range(300)}
    for stranger in strangers:
        send = {"delivery_id": stranger, "recipient": 1, "attempt": 1, "channel": "null"}
        await stack.publish(routing.SENDS, "null", send | {"address": "a@example.org", "variables": {}})
    async with stack.running():
        await stack.confirm(number)
        assert (await stack.finished(number))["sent"] == 1
        await until(lambda: _dead(stack, 300))
    assert {json.loads(body)["delivery_id"] for body, _ in await stack.dead()} == strangers


async def _dead(stack: Stack, count: int) -> bool:
    return await stack.depth(routing.DEAD_QUEUE) == count


async def _execute(stack: Stack, statement: str) -> None:
    async with stack.db.transaction() as tx:
        await tx.connection.execute(statement)


async def _sending(stack: Stack, number: int, count: int = 5) -> bool:
    return bool((await stack.deployment(number))["sending"] == count)


async def _unknown(stack: Stack, number: int) -> bool:
    return bool((await stack.deployment(number))["unknown"] == 5)


async def _drained_or_waiting(stack: Stack) -> bool:
    """Whether the result has been taken from its queue: it is in the recorder's hands, or dead."""
    return await stack.depth(routing.SENT_QUEUE) == 0
