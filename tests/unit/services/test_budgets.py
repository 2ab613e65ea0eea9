"""The leases of messages."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.support.fakes import FakeRetrying
from worker.channels.null import NullChannel
from worker.channels.protocol import Want
from worker.domain.failures import Busy
from worker.services.budgets import BudgetParts, BudgetService

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Hungry(NullChannel):
    """Wants what it is told."""

    def __init__(self) -> None:
        self.wanted: list[Want] = []
        self.granted: list[Mapping[str, int]] = []

    def wants(self) -> list[Want]:
        return self.wanted

    def grant(self, granted: Mapping[str, int], now: float) -> None:  # noqa: ARG002
        self.granted.append(granted)


class FakeStore:
    """Grants all, or raises."""

    def __init__(self) -> None:
        self.asked = 0
        self.raising: Exception | None = None

    async def lease(self, wants: Sequence[Want]) -> dict[str, int]:
        self.asked += 1
        if self.raising:
            raise self.raising
        return {want.name: want.messages for want in wants}


def service() -> tuple[Hungry, FakeStore, BudgetService]:
    channel, store = Hungry(), FakeStore()
    return channel, store, BudgetService(BudgetParts("email", channel, store, FakeRetrying()))


async def test_the_database_is_asked_only_while_messages_wait() -> None:
    channel, store, leasing = service()
    await leasing.lease()
    assert store.asked == 0
    channel.wanted = [Want("relay", 60, 1)]
    await leasing.lease()
    assert channel.granted == [{"relay": 1}]


async def test_a_database_that_is_too_busy_grants_nothing() -> None:
    channel, store, leasing = service()
    channel.wanted = [Want("relay", 60, 1)]
    store.raising = Busy("no")
    await leasing.lease()
    assert channel.granted == []


async def test_it_ends_at_a_stop() -> None:
    *_, leasing = service()
    stop = asyncio.Event()
    stop.set()
    await leasing.run(stop)
