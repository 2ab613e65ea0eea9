"""`sendoff migrate`."""

from __future__ import annotations

import asyncio

import typer

from contracts.routing import Names
from worker.amqp.bulk.address import read_address
from worker.amqp.management import Management
from worker.amqp.pika.connection import open_connection
from worker.amqp.policies import queue_policy
from worker.amqp.topology import declare
from worker.amqp.versions import version_of
from worker.cli.common import explained_outages
from worker.db.migrate import migrate as migrate_schema
from worker.settings import Settings, read_settings


def migrate() -> None:
    """Bring the schema, the broker's topology and its policy up to date; safe to run twice and at once."""
    asyncio.run(_migrate(read_settings()))


async def _migrate(settings: Settings) -> None:
    with explained_outages():
        applied = await migrate_schema(settings.database_url, timeout=settings.connect_timeout)
    for step in applied:
        typer.echo(f"schema: applied {step.number:04} {step.name}")
    if not applied:
        typer.echo("schema: up to date")
    connection = await open_connection(
        settings.amqp_url, name="sendoff migrate", timeout=settings.connect_timeout
    )
    names, vhost = Names(settings.queue_prefix), read_address(settings.amqp_url).vhost
    async with connection:
        declared = await declare(connection, names, settings.channels, settings.send_shards)
        policy = queue_policy(names, version_of(connection))
    queues = declared.queues
    typer.echo(f"broker: the exchanges and {len(queues)} queues are there: {', '.join(queues)}")
    if declared.earlier:
        typer.echo(
            f"broker: of an earlier version, and used as they are: {', '.join(declared.earlier)};"
            " no policy can raise their delivery limit"
        )
    if settings.management_url:
        await Management(settings.management_url, vhost).set(policy)
        typer.echo(f"broker: the policy “{policy.name}” is set")
    else:
        typer.echo(
            "broker: SENDOFF_MANAGEMENT_URL is not set, so its policy is yours to set. Run there:\n"
            f"  {policy.command(vhost)}"
        )
