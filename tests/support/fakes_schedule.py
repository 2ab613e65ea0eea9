"""What the scheduler works with, in memory: for its unit tests, beside those on real servers."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from contracts.states import State
from worker.domain.deliveries import Delivery
from worker.domain.failures import Busy
from worker.domain.operators import Operator, Role

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from worker.db.accounts import Expired
    from worker.db.alerts import Raised
    from worker.db.pages import Inspected, PagesDue, RetriesLeft
    from worker.domain.states import Move

NOON = datetime(2026, 12, 1, 12, tzinfo=UTC)
ANA = Operator("ana", active=True, roles=frozenset({Role.START_DELIVERIES}))
CONFIRMED = Delivery(
    delivery_id=1,
    label="Test",
    channel="null",
    state=State.START_PENDING,
    preparation=1,
    to_deliver=3,
    contact_date=NOON,
    time_zone="UTC",
    valid_for=timedelta(days=3),
    valid_until=None,
    confirmed_at=None,
)


class FakeDeliveries:
    """Which deliveries have what due; to finish a busy one raises Busy."""

    def __init__(self) -> None:
        self.due_now: list[int] = []
        self.next_start: float | None = None
        self.over: list[int] = []
        self.under_way: list[int] = []
        self.busy: set[int] = set()
        self.finished: list[int] = []
        self.retry_pending: list[int] = []

    async def due(self) -> list[int]:
        return self.due_now

    async def seconds_to_next_start(self) -> float | None:
        return self.next_start

    async def expired(self) -> list[int]:
        return self.over

    async def complete(self) -> list[int]:
        return self.under_way

    async def await_retries(self, delivery_id: int) -> None:
        self.retry_pending.append(delivery_id)

    async def finish(self, delivery_id: int) -> bool:
        if delivery_id in self.busy:
            raise Busy("too busy")
        self.finished.append(delivery_id)
        return True


class FakeStarts:
    """Confirmed deliveries; what is done to one within a transaction holds if the transaction does."""

    def __init__(self) -> None:
        self.deliveries: dict[int, Delivery] = {1: CONFIRMED, 2: CONFIRMED}
        self.operators: dict[str, Operator] = {ANA.name: ANA}
        self.by_token = False
        self.time = NOON
        self.failing: dict[int, Exception] = {}
        self.committed: dict[int, list[str]] = {}

    @asynccontextmanager
    async def begin(self, delivery_id: int) -> AsyncIterator[FakeStart]:
        start = FakeStart(self, delivery_id)
        yield start
        self.committed[delivery_id] = start.did


class FakeStart:
    def __init__(self, starts: FakeStarts, delivery_id: int) -> None:
        self._starts = starts
        self._delivery_id = delivery_id
        self.did: list[str] = []

    async def close_claims(self) -> None:
        self.did.append("close claims")

    async def delivery(self) -> Delivery | None:
        assert self.did == ["close claims"], "claims come before the row's lock"
        if (error := self._starts.failing.get(self._delivery_id)) is not None:
            raise error
        return self._starts.deliveries.get(self._delivery_id)

    async def now(self) -> datetime:
        return self._starts.time

    async def authority(self) -> tuple[str, bool]:
        return "ana", self._starts.by_token

    async def operator(self, name: str) -> Operator | None:
        return self._starts.operators.get(name)

    async def move(self, by: Move, reason: str | None = None) -> None:
        self.did.append(f"{by.value}: {reason}" if reason else by.value)

    async def cancel_remaining(self) -> None:
        self.did.append("cancel the rest")

    async def open_pages(self) -> None:
        self.did.append("open pages")


class FakeAccounts:
    def __init__(self) -> None:
        self.leases: dict[int, Expired] = {}
        self.asked: list[tuple[int, float]] = []
        self.cancelled: list[int] = []
        self.busy: set[int] = set()
        self.hangs: set[int] = set()
        self.waiting: dict[int, int] = {}
        """By delivery, how many transactions its retries take to end."""

    async def expired(self) -> list[int]:
        return list(self.leases)

    async def expire(self, delivery_id: int, *, result_lease: float) -> Expired:
        self.asked.append((delivery_id, result_lease))
        return self.leases[delivery_id]

    async def ending_retries(self) -> list[int]:
        return list(self.waiting)

    async def end_retries(self, delivery_id: int) -> bool:
        self.waiting[delivery_id] -= 1
        return self.waiting[delivery_id] > 0

    async def cancel(self, delivery_id: int) -> None:
        if delivery_id in self.hangs:
            await asyncio.Event().wait()
        if delivery_id in self.busy:
            raise Busy("too busy")
        self.cancelled.append(delivery_id)


class FakePages:
    def __init__(self) -> None:
        self.retries: list[RetriesLeft] = []
        self.opened = 0
        self.due: dict[PagesDue, list[Inspected]] = {}
        self.looked: list[tuple[int, float, int]] = []
        self.waiting: dict[str, float] = {}
        self.reopened: list[tuple[int, list[int]]] = []
        self.closed: list[tuple[int, list[int]]] = []

    async def with_retries(self) -> list[RetriesLeft]:
        return self.retries

    async def open_due_retries(self, delivery_id: int) -> int:  # noqa: ARG002
        return self.opened

    async def oldest_due(self) -> dict[str, float]:
        return dict(self.waiting)

    async def to_inspect(self) -> list[PagesDue]:
        return list(self.due)

    async def inspect(self, delivery_id: int, again_after: float, limit: int) -> list[Inspected]:
        self.looked.append((delivery_id, again_after, limit))
        return [page for due, pages in self.due.items() if due.delivery_id == delivery_id for page in pages]

    async def reopen(self, delivery_id: int, pages: Sequence[int]) -> None:
        self.reopened.append((delivery_id, list(pages)))

    async def close(self, delivery_id: int, pages: Sequence[int]) -> None:
        self.closed.append((delivery_id, list(pages)))


class FakeAlerts:
    def __init__(self) -> None:
        self.sampled = 0
        self.due: list[Raised] = []

    async def sample(self) -> None:
        self.sampled += 1

    async def raise_due(self) -> list[Raised]:
        assert self.sampled, "what is told rests on what was noted"
        told, self.due = self.due, []
        return told
