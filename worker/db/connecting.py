"""Opens connections directly to Postgres, and keeps passwords out of error messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import asyncpg

from worker.domain.servers import passwords

if TYPE_CHECKING:
    from collections.abc import Mapping

_MARK: Final = "sendoff.session"
_KEPT: Final = "kept"

_POOLER: Final = (
    "a pooler stands before it, such as PgBouncer, that does not keep a session's settings and locks."
    " Let SENDOFF_DATABASE_URL lead to Postgres itself: a process holds no more connections than"
    " SENDOFF_DATABASE_POOL"
)


class PoolerBetween(ConnectionError):  # noqa: N818 - the name is the sentence
    """The server is not Postgres itself but a pooler, which lends sessions."""


def marked(settings: Mapping[str, str]) -> dict[str, str]:
    """Returns the settings of a session and a mark, which `check_direct` looks for."""
    return {**settings, _MARK: _KEPT}


async def check_direct(connection: asyncpg.Connection) -> None:
    """Checks that a session has the settings that it began with.

    A pooler drops all settings, or those that it does not know. Then plans would not use indexes, statements
    would have no timeout, and locks of a session could belong to another client.

    Raises:
        PoolerBetween: the session lacks them.
    """
    try:
        mark = await connection.fetchval("SELECT current_setting($1, true)", _MARK)
    except (asyncpg.DuplicatePreparedStatementError, asyncpg.InvalidSQLStatementNameError) as error:
        raise PoolerBetween(_POOLER) from error  # it lent the session to another client
    if mark != _KEPT:
        raise PoolerBetween(_POOLER)


def reason(error: BaseException, url: str) -> str:
    """Returns why a connection could not be opened, without the password of the address."""
    if isinstance(error, asyncpg.ProtocolViolationError) and "startup parameter" in str(error):
        return _POOLER
    text = str(error) or type(error).__name__
    for password in passwords(url):
        text = text.replace(password, "…")
    return text
