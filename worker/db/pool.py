"""The pool of connections: bounded, with timeouts, and with every named query checked before use."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg

from sql import Applied, migrations, queries, why_incompatible
from worker.db.connecting import check_direct, marked, reason, session_attributes, tls
from worker.db.failures import ERRORS, NoConnection, classify
from worker.db.retrying import Retrier
from worker.domain.failures import Failure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from sql import Query
    from worker.db.retrying import Idempotent

T = TypeVar("T")


class DatabaseUnreachable(Exception):
    """The database cannot be reached."""


class SchemaMismatch(Exception):
    """The schema of the database is not the one that this code needs."""


class Database:
    """A pool of connections that speaks in named queries.

    Every method takes the name of a query in `sql/queries` and its parameters by name. A missing or unknown
    parameter raises TypeError. A `fetch…` outside a transaction is a transaction of its own.
    """

    def __init__(
        self, pool: asyncpg.Pool, acquire_timeout: float, retrier: Retrier, on_away: Callable[[], None]
    ) -> None:
        """Takes the pool. `on_away` is called whenever the server cannot be reached."""
        self._pool = pool
        self._queries = queries()
        self._timeout = acquire_timeout
        self._on_away = on_away
        self._retrier = retrier

    @property
    def idle(self) -> int:
        """How many connections are open and free."""
        return int(self._pool.get_idle_size())

    @property
    def busy(self) -> int:
        """How many connections are in use."""
        return int(self._pool.get_size()) - self.idle

    async def until_done(self, transaction: Idempotent[T], doing: str) -> T:
        """Executes a transaction as `worker.db.retrying.Retrier.until_done` does, with the same errors."""
        return await self._retrier.until_done(transaction, doing)

    @asynccontextmanager
    async def transaction(self, **options: Any) -> AsyncIterator[Transaction]:  # noqa: ANN401 - asyncpg's own
        """Opens a transaction; commits when the block ends, rolls back when it raises."""
        async with self._acquired() as session, session.connection.transaction(**options):
            yield session

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Transaction]:
        """Holds one connection without a transaction; its settings and locks are reset at the end."""
        async with self._acquired() as session:
            try:
                yield session
            finally:
                try:
                    await session.connection.reset(timeout=self._timeout)
                except BaseException:
                    # After a cancelled reset too: the session may still hold a lock, which must end with it.
                    session.connection.terminate()
                    raise

    async def fetch(self, query: str, /, **values: object) -> list[asyncpg.Record]:
        """Returns every row."""
        async with self._acquired() as session:
            return await session.fetch(query, **values)

    async def fetchrow(self, query: str, /, **values: object) -> asyncpg.Record | None:
        """Returns the first row, or None."""
        async with self._acquired() as session:
            return await session.fetchrow(query, **values)

    async def fetchval(self, query: str, /, **values: object) -> Any:  # noqa: ANN401 - a column of any type
        """Returns the first column of the first row, or None."""
        async with self._acquired() as session:
            return await session.fetchval(query, **values)

    async def columns(self, query: str) -> list[str]:
        """Returns the names of a query's columns, in their order: a header even where there is no row."""
        async with self._acquired() as session:
            statement = await session.connection.prepare(self._queries[query].text)
            return [attribute.name for attribute in statement.get_attributes()]

    @asynccontextmanager
    async def _acquired(self) -> AsyncIterator[Transaction]:
        try:
            connection = await self._connection()
            try:
                yield Transaction(connection, self._queries)
            except asyncpg.ReadOnlySQLTransactionError:
                # Opened while the server only read, or at one that is no primary now: it may stay so.
                await self._pool.expire_connections()
                raise
            finally:
                await self._pool.release(connection)
        except ERRORS as error:
            if classify(error) is Failure.AWAY:
                self._on_away()
            raise

    async def _connection(self) -> asyncpg.pool.PoolConnectionProxy:
        try:
            return await self._pool.acquire(timeout=self._timeout)
        except TimeoutError as error:
            raise NoConnection(f"there was no connection within {self._timeout:g} s") from error

    async def check_version(self) -> int:
        """Returns the version of the schema. It may be newer than the code if the code still works with it.

        Raises:
            SchemaMismatch: the schema is older than the code, too new for it, or has other migrations.
        """
        known = migrations()
        try:
            applied = read_applied(await self.fetch("read_migrations"))
        except asyncpg.UndefinedTableError:
            applied = []
        present = max((one.number for one in applied), default=0)
        if wrong := why_incompatible(applied, known):
            raise SchemaMismatch(wrong)
        if present < len(known):
            raise SchemaMismatch(
                f"The database's schema is at version {present}, this Sendoff needs {len(known)}:"
                " run “sendoff migrate”."
            )
        return present

    async def check_writable(self) -> None:
        """Asks for a write that changes nothing; raises asyncpg's error where the server only reads."""
        await self.fetch("write_nothing")

    async def check(self) -> None:
        """Prepares every named query, so that a broken query prevents the start and does not stop a delivery.

        Raises:
            SchemaMismatch: a query does not fit the schema, or the schema is older or newer than the code.
        """
        await self.check_version()
        async with self._acquired() as session:
            connection = session.connection
            trial = connection.transaction()
            await trial.start()
            try:
                # Some queries use this table. It is temporary and is dropped after the check.
                await connection.execute(self._queries["create_staged_target"].text)
                for name, query in self._queries.items():
                    try:
                        await connection.prepare(query.text)
                    except asyncpg.PostgresError as error:
                        raise SchemaMismatch(
                            f"The query “{name}” does not fit the schema: {error}"
                        ) from error
            finally:
                await trial.rollback()

    async def close(self, timeout: float = 5) -> None:  # noqa: ASYNC109 - asyncpg's close has none
        """Closes every connection; after `timeout` seconds it cuts off those that are still busy."""
        try:
            await asyncio.wait_for(self._pool.close(), timeout)
        except TimeoutError:
            self._pool.terminate()


class Transaction:
    """One connection that speaks in named queries."""

    def __init__(self, connection: Any, queries: dict[str, Query]) -> None:  # noqa: ANN401 - asyncpg has no stubs
        self.connection = connection
        self._queries = queries

    async def fetch(self, query: str, /, **values: object) -> list[asyncpg.Record]:
        """Returns every row."""
        named = self._queries[query]
        rows: list[asyncpg.Record] = await self.connection.fetch(named.text, *named.arguments(values))
        return rows

    async def fetchrow(self, query: str, /, **values: object) -> asyncpg.Record | None:
        """Returns the first row, or None."""
        named = self._queries[query]
        return await self.connection.fetchrow(named.text, *named.arguments(values))

    async def fetchval(self, query: str, /, **values: object) -> Any:  # noqa: ANN401 - a column of any type
        """Returns the first column of the first row, or None."""
        named = self._queries[query]
        return await self.connection.fetchval(named.text, *named.arguments(values))

    async def execute(self, query: str, /, **values: object) -> None:
        """Runs a statement for its effect."""
        named = self._queries[query]
        await self.connection.execute(named.text, *named.arguments(values))


def read_applied(rows: Iterable[asyncpg.Record]) -> list[Applied]:
    """Reads the rows of `sendoff.migration`; schemas before the first release have fewer columns."""
    return [Applied(row["number"], row["name"], row.get("works_from", row["number"])) for row in rows]


async def open_database(  # noqa: PLR0913 - what processes and commands differ in
    url: str,
    *,
    size: int,
    connect_timeout: float,
    command_timeout: float,
    application: str,
    stop: asyncio.Event | None = None,
    on_away: Callable[[], None] = lambda: None,
    on_busy: Callable[[str], Callable[[], None]] = lambda _: lambda: None,
    plan_each: bool = False,
    recognise: Callable[[asyncpg.Connection], Awaitable[None]] | None = None,
) -> Database:
    """Opens a pool.

    Args:
        url: `postgresql://…`.
        size: The most connections.
        connect_timeout: Seconds to connect, and to wait for a free connection.
        command_timeout: Seconds for one statement, here and (a second later) in the server.
        application: The `application_name` that operators see in `pg_stat_activity`.
        stop: After it is set, `Database.until_done` does not wait for a server that is away.
        on_away: Called whenever the server later cannot be reached.
        on_busy: Returns, for the name of a work, what is called whenever `Database.until_done` gave it up
            because the server was too busy.
        plan_each: Whether each statement is planned anew, for its values and the tables as they are: for a
            process with few statements that read much.
        recognise: What each connection goes through before its first use, where the schema is there.

    Raises:
        DatabaseUnreachable: there is no database at the address, it refuses our login, or a pooler is in
            front of it.
    """
    session = {
        "application_name": application,
        "timezone": "UTC",
        "statement_timeout": f"{int(command_timeout * 1000) + 1000}",
        "lock_timeout": f"{int(command_timeout * 1000)}",
        "idle_in_transaction_session_timeout": "60000",
        # Every statement uses a key, so its plan uses an index and is made once. By default the planner would
        # read the whole of a table that was empty when the plan was made, and would keep this plan.
        "plan_cache_mode": "force_custom_plan" if plan_each else "force_generic_plan",
        "enable_seqscan": "off",
        "jit": "off",
    }

    async def prepared(connection: asyncpg.Connection) -> None:
        await check_direct(connection)
        if recognise is not None:
            await recognise(connection)

    try:
        pool = await asyncpg.create_pool(
            url,
            ssl=tls(url),
            target_session_attrs=session_attributes(url),
            # One from the start, so that an outage is known then. Without a least number the pool opens none
            # by itself later, and does not warn of one that it could not open.
            init_size=1,
            min_size=0,
            max_size=size,
            timeout=connect_timeout,
            command_timeout=command_timeout,
            init=prepared,
            reset=_without_reset,
            server_settings=marked(session),
        )
    except (*ERRORS, ValueError) as error:
        raise DatabaseUnreachable(f"The database is out of reach: {reason(error, url)}") from error
    return Database(pool, connect_timeout, Retrier(stop or asyncio.Event(), on_busy), on_away)


async def _without_reset(connection: asyncpg.Connection) -> None:
    """Returns a connection without a reset: a transaction leaves no settings, and `session` resets its own.

    asyncpg resets everything each time: that is four statements and one round trip more, and a short
    transaction takes three round trips.
    """
