"""The stats service: who shares a recount, what is the answer, what is buried and what is settled."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from contracts import routing
from contracts.commands import Reply
from contracts.stats import Stats
from tests.support.fakes import (
    FakeConsumer,
    FakeDead,
    FakePublisher,
    FakeRetrying,
    counts,
    incoming,
    metrics,
)
from worker.db.stats import Recount, TookTooLong
from worker.domain.failures import Broken, Busy
from worker.services.stats import StatsLimits, StatsParts, StatsService

if TYPE_CHECKING:
    from collections.abc import Iterable

    from worker.amqp.messages import Incoming

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
KEY = "delivery.compute-stats"
BUSY = Busy("The database was too busy for it.")


def request(number: int, name: str = "q", reply_to: str | None = "answers") -> Incoming:
    body = json.dumps({"delivery_id": number}).encode()
    return incoming(body, routing.COMPUTE_STATS, message_id=name, reply_to=reply_to)


def recount(number: int, drift: dict[str, int] | None = None, **changes: Any) -> Recount:
    """What a recount of a delivery of four recipients finds, if one of them was sent to."""
    row: dict[str, Any] = dict.fromkeys(Stats.model_fields, 0)
    row |= dict.fromkeys(("contact_date", "confirmed_at", "started_at", "finished_at", "updated_at"))
    row |= {name: None for name in row if name.endswith("_pct")}
    row |= {"delivery_id": number, "label": "Test", "channel": "null", "state": "in_progress"}
    row |= {"preparation": 2, "to_deliver": 4, "sent": 1, "pending": 3, "sent_pct": Decimal("25.00")}
    for name in ("status", "as_of", "exact", "drift", "excluded_by_cause"):
        del row[name]
    return Recount(row | {"a column of tomorrow": 1} | changes, {"invalid": 2}, NOON, drift or {})


class FakeStatistics:
    """The deliveries that there are; the recount of one that is in `let_go` waits for its event."""

    def __init__(self, *found: Recount) -> None:
        self.found = {recount.deployment["delivery_id"]: recount for recount in found}
        self.recounted: Counter[int] = Counter()
        self.under_way: Counter[int] = Counter()
        self.most_under_way = 0
        self.begun = asyncio.Semaphore(0)
        self.let_go: dict[int, asyncio.Event] = {}
        self.raises: Exception | None = None
        self.deadlines: set[float] = set()

    async def recount(self, delivery_id: int, *, deadline: float) -> Recount | None:
        self.recounted[delivery_id] += 1
        self.deadlines.add(deadline)
        if self.raises:
            raise self.raises
        self.under_way[delivery_id] += 1
        self.most_under_way = max(self.most_under_way, self.under_way.total())
        self.begun.release()
        if delivery_id in self.let_go:
            await self.let_go[delivery_id].wait()
        self.under_way[delivery_id] -= 1
        return self.found.get(delivery_id)

    async def live(self, delivery_id: int) -> Recount | None:
        found = self.found.get(delivery_id)
        return found and Recount(found.deployment, found.excluded_by_cause, NOON, {}, exact=False)


class Setup:
    """A service on fakes."""

    def __init__(
        self,
        *found: Recount,
        messages: Iterable[Incoming] = (),
        publisher: FakePublisher | None = None,
        fails: dict[str, Exception] | None = None,
        at_once: int = 10,
    ) -> None:
        self.statistics = FakeStatistics(*found)
        self.consumer = FakeConsumer(messages)
        self.publisher = publisher or FakePublisher()
        self.dead = FakeDead()
        self.metrics = metrics()
        self.service = StatsService(
            StatsParts(
                consumer=self.consumer,
                publisher=self.publisher,
                dead=self.dead,
                statistics=self.statistics,
                retrying=FakeRetrying(fails),
                metrics=self.metrics,
            ),
            StatsLimits(deadline=5, at_once=at_once),
        )

    async def handle(self, *messages: Incoming) -> None:
        """Hands requests over at the same time, and waits until they are answered."""
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            for message in messages:
                self.service.handle(message, group)

    @property
    def answers(self) -> list[dict[str, Any]]:
        return [json.loads(p.message.body) for p in self.publisher.published]

    @property
    def counted(self) -> dict[tuple[str, ...], float]:
        return counts(self.metrics.commands)


async def test_every_request_is_answered_with_the_recount() -> None:
    setup = Setup(recount(7))
    message = request(7, "q1")
    await setup.handle(message)
    (published,) = setup.publisher.published
    assert (published.exchange, published.routing_key, published.mandatory) == ("", "answers", False)
    assert (published.message.correlation_id, published.message.type) == ("q1", routing.TYPE_STATS)
    stats = Stats.model_validate_json(published.message.body)
    assert (stats.delivery_id, stats.to_deliver, stats.sent_pct) == (7, 4, 25)
    assert (stats.preparation, stats.excluded_by_cause, stats.as_of) == (2, {"invalid": 2}, NOON)
    assert (stats.exact, stats.drift) == (True, {})
    assert setup.consumer.acknowledged == [message]
    assert setup.counted == {(KEY, "accepted", ""): 1}
    assert setup.statistics.deadlines == {5}


async def test_a_delivery_without_a_preparation_has_none_in_the_answer() -> None:
    setup = Setup(recount(7, preparation=0))
    await setup.handle(request(7))
    assert setup.answers[0]["preparation"] is None


async def test_who_asks_at_the_same_time_gets_the_same_recount() -> None:
    setup = Setup(recount(7), recount(8))
    messages = [request(number, f"q{i}") for i, number in enumerate([7, 8, 7, 7, 8])]
    await setup.handle(*messages)
    assert setup.statistics.recounted == {7: 1, 8: 1}
    told = {p.message.correlation_id: json.loads(p.message.body) for p in setup.publisher.published}
    assert {name: answer["delivery_id"] for name, answer in told.items()} == {
        "q0": 7,
        "q1": 8,
        "q2": 7,
        "q3": 7,
        "q4": 8,
    }
    assert sorted(m.message_id for m in setup.consumer.acknowledged) == ["q0", "q1", "q2", "q3", "q4"]
    assert setup.counted == {(KEY, "accepted", ""): 5}


async def test_who_asks_during_a_recount_gets_the_next_one() -> None:
    setup = Setup(recount(7))
    let_go = setup.statistics.let_go[7] = asyncio.Event()
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        setup.service.handle(request(7, "first"), group)
        await setup.statistics.begun.acquire()
        setup.service.handle(request(7, "second"), group)
        setup.service.handle(request(7, "third"), group)
        setup.statistics.found[7] = recount(7, sent=2, pending=2)
        let_go.set()
    assert setup.statistics.recounted == {7: 2}
    assert [m.message_id for m in setup.consumer.acknowledged] == ["first", "second", "third"]
    assert (setup.statistics.most_under_way, len(setup.answers)) == (1, 3)


async def test_once_all_are_answered_the_next_request_is_recounted() -> None:
    setup = Setup(recount(7))
    await setup.handle(request(7))
    await setup.handle(request(7))
    assert (setup.statistics.recounted, len(setup.answers)) == ({7: 2}, 2)


async def test_deliveries_are_recounted_side_by_side_up_to_the_limit() -> None:
    numbers = range(1, 6)
    setup = Setup(*(recount(n) for n in numbers), at_once=2)
    let_go = asyncio.Event()
    setup.statistics.let_go = dict.fromkeys(numbers, let_go)
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        for number in numbers:
            setup.service.handle(request(number), group)
        for _ in range(2):
            await setup.statistics.begun.acquire()
        let_go.set()
    assert (setup.statistics.most_under_way, len(setup.answers)) == (2, 5)


async def test_who_wants_no_answer_gets_none_and_the_repair_is_made() -> None:
    setup = Setup(recount(7, drift={"sent": -2, "errors": 1}))
    message = request(7, reply_to=None)
    await setup.handle(message)
    assert (setup.answers, setup.consumer.acknowledged) == ([], [message])
    assert counts(setup.metrics.stats_drift) == {(): 3}
    assert setup.counted == {(KEY, "accepted", ""): 1}


async def test_drift_is_told_and_counted_once_however_many_ask() -> None:
    setup = Setup(recount(7, drift={"sent": -2}))
    await setup.handle(request(7), request(7))
    assert [answer["drift"] for answer in setup.answers] == [{"sent": -2}] * 2
    assert counts(setup.metrics.stats_drift) == {(): 2}


async def test_an_unknown_delivery_is_refused_to_each_by_name() -> None:
    setup = Setup()
    messages = [request(7, "q1"), request(7, "q2"), request(7, "q3", reply_to=None)]
    await setup.handle(*messages)
    replies = [Reply.model_validate(answer) for answer in setup.answers]
    assert [(r.command_id, r.delivery_id) for r in replies] == [("q1", 7), ("q2", 7)]
    assert {(r.status, r.reason, r.message) for r in replies} == {
        ("refused", "delivery_unknown", "There is no delivery 7.")
    }
    assert {p.message.type for p in setup.publisher.published} == {routing.TYPE_REPLY}
    assert (setup.consumer.acknowledged, setup.dead.buried) == (messages, [])
    assert setup.counted == {(KEY, "refused", "delivery_unknown"): 3}


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"delivery_id": "7"}', b'{"delivery_id": 0}'])
async def test_what_cannot_be_read_is_answered(body: bytes) -> None:
    setup = Setup(recount(7))
    message = incoming(body, routing.COMPUTE_STATS, message_id="q1", reply_to="answers")
    await setup.handle(message)
    reply = Reply.model_validate(setup.answers[0])
    assert (reply.command_id, reply.status, reply.reason) == ("q1", "invalid", "malformed")
    assert reply.message.startswith("The request could not be read: ")
    assert (setup.consumer.acknowledged, setup.dead.buried) == ([message], [])
    assert setup.counted == {(KEY, "invalid", "malformed"): 1}


async def test_what_cannot_be_read_and_wants_no_answer_is_buried() -> None:
    setup = Setup()
    message = incoming(b"{", routing.COMPUTE_STATS)
    await setup.handle(message)
    ((buried, reason, _),) = setup.dead.buried
    assert buried is message
    assert reason.startswith("The request could not be read: ")
    assert (setup.consumer.acknowledged, setup.answers, setup.counted) == ([message], [], {})


@pytest.mark.parametrize("why", ["it takes too long", "the database is busy"])
async def test_without_a_recount_the_live_counters_are_the_answer(why: str) -> None:
    setup = Setup(recount(7), fails={"computing stats": BUSY} if "busy" in why else {})
    setup.statistics.raises = TookTooLong()
    await setup.handle(request(7))
    (answer,) = setup.answers
    assert (answer["status"], answer["exact"], answer["sent"]) == ("accepted", False, 1)
    assert (len(setup.consumer.acknowledged), setup.dead.buried) == (1, [])


async def test_where_the_counters_cannot_be_read_either_the_requests_are_buried() -> None:
    setup = Setup(recount(7), fails={"computing stats": BUSY, "reading the live counters": BUSY})
    messages = [request(7, "q1"), request(7, "q2")]
    await setup.handle(*messages)
    assert [message for message, _, _ in setup.dead.buried] == messages
    assert set(setup.dead.reasons) == {str(BUSY)}
    assert (setup.consumer.acknowledged, setup.answers, setup.counted) == (messages, [], {})


async def test_a_fault_of_ours_buries_the_requests_of_one_delivery_and_no_others() -> None:
    setup = Setup(recount(7, state="nonsense"), recount(8))
    await setup.handle(request(7, "q1"), request(8, "q2"))
    ((buried, reason, _),) = setup.dead.buried
    assert buried.message_id == "q1"
    assert reason.startswith("It could not be handled: 1 validation error for Stats")
    assert [answer["delivery_id"] for answer in setup.answers] == [8]
    assert {m.message_id for m in setup.consumer.acknowledged} == {"q1", "q2"}


async def test_who_can_be_answered_is_answered_before_a_fault_is_raised() -> None:
    class Choosy(FakePublisher):
        async def publish(self, exchange: str, routing_key: str, *messages: Any, **options: Any) -> None:
            if routing_key == "gone":
                raise LookupError(routing_key)
            for _ in range(9):  # so that the other answer fails long before
                await asyncio.sleep(0)
            buried_before.extend(setup.dead.reasons)
            await super().publish(exchange, routing_key, *messages, **options)

    buried_before: list[str] = []
    setup = Setup(recount(7), publisher=Choosy())
    await setup.handle(request(7, "q1", "gone"), request(7, "q2"))
    assert [p.message.correlation_id for p in setup.publisher.published] == ["q2"]
    assert (buried_before, len(setup.consumer.acknowledged)) == ([], 2)
    assert setup.dead.reasons == ["It could not be handled: LookupError('gone')"] * 2


async def test_a_broken_database_ends_the_service_and_settles_nothing() -> None:
    setup = Setup(messages=[request(7)], fails={"computing stats": Broken("forbidden")})
    with pytest.raises(ExceptionGroup) as died:
        await setup.service.run(asyncio.Event())
    assert died.group_contains(Broken)
    assert (setup.consumer.acknowledged, setup.dead.buried) == ([], [])
    assert not setup.consumer.consuming


async def test_it_answers_all_that_was_delivered_before_the_end() -> None:
    messages = [request(number, f"q{number}") for number in (7, 8, 9)]
    setup = Setup(recount(7), recount(8), messages=messages)
    await setup.service.run(asyncio.Event())
    assert {m.message_id for m in setup.consumer.acknowledged} == {"q7", "q8", "q9"}
    assert (len(setup.answers), setup.consumer.consuming) == (3, False)
