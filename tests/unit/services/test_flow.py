"""The leases of messages, and the reports of what a sender holds back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.support.fakes import FakeRetrying
from worker.channels.protocol import HeldLane, Share, Want
from worker.domain.failures import Busy
from worker.services.flow import FlowParts, FlowService

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from worker.channels.protocol import Lane
    from worker.db.flow import LaneReport


class FakeLanes:
    """Holds back and wants what it is told."""

    def __init__(self) -> None:
        self.lanes: list[HeldLane] = []
        self.wanted: list[Want] = []
        self.shared: list[Share] = []
        self.granted: list[Mapping[str, int]] = []

    def of(self, address: str) -> Lane:
        raise AssertionError(address)

    def held(self, now: float) -> list[HeldLane]:
        return [lane._replace(opens_at=now + lane.opens_at) for lane in self.lanes]

    def wants(self) -> list[Want]:
        return self.wanted

    def shares(self) -> list[Share]:
        return self.shared

    def grant(self, granted: Mapping[str, int], now: float) -> None:  # noqa: ARG002
        self.granted.append(granted)


class FakeStore:
    """Keeps every report and grants all, or raises."""

    def __init__(self) -> None:
        self.reports: list[Sequence[LaneReport]] = []
        self.asked = 0
        self.raising: Exception | None = None

    async def report(self, owner: str, channel: str, lanes: Sequence[LaneReport]) -> None:
        assert (owner, channel) == ("me", "email")
        if self.raising:
            raise self.raising
        self.reports.append(lanes)

    async def lease(self, owner: str, wants: Sequence[Want], shares: Sequence[Share]) -> dict[str, int]:
        assert owner == "me"
        self.asked += 1
        if self.raising:
            raise self.raising
        return {want.name: want.messages for want in wants} | {share.name: 1 for share in shares}


def service() -> tuple[FakeLanes, FakeStore, FlowService]:
    lanes, store = FakeLanes(), FakeStore()
    return lanes, store, FlowService(FlowParts("email", lanes, "me", store, FakeRetrying()))


async def test_nothing_is_reported_while_nothing_is_held_back() -> None:
    _, store, flow = service()
    await flow.report()
    assert store.reports == []


async def test_what_is_held_back_is_reported_and_its_end_once() -> None:
    lanes, store, flow = service()
    lanes.lanes = [HeldLane("relay", "busy.example", 0, 7, 5.0, "421 \0 later" + "x" * 1_000)]
    await flow.report()
    ((first,),) = store.reports
    assert first[:4] == ("relay", "busy.example", 0, 0)
    assert 0 < first.pause <= 5
    assert first.why.startswith("421   later")
    assert len(first.why) == 500
    lanes.lanes = [lanes.lanes[0]._replace(answered=9, opens_at=-1)]
    await flow.report()
    assert store.reports[1][0].per_minute > 0
    assert store.reports[1][0].pause == 0
    lanes.lanes = []
    for _ in range(3):
        await flow.report()
    assert store.reports[2:] == [[]]


async def test_a_database_that_is_too_busy_costs_one_report() -> None:
    lanes, store, flow = service()
    lanes.lanes = [HeldLane("relay", "busy.example", 1, 0, 0.0, "421")]
    store.raising = Busy("no")
    await flow.report()
    store.raising = None
    await flow.report()
    assert len(store.reports) == 1


async def test_messages_are_leased_only_while_some_wait() -> None:
    lanes, store, flow = service()
    await flow.lease()
    assert store.asked == 0
    lanes.wanted = [Want("relay", 60, 1)]
    await flow.lease()
    lanes.wanted, lanes.shared = [], [Share("few connections", 5)]
    await flow.lease()
    assert lanes.granted == [{"relay": 1}, {"few connections": 1}]


async def test_a_database_that_is_too_busy_grants_nothing() -> None:
    lanes, store, flow = service()
    lanes.wanted = [Want("relay", 60, 1)]
    store.raising = Busy("no")
    await flow.lease()
    assert lanes.granted == []


async def test_it_ends_at_a_stop() -> None:
    *_, flow = service()
    stop = asyncio.Event()
    stop.set()
    await flow.run(stop)
