"""A database that refuses us stops the process; one that is too busy for one delivery holds up no other."""

from __future__ import annotations

import asyncio
import json
import secrets
import uuid
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import structlog.testing

from contracts import routing
from tests.support.asking import attempts
from tests.support.deliveries import confirmed
from tests.support.results import result
from tests.support.stack import until
from tests.support.tracking import event
from worker.bootstrap import open_worker
from worker.db import retrying
from worker.lifecycle import ServiceDied, run_services

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.stack import Stack

SECONDS = 20
CLAIMS = "SELECT pg_advisory_xact_lock($1)"
DELIVERY = "SELECT FROM sendoff.delivery_record WHERE delivery_id = $1 FOR UPDATE"
NOT_STARTED = """
UPDATE sendoff.delivery_record SET state = 'start_pending', contact_date = now() WHERE delivery_id = $1"""
QUICK: dict[str, Any] = {"command_timeout": 0.3, "page_look_after": 0.2, "tick": 0.1}


@pytest.fixture(autouse=True)
def _give_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "_BUSY_SECONDS", 0.1)


@asynccontextmanager
async def user_without(stack: Stack, table: str) -> AsyncIterator[str]:
    """The address of the database for a user who may do everything but read and write one table."""
    name, password = f"t{secrets.token_hex(5)}", secrets.token_hex(10)
    async with stack.db.session() as session:
        execute = session.connection.execute
        await execute(f"CREATE ROLE {name} LOGIN PASSWORD '{password}'")
        await execute(f"GRANT USAGE ON SCHEMA sendoff TO {name}")
        await execute(f"GRANT ALL ON ALL TABLES IN SCHEMA sendoff TO {name}")
        await execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA sendoff TO {name}")
        await execute(f"REVOKE ALL ON sendoff.{table} FROM {name}")
    parts = urlsplit(stack.settings.database_url)
    try:
        yield parts._replace(netloc=f"{name}:{password}@{parts.hostname}:{parts.port}").geturl()
    finally:
        async with stack.db.session() as session:
            await session.connection.execute(f"DROP OWNED BY {name}")
            await session.connection.execute(f"DROP ROLE {name}")


def send(number: int) -> dict[str, Any]:
    asked = {"delivery_id": number, "recipient": 1, "attempt": 1, "channel": "null"}
    return asked | {"address": "user1@example.org", "variables": {}}


@pytest.mark.parametrize(
    ("service", "table", "queue"),
    [
        ("results", "outcome", routing.SENT_QUEUE),
        ("tracking", "tracking_event", routing.TRACKING_QUEUE),
        ("confirm", "command", routing.COMMANDS_QUEUE),
        ("stats", "outcome", routing.STATS_QUEUE),
        ("claims", "outcome", routing.CLAIMS_QUEUE),
        ("send", "outcome", routing.send_queue("null")),
    ],
)
async def test_a_missing_permission_stops_the_process_and_buries_nothing(
    stack: Stack, service: str, table: str, queue: str
) -> None:
    number = await confirmed(stack, 20)
    bodies: dict[str, tuple[str, str, Any]] = {
        "results": (routing.RESULTS, routing.SENT, [result(number, r) for r in range(1, 21)]),
        "tracking": (
            routing.TRACKING,
            routing.OPEN,
            [event(number, r, "open", f"e{r}") for r in range(1, 21)],
        ),
        "confirm": (
            routing.COMMANDS,
            routing.PAUSE,
            {"delivery_id": number, "operator": "ana", "reason": ""},
        ),
        "stats": (routing.COMMANDS, routing.COMPUTE_STATS, {"delivery_id": number}),
        "claims": (
            routing.CLAIMS,
            "null",
            {"delivery_id": number, "recipients": attempts(range(1, 21))},
        ),
        "send": (routing.SENDS, "null", send(number)),
    }
    exchange, key, body = bodies[service]

    answers = await stack.channel.declare_queue(exclusive=True)
    name = str(uuid.uuid4())
    await stack.publish(exchange, key, json.dumps(body).encode(), message_id=name, reply_to=answers.name)
    async with (
        asyncio.timeout(SECONDS),
        user_without(stack, table) as url,
        open_worker(stack.settings.model_copy(update={"database_url": url})) as worker,
    ):
        with pytest.raises(ServiceDied, match=f"permission denied for .*{table}"):
            await run_services(worker.build(service), asyncio.Event(), grace=SECONDS)
    await until(lambda: _deep(stack, queue, 1))
    assert await stack.dead() == []


async def test_claims_that_have_no_turn_are_refused_and_another_delivery_goes_on(stack: Stack) -> None:
    locked, free = await stack.prepare(50), await stack.prepare(50)
    async with stack.running("confirm"):
        for number in (locked, free):
            await stack.confirm(number)
    with structlog.testing.capture_logs() as logs:
        async with AsyncExitStack() as lock:
            await lock.enter_async_context(held(stack, CLAIMS, locked))
            async with stack.running("fanout", "send", "results", "schedule", **QUICK):
                await stack.finished(free)
                await until(lambda: _said(logs, "claims refused"))
                assert (await stack.deployment(locked))["pending"] == 50
                await lock.aclose()
                assert (await stack.finished(locked))["sent"] == 50
    assert await stack.dead() == []


async def test_results_that_have_no_turn_are_set_apart_and_their_neighbours_are_recorded(
    stack: Stack,
) -> None:
    locked, free = await confirmed(stack, 3), await confirmed(stack, 3)
    body = [result(n, r) for n in (locked, free) for r in (1, 2, 3)]
    async with stack.running("results", **QUICK) as worker:
        async with held(stack, CLAIMS, locked):
            await stack.publish(routing.RESULTS, routing.SENT, json.dumps(body).encode())
            await stack.finished(free)
        ((dead, reason),) = await until(stack.dead)
        assert {r["delivery_id"] for r in json.loads(dead)} == {locked}
        assert "too busy" in reason
        given_up = worker.registry.get_sample_value
        assert given_up("sendoff_database_busy_total", {"doing": "recording results"}) == 1
        await stack.publish(routing.RESULTS, routing.SENT, dead)
        assert (await stack.finished(locked))["sent"] == 3


async def test_tracking_that_has_no_turn_is_set_apart_and_its_neighbours_are_recorded(stack: Stack) -> None:
    locked, free = await confirmed(stack, 3), await confirmed(stack, 3)
    body = [event(n, r, "open", f"e{n}-{r}") for n in (locked, free) for r in (1, 2, 3)]

    async def opened(number: int) -> bool:
        return bool((await stack.deployment(number))["opened"] == 3)

    async with stack.running("tracking", **QUICK):
        async with held(stack, CLAIMS, locked):
            await stack.publish(routing.TRACKING, routing.OPEN, json.dumps(body).encode())
            await until(lambda: opened(free))
            ((dead, reason),) = await until(stack.dead)
        assert {e["delivery_id"] for e in json.loads(dead)} == {locked}
        assert "too busy" in reason


async def test_a_command_that_has_no_turn_is_set_apart_and_the_next_is_answered(stack: Stack) -> None:
    locked, free = await stack.prepare(3), await stack.prepare(3)
    command = {"delivery_id": locked, "operator": "ana", "preparation": 1, "definitive": True}
    async with stack.running("confirm", **QUICK):
        async with held(stack, DELIVERY, locked):
            await stack.publish(routing.COMMANDS, routing.CONFIRM, command, message_id="busy")
            assert (await stack.confirm(free))["status"] == "accepted"
            ((body, reason),) = await until(stack.dead)
        assert json.loads(body) == command
        assert "too busy" in reason
        assert (await stack.confirm(locked, message_id="busy"))["status"] == "accepted"


async def test_statistics_that_cannot_be_read_at_all_are_set_apart(stack: Stack) -> None:
    number = await stack.prepare(3)
    async with stack.running("stats", **QUICK):
        async with held(stack, "LOCK TABLE sendoff.delivery_counter IN ACCESS EXCLUSIVE MODE"):
            await stack.publish(routing.COMMANDS, routing.COMPUTE_STATS, {"delivery_id": number})
            ((_, reason),) = await until(stack.dead)
        assert "too busy" in reason
        assert (await stack.request(routing.COMPUTE_STATS, {"delivery_id": number}))["delivery_id"] == number


async def test_a_delivery_that_has_no_turn_starts_later_and_the_others_now(stack: Stack) -> None:
    locked, free = await stack.prepare(3), await stack.prepare(3)
    async with stack.running("confirm"):
        for number in (locked, free):
            await stack.confirm(number)
            await stack.rows(NOT_STARTED, number)
    with structlog.testing.capture_logs() as logs:
        async with AsyncExitStack() as lock:
            await lock.enter_async_context(held(stack, DELIVERY, locked))
            async with stack.running("schedule", **QUICK) as worker:
                await stack.finished(free, "in_progress")
                await until(lambda: _said(logs, "database too busy, given up"))
                assert (await stack.deployment(locked))["state"] == "start_pending"
                await lock.aclose()
                await stack.finished(locked, "in_progress")
                given_up = worker.registry.get_sample_value
                assert given_up("sendoff_database_busy_total", {"doing": "starting what is due"})


async def test_a_page_that_cannot_be_read_is_given_back(stack: Stack) -> None:
    number = await stack.prepare(3)
    with structlog.testing.capture_logs() as logs:
        async with stack.running("confirm", "fanout", page_lease=3_600, **QUICK):
            async with held(stack, "LOCK TABLE sendoff.recipient IN ACCESS EXCLUSIVE MODE"):
                await stack.confirm(number)
                await until(lambda: _said(logs, "database too busy, given up"))
            # Long before the lease runs out.
            await until(lambda: _deep(stack, routing.send_queue("null"), 3))


@asynccontextmanager
async def held(stack: Stack, statement: str, *args: object) -> AsyncIterator[None]:
    """Holds what a statement locks."""
    async with stack.db.transaction() as tx:
        await tx.connection.execute(statement, *args)
        yield


async def _deep(stack: Stack, queue: str, count: int) -> bool:
    return await stack.depth(queue) == count


async def _said(logs: list[Any], event: str) -> bool:
    return any(line["event"] == event for line in logs)
