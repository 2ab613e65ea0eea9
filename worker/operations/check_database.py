"""Looks at the database for `sendoff check`: schema, partitions, our role, its standbys, room and clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import asyncpg

from worker.db import partitions, server
from worker.db.failures import ERRORS, classify
from worker.db.pool import DatabaseUnreachable, SchemaMismatch, open_database
from worker.domain.clocks import MOST_SECONDS, disagreement
from worker.domain.failures import Failure
from worker.domain.servers import postgres_hosts
from worker.domain.standbys import Durability, doubt
from worker.operations.findings import Finding, ok, skipped, unreachable, warning, wrong

if TYPE_CHECKING:
    from worker.settings import Settings

PARTS: Final = ("database", "schema", "partitions", "role", "durability", "connections", "clock")
"""The parts in their order."""

_ROLES: Final = "deploy/postgres/roles.sql makes the roles."
_MORE: Final = 1
"""Connections that a process may hold beside its pool: `fanout` and `events` each listen on one."""


async def look(settings: Settings) -> list[Finding]:
    """Looks at the database, and changes nothing."""
    try:
        db = await open_database(
            settings.database_url,
            size=1,
            connect_timeout=settings.connect_timeout,
            command_timeout=settings.command_timeout,
            application="sendoff check",
        )
    except DatabaseUnreachable as error:
        because = "Not looked at, as long as the database is out of reach."
        return [unreachable("database", str(error)), *skipped(PARTS[1:], because)]
    database = ok("database", "It answers and lets us in.")
    try:
        version = await db.check_version()
        await db.check()
        return [
            database,
            ok("schema", f"It is at version {version}, and every query fits."),
            _partitions(await partitions.look(db)),
            _role(await server.role(db)),
            _durability(await server.durability(db), len(postgres_hosts(settings.database_url))),
            _connections(await server.room(db), settings.database_pool),
            _clock(await server.ahead(db)),
        ]
    except SchemaMismatch as error:
        rest = skipped(PARTS[2:], "Not looked at, as long as the schema is wrong.")
        return [database, wrong("schema", str(error)), *rest]
    except asyncpg.InsufficientPrivilegeError as error:
        message = f"The user of SENDOFF_DATABASE_URL may not look: {error}. {_ROLES}"
        return [database, *(wrong(part, message) for part in PARTS[1:])]
    except ERRORS as error:
        if classify(error) is Failure.BROKEN:
            raise
        message = f"It went out of reach: {str(error) or type(error).__name__}."
        return [unreachable(part, message) for part in PARTS]
    finally:
        await db.close()


def _partitions(sets: partitions.Sets | None) -> Finding:
    if sets is None:
        message = "There is no set of partitions, so that no delivery can be prepared: restore partition_set."
        return wrong("partitions", message)
    if sets.missing:
        return wrong(
            "partitions", f"Not there, or detached: {', '.join(sets.missing)}; their deliveries fail."
        )
    room = (
        f"has room for {max(sets.ids_left, 0)} more"
        if sets.ids_left > 0
        else "is full, the next opens another"
    )
    return ok(
        "partitions", f"Sets: {sets.count}; the newest, deliveries {sets.first_id} to {sets.last_id}, {room}."
    )


def _role(role: server.Role) -> Finding:
    name = f"“{role.name}”"
    if role.superuser:
        return warning("role", f"{name} is a superuser, more than anything of Sendoff needs. {_ROLES}")
    if role.owner:
        return warning(
            "role", f"{name} owns the schema: for migrate and retention; it is too much for run. {_ROLES}"
        )
    if not role.writes:
        return wrong("role", f"{name} may only read: no service can run so. {_ROLES}")
    if not role.opens:
        return wrong(
            "role",
            f"{name} may not open the next set of partitions: prepare fails when the newest is full or"
            " older than"
            " SENDOFF_PARTITION_PERIOD. Run deploy/postgres/roles.sql again, as after each migrate.",
        )
    return ok("role", f"{name} reads and writes rows, and owns nothing: for all but migrate and retention.")


def _durability(durability: Durability, hosts: int) -> Finding:
    commits = f"synchronous_commit is {durability.commits}"
    if because := doubt(durability, hosts):
        return (wrong if durability.commits == "off" else warning)("durability", because)
    if durability.standbys and durability.commits != "local":
        return ok("durability", f"A commit waits for standbys ({durability.standbys}); {commits}.")
    return ok(
        "durability",
        f"A commit waits for no standby ({commits}), and none is seen: with one, a failover could lose"
        " the last"
        " claims. See “Standbys” in docs/operations.md.",
    )


def _connections(room: server.Room, pool: int) -> Finding:
    each = pool + _MORE
    wanted = room.processes * each
    seen = (
        f"{room.processes} processes of Sendoff run, which may open {wanted} connections"
        f" (SENDOFF_DATABASE_POOL here is {pool}, and one more in fanout and events); {room.open} are"
        " open, and the"
        f" server takes {room.limit} beside the {room.others} of others"
    )
    if wanted > room.limit:
        return wrong(
            "connections",
            f"{seen}: when all are busy, the last are refused. Raise max_connections, run fewer"
            " processes, or lower"
            " SENDOFF_DATABASE_POOL.",
        )
    if room.processes == 0:
        fit = max(room.limit, 0) // each
        sentence = (
            f"No process of Sendoff runs now. The server takes {room.limit} connections beside the"
            f" {room.others} of"
            f" others: enough for {fit} processes of up to {each}."
        )
        return ok("connections", sentence) if fit else wrong("connections", sentence)
    return ok("connections", f"{seen}.")


def _clock(ahead: float) -> Finding:
    if because := disagreement(ahead):
        return wrong("clock", because)
    return ok("clock", f"This machine's clock and the database's agree to {MOST_SECONDS:g} s.")
