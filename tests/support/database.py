"""Databases of the tests' own, and what tests do to one behind the back of the services."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import asyncpg

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.stack import Stack


SECONDS = 20


def renamed(url: str, name: str) -> str:
    """The address of another database of the same server."""
    return urlsplit(url)._replace(path=f"/{name}").geturl()


async def administer(url: str, statement: str) -> None:
    """Runs one statement on a connection of its own, outside any transaction."""
    connection = await asyncpg.connect(url, timeout=SECONDS)
    try:
        await connection.execute(statement, timeout=SECONDS)
    finally:
        await connection.close(timeout=SECONDS)


@asynccontextmanager
async def created(url: str, name: str, options: str = "") -> AsyncIterator[str]:
    """Creates a database beside the one of the address, and drops it in the end; yields its address."""
    await administer(url, f"CREATE DATABASE {name} {options}")
    try:
        yield renamed(url, name)
    finally:
        await administer(url, f"DROP DATABASE {name} WITH (FORCE)")


async def change(stack: Stack, statement: str, *args: object) -> None:
    async with stack.db.transaction() as tx:
        await tx.connection.execute(statement, *args)


async def age(stack: Stack, days: int) -> None:
    """Has every set of partitions be so many days older."""
    async with stack.db.session() as session:
        statement = "UPDATE sendoff.partition_set SET opened_at = opened_at - $1::interval"
        await session.connection.execute(statement, timedelta(days=days))


async def long_ago(stack: Stack, *numbers: int) -> None:
    """Two years pass for some deliveries, and for the set of partitions that they are in."""
    for column in ("finished_at", "updated_at"):
        statement = (
            "UPDATE sendoff.delivery_record SET {0} = {0} - interval '2 years' WHERE delivery_id = ANY ($1)"
        )
        await change(stack, statement.format(column), list(numbers))
    await age(stack, 730)


async def waits_for_a_row(stack: Stack) -> bool:
    """Whether somebody waits for a row, or a key, that an open transaction holds."""
    return bool(
        await stack.rows(
            "SELECT FROM pg_stat_activity WHERE wait_event IN ('transactionid', 'spectoken', 'tuple')"
            " AND datname = current_database()"
        )
    )


@asynccontextmanager
async def read_only(stack: Stack) -> AsyncIterator[None]:
    """What is left of a primary after a failover: every session ends, and the new ones may only read.

    Those stay so afterwards, too.
    """
    (row,) = await stack.rows("SELECT current_database() AS name")
    await change(stack, f"ALTER DATABASE {row['name']} SET default_transaction_read_only = on")
    await change(
        stack,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    try:
        yield
    finally:
        async with stack.db.session() as session:
            await session.connection.execute("SET default_transaction_read_only = off")
            await session.connection.execute(
                f"ALTER DATABASE {row['name']} RESET default_transaction_read_only"
            )
