"""The tracking service: what of a batch is recorded, whose it counts as, and what goes to the dead queue."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from contracts import routing
from tests.support.fakes import (
    FakeConsumer,
    FakeDead,
    FakeRetrying,
    FakeSizes,
    counts,
    incoming,
    metrics,
)
from tests.support.tracking import APPLE, SCANNER, event
from worker.db.retrying import Unstorable
from worker.db.tracking import TrackingChanges
from worker.domain.failures import Broken, Busy
from worker.domain.machines import own_rules
from worker.services.tracking import TrackingLimits, TrackingParts, TrackingService

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from worker.amqp.messages import Incoming
    from worker.domain.tracking import Tracked

MACHINES = own_rules()


class FakeRecorder:
    """Keeps events by their id; refuses those that are given an exception."""

    def __init__(self) -> None:
        self.known: dict[tuple[int, str], Tracked] = {}
        self.written: list[tuple[int, list[str]]] = []
        self.refused: dict[str, Exception] = {}

    async def record(self, delivery_id: int, tracked: Sequence[Tracked], rules: str) -> TrackingChanges:
        assert rules == MACHINES.version
        for row in tracked:
            if (error := self.refused.get(row.event.event_id)) is not None:
                raise error
        self.written.append((delivery_id, [row.event.event_id for row in tracked]))
        new = [row for row in tracked if (delivery_id, row.event.event_id) not in self.known]
        self.known |= {(delivery_id, row.event.event_id): row for row in new}
        machines = sum(row.machine_rule is not None for row in new)
        return TrackingChanges(len(new), machines, len({row.event.recipient for row in new if row.heeded}))


class Setup:
    """A service on fakes; deliveries 1 and 2 have 9 recipients each."""

    def __init__(self, *messages: Incoming, fails: Mapping[str, Exception] | None = None) -> None:
        self.sizes: dict[int, int | Busy] = {1: 9, 2: 9}
        self.consumer = FakeConsumer(messages)
        self.dead = FakeDead()
        self.recorder = FakeRecorder()
        self.metrics = metrics()
        parts = TrackingParts(
            consumer=self.consumer,
            dead=self.dead,
            retrying=FakeRetrying(fails),
            recorder=self.recorder,
            sizes=FakeSizes(self.sizes),
            machines=MACHINES,
            metrics=self.metrics,
        )
        self.service = TrackingService(parts, TrackingLimits(batch=100, age=0))

    @property
    def buried(self) -> list[tuple[Incoming, str, list[str]]]:
        """What is in the dead queue: the message, the reason and the events of its part."""
        return [
            (message, reason, [item["event_id"] for item in json.loads(body or b"[]")])
            for message, reason, body in self.dead.buried
        ]


def tracked(*events: dict[str, Any]) -> Incoming:
    return incoming(json.dumps(events).encode(), routing.OPEN)


async def test_events_are_written_by_delivery_each_id_once_and_the_first_stands() -> None:
    setup = Setup()
    await setup.service.handle(
        [
            tracked(event(2, 1, "open", "a"), event(1, 1, "open", "a"), event(1, 2, "open", "b")),
            tracked(event(1, 3, "click", "b")),
        ]
    )
    assert setup.recorder.written == [(1, ["a", "b"]), (2, ["a"])]
    assert setup.recorder.known[1, "b"].event.recipient == 2
    assert not setup.dead.buried


async def test_a_body_that_cannot_be_read_is_buried_and_its_neighbours_are_recorded() -> None:
    setup = Setup()
    broken = incoming(b"{", routing.OPEN)
    await setup.service.handle([broken, tracked(event(1, 1, "open", "a"))])
    ((message, reason, body),) = setup.dead.buried
    assert (message, body) == (broken, b"{")
    assert reason.startswith("The tracking event could not be read: The body is not JSON")
    assert setup.recorder.written == [(1, ["a"])]


async def test_of_an_array_only_the_item_that_cannot_be_read_is_buried() -> None:
    setup = Setup()
    bad = event(1, 1, "glance", "b")
    await setup.service.handle([tracked(event(1, 1, "open", "a"), bad)])
    ((_, reason, body),) = setup.dead.buried
    assert reason.startswith("The tracking event could not be read: ")
    assert json.loads(body or b"") == bad
    assert setup.recorder.written == [(1, ["a"])]


async def test_events_of_absent_recipients_are_buried_each_message_with_its_own() -> None:
    setup = Setup()
    first = tracked(event(1, 9, "open", "a"), event(1, 10, "open", "b"))
    second = tracked(event(1, 11, "open", "c"))
    await setup.service.handle([first, second])
    why = "The delivery has 9 recipients, and none of this number."
    assert setup.buried == [(first, why, ["b"]), (second, why, ["c"])]
    assert setup.recorder.written == [(1, ["a"])]


async def test_events_of_a_delivery_that_does_not_exist_are_buried_and_nothing_is_written() -> None:
    setup = Setup()
    message = tracked(event(7, 1, "open", "a"))
    await setup.service.handle([message])
    why = "The delivery does not exist, was never confirmed, or has left by retention."
    assert setup.buried == [(message, why, ["a"])]
    assert setup.recorder.written == []


async def test_where_the_size_cannot_be_read_a_deliverys_events_are_buried_and_no_others() -> None:
    setup = Setup()
    setup.sizes[1] = Busy("too busy")
    message = tracked(event(1, 1, "open", "a"), event(2, 1, "open", "b"))
    await setup.service.handle([message])
    assert setup.buried == [(message, "too busy", ["a"])]
    assert setup.recorder.written == [(2, ["b"])]


async def test_events_for_which_the_database_is_too_busy_are_buried_and_no_others() -> None:
    setup = Setup()
    setup.recorder.refused["a"] = Busy("too busy")
    message = tracked(event(1, 1, "open", "a"), event(1, 2, "open", "b"), event(2, 1, "open", "c"))
    await setup.service.handle([message])
    assert setup.buried == [(message, "The tracking event cannot be stored: too busy", ["a", "b"])]
    assert setup.recorder.written == [(2, ["c"])]


async def test_an_event_that_the_database_refuses_is_buried_alone() -> None:
    setup = Setup()
    setup.recorder.refused["c"] = Unstorable("a bad value")
    message = tracked(*(event(1, 1, "open", name) for name in "abcde"))
    await setup.service.handle([message])
    assert setup.buried == [(message, "The tracking event cannot be stored: a bad value", ["c"])]
    assert {name for _, name in setup.recorder.known} == set("abde")


async def test_events_count_as_a_persons_or_a_machines_and_repeated_ones_once() -> None:
    setup = Setup()
    by_machine = event(1, 2, "open", "b", user_agent=APPLE)
    for _ in range(2):
        await setup.service.handle([tracked(event(1, 1, "open", "a"), event(1, 1, "click", "c"), by_machine)])
    assert counts(setup.metrics.tracking_recorded) == {("person",): 2, ("machine",): 1}
    assert counts(setup.metrics.tracking_repeated) == {(): 3}


async def test_a_persons_opt_out_is_heeded_and_a_scanners_is_told_in_the_log() -> None:
    setup = Setup()
    by_scanner = event(1, 2, "optout", "b", user_agent=SCANNER)
    with capture_logs() as logs:
        await setup.service.handle([tracked(event(1, 1, "optout", "a"), by_scanner)])
    assert [(name, row.heeded) for (_, name), row in setup.recorder.known.items()] == [
        ("a", True),
        ("b", False),
    ]
    assert counts(setup.metrics.optouts) == {(): 1}
    (said,) = [line for line in logs if line["log_level"] == "warning"]
    assert (said["event"], said["rules"]) == ("opt-outs by scanners not heeded", ["barracuda"])


async def test_messages_are_settled_once_they_are_recorded_or_buried() -> None:
    messages = [tracked(event(1, 1, "open", "a")), incoming(b"{", routing.OPEN)]
    setup = Setup(*messages)
    await setup.service.run(asyncio.Event())
    assert setup.consumer.acknowledged == messages


async def test_a_broken_database_ends_the_service_and_settles_and_buries_nothing() -> None:
    broken = {"recording tracking events": Broken("forbidden")}
    setup = Setup(tracked(event(1, 1, "open", "a")), fails=broken)
    with pytest.raises(ExceptionGroup) as caught:
        await setup.service.run(asyncio.Event())
    assert caught.group_contains(Broken)
    assert setup.consumer.acknowledged == []
    assert setup.dead.buried == []
