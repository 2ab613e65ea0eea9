"""Sets of partitions: opened when due, and every plan looks into one."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta
from typing import TYPE_CHECKING

import sql
from tests.support.database import SECONDS, age
from worker.db import partitions
from worker.operations import prepare as preparing
from worker.operations.prepare import PreparationRequest

if TYPE_CHECKING:
    from tests.support.stack import Stack

BIG = r"\b(recipient|exclusion|outcome|tracking_event|tracked_recipient)_\d+\b"


async def test_a_delivery_opens_the_next_set_once_the_newest_is_old(stack: Stack) -> None:
    first = await stack.prepare(3)
    await age(stack, 29)
    assert await stack.prepare(3) == first + 1
    await age(stack, 2)
    third = await stack.prepare(3)
    assert third == 100_001
    assert await stack.prepare(3) == third + 1
    async with stack.running():
        for number in (first, third):
            await stack.confirm(number)
        for number in (first, third):
            assert (await stack.finished(number))["sent"] == 3
    counts = await stack.rows(
        "SELECT c.relname, count(*) FROM sendoff.outcome o JOIN pg_class c ON c.oid = o.tableoid"
        " GROUP BY 1 ORDER BY 1"
    )
    assert [tuple(r.values()) for r in counts] == [("outcome_1", 3), ("outcome_100001", 3)]
    (storage,) = await stack.rows("SELECT reloptions FROM pg_class WHERE relname = 'outcome_100001'")
    assert "fillfactor=34" in storage["reloptions"]


async def test_a_delivery_opens_the_next_set_once_the_ids_are_used_up(stack: Stack) -> None:
    async with stack.db.session() as session:
        await session.connection.execute("SELECT setval('sendoff.delivery_record_delivery_id_seq', 99999)")
    assert [await stack.prepare(1), await stack.prepare(1)] == [100_000, 100_001]
    sets = await partitions.look(stack.db)
    assert sets is not None
    assert (sets.count, sets.ids_left, sets.missing) == (2, 99_999, ())


async def test_two_that_prepare_at_once_open_one_set(stack: Stack) -> None:
    await stack.prepare(1)
    await age(stack, 31)
    request = PreparationRequest(
        stack.folder / "delivery.toml", stack.folder / "recipients.csv", "ana", None, ("null",)
    )
    done = await asyncio.gather(*(preparing.prepare(stack.db, request) for _ in range(4)))
    assert sorted(p.delivery_id for p in done) == [100_001, 100_002, 100_003, 100_004]
    assert (await stack.rows("SELECT count(*) FROM sendoff.partition_set"))[0]["count"] == 2


async def test_one_that_dies_while_it_opens_a_set_leaves_it_to_the_next(stack: Stack) -> None:
    await age(stack, 31)
    async with stack.db.session() as session:
        died = session.connection.transaction()
        await died.start()
        await partitions.open_if_due(session, timedelta(days=30))
        await died.rollback()
    sets = await partitions.look(stack.db)
    assert sets is not None
    assert sets.count == 1
    assert await stack.prepare(2) == 100_001
    assert (await stack.rows("SELECT count(*) FROM sendoff.recipient_100001"))[0]["count"] == 2


async def test_opening_a_set_waits_for_no_claim_and_holds_none_up(stack: Stack) -> None:
    number = await stack.prepare(2)
    await age(stack, 31)
    write = "INSERT INTO sendoff.outcome (delivery_id, recipient, attempt, status, precedence)"
    write += " VALUES ($1, $2, 1, 'sending', 16)"
    async with stack.db.transaction() as claiming, asyncio.timeout(SECONDS):
        await claiming.connection.execute(write, number, 1)
        async with stack.db.transaction() as opening:
            await partitions.open_if_due(opening, timedelta(days=30))
            await claiming.connection.execute(write, number, 2)
    assert len(await stack.rows("SELECT FROM sendoff.outcome")) == 2


async def test_statements_for_one_delivery_look_into_its_set_alone(stack: Stack) -> None:
    await age(stack, 31)
    await stack.prepare(1)
    several = r"profile_id = \$1|lease_paced"
    """Of a profile, in any set; and of several deliveries at once, whose partitions are chosen row by row."""
    seen = set()
    async with stack.db.session() as session:
        connection = session.connection
        await connection.execute(sql.queries()["create_staged_target"].text)
        for name, query in sql.queries().items():
            statement = re.sub(r"--.*", "", query.text).strip().rstrip(";")
            if re.search(several, name + statement) or not re.search(
                r"\bsendoff\.(recipient|exclusion|outcome|sending_log|tracking_event|tracked_recipient|recount\w*)\b",
                statement,
            ):
                continue
            given = len(query.parameters)
            await connection.execute(f"PREPARE planned AS {statement}")
            nulls = f"({', '.join(['NULL'] * given)})" if given else ""
            plan = [r[0] for r in await connection.fetch(f"EXPLAIN EXECUTE planned{nulls}")]
            await connection.execute("DEALLOCATE planned")
            assert [line for line in plan if "Scan" in line and re.search(BIG, line)] == [], name
            seen.add(name)
    assert {
        "claim",
        "record_outcomes",
        "record_tracking",
        "read_sends",
        "recount",
        "read_sending_log",
    } <= seen
