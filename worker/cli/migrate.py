"""`sendoff migrate`."""

from __future__ import annotations

import asyncio

import typer

from contracts.routing import Names
from worker.amqp.pika.connection import open_connection
from worker.amqp.topology import declare
from worker.cli.common import explained_outages
from worker.db.migrate import migrate as migrate_schema
from worker.settings import Settings, read_settings


def migrate() -> None:
    """Bring the schema and the broker's topology up to date; safe to run twice and at once."""
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
    async with connection:
        queues = await declare(connection, Names(settings.queue_prefix), settings.channels)
    typer.echo(f"broker: the exchanges and {len(queues)} queues are there: {', '.join(queues)}")
