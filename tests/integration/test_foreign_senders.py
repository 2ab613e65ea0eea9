"""Senders in other languages: what they are granted over the wire, and what becomes of their messages."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import uuid
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aio_pika
import pytest

from contracts import routing
from tests.support.asking import Asker, attempts
from tests.support.claims import expire
from tests.support.database import change
from tests.support.deliveries import agrees, counted, log
from tests.support.results import bounced, result
from tests.support.stack import until
from worker.amqp import topology
from worker.db.accounts import Accounts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aio_pika.abc import AbstractIncomingMessage

    from tests.support.stack import Stack

GUIDE = Path(__file__).parents[2] / "docs/senders.md"
SENDS = routing.send_queue("sms")
CLAIMING = ("confirm", "schedule", "claims", "results", "stats")


@pytest.fixture
async def sms(stack: Stack) -> AsyncIterator[Stack]:
    """An installation with a channel that is not ours."""
    stack.settings = stack.settings.model_copy(update={"channels": ("email", "null", "sms"), "tick": 0.05})
    await topology.declare(stack.connection, stack.names, stack.settings.channels)
    yield stack
    await stack.channel.queue_delete(stack.names.queue(SENDS))


async def started(stack: Stack, recipients: Any, channel: str = "sms", **more: Any) -> int:
    number = await stack.prepare(recipients, channel, **more)
    assert (await stack.confirm(number))["status"] == "accepted"
    await stack.finished(number, "in_progress")
    return number


async def report(stack: Stack, key: str, *results: dict[str, Any]) -> None:
    await stack.publish(routing.RESULTS, key, json.dumps(results).encode())


async def test_each_recipient_is_granted_to_one_of_many_askers_once(sms: Stack) -> None:
    async with sms.running(*CLAIMING), sms.running("claims"):
        number = await started(sms, 50)
        askers = [await Asker.open(sms) for _ in range(6)]
        granted = await asyncio.gather(*(asker.granted(number, range(1, 51)) for asker in askers))
        assert Counter(r for some in granted for r in some) == Counter(range(1, 51))
        await report(sms, "sent", *(result(number, r) for r in range(1, 51)))
        assert (await sms.finished(number))["sent"] == 50


async def test_once_a_pause_or_a_stop_is_answered_nothing_is_granted(sms: Stack) -> None:
    async with sms.running(*CLAIMING):
        number = await started(sms, 6)
        asker = await Asker.open(sms)
        assert await asker.granted(number, [1, 2]) == [1, 2]
        assert (await sms.control(routing.PAUSE, number))["status"] == "accepted"
        answer = await asker.ask(number, attempts([1, 3]))
        assert (answer["granted"], answer["message"]) == (
            [],
            f"0 of 2 attempts are granted. Delivery {number} is paused.",
        )
        await sms.control(routing.RESUME, number)
        assert await asker.granted(number, [3, 4]) == [3, 4]
        await sms.control(routing.STOP, number)
        assert await asker.granted(number, range(1, 7)) == []
        await report(sms, "sent", *(result(number, r) for r in (1, 2, 3, 4)))
        await until(lambda: counted(sms, number, sent=4, cancelled=2))
        assert await agrees(sms, number)


async def test_who_is_in_quarantine_or_on_the_denylist_is_excluded_and_not_granted(sms: Stack) -> None:
    async with sms.running(*CLAIMING):
        people = [f"user{r}@example.org,p{r}" for r in (1, 2, 3)]
        number = await started(sms, people, columns="address,profile_id")
        await change(sms, "INSERT INTO sendoff.denylisted_profile VALUES ('sms', 'p1', 'optout')")
        await change(
            sms,
            "INSERT INTO sendoff.quarantined_address (channel, address_key, address, cause)"
            " VALUES ('sms', 'user2@example.org', 'user2@example.org', 'hard_bounce')",
        )
        assert await (await Asker.open(sms)).granted(number, [1, 2, 3]) == [3]
        await report(sms, "sent", result(number, 3))
        row = await sms.finished(number)
        assert (row["sent"], row["excluded_late"]) == (1, 2)
    late = await sms.rows("SELECT recipient, cause FROM sendoff.exclusion_log ORDER BY recipient")
    assert [tuple(row.values()) for row in late] == [(1, "denylisted"), (2, "hard_bounce")]


async def test_a_repeated_request_finds_its_claims_from_another_connection_and_in_another_process(
    sms: Stack,
) -> None:
    name = str(uuid.uuid4())
    async with sms.running(*CLAIMING):
        number = await started(sms, 3)
        first = await (await Asker.open(sms)).ask(number, attempts([1, 2]), name)
    async with sms.running(*CLAIMING):
        asker = await Asker.open(sms)
        assert await asker.granted(number, [1, 2]) == []  # another request
        again = await asker.ask(number, attempts([1, 2]), name)
        assert (again["granted"], again["token"]) == (first["granted"], first["token"])
        assert await asker.granted(number, [1, 2, 3], name=name) == [
            3
        ]  # the same id, and not the same request
        await report(sms, "sent", result(number, 1))
        await until(lambda: counted(sms, number, sent=1, sending=2))
        assert await asker.granted(number, [1, 2], name=name) == [2]
        assert await agrees(sms, number)


async def test_a_repeat_that_is_granted_more_ends_with_all_of_it(sms: Stack) -> None:
    name = str(uuid.uuid4())
    asked = [*attempts([1]), *attempts([2], 2)]
    async with sms.running(*CLAIMING):
        number = await started(sms, 2)
    async with sms.running("claims", "results", retry_delays=(3_600,)):
        asker = await Asker.open(sms)
        assert await asker.granted(number, [2]) == [2]
        await report(sms, "bounce", bounced(number, 2, "soft"))
        await until(lambda: counted(sms, number, retrying=1))
        assert await expire(sms.db, number) == (0, 0)
        assert [g["recipient"] for g in (await asker.ask(number, asked, name))["granted"]] == [1]
        await change(sms, "UPDATE sendoff.outcome SET retry_at = now() WHERE retry_at IS NOT NULL")
        assert len((await asker.ask(number, asked, name))["granted"]) == 2
        assert (await expire(sms.db, number)).unknown == 2


async def test_a_repeat_begins_the_lease_anew_as_its_answer_says(sms: Stack) -> None:
    name = str(uuid.uuid4())
    async with sms.running(*CLAIMING):
        number = await started(sms, 1)
    async with sms.running("claims"):
        asker = await Asker.open(sms)
        assert await asker.granted(number, [1], name=name) == [1]
        await change(
            sms,
            "UPDATE sendoff.claim_lease SET handed_over_at = now() - interval '1 day', expires_at = now()",
        )
        assert await asker.granted(number, [1], name=name) == [1]
        assert await Accounts(sms.db).expire(number, result_lease=sms.settings.result_lease) == (0, 0)
        assert (await sms.deployment(number))["sending"] == 1


async def test_only_the_attempt_that_is_due_is_granted(sms: Stack) -> None:
    async with sms.running(*CLAIMING, retry_delays=(0.01,)):
        number = await started(sms, 1)
        asker = await Asker.open(sms)
        assert await asker.granted(number, [1], attempt=2) == []
        assert await asker.granted(number, [2], attempt=1) == []  # there is nobody of this number
        assert await asker.granted(number, [1]) == [1]
        assert await asker.granted(number, [1], attempt=2) == []
        await report(sms, "bounce", bounced(number, 1, "soft"))
        await until(lambda: counted(sms, number, retrying=1))
        assert await asker.granted(number, [1]) == []
        assert await asker.granted(number, [1], attempt=2) == [1]
        await report(sms, "sent", result(number, 1) | {"attempt": 2})
        assert (await sms.finished(number))["sent"] == 1


async def test_a_delivery_that_is_unknown_not_confirmed_or_of_another_channel_is_refused(sms: Stack) -> None:
    async with sms.running(*CLAIMING):
        ready, other = await sms.prepare(1, "sms"), await started(sms, 1, "null")
        asker = await Asker.open(sms)
        for number in (ready, other, 2**63 - 1):
            answer = await asker.ask(number, attempts([1]))
            assert (answer["status"], answer["reason"], answer["granted"]) == (
                "refused",
                "delivery_unknown",
                [],
            )
        assert (await sms.deployment(other))["sending"] == 0


async def test_a_thousand_are_granted_together_and_more_are_refused(sms: Stack) -> None:
    async with sms.running(*CLAIMING):
        number = await started(sms, 1_001)
        asker = await Asker.open(sms)
        assert await asker.granted(number, range(1, 1_001)) == list(range(1, 1_001))
        answer = await asker.ask(number, attempts(range(1, 1_002)))
        assert (answer["status"], answer["reason"]) == ("invalid", "malformed")
        assert "at most 1000" in answer["message"]
        assert (await sms.deployment(number))["sending"] == 1_000


async def test_a_claim_without_a_result_is_unknown_when_its_lease_expires(sms: Stack) -> None:
    name = str(uuid.uuid4())
    async with sms.running(*CLAIMING, result_lease=0.2):
        number = await started(sms, 2)
        asker = await Asker.open(sms)
        answer = await asker.ask(number, attempts([1, 2]), name)
        assert (len(answer["granted"]), answer["lease_seconds"]) == (2, 0.2)
        await report(sms, "error", result(number, 1, reason="other", retryable=False))
        await until(lambda: counted(sms, number, unknown=1, errors=1))
        assert await asker.granted(number, [1, 2], name=name) == []
        await report(sms, "sent", result(number, 2))  # better late than never
        await until(lambda: counted(sms, number, sent=1, errors=1))


async def test_nothing_is_claimed_for_an_asker_that_is_gone(sms: Stack) -> None:
    async with sms.running(*CLAIMING):
        number = await started(sms, 3)
        asker = await Asker.open(sms)
        await asker.publish(number, attempts([1]), reply_to="sender.gone")
        await asker.publish(number, attempts([1]), reply_to=None)
        await sms.publish(routing.CLAIMS, "sms", b"{", reply_to=asker.answers.name, correlation_id="odd")
        assert (await asker.heard("odd"))["status"] == "invalid"
        assert await asker.granted(number, [2]) == [2]
        await until(lambda: _dead(sms, 2))
        assert sorted(reason.partition(":")[0] for _, reason in await sms.dead()) == [
            "Nobody waits for the answer",
            "The request names no queue for its answer (reply_to).",
        ]
        assert (await sms.deployment(number))["sending"] == 1


async def test_a_request_that_has_waited_too_long_is_not_carried_out(sms: Stack) -> None:
    async with sms.running("confirm", "schedule"):
        number = await started(sms, 2)
    asker = await Asker.open(sms)
    await asker.publish(number, attempts([1]), expiration=0.01)
    await until(lambda: _dead(sms, 1))
    async with sms.running(*CLAIMING):
        assert await asker.granted(number, [2]) == [2]
        assert (await sms.deployment(number))["sending"] == 1


async def test_an_asker_may_take_the_answer_by_direct_reply_to(sms: Stack) -> None:
    async with sms.running(*CLAIMING):
        number = await started(sms, 1)
        channel = await sms.connection.channel()
        underlay = await channel.get_underlay_channel()
        heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def answered(message: Any) -> None:
            heard.set_result(message.body)

        await underlay.basic_consume("amq.rabbitmq.reply-to", answered, no_ack=True)
        body = {"delivery_id": number, "recipients": attempts([1])}
        exchange = await channel.get_exchange(sms.names.exchange(routing.CLAIMS))
        await exchange.publish(
            aio_pika.Message(
                json.dumps(body).encode(), message_id=str(uuid.uuid4()), reply_to="amq.rabbitmq.reply-to"
            ),
            "sms",
        )
        async with asyncio.timeout(30):
            assert json.loads(await heard)["granted"] == [{"recipient": 1, "attempt": 1}]


async def test_a_foreign_sender_shares_a_channel_of_ours(sms: Stack) -> None:
    async with sms.running(*CLAIMING):
        number = await started(sms, 4, "null")
        asker = await Asker.open(sms, "null")
        assert await asker.granted(number, [2, 4]) == [2, 4]
        async with sms.running("fanout", "send"):
            await until(lambda: counted(sms, number, sent=2, sending=2))
            await report(sms, "sent", result(number, 2), result(number, 4))
            assert (await sms.finished(number))["sent"] == 4


async def _dead(stack: Stack, messages: int) -> bool:
    return await stack.depth(routing.DEAD_QUEUE) == messages


async def _looks(stack: Stack, number: int, since: float) -> bool:
    """Whether a page was looked at so many seconds after it was published."""
    query = (
        "SELECT look_at - $2 * interval '1 second' > published_at AS late FROM sendoff.delivery_page"
        " WHERE delivery_id = $1 AND state = 'published'"
    )
    return [row["late"] for row in await stack.rows(query, number, since)] == [True]


async def _taken(stack: Stack, messages: int) -> list[AbstractIncomingMessage]:
    queue = await stack.channel.get_queue(stack.names.queue(SENDS), ensure=False)
    return [await until(lambda: queue.get(fail=False)) for _ in range(messages)]


async def test_what_waits_for_a_slow_foreign_sender_is_not_published_again(sms: Stack) -> None:
    quick = {"page_look_after": 0.05, "redelivery_after": 0.1, "result_lease": 0.3}
    async with sms.running("fanout", *CLAIMING, **quick) as worker:
        number = await started(sms, 2)
        await until(lambda: _looks(sms, number, 1))
        assert await sms.depth(SENDS) == 2
        assert worker.metrics.pages_reopened.labels("lost")._value.get() == 0  # noqa: SLF001
        (first,) = await _taken(sms, 1)
        await until(lambda: _looks(sms, number, 2))
        assert await sms.depth(SENDS) == 1
        (second,) = await _taken(sms, 1)
        # It holds all, longer than a result may take, and has not asked: they count as lost.
        again = await _taken(sms, 2)
        asker = await Asker.open(sms)
        sent = []
        for message in (first, second, *again):
            send = json.loads(message.body)
            sent += await asker.granted(number, [send["recipient"]])
            await message.ack()
        assert sorted(sent) == [1, 2]


@asynccontextmanager
async def example(stack: Stack, folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """The sender of the guide, as written."""
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    file = folder / "sender.py"
    file.write_text(code, encoding="utf-8")
    env = os.environ | {
        "SENDOFF_AMQP_URL": stack.settings.amqp_url,
        "SENDOFF_QUEUE_PREFIX": stack.settings.queue_prefix,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(file), env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        yield process
        assert process.returncode is None
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_the_sender_of_the_guide_sends_each_message_once(sms: Stack, tmp_path: Path) -> None:
    async with sms.running("fanout", *CLAIMING), example(sms, tmp_path) as process:
        number = await started(sms, ["+33 1", "+33 2", *(f"+44 {r}" for r in range(3, 131))])
        other = await started(sms, ["+49 1"])
        for delivery_id, address in ((number, "+33 1"), (other, "+49 1")):
            doubled = {"delivery_id": delivery_id, "recipient": 1, "attempt": 1, "channel": "sms"}
            await sms.publish(routing.SENDS, "sms", doubled | {"address": address, "variables": {}})
        row = await sms.finished(number)
        assert (row["sent"], row["unknown"], row["errors"]) == (130, 0, 0)
        assert (await sms.finished(other))["sent"] == 1
        assert process.stdout is not None
        lines = [(await process.stdout.readline()).decode() for _ in range(131)]
        assert len(set(lines)) == 131
        await until(lambda: _drained(sms))
        assert len({row["provider_id"] for row in (await log(sms, number)).values()}) == 130


async def _drained(stack: Stack) -> bool:
    return await stack.depth(SENDS) == 0
