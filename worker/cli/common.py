"""Shared by the commands: the database, and the refusal of a command."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import asyncpg

from worker.db.failures import ERRORS, classify
from worker.db.pool import DatabaseUnreachable, open_database
from worker.domain.failures import Failure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from worker.db.pool import Database
    from worker.settings import Settings


class CommandRefused(Exception):
    """The command cannot be executed; the message is a sentence for the person who called it."""


@contextmanager
def explained_outages() -> Iterator[None]:
    """Turns an error of the database into a sentence.

    Raises:
        DatabaseUnreachable: the database is away or busy, or our user may not do this.
    """
    try:
        yield
    except ERRORS as error:
        failure = classify(error)
        if failure is Failure.BROKEN and not isinstance(error, asyncpg.InsufficientPrivilegeError):
            raise
        what = "went out of reach" if failure is Failure.AWAY else "cannot do it now"
        raise DatabaseUnreachable(f"The database {what}: {str(error) or type(error).__name__}") from error


@asynccontextmanager
async def database(settings: Settings, *, command_timeout: float | None = None) -> AsyncIterator[Database]:
    """Opens the database for one command and checks its schema.

    Args:
        settings: The settings.
        command_timeout: Seconds for one statement, if the setting is too short.

    Raises:
        DatabaseUnreachable: it cannot be reached, was lost during the command, or is too busy.
        SchemaMismatch: `sendoff migrate` has to run, or Sendoff has to be upgraded.
    """
    db = await open_database(
        settings.database_url,
        size=2,
        connect_timeout=settings.connect_timeout,
        command_timeout=command_timeout or settings.command_timeout,
        application="sendoff",
    )
    try:
        with explained_outages():
            await db.check()
            yield db
    finally:
        await db.close()
