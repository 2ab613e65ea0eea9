"""The reports of what a sender holds back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.support.fakes import FakeRetrying
from worker.channels.null import NullChannel
from worker.channels.protocol import HeldLane
from worker.domain.failures import Busy
from worker.services.flow import FlowParts, FlowService

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.db.flow import LaneReport


class Holding(NullChannel):
    """Holds back what it is told."""

    def __init__(self) -> None:
        self.lanes: list[HeldLane] = []

    def held(self, now: float) -> list[HeldLane]:
        return [lane._replace(opens_at=now + lane.opens_at) for lane in self.lanes]


class FakeStore:
    """Keeps every report."""

    def __init__(self) -> None:
        self.reports: list[Sequence[LaneReport]] = []
        self.raising: Exception | None = None

    async def report(self, owner: str, channel: str, lanes: Sequence[LaneReport]) -> None:
        assert (owner, channel) == ("me", "email")
        if self.raising:
            raise self.raising
        self.reports.append(lanes)


def service() -> tuple[Holding, FakeStore, FlowService]:
    channel, store = Holding(), FakeStore()
    return channel, store, FlowService(FlowParts("email", channel, "me", store, FakeRetrying()))


async def test_nothing_is_reported_while_nothing_is_held_back() -> None:
    _, store, flow = service()
    await flow.report()
    assert store.reports == []


async def test_what_is_held_back_is_reported_and_its_end_once() -> None:
    channel, store, flow = service()
    channel.lanes = [HeldLane("busy.example", 0, 7, 5.0, "421 \0 later" + "x" * 1_000)]
    await flow.report()
    ((first,),) = store.reports
    assert (first.domain, first.connections, first.per_minute) == ("busy.example", 0, 0)
    assert 0 < first.pause <= 5
    assert first.why.startswith("421   later")
    assert len(first.why) == 500
    channel.lanes = [channel.lanes[0]._replace(answered=9, opens_at=-1)]
    await flow.report()
    assert store.reports[1][0].per_minute > 0
    assert store.reports[1][0].pause == 0
    channel.lanes = []
    for _ in range(3):
        await flow.report()
    assert store.reports[2:] == [[]]


async def test_a_database_that_is_too_busy_costs_one_report() -> None:
    channel, store, flow = service()
    channel.lanes = [HeldLane("busy.example", 1, 0, 0.0, "421")]
    store.raising = Busy("no")
    await flow.report()
    store.raising = None
    await flow.report()
    assert len(store.reports) == 1


async def test_it_ends_at_a_stop() -> None:
    *_, flow = service()
    stop = asyncio.Event()
    stop.set()
    await flow.run(stop)
