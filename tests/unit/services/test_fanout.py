"""The fan-out: which pages are leased, what is published of one, and whose lease is given back."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest

from contracts import routing
from tests.support.fakes import (
    FakeDepth,
    FakePublisher,
    FakeRetrying,
    FakeRoutes,
    FakeWakener,
    counts,
    metrics,
)
from worker.amqp.messages import Unroutable
from worker.db.pages import Page
from worker.domain.failures import Broken, Busy, Stopped
from worker.services.fanout import FanoutLimits, FanoutParts, FanoutService

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from worker.db.pages import Turn

NAMES = routing.Names("p")
EMAIL = NAMES.queue(routing.send_queue("email"))
NULL = NAMES.queue(routing.send_queue("null"))
LIMITS = FanoutLimits(
    channels=("email", "null"),
    owner="me",
    lease=60,
    look_after=30,
    high_water=1_000,
    ahead=0,
    page_size=2,
    small=0,
    shards=1,
    idle=7,
)


def page(delivery_id: int, number: int = 1, channel: str = "null", recipients: int = 1_000) -> Page:
    return Page(delivery_id, number, 10 * number, 10 * number + 1, channel, None, recipients)


@dataclass(frozen=True, slots=True)
class Asked:
    """One question for pages."""

    limit: int
    channels: list[str]
    after: int | None = None
    small_channels: list[str] = field(default_factory=list)


class FakePages:
    """Open pages, of deliveries with a limit and of others; a page has two recipients."""

    def __init__(self, plain: Sequence[Page] = (), paced: Sequence[Page] = ()) -> None:
        self.plain = list(plain)
        self.paced = list(paced)
        self.next_turn: float | None = None
        self.asked: list[Asked] = []
        self.asked_paced: list[Asked] = []
        self.done: list[Page] = []
        self.released: list[Page] = []
        self.releasing: Exception | None = None
        self.leased = 0

    @property
    def in_hand(self) -> int:
        return self.leased - len(self.done) - len(self.released)

    async def lease(self, turn: Turn, *, limit: int, seconds: float, owner: str) -> list[Page]:
        assert (seconds, owner) == (60, "me")
        self.asked.append(Asked(limit, list(turn.channels), turn.after, list(turn.small_channels)))
        taken, self.plain = self.plain[:limit], self.plain[limit:]
        self.leased += len(taken)
        return taken

    async def lease_paced(
        self, *, limit: int, seconds: float, owner: str, channels: Sequence[str]
    ) -> list[Page]:
        assert (seconds, owner) == (60, "me")
        self.asked_paced.append(Asked(limit, list(channels)))
        taken, self.paced = self.paced[:limit], self.paced[limit:]
        self.leased += len(taken)
        return taken

    async def seconds_to_next_turn(self) -> float | None:
        return self.next_turn

    async def read_sends(self, page: Page) -> Sequence[tuple[int, int, str]]:
        return [(recipient, 2, f'{{"to":{recipient}}}') for recipient in (page.first, page.last)]

    async def published(self, page: Page, owner: str, look_after: float) -> bool:
        assert (owner, look_after) == ("me", 30)
        self.done.append(page)
        return True

    async def release(self, page: Page, owner: str) -> None:
        assert owner == "me"
        self.released.append(page)
        if self.releasing is not None:
            raise self.releasing


class FailingPublisher(FakePublisher):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._error = error

    async def publish(self, *_: Any, **__: Any) -> None:
        raise self._error


class FullPublisher(FakePublisher):
    """Confirms nothing until it has some pages in hand, and has the service stopped then."""

    def __init__(self, most: int = 4) -> None:
        super().__init__()
        self.stop = asyncio.Event()
        self._most = most
        self._pages = 0

    async def publish(self, *args: Any, **options: Any) -> None:
        self._pages += 1
        if self._pages == self._most:
            self.stop.set()
        await self.stop.wait()
        await super().publish(*args, **options)


class SlowPublisher(FakePublisher):
    """Confirms the pages of the deliveries 1 to 3 only once a page of 6 is confirmed."""

    def __init__(self) -> None:
        super().__init__()
        self._confirmed = asyncio.Event()

    async def publish(self, exchange: str, routing_key: str, messages: Any, **options: Any) -> None:
        delivery = int(messages[0].message_id.split("-")[0])
        if delivery == 6:
            self._confirmed.set()
        if delivery <= 3:
            await self._confirmed.wait()
        await super().publish(exchange, routing_key, messages, **options)


class Wakener(FakeWakener):
    """Wakes nobody, and stops the service at its first wait without a page in hand."""

    def __init__(self, pages: FakePages) -> None:
        super().__init__()
        self._pages = pages

    async def wait(self, stop: asyncio.Event, seconds: float) -> None:
        for _ in range(5):  # a page that is published by now ends a wait beside it
            await asyncio.sleep(0)
        if self._pages.in_hand:
            await asyncio.Event().wait()
        await super().wait(stop, seconds)


class Setup:
    """A service on fakes; both send queues are empty."""

    def __init__(
        self,
        pages: FakePages | None = None,
        publisher: FakePublisher | None = None,
        fails: Mapping[str, Exception] | None = None,
        limits: FanoutLimits = LIMITS,
    ) -> None:
        self.pages = pages or FakePages()
        self.publisher = publisher or FakePublisher()
        self.routes = FakeRoutes()
        self.depth = FakeDepth({EMAIL: 0, NULL: 0})
        self.wakener = Wakener(self.pages)
        self.metrics = metrics()
        parts = FanoutParts(
            publisher=self.publisher,
            routes=self.routes,
            depth=self.depth,
            wakener=self.wakener,
            retrying=FakeRetrying(fails),
            pages=self.pages,
            names=NAMES,
            metrics=self.metrics,
        )
        self.service = FanoutService(parts, limits)

    async def run(self) -> None:
        """Runs the service until it has nothing more to do."""
        await self.service.run(asyncio.Event())


async def test_a_page_is_published_one_message_a_recipient_and_then_marked() -> None:
    setup = Setup()
    await setup.service.handle(page(42))
    assert [(p.exchange, p.routing_key, p.message.message_id) for p in setup.publisher.published] == [
        ("p.sendoff.sends", "null", "42-10-2"),
        ("p.sendoff.sends", "null", "42-11-2"),
    ]
    first = setup.publisher.published[0]
    assert (first.message.body, first.message.type, first.mandatory) == (b'{"to":10}', "send", True)
    assert setup.pages.done == [page(42)]
    assert setup.pages.released == []
    assert counts(setup.metrics.pages_published) == {(): 1}
    assert counts(setup.metrics.sends_published) == {("null",): 2}


@pytest.mark.parametrize("doing", ["reading a page", "checkpointing a page"])
async def test_where_the_database_is_too_busy_the_lease_is_given_back_and_nothing_counted(doing: str) -> None:
    setup = Setup(fails={doing: Busy("too busy")})
    await setup.service.handle(page(42))
    assert setup.pages.released == [page(42)]
    assert setup.pages.done == []
    assert counts(setup.metrics.pages_published) == {}


async def test_a_stop_while_the_broker_is_away_gives_the_lease_back_and_goes_on() -> None:
    setup = Setup(publisher=FailingPublisher(Stopped("stopped")))
    with pytest.raises(Stopped):
        await setup.service.handle(page(42))
    assert setup.pages.released == [page(42)]
    assert setup.pages.done == []


async def test_a_page_that_no_queue_takes_is_reported_and_holds_up_no_other_channel() -> None:
    class Publisher(FakePublisher):
        async def publish(self, exchange: str, routing_key: str, messages: Any, **options: Any) -> None:
            if routing_key == "email":
                raise Unroutable("no queue")
            await super().publish(exchange, routing_key, messages, **options)

    lost = [page(delivery, channel="email") for delivery in range(1, 5)]
    setup = Setup(FakePages([*lost, page(7)]), Publisher())
    await setup.run()
    assert sorted(setup.pages.released, key=lambda p: p.delivery_id) == lost
    assert [str(error) for error in setup.routes.reported] == ["no queue"] * 4
    assert setup.pages.done == [page(7)]
    assert setup.pages.asked[-1].channels == ["null"]
    assert setup.wakener.waited == [0.02]


async def test_a_cancelled_page_gives_its_lease_back() -> None:
    setup = Setup(publisher=FailingPublisher(asyncio.CancelledError()))
    with pytest.raises(asyncio.CancelledError):
        await setup.service.handle(page(42))
    assert setup.pages.released == [page(42)]


async def test_a_lease_that_cannot_be_given_back_runs_out_by_itself() -> None:
    setup = Setup(fails={"reading a page": Busy("too busy")})
    setup.pages.releasing = ConnectionResetError("gone")
    await setup.service.handle(page(42))
    assert setup.pages.released == [page(42)]


async def test_a_broken_database_ends_the_service() -> None:
    setup = Setup(FakePages([page(1)]), fails={"reading a page": Broken("forbidden")})
    with pytest.raises(ExceptionGroup) as caught:
        await setup.run()
    assert caught.group_contains(Broken)
    assert setup.pages.done == []


async def test_open_pages_are_all_published_before_the_service_rests() -> None:
    ours = [page(delivery) for delivery in range(1, 7)]
    setup = Setup(FakePages(ours))
    await setup.run()
    assert sorted(setup.pages.done, key=lambda p: p.delivery_id) == ours
    assert setup.wakener.waited == [7]


async def test_four_pages_are_in_hand_at_most_and_a_stop_has_them_finished() -> None:
    publisher = FullPublisher()
    setup = Setup(FakePages([page(delivery) for delivery in range(1, 12)]), publisher)
    await setup.service.run(publisher.stop)
    assert sorted(p.delivery_id for p in setup.pages.done) == [1, 2, 3, 4]
    assert len(setup.pages.plain) == 7
    assert setup.pages.released == []


async def test_pages_that_the_broker_does_not_confirm_leave_room_for_the_others() -> None:
    setup = Setup(FakePages([page(delivery) for delivery in range(1, 7)]), SlowPublisher())
    await setup.run()
    assert [asked.limit for asked in setup.pages.asked][:3] == [4, 1, 1]
    assert sorted(p.delivery_id for p in setup.pages.done) == [1, 2, 3, 4, 5, 6]


async def test_deliveries_get_their_turns_from_the_one_served_last() -> None:
    setup = Setup(FakePages([page(3), page(5), page(8)]))
    await setup.run()
    assert [asked.after for asked in setup.pages.asked] == [0, 8]


async def test_deliveries_with_a_limit_have_their_turns_first_and_the_others_get_the_rest() -> None:
    setup = Setup(FakePages([page(1), page(2)], paced=[page(7)]))
    await setup.run()
    assert (setup.pages.asked_paced[0].limit, setup.pages.asked[0].limit) == (4, 3)
    assert sorted(p.delivery_id for p in setup.pages.done) == [1, 2, 7]


async def test_turns_that_fill_all_there_is_room_for_leave_nothing_to_ask_the_others() -> None:
    setup = Setup(FakePages([page(1)], paced=[page(d) for d in range(10, 14)]))
    await setup.run()
    assert len(setup.pages.asked_paced) == len(setup.pages.asked) + 1


async def test_pages_that_are_leased_are_published_where_the_others_cannot_be_leased() -> None:
    busy = {"leasing pages": Busy("too busy")}
    setup = Setup(FakePages([page(1)], paced=[page(7)]), fails=busy)
    await setup.run()
    assert setup.pages.done == [page(7)]


async def test_a_small_delivery_goes_past_the_mark_and_its_messages_go_first() -> None:
    """A full queue holds up the large delivery alone."""
    small, large = page(7, recipients=10), page(8, recipients=11)
    setup = Setup(FakePages([small, large]), limits=replace(LIMITS, small=10))
    setup.depth.waiting = {EMAIL: 0, NULL: 1_000}
    await setup.run()
    assert setup.pages.asked[0].channels == ["email"]
    assert setup.pages.asked[0].small_channels == ["email", "null"]
    priorities = {p.message.message_id.split("-")[0]: p.message.priority for p in setup.publisher.published}
    assert priorities == {"7": 5, "8": None}


async def test_pages_go_to_the_shards_of_a_queue_in_turn() -> None:
    pages = [page(1, 1), page(1, 2), page(1, 3), page(2, 1), page(3, 1)]
    setup = Setup(FakePages(pages), limits=replace(LIMITS, shards=3))
    await setup.run()
    keys = {p.message.message_id.rpartition("-")[0]: p.routing_key for p in setup.publisher.published}
    shards = ["null.2", "null", "null.1", "null", "null.1"]
    assert [keys[f"{p.delivery_id}-{p.first}"] for p in pages] == shards


async def test_four_pages_in_hand_leave_places_for_small_deliveries() -> None:
    publisher = FullPublisher(7)
    pages = [page(delivery, recipients=10 if delivery > 4 else 11) for delivery in range(1, 8)]
    setup = Setup(FakePages(pages), publisher, limits=replace(LIMITS, small=10))
    await setup.service.run(publisher.stop)
    assert [(asked.limit, asked.channels) for asked in setup.pages.asked][:2] == [
        (4, ["email", "null"]),
        (4, []),
    ]
    assert len(setup.pages.done) == 7


@pytest.mark.parametrize("waiting", [1_000, None], ids=["full", "nobody can say"])
async def test_a_channel_whose_queue_has_no_room_waits_and_is_looked_at_again_soon(
    waiting: int | None,
) -> None:
    setup = Setup()
    setup.depth.waiting = {NULL: 999} if waiting is None else {NULL: 999, EMAIL: waiting}
    await setup.run()
    assert [asked.channels for asked in (*setup.pages.asked, *setup.pages.asked_paced)] == [["null"]] * 2
    assert setup.wakener.waited == [0.02]


@pytest.mark.parametrize(
    ("next_turn", "waits"), [(None, 7), (30, 7), (2, 2), (0, 0.01)], ids=["none", "late", "soon", "now"]
)
async def test_it_waits_until_the_next_turn_of_a_delivery_with_a_limit(
    next_turn: float | None, waits: float
) -> None:
    setup = Setup()
    setup.pages.next_turn = next_turn
    await setup.run()
    assert setup.wakener.waited == [waits]


async def test_where_the_next_turn_cannot_be_read_it_waits_as_without_one() -> None:
    setup = Setup(fails={"reading the next turn": Busy("too busy")})
    setup.pages.next_turn = 2
    await setup.run()
    assert setup.wakener.waited == [7]
