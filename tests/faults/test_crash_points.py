"""A worker dies at each crash point in turn, and a fresh one takes over: nobody is lost, nobody gets two.

The unit test of the points looks into this file: it fails if a point is not named here.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from contracts import routing
from contracts.commands import Confirm
from tests.support.asking import Asker, attempts
from tests.support.crashes import CONNECTIONS, Crashes
from tests.support.database import change
from tests.support.deliveries import confirmed, counts
from tests.support.events import SCHEDULED
from tests.support.processes import sink, worker
from tests.support.proxy import CutProxy
from tests.support.results import bounced, drained, result
from tests.support.returned_mail import failure_notice, report
from tests.support.stack import until
from tests.support.tracker import BASE, KEY, prepare_tracked
from tests.support.tracking import event, publish, recorded
from tests.support.webhooks import SECRET, generic
from worker.domain.keys import read_keys
from worker.domain.links import Keys, Links
from worker.domain.return_path import Reference, ReturnPath

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncIterator
    from pathlib import Path

    from aio_pika.abc import AbstractQueue

    from tests.support.stack import Stack

pytestmark = pytest.mark.timeout(300)  # many processes are started, one after the other

RECIPIENTS = 60
KEYS = f"1:{'k' * 32}"
RETURNS = ReturnPath(read_keys(KEYS), "returns.example.org")
HOLDERS = ("claim.granted", "hand-over.marked", "smtp.written", "send.tried", "result.confirmed")
FAILED = "Final-Recipient: rfc822; user1@example.org\nAction: failed\nStatus: 5.1.1\n"


@asynccontextmanager
async def mailing(stack: Stack, tmp_path: Path, **env: object) -> AsyncIterator[Crashes]:
    with sink(tmp_path / "sink") as (smtp_url, index):
        crashes = Crashes(stack, index, SMTP_URL=smtp_url, **env)
        async with crashes.checker.watching():
            yield crashes


async def test_a_delivery_whose_worker_dies_at_every_step_of_its_way(stack: Stack, tmp_path: Path) -> None:
    async with mailing(stack, tmp_path) as crashes:
        number = crashes.checker.add(await stack.prepare(RECIPIENTS, "email"))
        command = Confirm(delivery_id=number, operator="ana", preparation=1, definitive=True)
        answers = await _asked(stack, routing.CONFIRM, command, message_id="once")
        for point in ("command.carried-out", "command.committed", "request.handled"):
            await crashes.at(point, "confirm")
        for point in ("page.leased", "publish.written", "page.confirmed", "page.published"):
            await crashes.at(point, "fanout")
        async with stack.running("fanout", tick=0.1):
            await until(lambda: _published(stack))
        for point in HOLDERS:
            await crashes.at(point, "send")
        for point in ("outcome.recorded", "batch.recorded"):
            await crashes.at(point, "results")
        for point in ("pages.inspected", "claims.ended"):
            await crashes.at(point, "schedule")
        found = await crashes.converge()
    row = await stack.deployment(number)
    assert row["sent"] + row["unknown"] == RECIPIENTS
    # The first of them died before the mark, the last one after the results.
    assert row["unknown"] <= (len(HOLDERS) - 1) * CONNECTIONS
    assert found.mails == row["sent"] + found.doubted
    told = await _told(answers)
    assert (told[0]["status"], told[0]["state"]) == ("accepted", "in_progress")
    assert all(answer == told[0] for answer in told)


async def _asked(stack: Stack, key: str, body: Any, **properties: Any) -> AbstractQueue:
    """Asks, and returns the queue that the answers come to."""
    answers = await stack.channel.declare_queue(exclusive=True)
    await stack.publish(routing.COMMANDS, key, body, reply_to=answers.name, **properties)
    return answers


async def _told(answers: AbstractQueue) -> list[dict[str, Any]]:
    """Returns the answers: there is one at least."""
    first = await until(lambda: answers.get(fail=False, no_ack=True))
    found = [json.loads(first.body)]
    while (message := await answers.get(fail=False, no_ack=True)) is not None:
        found.append(json.loads(message.body))
    return found


async def _published(stack: Stack) -> bool:
    return not await stack.rows("SELECT 1 FROM sendoff.delivery_page WHERE state = 'open'")


async def test_pages_whose_scheduler_dies(stack: Stack) -> None:
    crashes = Crashes(stack)
    number = crashes.checker.add(await confirmed(stack, 30), mailed=False)
    async with stack.running("fanout", page_look_after=0.3):
        await until(lambda: _waiting(stack, 30))
    queue = await stack.channel.get_queue(stack.names.queue(routing.send_queue("null")), ensure=False)
    await queue.purge()
    await crashes.at("pages.reopened", "schedule", REDELIVERY_AFTER=0.1)
    await stack.publish(
        routing.RESULTS, "sent", json.dumps([result(number, r) for r in range(1, 31)]).encode()
    )
    async with stack.running("results"):
        await counts(stack, number, sent=30)
    await change(stack, "UPDATE sendoff.delivery_page SET state = 'published', look_at = now()")
    await crashes.at("pages.closed", "schedule")
    found = await crashes.converge()
    assert (found.unknown, found.dead) == (0, [])


async def _waiting(stack: Stack, messages: int) -> bool:
    return await stack.depth(routing.send_queue("null")) == messages


async def test_a_finished_delivery_that_nobody_has_heard_of_yet(stack: Stack) -> None:
    crashes = Crashes(stack)
    number = crashes.checker.add(await stack.prepare(20), mailed=False)
    async with stack.running("confirm", "fanout", "send"):
        await stack.confirm(number)
        await until(lambda: _results(stack))
    await crashes.at("outcome.recorded", "results")
    await crashes.at("delivery.finished", "schedule")
    for point in ("event.leased", "event.confirmed", "event.deleted"):
        await crashes.at(point, "events")
    found = await crashes.converge()
    assert (found.unknown, (await stack.deployment(number))["sent"]) == (0, 20)


async def _results(stack: Stack) -> bool:
    return not await drained(stack) and not await stack.depth(routing.send_queue("null"))


async def test_a_recorder_that_finishes_a_delivery_or_pauses_it(stack: Stack) -> None:
    crashes = Crashes(stack)
    done = crashes.checker.add(await confirmed(stack, 5), mailed=False)
    await stack.publish(routing.RESULTS, "sent", json.dumps([result(done, r) for r in range(1, 6)]).encode())
    await crashes.at("outcome.finished", "results")
    failing = crashes.checker.add(await confirmed(stack, 20), mailed=False)
    bad = json.dumps([bounced(failing, r) for r in range(1, 11)]).encode()
    await stack.publish(routing.RESULTS, "bounce", bad)
    await crashes.at("breaker.tripped", "results", BREAKER_MINIMUM=5)
    assert (await stack.deployment(failing))["state"] == "paused"
    await stack.publish(routing.RESULTS, "sent", b"no result")
    await crashes.at("dead.confirmed", "results", BREAKER_MINIMUM=5)
    async with stack.running("confirm"):
        assert (await stack.control(routing.RESUME, failing))["status"] == "accepted"
    found = await crashes.converge(BREAKER_MINIMUM=5)
    row = await stack.deployment(failing)
    assert (row["bounced"], row["sent"], found.unknown) == (10, 10, 0)
    # Kept before it was acknowledged: at least once, and nothing else is there.
    assert set(found.dead) == {found.dead[0]}
    assert "could not be read" in found.dead[0]


async def test_a_sender_that_gives_claims_back_when_it_stops(stack: Stack, tmp_path: Path) -> None:
    async with mailing(stack, tmp_path) as crashes:
        slow = [f"slow-1-{n}@example.org" for n in range(12)]
        number = crashes.checker.add(await stack.prepare(slow, "email"))
        async with stack.running("confirm", "fanout"):
            await stack.confirm(number)

            async def stop(victim: subprocess.Popen[bytes]) -> None:
                await until(lambda: _sending(stack, number))
                victim.send_signal(signal.SIGTERM)

            await crashes.at("claim.given-back", "send", begin=stop)
        found = await crashes.converge(RESULT_LEASE=4)
    assert found.unknown <= CONNECTIONS


async def _sending(stack: Stack, number: int) -> bool:
    return bool((await stack.deployment(number))["sending"] > CONNECTIONS)


async def test_a_scheduler_that_alerts_and_starts_a_delivery(stack: Stack) -> None:
    crashes = Crashes(stack)
    number = crashes.checker.add(await confirmed(stack, 20, extra=SCHEDULED), mailed=False)
    crashes.checker.add(slow := await confirmed(stack, 5), mailed=False)
    ago = "UPDATE sendoff.delivery_record SET started_at = now() - interval '25 hours' WHERE delivery_id = $1"
    await change(stack, ago, slow)
    for point in ("alerts.sampled", "alerts.looked", "alerts.raised"):
        await crashes.at(point, "schedule")
    await change(stack, "UPDATE sendoff.delivery_record SET contact_date = now()")
    await crashes.at("start.carried-out", "schedule")
    assert (await stack.deployment(number))["state"] == "start_pending"
    await crashes.at("start.committed", "schedule")
    await crashes.converge()
    assert (await stack.deployment(number))["sent"] == 20
    assert len(await stack.rows("SELECT 1 FROM sendoff.delivery_alert")) == 1


async def test_retries_that_become_due_or_are_over(stack: Stack) -> None:
    crashes = Crashes(stack)
    due = crashes.checker.add(await confirmed(stack, 10), mailed=False)
    over = crashes.checker.add(await confirmed(stack, 10), mailed=False)
    async with stack.running("results", retry_delays=(0.1,)):
        await _soft(stack, due, range(1, 6))
        await counts(stack, due, retrying=5)
    await change(
        stack,
        "UPDATE sendoff.delivery_page SET state = 'published', look_at = now() + interval '1 hour'"
        " WHERE delivery_id = $1",
        due,
    )
    await crashes.at("retries.opened", "schedule")
    async with stack.running("results", retry_delays=(3_600,)):
        await _soft(stack, over, range(1, 6))
        await counts(stack, over, retrying=5)
    await change(stack, "UPDATE sendoff.delivery_record SET valid_until = now() WHERE delivery_id = $1", over)
    for point in ("rest.cancelled", "retries.ended"):
        await crashes.at(point, "schedule")
    await crashes.converge()
    assert (await stack.deployment(due))["sent"] == 10
    row = await stack.deployment(over)
    assert (row["retrying"], row["sent"], row["bounced"] + row["cancelled"]) == (0, 0, 10)


async def _soft(stack: Stack, number: int, recipients: range) -> None:
    body = json.dumps([bounced(number, r, "soft") for r in recipients]).encode()
    await stack.publish(routing.RESULTS, "bounce", body)


async def test_a_grantor_of_claims_and_a_counter_of_kpis(stack: Stack) -> None:
    crashes = Crashes(stack)
    number = crashes.checker.add(await confirmed(stack, 20), mailed=False)
    asker = await Asker.open(stack, "null")
    name = await asker.publish(number, attempts(range(1, 11)))
    await crashes.at("grant.committed", "claims")
    answers = await _asked(stack, routing.COMPUTE_STATS, {"delivery_id": number}, message_id="stats")
    for point in ("stats.recounted", "stats.answered"):
        await crashes.at(point, "stats")
    assert {answer["sending"] for answer in await _told(answers)} == {10}
    async with stack.running("claims"):
        answer = await asker.heard(name)
    assert [g["recipient"] for g in answer["granted"]] == list(range(1, 11))
    done = [result(number, r) for r in range(1, 11)]
    await stack.publish(routing.RESULTS, "sent", json.dumps(done).encode())
    found = await crashes.converge(RESULT_LEASE=30)
    assert (found.unknown, (await stack.deployment(number))["sent"]) == (0, 20)


async def test_a_recorder_of_tracking(stack: Stack) -> None:
    crashes = Crashes(stack)
    number = crashes.checker.add(await confirmed(stack, 20), mailed=False)
    await publish(stack, *(event(number, r, "open", f"e{r}") for r in range(1, 21)))
    await crashes.at("tracking.recorded", "tracking")
    await crashes.converge()
    assert (await stack.deployment(number))["opened"] == 20
    assert len(await stack.rows("SELECT 1 FROM sendoff.tracking_log")) == 20


async def test_a_tracker_that_has_an_event_and_has_not_answered(stack: Stack, tmp_path: Path) -> None:
    crashes = Crashes(stack)
    number = await prepare_tracked(stack)
    async with stack.running("confirm"):
        await stack.confirm(number)
    port = _free_port()
    env = {
        "TRACKER_URL": BASE,
        "TRACKER_KEYS": KEY,
        "TRACKER_PORT": port,
        "TRACKER_SPOOL": tmp_path / "spool",
    }
    links = Links(BASE, Keys(read_keys(KEY)))

    def click(recipient: int) -> Any:
        (url,) = links.clicks(number, recipient, [1])
        head = f"GET {url.removeprefix('https://track.example.org')} HTTP/1.1\r\nhost: t\r\n\r\n"
        return lambda _: _unanswered(port, head.encode())

    async with CutProxy(stack.settings.amqp_url).running() as proxy:
        await crashes.at("tracker.confirmed", "tracker", begin=click(1), AMQP_URL=proxy.url, **env)
        proxy.cut()
        await crashes.at("tracker.spooled", "tracker", begin=click(2), AMQP_URL=proxy.url, **env)
        proxy.mend()
        await crashes.at("tracker.replayed", "tracker", AMQP_URL=proxy.url, **env)
    with worker(stack.settings, "tracker", **env):
        await until(lambda: _replayed(tmp_path / "spool"))
        async with stack.running("tracking"):
            await counts(stack, number, clicked=2)
            await recorded(stack, 2)
    # What was published twice counts once.
    assert len(await stack.rows("SELECT 1 FROM sendoff.tracking_log")) == 2


async def _replayed(spool: Path) -> bool:
    return await asyncio.to_thread(lambda: not any(f.stat().st_size for f in spool.glob("*.events")))


async def _unanswered(port: int, request: bytes) -> None:
    """Sends a request to a server that dies over it."""
    await until(lambda: _listening(port))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    with suppress(ConnectionError):
        assert await reader.read() == b""
    writer.close()


async def _listening(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


async def test_a_reader_of_returned_mail(stack: Stack, tmp_path: Path) -> None:
    crashes = Crashes(stack)
    number = crashes.checker.add(await confirmed(stack, 3), mailed=False)
    mails, kept = tmp_path / "mails", tmp_path / "kept"
    for folder in ("new", "cur", "tmp"):
        (mails / folder).mkdir(parents=True)
    address = RETURNS.sender(Reference(number, 1, 1))
    env = {
        "BOUNCE_KEYS": KEYS,
        "BOUNCE_DOMAIN": "returns.example.org",
        "RETURNED_PORT": 0,
        "RETURNED_MAILDIR": mails,
        "RETURNED_FOLDER": kept,
    }
    head = f"Delivered-To: {address}\r\n".encode()
    (mails / "new" / "1.host").write_bytes(head + report(FAILED))
    await crashes.at("returned.confirmed", "returned", **env)
    (mails / "new" / "1.host").unlink()
    (mails / "new" / "2.host").write_bytes(head + failure_notice("Something went wrong.\n"))
    await crashes.at("returned.kept", "returned", **env)
    assert [file.name for file in (mails / "new").iterdir()] == ["2.host"]
    assert len(list(kept.glob("*.eml"))) == 1
    await crashes.converge()
    row = await stack.deployment(number)
    assert (row["bounced"], row["sent"]) == (1, 2)


async def test_a_call_of_a_provider_that_is_not_answered(stack: Stack, tmp_path: Path) -> None:
    crashes = Crashes(stack)
    number = crashes.checker.add(await confirmed(stack, 3), mailed=False)
    file, port = tmp_path / "webhooks.toml", _free_port()
    file.write_text(f'[generic]\nsecrets = ["{SECRET}"]\n')
    env = {"BOUNCE_KEYS": KEYS, "WEBHOOKS_FILE": file, "WEBHOOKS_PORT": port}
    at = datetime.now(UTC)
    told = {"reference": RETURNS.token(Reference(number, 1, 1)), "at": at.isoformat()}
    request = generic(
        json.dumps(
            [
                {**told, "event": "bounce", "event_id": "b", "kind": "hard", "reason": "user_unknown"},
                {**told, "event": "open", "event_id": "o"},
            ]
        ),
        at,
    )
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    call = f"POST /generic HTTP/1.1\r\nhost: t\r\ncontent-length: {len(request.body)}\r\n{head}\r\n".encode()

    def provider(_: subprocess.Popen[bytes]) -> Any:
        return _unanswered(port, call + request.body)

    for point in ("webhook.part", "webhook.confirmed"):
        await crashes.at(point, "webhooks", begin=provider, **env)
    await crashes.converge()
    row = await stack.deployment(number)
    assert (row["bounced"], row["sent"], row["opened"]) == (1, 2, 1)
