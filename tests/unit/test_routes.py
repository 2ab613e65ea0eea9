"""What no queue takes is kept, and published again; a stop ends the wait."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.fakes import FakePublisher
from worker.amqp import routes
from worker.amqp.messages import MessageRefused, Outgoing, Unroutable
from worker.amqp.routes import KeepingPublisher
from worker.domain.failures import Stopped

if TYPE_CHECKING:
    from collections.abc import Callable

MESSAGES = [Outgoing(b"1", "t"), Outgoing(b"2", "t")]


class Refusing(FakePublisher):
    """Raises errors first, one at each call."""

    def __init__(self, *errors: Exception, each: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.errors = list(errors)
        self._each = each

    async def publish(self, *args: Any, **options: Any) -> None:
        self._each()
        if self.errors:
            raise self.errors.pop(0)
        await super().publish(*args, **options)


class Seen:
    """Keeps what is reported; each look at the missing exchanges finds the next answer."""

    def __init__(self, *missing: set[str]) -> None:
        self.reported: list[str] = []
        self.answers = list(missing)

    @property
    def exchanges_missing(self) -> set[str]:
        return self.answers.pop(0) if self.answers else set()

    def report(self, error: Unroutable) -> None:
        self.reported.append(str(error))


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "RECONNECT_INTERVAL", 0)


def keeping(publisher: FakePublisher, seen: Seen, stop: asyncio.Event | None = None) -> KeepingPublisher:
    return KeepingPublisher(publisher, seen, stop or asyncio.Event())  # type: ignore[arg-type]


async def test_what_no_queue_takes_is_reported_and_published_again_until_one_does() -> None:
    seen = Seen()
    publisher = Refusing(Unroutable("no queue"), Unroutable("no exchange"))
    await keeping(publisher, seen).publish("x", "k", MESSAGES)
    assert seen.reported == ["no queue", "no exchange"]
    assert [p.message for p in publisher.published] == MESSAGES


async def test_nothing_is_published_to_an_exchange_that_is_known_to_be_missing() -> None:
    seen = Seen({"x", "y"}, {"x"}, {"y"}, {"never seen"})
    publisher = Refusing(Unroutable("no exchange"))
    await keeping(publisher, seen).publish("x", "k", MESSAGES)
    assert len(publisher.published) == 2
    assert seen.answers == [{"never seen"}]


async def test_a_stop_ends_the_wait_for_a_queue() -> None:
    stop = asyncio.Event()
    publisher = Refusing(*[Unroutable("no queue")] * 3, each=stop.set)
    with pytest.raises(Stopped):
        await keeping(publisher, Seen(), stop).publish("x", "k", MESSAGES)
    assert len(publisher.errors) == 2


async def test_what_the_broker_refuses_for_another_reason_is_raised() -> None:
    seen = Seen()
    with pytest.raises(MessageRefused):
        await keeping(Refusing(MessageRefused("too large")), seen).publish("x", "k", MESSAGES)
    assert seen.reported == []
