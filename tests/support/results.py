"""Results as bodies of the wire."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from contracts import routing

if TYPE_CHECKING:
    from tests.support.stack import Stack


AT = "2026-11-23T10:00:00Z"


def result(number: int, recipient: int, **more: Any) -> dict[str, Any]:
    return {"delivery_id": number, "recipient": recipient, "attempt": 1, "at": AT, **more}


def bounced(number: int, recipient: int, kind: str = "hard", **more: Any) -> dict[str, Any]:
    reason, status = ("user_unknown", "5.1.1") if kind == "hard" else ("mailbox_full", "4.2.2")
    return result(number, recipient, kind=kind, reason=reason, status=status, fault="recipient", **more)


async def drained(stack: Stack) -> bool:
    queues = (routing.SENT_QUEUE, routing.BOUNCE_QUEUE, routing.ERROR_QUEUE)
    return not any([await stack.depth(q) for q in queues])
