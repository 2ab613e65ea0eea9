"""What comes in is published now, or its sender is told to come again."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.support.fakes import FakePublisher, SilentPublisher
from worker.amqp.bulk.errors import ConnectionLost
from worker.amqp.errors import BLOCKED, BrokerForbids
from worker.amqp.messages import MessageRefused, Outgoing, Unroutable
from worker.amqp.prompt import PromptPublisher
from worker.domain.failures import Stopped

ONE = [Outgoing(b"[]", "bounce")]


class Refusing(FakePublisher):
    """Raises what it is given; then confirms."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__()
        self.errors = list(errors)

    async def publish(self, *args: Any, **options: Any) -> None:
        if self.errors:
            raise self.errors.pop(0)
        await super().publish(*args, **options)


async def test_what_is_confirmed_is_taken_and_nothing_is_in_the_way() -> None:
    fake = FakePublisher()
    publisher = PromptPublisher(fake, seconds=10)
    assert await publisher.publish("sendoff.results", "bounce", ONE)
    assert [(one.exchange, one.routing_key) for one in fake.published] == [("sendoff.results", "bounce")]
    assert (publisher.trouble, publisher.takes) == ("", True)


@pytest.mark.parametrize(
    "error",
    [
        Unroutable("There is no exchange 'sendoff.results'."),
        MessageRefused("The broker refuses it."),
        BrokerForbids(Exception("access to exchange refused")),
    ],
)
async def test_a_refusal_is_told_once_and_by_readiness_until_something_is_taken(error: Exception) -> None:
    publisher = PromptPublisher(Refusing(error, error), seconds=10)
    with capture_logs() as logs:
        assert not await publisher.publish("x", "bounce", ONE)
        assert not await publisher.publish("x", "bounce", ONE)
    assert [entry["because"] for entry in logs] == [str(error)]
    assert publisher.trouble == str(error)
    assert await publisher.publish("x", "bounce", ONE)
    assert publisher.trouble == ""


@pytest.mark.parametrize("error", [Stopped("it stops"), ConnectionLost("it was closed")])
async def test_at_the_stop_nothing_is_taken(error: Exception) -> None:
    assert not await PromptPublisher(Refusing(error), seconds=10).publish("x", "bounce", ONE)


async def test_a_broker_that_does_not_answer_is_waited_for_a_while_alone() -> None:
    assert not await PromptPublisher(SilentPublisher(), seconds=0.01).publish("x", "bounce", ONE)


@pytest.mark.parametrize(
    ("state", "sentence"), [("connected", "There is no connection to the broker."), ("blocked", BLOCKED)]
)
async def test_a_broker_that_takes_nothing_is_not_asked(state: str, sentence: str) -> None:
    fake = FakePublisher()
    setattr(fake, state, state == "blocked")
    publisher = PromptPublisher(fake, seconds=10)
    assert not await publisher.publish("x", "bounce", ONE)
    assert (publisher.trouble, publisher.takes, fake.published) == (sentence, False, [])
