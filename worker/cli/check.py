"""`sendoff check`."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Final

import asyncpg
import typer

from contracts.routing import Names
from worker.amqp import topology
from worker.amqp.errors import BrokerUnreachable
from worker.amqp.pika.connection import close_soon, open_connection, try_publishing
from worker.auth.tokens import open_verifier
from worker.channels.protocol import ChannelUnreachable
from worker.channels.registry import CHANNELS
from worker.cli import check_intake
from worker.cli.asking import JsonOption
from worker.cli.findings import Finding, PartStatus
from worker.cli.show import to_json
from worker.db import partitions, server
from worker.db.failures import ERRORS, classify
from worker.db.pool import DatabaseUnreachable, SchemaMismatch, open_database
from worker.domain.failures import Failure
from worker.domain.servers import unprotected
from worker.domain.text import plain
from worker.links import open_links
from worker.services.tracking import open_machines
from worker.settings import Settings, SettingsError, read_settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aio_pika.abc import AbstractRobustConnection

    from worker.channels.protocol import Probe


_ROLES: Final = "deploy/postgres/roles.sql makes the roles."
_PROBES: Final = {name: kind.probe for name, kind in CHANNELS.items() if kind.probe is not None}
_WITHIN: Final = ("schema", "partitions", "role", "durability")
"""The parts that only a reachable database can show."""
_PARTS: Final = (
    *("configuration", "broker", "topology", "database", *_WITHIN),
    *(probe.part for probe in _PROBES.values()),
    *check_intake.PARTS,
)


def check(as_json: JsonOption = False) -> None:
    """Say what is wrong with settings, servers, channels, and what takes mail and calls; change nothing."""
    try:
        settings = read_settings()
        open_verifier(settings)
        open_machines(settings)
        open_links(settings)
    except SettingsError as error:
        findings = [Finding("configuration", PartStatus.WRONG, str(error))]
        findings += _skipped(_PARTS[1:], "Not looked at, as long as the settings are wrong.")
    else:
        findings = [_configuration(settings)]
        findings += asyncio.run(_look(settings))
    if as_json:
        typer.echo(to_json([asdict(f) for f in findings]))
    else:
        for f in findings:
            typer.echo(f"{f.part:14} {f.standing.value:12} {plain(f.message)}")
    statuses = {f.standing for f in findings}
    raise typer.Exit(3 if PartStatus.UNREACHABLE in statuses else 1 if PartStatus.WRONG in statuses else 0)


def _configuration(settings: Settings) -> Finding:
    if ignored := settings.misspelt:
        return Finding("configuration", PartStatus.WRONG, f"Variables are ignored: {'; '.join(ignored)}.")
    return Finding("configuration", PartStatus.OK, "The settings can be read.")


async def _look(settings: Settings) -> list[Finding]:
    looks: tuple[tuple[tuple[str, ...], Callable[[Settings], Awaitable[list[Finding]]]], ...] = (
        (("broker", "topology"), _broker),
        (("database", *_WITHIN), _database),
        *(((probe.part,), partial(_probe, channel=name, probe=probe)) for name, probe in _PROBES.items()),
        *(((part,), look) for part, look in check_intake.PARTS.items()),
    )
    found = await asyncio.gather(*(_look_or_report(parts, look, settings) for parts, look in looks))
    return [finding for findings in found for finding in findings]


async def _look_or_report(
    parts: tuple[str, ...], look: Callable[[Settings], Awaitable[list[Finding]]], settings: Settings
) -> list[Finding]:
    """Turns an unexpected error into a line too, since this command is for broken systems."""
    try:
        return await look(settings)
    except Exception as error:  # noqa: BLE001 - see above
        return [Finding(part, PartStatus.WRONG, f"It could not be looked at: {error!r}.") for part in parts]


async def _broker(settings: Settings) -> list[Finding]:
    try:
        connection = await open_connection(
            settings.amqp_url, name="sendoff check", timeout=settings.connect_timeout
        )
    except BrokerUnreachable as error:
        return [
            Finding("broker", PartStatus.UNREACHABLE, str(error)),
            Finding("topology", PartStatus.SKIPPED, "Not looked at, as long as the broker is out of reach."),
        ]
    broker = Finding("broker", PartStatus.OK, _let_in(settings, "broker"))
    there = Finding("topology", PartStatus.OK, "Every exchange and queue is there.")
    try:
        await topology.check(connection, Names(settings.queue_prefix), settings.channels)
    except topology.TopologyMismatch as error:
        there = Finding("topology", PartStatus.WRONG, str(error))
    except BrokerUnreachable as error:
        return [Finding(part, PartStatus.UNREACHABLE, str(error)) for part in ("broker", "topology")]
    else:
        # Last, since a broker that is short of memory reads nothing more from who publishes.
        broker = await _trial(connection, broker)
    finally:
        await close_soon(connection)
    return [broker, there]


async def _trial(connection: AbstractRobustConnection, broker: Finding) -> Finding:
    try:
        await try_publishing(connection)
    except BrokerUnreachable as error:
        return Finding("broker", PartStatus.WRONG, str(error))
    return broker


async def _database(settings: Settings) -> list[Finding]:
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
        return [Finding("database", PartStatus.UNREACHABLE, str(error)), *_skipped(_WITHIN, because)]
    database = Finding("database", PartStatus.OK, _let_in(settings, "database"))
    try:
        version = await db.check_version()
        await db.check()
        return [
            database,
            Finding("schema", PartStatus.OK, f"It is at version {version}, and every query fits."),
            _partitions(await partitions.look(db)),
            _role(await server.role(db)),
            _durability(await server.durability(db)),
        ]
    except SchemaMismatch as error:
        rest = _skipped(_WITHIN[1:], "Not looked at, as long as the schema is wrong.")
        return [database, Finding("schema", PartStatus.WRONG, str(error)), *rest]
    except asyncpg.InsufficientPrivilegeError as error:
        message = f"The user of SENDOFF_DATABASE_URL may not look: {error}. {_ROLES}"
        return [database, *(Finding(part, PartStatus.WRONG, message) for part in _WITHIN)]
    except ERRORS as error:
        if classify(error) is Failure.BROKEN:
            raise
        message = f"It went out of reach: {str(error) or type(error).__name__}."
        return [Finding(part, PartStatus.UNREACHABLE, message) for part in ("database", *_WITHIN)]
    finally:
        await db.close()


def _let_in(settings: Settings, server: str) -> str:
    weak = unprotected(settings.database_url, settings.amqp_url).get(server)
    return "It answers and lets us in." + (f" Not protected on the way: {weak}" if weak else "")


def _skipped(parts: tuple[str, ...], because: str) -> list[Finding]:
    return [Finding(part, PartStatus.SKIPPED, because) for part in parts]


def _role(role: server.Role) -> Finding:
    name = f"“{role.name}”"
    if role.superuser:
        message = f"{name} is a superuser, more than anything of Sendoff needs. {_ROLES}"
    elif role.owner:
        message = f"{name} owns the schema: for migrate and retention; it is too much for run. {_ROLES}"
    elif not role.writes:
        return Finding("role", PartStatus.WRONG, f"{name} may only read: no service can run so. {_ROLES}")
    else:
        message = f"{name} reads and writes rows, and owns nothing: for all but migrate and retention."
    return Finding("role", PartStatus.OK, message)


def _durability(durability: server.Durability) -> Finding:
    commits = f"synchronous_commit is {durability.commits}"
    if durability.commits == "off":
        message = f"{commits}: a crash of the server loses claims, and their recipients are sent to again."
        return Finding("durability", PartStatus.WRONG, message)
    if durability.standbys and durability.commits != "local":
        message = f"A commit waits for standbys ({durability.standbys}); {commits}."
    else:
        message = (
            f"A commit waits for no standby ({commits}): a failover can lose the last claims, and their"
            " recipients are then sent to again. See “Standbys” in docs/operations.md."
        )
    return Finding("durability", PartStatus.OK, message)


def _partitions(sets: partitions.Sets | None) -> Finding:
    if sets is None:
        message = "There is no set of partitions, so that no delivery can be prepared: restore partition_set."
        return Finding("partitions", PartStatus.WRONG, message)
    if sets.missing:
        lost = ", ".join(sets.missing)
        return Finding(
            "partitions", PartStatus.WRONG, f"Not there, or detached: {lost}; their deliveries fail."
        )
    room = (
        f"has room for {max(sets.ids_left, 0)} more"
        if sets.ids_left > 0
        else "is full, the next opens another"
    )
    message = f"Sets: {sets.count}; the newest, deliveries {sets.first_id} to {sets.last_id}, {room}."
    return Finding("partitions", PartStatus.OK, message)


async def _probe(settings: Settings, *, channel: str, probe: Probe) -> list[Finding]:
    if channel not in settings.channels:
        return [Finding(probe.part, PartStatus.OK, f"None is needed: there is no channel “{channel}”.")]
    try:
        await probe.look(settings)
    except ValueError as error:
        return [Finding(probe.part, PartStatus.WRONG, str(error))]
    except ChannelUnreachable as error:
        return [Finding(probe.part, PartStatus.UNREACHABLE, str(error))]
    return [Finding(probe.part, PartStatus.OK, "It answers and lets us in.")]
