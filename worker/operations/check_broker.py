"""Looks at the broker for `sendoff check`: its alarms, our exchanges and queues, and what our user may do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from contracts.routing import Names
from worker.amqp import permissions, topology
from worker.amqp.bulk.address import read_address
from worker.amqp.errors import BrokerUnreachable, ManagementFailed
from worker.amqp.management import Management
from worker.amqp.pika.connection import close_soon, open_connection, try_publishing
from worker.amqp.pika.failures import ERRORS
from worker.amqp.policies import queue_policy
from worker.amqp.versions import OLDEST, version_of
from worker.operations.findings import Finding, ok, skipped, unreachable, warning, wrong

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aio_pika.abc import AbstractRobustConnection

    from worker.amqp.permissions import Needs, Permissions
    from worker.amqp.policies import Policy
    from worker.amqp.versions import Version
    from worker.settings import Settings

PARTS: Final = ("broker", "topology", "policies", "arguments", "permissions")
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
    names, version, shards = Names(settings.queue_prefix), version_of(connection), settings.send_shards
    there = arguments = ok("topology", "Every exchange and queue is there.")
    try:
        await topology.check(connection, names, settings.channels, shards)
    except topology.TopologyMismatch as error:
        there = wrong("topology", str(error))
    # Before what publishes, since a broker that is short of memory reads nothing more from who does.
    because = "Not looked at, as long as exchanges or queues are missing."
    if there.standing == "ok":
        arguments = _arguments(await permissions.differing(connection, names, settings.channels, shards))
    else:
        (arguments,) = skipped(PARTS[3:4], because)
    policies = await _policies(settings, queue_policy(names, version))
    try:
        answers = await try_publishing(connection)
    except BrokerUnreachable as error:
        because = "Not looked at, as long as the broker takes no publishes."
        return [wrong("broker", str(error)), there, policies, arguments, *skipped(PARTS[4:], because)]
    if there.standing != "ok":
        return [_broker(version), there, policies, arguments, *skipped(PARTS[4:], because)]
    needs = permissions.needs(settings.channels, shards)
    may = await permissions.look(connection, names, needs.values(), answers=answers)
    return [_broker(version), there, policies, arguments, _permissions(may, needs, services)]


def _broker(version: Version) -> Finding:
    if version < OLDEST:
        return wrong("broker", f"It is RabbitMQ {version}; Sendoff works with {OLDEST} and later.")
    return ok("broker", f"It answers and lets us in. It is RabbitMQ {version}.")


async def _policies(settings: Settings, policy: Policy) -> Finding:
    vhost = read_address(settings.amqp_url).vhost
    if not settings.management_url:
        because = f"Not looked at without SENDOFF_MANAGEMENT_URL. They are set by: {policy.command(vhost)}"
        (finding,) = skipped(["policies"], because)
        return finding
    try:
        faults = await Management(settings.management_url, vhost).faults(policy)
    except ManagementFailed as error:
        return unreachable("policies", str(error))
    if faults:
        return wrong("policies", f"{'; '.join(faults)}. Run “sendoff migrate”.")
    return ok("policies", f"“{policy.name}” is in force at every queue.")


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
    return ok("arguments", "Every queue has the arguments with which Sendoff declares it.")


def _permissions(may: Permissions, needs: Mapping[str, Needs], services: Sequence[str]) -> Finding:
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
