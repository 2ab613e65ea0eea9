"""Looks at the broker for `sendoff check`: its alarms, our exchanges and queues, and what our user may do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from contracts.routing import Names
from worker.amqp import permissions, topology
from worker.amqp.errors import BrokerUnreachable
from worker.amqp.pika.connection import close_soon, open_connection, try_publishing
from worker.amqp.pika.failures import ERRORS
from worker.operations.findings import Finding, ok, skipped, unreachable, warning, wrong

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aio_pika.abc import AbstractRobustConnection

    from worker.amqp.permissions import Permissions
    from worker.settings import Settings

PARTS: Final = ("broker", "topology", "arguments", "permissions")
"""The parts in their order."""


async def look(settings: Settings, services: Sequence[str]) -> list[Finding]:
    """Looks at the broker, and changes nothing.

    Args:
        settings: The settings.
        services: Those that its user is to run; none for whichever it may.
    """
    try:
        connection = await open_connection(
            settings.amqp_url, name="sendoff check", timeout=settings.connect_timeout
        )
    except BrokerUnreachable as error:
        because = "Not looked at, as long as the broker is out of reach."
        return [unreachable("broker", str(error)), *skipped(PARTS[1:], because)]
    try:
        return await _look(connection, settings, services)
    except (BrokerUnreachable, *ERRORS) as error:
        return [unreachable(part, f"The broker went out of reach: {error!r}.") for part in PARTS]
    finally:
        await close_soon(connection)


async def _look(
    connection: AbstractRobustConnection, settings: Settings, services: Sequence[str]
) -> list[Finding]:
    names = Names(settings.queue_prefix)
    there = arguments = ok("topology", "Every exchange and queue is there.")
    try:
        await topology.check(connection, names, settings.channels)
    except topology.TopologyMismatch as error:
        there = wrong("topology", str(error))
    # Before what publishes, since a broker that is short of memory reads nothing more from who does.
    because = "Not looked at, as long as exchanges or queues are missing."
    if there.standing == "ok":
        arguments = _arguments(await permissions.differing(connection, names, settings.channels))
    else:
        (arguments,) = skipped(PARTS[2:3], because)
    try:
        answers = await try_publishing(connection)
    except BrokerUnreachable as error:
        because = "Not looked at, as long as the broker takes no publishes."
        return [wrong("broker", str(error)), there, arguments, *skipped(PARTS[3:], because)]
    broker = ok("broker", "It answers and lets us in.")
    if there.standing != "ok":
        return [broker, there, arguments, *skipped(PARTS[3:], because)]
    may = await permissions.look(connection, names, settings.channels, answers=answers)
    return [broker, there, arguments, _permissions(may, settings.channels, services)]


def _arguments(differing: list[str] | None) -> Finding:
    if differing is None:
        return ok("arguments", "Our user may not declare queues, so their arguments are not compared.")
    if differing:
        return wrong(
            "arguments",
            f"Queues were declared with other arguments: {'; '.join(differing)}. They keep what they"
            " were declared"
            " with until they are deleted: see “Upgrading” in docs/operations.md.",
        )
    return ok("arguments", "Every queue has the arguments with which this Sendoff declares it.")


def _permissions(may: Permissions, channels: Sequence[str], services: Sequence[str]) -> Finding:
    needs = permissions.needs(channels)
    lacking = {name: may.lacks(needs[name]) for name in services or needs}
    fit = [name for name, lacks in lacking.items() if not lacks and (needs[name].writes or needs[name].reads)]
    if services and any(lacking.values()):
        told = "; ".join(f"{name} would {', '.join(lacks)}" for name, lacks in lacking.items() if lacks)
        return wrong(
            "permissions", f"Our user may not do what it needs: {told}. docs/security.md has the users."
        )
    if not fit and not services:
        return wrong("permissions", "Our user may run no service: docs/security.md has what each needs.")
    if may.wide:
        return warning(
            "permissions",
            "Our user may declare what is not Sendoff's, which no service needs: docs/security.md has a"
            " user for"
            " each, and deploy/rabbitmq/definitions.json makes them.",
        )
    return ok("permissions", f"Our user may run: {', '.join(fit) or ', '.join(services)}.")
