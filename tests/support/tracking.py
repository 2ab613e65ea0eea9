"""Tracking events, and whether they are recorded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from contracts import routing
from tests.support.results import AT
from tests.support.stack import until

if TYPE_CHECKING:
    from tests.support.stack import Stack


EARLIER = "2026-11-23T09:00:00Z"
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
APPLE = "Mozilla/5.0"
SCANNER = "Barracuda Sentinel (EE)"
ONE_CLICK = "Go-http-client/2.0"


def event(number: int, recipient: int, kind: str, event_id: str, **more: Any) -> dict[str, Any]:
    common = {"event_id": event_id, "delivery_id": number, "recipient": recipient, "kind": kind, "at": AT}
    return {**common, "user_agent": FIREFOX, **more}


async def publish(stack: Stack, *events: dict[str, Any], key: str = routing.OPEN) -> None:
    await stack.publish(routing.TRACKING, key, json.dumps(events).encode())


async def recorded(stack: Stack, events: int) -> None:
    """Waits until so many different events are in the log, and the queue is empty."""

    async def there() -> bool:
        (row,) = await stack.rows("SELECT count(*) AS events FROM sendoff.tracking_log")
        return bool(row["events"] >= events and not await stack.depth(routing.TRACKING_QUEUE))

    await until(there)
