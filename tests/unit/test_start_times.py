"""How long deliveries take to start: each is measured once, at the hand-over of its first recipient."""

from __future__ import annotations

import pytest

from tests.support.fakes import FakeRetrying
from worker.db.start_times import StartTimes
from worker.domain.failures import Busy


class FakeDue:
    """Says that every delivery was due three seconds ago, or what it is told."""

    seconds: float | None = 3.0
    busy = False

    async def seconds_since_due(self, delivery_id: int) -> float | None:  # noqa: ARG002
        if self.busy:
            raise Busy("too many locks")
        return self.seconds


class Setup:
    def __init__(self) -> None:
        self.due = FakeDue()
        self.seen: list[float] = []
        self.times = StartTimes(self.due, FakeRetrying(), self.seen.append)


async def test_a_delivery_is_measured_once() -> None:
    setup = Setup()
    await setup.times.expect(7, 1, 1)
    setup.times.handed_over(7, {2, 3})
    assert setup.seen == []
    setup.times.handed_over(8, {1})
    setup.times.handed_over(7, {1, 2})
    setup.times.handed_over(7, {1})
    assert [round(seconds) for seconds in setup.seen] == [3]


@pytest.mark.parametrize(("recipient", "attempt"), [(2, 1), (1, 2)], ids=["another recipient", "a retry"])
async def test_what_is_no_start_is_not_measured(recipient: int, attempt: int) -> None:
    setup = Setup()
    await setup.times.expect(7, recipient, attempt)
    setup.times.handed_over(7, {1, 2})
    assert setup.seen == []


async def test_a_first_recipient_that_was_not_handed_over_leaves_nothing_behind() -> None:
    setup = Setup()
    await setup.times.expect(7, 1, 1)
    setup.times.forget(7, 2)
    setup.times.forget(7, 1)
    setup.times.handed_over(7, {1})
    assert setup.seen == []


async def test_a_busy_database_holds_up_no_delivery() -> None:
    setup = Setup()
    setup.due.busy = True
    await setup.times.expect(7, 1, 1)
    setup.due.busy, setup.due.seconds = False, None
    await setup.times.expect(8, 1, 1)
    setup.times.handed_over(7, {1})
    setup.times.handed_over(8, {1})
    assert setup.seen == []
