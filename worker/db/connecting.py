"""Opens connections directly to Postgres, and keeps passwords out of error messages."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, urlsplit

import asyncpg

from worker.domain.servers import must_verify, passwords, places, postgres_hosts

if TYPE_CHECKING:
    from collections.abc import Mapping

_MARK: Final = "sendoff.session"
_KEPT: Final = "kept"

_POOLER: Final = (
    "a pooler stands before it, such as PgBouncer, that does not keep a session's settings and locks."
    " Let SENDOFF_DATABASE_URL lead to Postgres itself: a process holds no more connections than"
    " SENDOFF_DATABASE_POOL"
)


class PoolerBetween(ConnectionError):
    """The server is not Postgres itself but a pooler, which lends sessions."""


def tls(url: str) -> ssl.SSLContext | None:
    """Returns how TLS is spoken where the address leaves it open; None where it says so, or is here.

    A server on another machine has to show a certificate for its name by an authority that the system trusts,
    or that of the option `sslrootcert`. Reads files.

    Raises:
        OSError: that file is missing or is no certificate.
    """
    if not must_verify(url):
        return None
    return ssl.create_default_context(cafile=dict(parse_qsl(urlsplit(url).query)).get("sslrootcert"))


def session_attributes(url: str) -> str | None:
    """Returns which of several hosts is meant where the address leaves it open: the one that takes writes.

    Returns:
        None where the address names one host, or `target_session_attrs`.

    Raises:
        ValueError: it is no address of a database.
    """
    named = "target_session_attrs" in dict(parse_qsl(urlsplit(url).query))
    return "read-write" if len(postgres_hosts(url)) > 1 and not named else None


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
    if isinstance(error, OSError):
        text = f"{places(url)}: {text}"
    if "rejected SSL upgrade" in text:
        text += (
            "; it speaks no TLS: set that up, or add sslmode=disable to the URL where the network is your own"
        )
    for password in passwords(url):
        text = text.replace(password, "…")
    return text
