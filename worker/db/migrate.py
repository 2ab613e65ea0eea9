"""Migrates the schema: numbered migrations, each in its own transaction, under one advisory lock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import asyncpg

from sql import migrations, queries, why_incompatible
from worker.db.connecting import check_direct, marked, reason, tls
from worker.db.failures import ERRORS
from worker.db.pool import DatabaseUnreachable, SchemaMismatch, read_applied

if TYPE_CHECKING:
    from sql import Migration

_LOCK: Final = -7_365_646  # any constant below zero: the ids of deliveries are above it
_BOOT: Final = """
CREATE SCHEMA IF NOT EXISTS sendoff;
CREATE TABLE IF NOT EXISTS sendoff.migration (
    number      integer PRIMARY KEY,
    name        text NOT NULL,
    works_from  integer NOT NULL,
    applied_at  timestamptz NOT NULL DEFAULT now()
);
"""


async def migrate(url: str, *, timeout: float) -> list[Migration]:  # noqa: ASYNC109 - asyncpg's own
    """Applies the missing migrations. It may run twice, and in two processes at once: the second waits.

    Args:
        url: `postgresql://…`.
        timeout: Seconds to connect.

    Returns:
        The migrations that were applied now, in order; none if the schema was up to date.

    Raises:
        DatabaseUnreachable: there is no database at the address.
        SchemaMismatch: the schema is too new for this code, or has other migrations.
    """
    try:
        connection = await asyncpg.connect(
            url,
            ssl=tls(url),
            timeout=timeout,
            server_settings=marked({"application_name": "sendoff migrate"}),
        )
    except (*ERRORS, ValueError) as error:
        raise DatabaseUnreachable(f"The database is out of reach: {reason(error, url)}") from error
    try:
        await check_direct(connection)
        await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)
        await connection.execute(_BOOT)
        present = read_applied(await connection.fetch(queries()["read_migrations"].text))
        known = migrations()
        if wrong := why_incompatible(present, known):
            raise SchemaMismatch(wrong)
        missing = [m for m in known if m.number not in {one.number for one in present}]
        for step in missing:
            async with connection.transaction():
                await connection.execute(step.sql)
                await connection.execute(
                    "INSERT INTO sendoff.migration (number, name, works_from) VALUES ($1, $2, $3)",
                    step.number,
                    step.name,
                    step.works_from,
                )
        return missing
    finally:
        await connection.close(timeout=timeout)
