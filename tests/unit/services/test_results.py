"""The results service: what of a batch is recorded, in which order, and what is buried with which reason."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from contracts import routing
from contracts.events import Figures
from tests.support.fakes import (
    FakeConsumer,
    FakeDead,
    FakeRetrying,
    FakeSizes,
    counts,
    incoming,
    metrics,
)
from tests.support.results import bounced, result
from worker.db.breaker import Progress
from worker.db.retrying import Unstorable
from worker.domain.breaker import BreakerLimits, Tripped
from worker.domain.failures import Broken, Busy
from worker.domain.outcomes import OutcomeStatus
from worker.domain.retry import Retries
from worker.services.results import ResultsLimits, ResultsParts, ResultsService

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.amqp.messages import Incoming
    from worker.domain.outcomes import Facts

LIMITS = ResultsLimits(
    batch=100,
    age=0,
    breaker=BreakerLimits(minimum=10, hard_bounce_pct=5, error_pct=5, refused_pct=5),
    retries=Retries((60,), 3),
)
TRIPPED = Tripped(
    "Too many bounce.",
    Figures(
        attempted=10,
        bounced_hard=9,
        errors=0,
        hard_bounce_pct=90,
        error_pct=0,
        hard_bounce_limit_pct=5,
        error_limit_pct=5,
    ),
)


class FakeRecorder:
    """Keeps the facts of recipients; refuses rows, or whole deliveries, that are given an exception."""

    def __init__(self) -> None:
        self.known: dict[tuple[int, int], Facts] = {}
        self.written: list[tuple[int, list[int]]] = []
        self.refused: dict[tuple[int, int], Exception] = {}

    async def record(self, delivery_id: int, folded: Mapping[int, Facts], retries: Retries) -> int:
        assert retries == LIMITS.retries
        for recipient in folded:
            if (error := self.refused.get((delivery_id, recipient))) is not None:
                raise error
        self.written.append((delivery_id, list(folded)))
        new = {(delivery_id, recipient): known for recipient, known in folded.items()}
        moved = sum(self.known.get(key) != known for key, known in new.items())
        self.known |= new
        return moved


class FakeBreaker:
    """Says how far deliveries are, and pauses those that it is told to."""

    def __init__(self) -> None:
        self.seen: dict[int, Progress] = {}
        self.asked: list[int] = []
        self.tripping = True
        self.paused: list[int] = []

    async def progress(self, delivery_id: int, defaults: BreakerLimits) -> Progress:
        assert defaults == LIMITS.breaker
        self.asked.append(delivery_id)
        return self.seen.get(delivery_id, Progress(complete=False, verdict=None))

    async def trip(self, delivery_id: int, defaults: BreakerLimits) -> Tripped | None:
        assert defaults == LIMITS.breaker
        if not self.tripping:
            return None
        self.paused.append(delivery_id)
        return TRIPPED


class FakeFinisher:
    def __init__(self) -> None:
        self.finished: list[int] = []

    async def finish(self, delivery_id: int) -> bool:
        self.finished.append(delivery_id)
        return True


class Setup:
    """A service on fakes; deliveries 1 and 2 have 5,000 recipients each."""

    def __init__(self, *messages: Incoming, fails: Mapping[str, Exception] | None = None) -> None:
        self.sizes: dict[int, int | Busy] = {1: 5_000, 2: 5_000}
        self.asked = FakeSizes(self.sizes)
        self.consumer = FakeConsumer(messages)
        self.dead = FakeDead()
        self.recorder = FakeRecorder()
        self.breaker = FakeBreaker()
        self.finisher = FakeFinisher()
        self.metrics = metrics()
        parts = ResultsParts(
            consumers=[self.consumer],
            dead=self.dead,
            retrying=FakeRetrying(fails),
            recorder=self.recorder,
            sizes=self.asked,
            breaker=self.breaker,
            finisher=self.finisher,
            metrics=self.metrics,
        )
        self.service = ResultsService(parts, LIMITS)

    @property
    def buried(self) -> list[tuple[Incoming, str, list[int]]]:
        """What is in the dead queue: the message, the reason and the recipients that its part names."""
        return [
            (message, reason, [item["recipient"] for item in json.loads(body or b"[]")])
            for message, reason, body in self.dead.buried
        ]


def sent(*results: tuple[int, int]) -> Incoming:
    return incoming(json.dumps([result(*r) for r in results]).encode(), routing.SENT)


def hard_bounce(number: int, recipient: int) -> Incoming:
    return incoming(json.dumps(bounced(number, recipient)).encode(), routing.BOUNCE)


async def test_a_batch_is_written_by_delivery_and_recipient_in_their_order() -> None:
    setup = Setup()
    await setup.service.handle([sent((2, 9), (1, 30)), sent((2, 1)), hard_bounce(1, 4)])
    assert setup.recorder.written == [(1, [4, 30]), (2, [1, 9])]
    assert not setup.dead.buried


async def test_what_several_messages_say_of_a_recipient_is_one_row() -> None:
    setup = Setup()
    await setup.service.handle([hard_bounce(1, 4), sent((1, 4), (1, 4))])
    assert setup.recorder.written == [(1, [4])]
    known = setup.recorder.known[1, 4]
    assert known.status is OutcomeStatus.BOUNCED_HARD
    assert known.sent_at is not None
    assert counts(setup.metrics.results_recorded) == {(): 1}


async def test_a_body_that_cannot_be_read_is_buried_and_its_neighbours_are_recorded() -> None:
    setup = Setup()
    broken = incoming(b"{", routing.SENT)
    await setup.service.handle([broken, sent((1, 4))])
    ((message, reason, body),) = setup.dead.buried
    assert (message, body) == (broken, b"{")
    assert reason.startswith("The result could not be read: The body is not JSON")
    assert setup.recorder.written == [(1, [4])]


async def test_of_an_array_only_the_item_that_cannot_be_read_is_buried() -> None:
    setup = Setup()
    bad = {**result(1, 5), "attempt": 0}
    await setup.service.handle([incoming(json.dumps([result(1, 4), bad]).encode(), routing.SENT)])
    ((_, reason, body),) = setup.dead.buried
    assert reason.startswith("The result could not be read: ")
    assert json.loads(body or b"") == bad
    assert setup.recorder.written == [(1, [4])]


async def test_a_result_under_an_unknown_routing_key_is_buried() -> None:
    setup = Setup()
    await setup.service.handle([incoming(json.dumps(result(1, 4)).encode(), "delivered")])
    assert setup.dead.reasons == ["The result could not be read: No result has the routing key 'delivered'."]
    assert setup.recorder.written == []


async def test_absent_recipients_are_buried_each_message_with_what_it_said_itself() -> None:
    setup = Setup()
    setup.sizes[1] = 9
    first, second = sent((1, 9), (1, 10), (2, 10)), hard_bounce(1, 11)
    await setup.service.handle([first, second])
    why = "The delivery has 9 recipients, and none of this number."
    assert setup.buried == [(first, why, [10]), (second, why, [11])]
    assert setup.recorder.written == [(1, [9]), (2, [10])]


async def test_results_of_a_delivery_that_does_not_exist_are_buried_and_nothing_is_written() -> None:
    setup = Setup()
    message = sent((7, 1))
    await setup.service.handle([message])
    why = "The delivery does not exist, was never confirmed, or has left by retention."
    assert setup.buried == [(message, why, [1])]
    assert setup.recorder.written == []
    assert setup.breaker.asked == []


async def test_where_the_size_cannot_be_read_a_deliverys_results_are_buried_and_no_others() -> None:
    setup = Setup()
    setup.sizes[1] = Busy("too busy")
    message = sent((1, 4), (2, 4), (1, 3))
    await setup.service.handle([message])
    assert setup.buried == [(message, "too busy", [4, 3])]
    assert setup.recorder.written == [(2, [4])]


async def test_rows_for_which_the_database_is_too_busy_are_buried_and_no_others() -> None:
    setup = Setup()
    setup.recorder.refused[1, 4] = Busy("too busy")
    message = sent((1, 4), (1, 3), (2, 4))
    await setup.service.handle([message])
    assert setup.buried == [(message, "The result cannot be stored: too busy", [4, 3])]
    assert setup.recorder.written == [(2, [4])]
    assert setup.breaker.asked == [2]


async def test_a_row_that_the_database_refuses_is_buried_alone() -> None:
    setup = Setup()
    setup.recorder.refused[1, 3] = Unstorable("a bad value")
    message = sent(*((1, recipient) for recipient in range(1, 6)))
    await setup.service.handle([message])
    assert setup.buried == [(message, "The result cannot be stored: a bad value", [3])]
    assert [r for _, recipients in setup.recorder.written for r in recipients] == [1, 2, 4, 5]
    assert counts(setup.metrics.results_recorded) == {(): 4}


async def test_where_a_delivery_has_left_all_of_it_is_buried_at_once() -> None:
    setup = Setup()
    left = Unstorable("no partition")
    left.__cause__ = asyncpg.CheckViolationError("no partition of relation found for row")
    setup.recorder.refused[1, 3] = left
    message = sent((1, 3), (1, 4))
    await setup.service.handle([message])
    assert setup.buried == [
        (message, "The result cannot be stored: the delivery has left by retention", [3, 4])
    ]


async def test_a_statement_writes_2000_rows_at_most() -> None:
    setup = Setup()
    numbers = range(1, 2_002)
    await setup.service.handle(
        [sent(*((1, r) for r in numbers[at : at + 1_000])) for at in (0, 1_000, 2_000)]
    )
    assert [(first[0], first[-1]) for _, first in setup.recorder.written] == [(1, 2_000), (2_001, 2_001)]
    assert setup.breaker.asked == [1]


async def test_a_doubled_batch_is_written_and_moves_nothing() -> None:
    setup = Setup()
    for _ in range(2):
        await setup.service.handle([sent((1, 3), (1, 4))])
    assert counts(setup.metrics.results_recorded) == {(): 4}
    assert counts(setup.metrics.outcomes_moved) == {(): 2}
    assert setup.breaker.asked == [1]


@pytest.mark.parametrize(
    ("seen", "tripping", "finished", "paused"),
    [
        (Progress(complete=True, verdict=None), True, [1], []),
        (Progress(complete=False, verdict=None), True, [], []),
        (Progress(complete=False, verdict=TRIPPED), True, [], [1]),
        (Progress(complete=False, verdict=TRIPPED), False, [], []),
        (Progress(complete=True, verdict=TRIPPED), True, [], [1]),
        (Progress(complete=True, verdict=TRIPPED), False, [1], []),
    ],
    ids=[
        "done",
        "going on",
        "too much goes wrong",
        "somebody else was first",
        "all are refused",
        "so says another",
    ],
)
async def test_a_delivery_that_moved_is_finished_or_paused_where_it_must_be(
    seen: Progress, finished: list[int], paused: list[int], *, tripping: bool
) -> None:
    setup = Setup()
    setup.breaker.seen[1], setup.breaker.tripping = seen, tripping
    await setup.service.handle([sent((1, 3))])
    assert (setup.finisher.finished, setup.breaker.paused) == (finished, paused)
    assert counts(setup.metrics.breaker_trips) == ({(): 1} if paused else {})


async def test_what_is_recorded_stays_so_where_the_look_at_the_delivery_has_to_wait() -> None:
    setup = Setup(fails={"looking how far a delivery is": Busy("too busy")})
    await setup.service.handle([sent((1, 3), (2, 3))])
    assert setup.recorder.written == [(1, [3]), (2, [3])]
    assert not setup.dead.buried


async def test_messages_are_settled_once_they_are_recorded_or_buried() -> None:
    messages = [sent((1, 3)), incoming(b"{", routing.SENT)]
    setup = Setup(*messages)
    await setup.service.run(asyncio.Event())
    assert setup.consumer.acknowledged == messages


async def test_a_broken_database_ends_the_service_and_settles_and_buries_nothing() -> None:
    setup = Setup(sent((1, 3)), fails={"recording results": Broken("forbidden")})
    with pytest.raises(ExceptionGroup) as caught:
        await setup.service.run(asyncio.Event())
    assert caught.group_contains(Broken)
    left: Any = (setup.consumer.acknowledged, setup.dead.buried)
    assert left == ([], [])


async def test_strangers_cost_one_read_and_one_publish_however_many_they_are() -> None:
    setup = Setup()
    strangers = [sent(*((1_000 * n + number, 1) for number in range(1_000))) for n in range(1, 4)]
    await setup.service.handle([*strangers, sent((1, 1))])
    assert [message for message, _, _ in setup.buried] == strangers
    assert (setup.asked.calls, setup.dead.calls) == (1, 1)
    assert setup.recorder.written == [(1, [1])]
