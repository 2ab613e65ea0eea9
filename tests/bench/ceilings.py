"""The ceilings: what the broker and the database do with nothing of ours around them."""

from __future__ import annotations

import asyncio
import os
import secrets
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import asyncpg

from contracts.results import Sent
from tests.bench.installation import DELIVERY, SECONDS, opened
from tests.bench.machine import Case, CaseFailed, Measured, Meter
from worker.amqp.bulk.publisher import BulkPublisher
from worker.amqp.messages import Outgoing
from worker.db.accounts import Accounts
from worker.domain.outcomes import facts
from worker.domain.retry import Retries

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.bench.installation import Installation
    from worker.db.pool import Database

BROKER = "RabbitMQ, confirmed publishes"
DATABASE = "Postgres, guarded batches of 500 with counters"
STATEMENT = "Postgres, the record statement by batches of 500"
BATCH = 500
BODY = b"x" * 374
"""As long as a send message with five variables."""

_NARROW = """
CREATE TABLE outcome (
    delivery_id bigint, recipient int, status smallint NOT NULL DEFAULT 0, attempt smallint,
    updated_at timestamptz, PRIMARY KEY (delivery_id, recipient)) WITH (fillfactor = 70);
CREATE TABLE counter (
    delivery_id bigint, status smallint, n bigint NOT NULL, PRIMARY KEY (delivery_id, status));
INSERT INTO outcome (delivery_id, recipient) SELECT 1, n FROM generate_series(1, {rows}) AS n;
VACUUM ANALYZE outcome;
"""
_GUARDED = """
WITH changed AS (
    UPDATE outcome o SET status = u.status, attempt = u.attempt, updated_at = now()
    FROM unnest($2::int[], $3::smallint[], $4::smallint[]) AS u (recipient, status, attempt)
    WHERE o.delivery_id = $1 AND o.recipient = u.recipient AND o.status = 0
    RETURNING o.status
)
INSERT INTO counter AS c SELECT $1, status, count(*) FROM changed GROUP BY status
ON CONFLICT (delivery_id, status) DO UPDATE SET n = c.n + excluded.n
"""
_CLAIMED = """
UPDATE sendoff.delivery_record
SET state = 'in_progress', confirmed_at = now(), started_at = now(), valid_until = now() + interval '1 day'
WHERE delivery_id = {delivery};
INSERT INTO sendoff.outcome (delivery_id, recipient, attempt, status, precedence, claimed_at)
SELECT {delivery}, recipient, 1, 'sending', 16, now() FROM sendoff.recipient WHERE delivery_id = {delivery};
SELECT sendoff.count_moves({delivery}, ARRAY[(NULL, 'sending', {rows})::sendoff.move])
"""


def cases(installation: Installation, *, messages: int, rows: int, rounds: int) -> list[Case]:
    """Returns the three ceilings."""
    runs = {
        BROKER: partial(publish, installation, messages),
        DATABASE: partial(guarded, installation, rows),
        STATEMENT: partial(statement, installation, rows),
    }
    return [Case("ceilings", name, run, rounds) for name, run in runs.items()]


@asynccontextmanager
async def queue(installation: Installation) -> AsyncIterator[str]:
    """Yields the name of an empty quorum queue, and deletes it in the end."""
    name = f"bench.{secrets.token_hex(6)}"
    channel = await installation.connection.channel()
    await channel.declare_queue(name, durable=True, arguments={"x-queue-type": "quorum"})
    try:
        yield name
    finally:
        await channel.queue_delete(name)
        await channel.close()


async def publish(installation: Installation, messages: int) -> Measured:
    """Publishes persistent, confirmed messages into a quorum queue, from bodies that are made before."""
    publisher = BulkPublisher(
        installation.settings.amqp_url, name="bench", window=4_000, timeout=60, connect_timeout=60
    )
    await publisher.start()
    try:
        async with queue(installation) as name:
            outgoing = [Outgoing(BODY, "send", f"42-{n}-1") for n in range(1_000)]
            await publisher.publish("", name, outgoing)
            meter = Meter({"client": [os.getpid()]})
            batches = [publisher.publish("", name, outgoing) for _ in range(messages // 1_000)]
            await asyncio.gather(*batches)
            return meter.read(messages)
    finally:
        await publisher.close()


async def guarded(installation: Installation, rows: int) -> Measured:
    """Updates rows of a narrow table, guarded by their state, and moves a counter in the same statement."""

    async def fill(url: str) -> None:
        connection = await asyncpg.connect(url, timeout=30)
        for part in filter(None, map(str.strip, _NARROW.format(rows=rows).split(";"))):
            await connection.execute(part, timeout=SECONDS)
        await connection.close(timeout=30)

    template = await installation.template(f"narrow {rows}", fill)
    async with installation.cloned(template) as url:
        connection = await asyncpg.connect(url, timeout=30)
        try:
            update = await connection.prepare(_GUARDED)
            ones = [1] * BATCH
            meter = Meter({"client": [os.getpid()]})
            for first in range(1, rows, BATCH):
                await update.fetch(1, list(range(first, first + BATCH)), ones, ones)
            measured = meter.read(rows)
            if await connection.fetchval("SELECT n FROM counter") != rows:
                raise CaseFailed("The counter is not what was updated.")
        finally:
            await connection.close(timeout=30)
    return measured


async def statement(installation: Installation, rows: int) -> Measured:
    """Records *sent* for claimed recipients by the statement of the results service, with no service."""
    template = await installation.prepared("null", rows)
    async with installation.cloned(template) as url, opened(url) as db:
        await claim_all(db, rows)
        at, retries = datetime.now(UTC), Retries((60,), 4)
        sent = [
            facts(Sent(delivery_id=DELIVERY, recipient=n, attempt=1, at=at, reply="null channel"))
            for n in range(1, rows + 1)
        ]
        meter = Meter({"client": [os.getpid()]})
        for first in range(0, rows, BATCH):
            batch = dict(enumerate(sent[first : first + BATCH], first + 1))
            await Accounts(db).record(DELIVERY, batch, retries)
        measured = meter.read(rows)
        row = await db.fetchrow("read_deployment", delivery_id=DELIVERY)
        if row is None or row["sent"] != rows:
            raise CaseFailed("The deployment does not count what was recorded.")
    return measured


async def claim_all(db: Database, rows: int) -> None:
    """Confirms and starts the delivery, and claims every recipient, as if a sender had all of them."""
    async with db.session() as session:
        for part in _CLAIMED.format(delivery=DELIVERY, rows=rows).split(";"):
            await session.connection.execute(part)
