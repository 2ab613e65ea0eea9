"""The readiness of one process: what each part says when it cannot do its work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.amqp.errors import BLOCKED
from worker.db.failures import ERRORS, classify
from worker.db.pool import SchemaMismatch
from worker.domain.failures import Failure

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from worker.amqp.messages import Consumer
    from worker.connections import Connections
    from worker.services.send import SendService
    from worker.web.health import Probe


def probes(
    stop: asyncio.Event,
    connections: Connections,
    consumers: Sequence[Consumer],
    senders: Sequence[SendService],
) -> dict[str, Probe]:
    """Returns the readiness probes, by part.

    Args:
        stop: Set when the process stops.
        connections: The connections of the process.
        consumers: The consumers of its services. The broker must know each of them.
        senders: Its senders, whose consumers come and go with their channels.
    """
    db, rabbit, publisher, bulk_publisher, routes = connections

    async def process() -> str:
        return "The process is stopping." if stop.is_set() else ""

    async def broker() -> str:
        if not (rabbit.connected and bulk_publisher.connected):
            return "The connection to the broker is lost."
        return BLOCKED if publisher.blocked or bulk_publisher.blocked else ""

    async def topology() -> str:
        return routes.trouble

    async def consuming() -> str:
        absent = [c.queue for c in consumers if not await c.present()]
        absent += [s.name for s in senders if not s.unreachable and not await s.consuming()]
        return f"The broker does not deliver from: {', '.join(absent)}." if absent else ""

    async def channels() -> str:
        return " ".join(s.unreachable for s in senders if s.unreachable)

    async def database() -> str:
        try:
            await db.check_version()
            await db.check_writable()
        except SchemaMismatch as error:
            return str(error)
        except ERRORS as error:
            what = "is out of reach" if classify(error) is Failure.AWAY else "does not do it"
            return f"The database {what}: {str(error) or type(error).__name__}."
        return ""

    return {
        "process": process,
        "broker": broker,
        "topology": topology,
        "consumers": consuming,
        "channels": channels,
        "database": database,
    }
