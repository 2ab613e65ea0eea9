"""Bodies as they look on the wire, for the generated schemas and the AsyncAPI document."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from contracts.claims import ClaimAnswer, ClaimRequest
from contracts.commands import ComputeStats, Confirm, Control, Reply
from contracts.events import DeliveryEvent
from contracts.results import MODELS as RESULTS
from contracts.sends import Send
from contracts.stats import Stats
from contracts.tracking import TrackingEvent

if TYPE_CHECKING:
    from pydantic import BaseModel

_COMMAND: Final = {"delivery_id": 42, "operator": "ana"}
_GUIDE: Final = Path(__file__).parents[1] / "docs" / "contracts.md"


def _in_guide(name: str) -> dict[str, Any]:
    """Returns the example that the guide shows of a model."""
    found = re.search(rf"<!-- {name} -->\n```json\n(.*?)```", _GUIDE.read_text("utf-8"), re.DOTALL)
    if found is None:
        raise LookupError(f"docs/{_GUIDE.name} has no example of {name}.")
    example: dict[str, Any] = json.loads(found[1])
    return example


def _bodies_in_guide(name: str) -> list[dict[str, Any]]:
    """Returns the same where the guide may show an array of them."""
    example: Any = _in_guide(name)
    return example if isinstance(example, list) else [example]


EXAMPLES: Final[dict[type[BaseModel], list[dict[str, Any]]]] = {
    Confirm: [
        {**_COMMAND, "definitive": False},
        {**_COMMAND, "preparation": 3, "definitive": True},
    ],
    Control: [{**_COMMAND, "reason": "typo in the subject"}],
    ComputeStats: [{"delivery_id": 42}],
    Reply: [
        {
            "command_id": "c-1001",
            "delivery_id": 42,
            "status": "finalize",
            "reason": None,
            "message": "“November newsletter” goes to 1000 recipients. Confirm to send it.",
            "state": "ready",
            "summary": {
                "label": "November newsletter",
                "channel": "email",
                "to_deliver": 1000,
                "excluded": {"duplicate": 3, "invalid": 2},
                "contact_date": "2026-12-01T08:00:00Z",
                "time_zone": "Europe/Paris",
                "valid_until": None,
                "valid_for": "P3D",
                "preparation": 3,
            },
        },
        {
            "command_id": "c-1002",
            "delivery_id": 42,
            "status": "refused",
            "reason": "stale_preparation",
            "message": "Delivery 42 was prepared again since: look at preparation 4 and confirm that.",
            "state": "ready",
            "summary": None,
        },
    ],
    Stats: [_in_guide("Stats")],
    Send: [
        {
            "delivery_id": 42,
            "recipient": 17,
            "attempt": 1,
            "channel": "email",
            "address": "ana@example.org",
            "variables": {"first_name": "Ana"},
            "valid_until": "2026-12-04T08:00:00Z",
        }
    ],
    ClaimRequest: [_in_guide("ClaimRequest")],
    ClaimAnswer: [
        _in_guide("ClaimAnswer"),
        {
            "delivery_id": 42,
            "status": "refused",
            "reason": "delivery_unknown",
            "message": "No confirmed delivery 42 goes over the channel “sms”.",
            "token": None,
            "granted": [],
            "lease_seconds": None,
        },
    ],
    **{model: _bodies_in_guide(model.__name__) for model in RESULTS.values()},
    TrackingEvent: [
        {
            "event_id": "e-2001",
            "delivery_id": 42,
            "recipient": 17,
            "kind": "click",
            "url": "https://example.org/offer",
            "at": "2026-12-01T09:30:00Z",
            "user_agent": "Mozilla/5.0",
        }
    ],
    DeliveryEvent: [
        {
            "event_id": "42-3001",
            "delivery_id": 42,
            "number": 3001,
            "event": "delivery.paused",
            "state": "paused",
            "at": "2026-12-01T08:00:05Z",
            "operator": "ana",
            "reason": "typo in the subject",
        },
        {
            "event_id": "42-3007",
            "delivery_id": 42,
            "number": 3007,
            "event": "delivery.paused",
            "state": "paused",
            "at": "2026-12-01T08:02:11Z",
            "reason": "The circuit breaker paused it: hard bounces 12.4 % of 250 attempted, limit 10 %.",
            "figures": {
                "attempted": 250,
                "bounced_hard": 31,
                "errors": 2,
                "hard_bounce_pct": 12.4,
                "error_pct": 0.8,
                "hard_bounce_limit_pct": 10.0,
                "error_limit_pct": 20.0,
                "refused": 3,
                "refused_pct": 1.2,
                "refused_limit_pct": 10.0,
            },
        },
        {
            "event_id": "42-3012",
            "delivery_id": 42,
            "number": 3012,
            "event": "delivery.alert",
            "state": "in_progress",
            "at": "2026-12-01T08:20:00Z",
            "reason": "31 of 500 attempted are hard bounces: 6.2 %, more than 5 %.",
            "alert": {
                "criterion": "hard_bounce_ratio",
                "since": "2026-12-01T08:00:03Z",
                "value": 6.2,
                "threshold": 5.0,
                "unit": "percent",
            },
        },
    ],
}
"""The messages, each with bodies as they look on the wire."""
