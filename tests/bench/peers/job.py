"""The job that every peer does, apart from the peer: reading, the null send, and the row in Postgres.

A row that is written twice counts its times, so that a doubled message is seen and not hidden.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncpg
    from psycopg_pool import ConnectionPool

AMQP_URL = os.environ["SENDOFF_AMQP_URL"]
DATABASE_URL = os.environ["SENDOFF_DATABASE_URL"]
TUNED = os.environ["BENCH_TUNED"] == "1"
"""Whether to do all that makes the peer faster, within the same three stages."""
PAGE = 500
"""Recipients that a tuned peer reads and publishes at a time, so that all its processes publish."""

Fields = dict[str, Any]

_SIZE = "SELECT count(*) FROM peers.recipient WHERE delivery_id = {0}"
_READ = (
    "SELECT recipient, address, variables FROM peers.recipient"
    " WHERE delivery_id = {0} AND recipient BETWEEN {1} AND {2} ORDER BY recipient"
)
_RECORD = (
    "INSERT INTO peers.outcome AS o (delivery_id, recipient, attempt, sent_at, reply)"
    " VALUES ({0}, {1}, {2}, {3}::text::timestamptz, {4})"
    " ON CONFLICT (delivery_id, recipient) DO UPDATE SET times = o.times + 1"
)
_RECORD_TOGETHER = (
    "INSERT INTO peers.outcome AS o (delivery_id, recipient, attempt, sent_at, reply, times)"
    " SELECT delivery_id, recipient, min(attempt), min(sent_at), min(reply), count(*)"
    " FROM unnest($1::bigint[], $2::int[], $3::smallint[], $4::timestamptz[], $5::text[])"
    " AS r (delivery_id, recipient, attempt, sent_at, reply) GROUP BY delivery_id, recipient"
    " ON CONFLICT (delivery_id, recipient) DO UPDATE SET times = o.times + excluded.times"
)
_EVERYBODY = (1, 2**31 - 1)


def pages(size: int) -> list[tuple[int, int]]:
    """Returns the first and last recipient of each page."""
    return [(first, min(first + PAGE - 1, size)) for first in range(1, size + 1, PAGE)]


def message(delivery: int, row: Any) -> Fields:
    """Returns the send message for a row of recipient, address, variables."""
    recipient, address, variables = row
    return {
        "delivery_id": delivery,
        "recipient": recipient,
        "attempt": 1,
        "channel": "null",
        "address": address,
        "variables": variables,
        "valid_until": None,
    }


def send(fields: Fields) -> Fields:
    """Sends to nobody, and returns the result message."""
    return {
        "delivery_id": fields["delivery_id"],
        "recipient": fields["recipient"],
        "attempt": fields["attempt"],
        "at": datetime.now(UTC).isoformat(),
        "reply": "null channel",
    }


def _row(result: Fields) -> tuple[Any, ...]:
    return tuple(result[name] for name in ("delivery_id", "recipient", "attempt", "at", "reply"))


class Store:
    """Postgres for peers whose tasks are plain functions: psycopg, a pool, a commit for each row."""

    def __init__(self) -> None:
        self._made: ConnectionPool | None = None
        self._making = threading.Lock()

    @property
    def _pool(self) -> ConnectionPool:
        # Made in the process that uses it: workers are forked.
        with self._making:
            if self._made is None:
                from psycopg_pool import ConnectionPool  # noqa: PLC0415 - only some peers need it

                self._made = ConnectionPool(
                    DATABASE_URL, min_size=1, max_size=8, kwargs={"autocommit": True}, open=True
                )
            return self._made

    def size(self, delivery: int) -> int:
        with self._pool.connection() as connection:
            row = connection.execute(_SIZE.format("%s"), [delivery]).fetchone()
            return row[0] if row else 0

    def read(self, delivery: int, first: int = _EVERYBODY[0], last: int = _EVERYBODY[1]) -> list[Fields]:
        with self._pool.connection() as connection:
            query = _READ.format("%s", "%s", "%s")
            return [message(delivery, row) for row in connection.execute(query, [delivery, first, last])]

    def record(self, result: Fields) -> None:
        with self._pool.connection() as connection:
            connection.execute(_RECORD.format(*["%s"] * 5), _row(result))


class AsyncStore:
    """Postgres for peers whose tasks are coroutines: asyncpg, a pool, a commit for each row."""

    def __init__(self) -> None:
        self._pool: asyncpg.Pool
        self._waiting: list[tuple[tuple[Any, ...], asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def open(self) -> None:
        import asyncpg  # noqa: PLC0415 - only some peers need it

        async def decode_json(connection: asyncpg.Connection) -> None:
            await connection.set_type_codec(
                "json", encoder=json.dumps, decoder=json.loads, schema="pg_catalog"
            )

        self._pool = await asyncpg.create_pool(DATABASE_URL, min_size=2, max_size=10, init=decode_json)

    async def size(self, delivery: int) -> int:
        found: int = await self._pool.fetchval(_SIZE.format("$1"), delivery)
        return found

    async def read(
        self, delivery: int, first: int = _EVERYBODY[0], last: int = _EVERYBODY[1]
    ) -> list[Fields]:
        rows = await self._pool.fetch(_READ.format("$1", "$2", "$3"), delivery, first, last)
        return [message(delivery, row) for row in rows]

    async def record(self, result: Fields) -> None:
        await self._pool.execute(_RECORD.format("$1", "$2", "$3", "$4", "$5"), *_row(result))

    async def record_together(self, result: Fields) -> None:
        """Returns once the row is durable; rows of handlers that wait at the same time share a statement."""
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((_row(result), written))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        await written

    async def _write(self) -> None:
        await asyncio.sleep(0.005)  # lets other handlers join
        while self._waiting:
            taken, self._waiting = self._waiting, []
            columns = [list(column) for column in zip(*(row for row, _ in taken), strict=True)]
            columns[3] = [datetime.fromisoformat(at) for at in columns[3]]
            try:
                await self._pool.execute(_RECORD_TOGETHER, *columns)
            except Exception as error:  # noqa: BLE001 - each handler has its own copy of the failure
                for _, written in taken:
                    written.set_exception(error)
            else:
                for _, written in taken:
                    written.set_result(None)
