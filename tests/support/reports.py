"""Results as models, and what rows and counters say of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from contracts.results import Bounce, BounceKind, BounceReason, Error, Sent
from worker.domain.retry import Retries

if TYPE_CHECKING:
    from tests.support.stack import Stack


MAX_ATTEMPTS: Final = 3
# Results are of the past, so that a retry is due at once and a claim of it is granted.
NOON: Final = datetime(2026, 11, 23, 12, tzinfo=UTC)
RETRIES: Final = Retries((60,), MAX_ATTEMPTS)
RANKS: Final = ("flaky", "error", "sent", "ignored", "soft", "hard")
"""Within an attempt, the later of these stands over the earlier."""
STATUS: Final = {
    "flaky": "error",
    "error": "error",
    "sent": "sent",
    "ignored": "bounced_ignored",
    "soft": "bounced_soft",
    "hard": "bounced_hard",
}
COUNTERS: Final = {"error": "errors", "excluded": "excluded_late"}


def sent(attempt: int = 1, **more: Any) -> Sent:
    return Sent(delivery_id=1, recipient=1, attempt=attempt, at=more.pop("at", NOON), **more)


def bounce(kind: BounceKind, attempt: int = 1, **more: Any) -> Bounce:
    return Bounce(delivery_id=1, recipient=1, attempt=attempt, at=more.pop("at", NOON), kind=kind, **more)


def error(attempt: int = 1, **more: Any) -> Error:
    reason = more.pop("reason", "connection")
    return Error(delivery_id=1, recipient=1, attempt=attempt, at=NOON, retryable=True, reason=reason, **more)


@dataclass(frozen=True)
class Report:
    """One result, as a person would write it down."""

    recipient: int
    attempt: int
    kind: str
    hour: int = 0
    words: str = ""

    def result(self, delivery_id: int) -> Sent | Bounce | Error:
        common: dict[str, Any] = {
            "delivery_id": delivery_id,
            "recipient": self.recipient,
            "attempt": self.attempt,
            "at": NOON + timedelta(hours=self.hour),
        }
        if self.kind == "sent":
            return Sent(**common, reply=self.words)
        if self.kind in ("error", "flaky"):
            return Error(**common, reason="connection", retryable=self.kind == "flaky", detail=self.words)
        return Bounce(
            **common, kind=BounceKind(self.kind), reason=BounceReason.MAILBOX_FULL, reply=self.words
        )

    @property
    def weight(self) -> tuple[bool, int, int]:
        return self.kind == "hard", self.attempt, RANKS.index(self.kind)


async def snapshot(stack: Stack, number: int) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """Reads the view and the rows in one snapshot; every counter must be what the rows say."""
    async with stack.db.transaction(isolation="repeatable_read", readonly=True) as tx:
        row = await tx.fetchrow("read_deployment", delivery_id=number)
        found = await tx.connection.fetch("SELECT * FROM sendoff.outcome WHERE delivery_id = $1", number)
        cancelled = await tx.connection.fetchval(
            "SELECT cancelled_at IS NOT NULL FROM sendoff.delivery_record WHERE delivery_id = $1", number
        )
    assert row is not None
    by_status = Counter(r["status"] for r in found)
    waiting = by_status.pop("retrying", 0) if cancelled else 0  # who count as cancelled until they are ended
    nowhere = row["to_deliver"] - len(found) + waiting
    assert (row["cancelled"], row["pending"]) == ((nowhere, 0) if cancelled else (0, nowhere))
    for status in ("sending", "unknown", "retrying", "excluded", *STATUS.values()):
        assert row[COUNTERS.get(status, status)] == by_status[status], status
    parts = ("sent", "bounced", "errors", "unknown", "excluded_late", "cancelled", "retrying", "sending")
    assert row["to_deliver"] == sum(row[p] for p in parts) + row["pending"]
    assert min(row[p] for p in (*parts, "pending")) >= 0
    return dict(row), {r["recipient"]: dict(r) for r in found}
