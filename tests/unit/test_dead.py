"""Burying: together, cut to what AMQP carries, and counted under labels of a closed set."""

from __future__ import annotations

import pytest

from contracts import routing
from tests.support.fakes import FakePublisher, counts, incoming, metrics
from worker.amqp.bulk.encoding import Publishes
from worker.amqp.dead import DeadQueue, Letter

NO_TEXT = (b"\xff" * 255).decode(errors="replace")


async def test_messages_are_published_together_each_with_its_own_reason() -> None:
    publisher, counted = FakePublisher(), metrics()
    dead = DeadQueue(publisher, routing.Names(), ["email"], counted)
    keys = [routing.SENT, "email", *(f"key-{n}" for n in range(500)), NO_TEXT]
    await dead.bury(*(Letter(incoming(b"{}", key), f"It is {key}.") for key in keys))
    headers = [one.message.headers or {} for one in publisher.published]
    assert [h[routing.HEADER_REASON] for h in headers] == [f"It is {key}." for key in keys]
    assert counts(counted.dead_lettered) == {("sent",): 1, ("email",): 1, ("other",): 501}


@pytest.mark.parametrize("text", [NO_TEXT, "é" * 255, "\ud800" * 300, "a" * 256, ""])
async def test_no_text_of_a_publisher_is_too_long_to_be_kept(text: str) -> None:
    publisher = FakePublisher()
    message = incoming(b"{}", text, exchange=text, message_id=text)
    await DeadQueue(publisher, routing.Names(), [], metrics()).bury(Letter(message, text * 100))
    (one,) = publisher.published
    encoder = Publishes(one.exchange, one.routing_key, mandatory=True)
    assert encoder.encode([one.message], 0, 1, 131_072)[1] == 1


async def test_nothing_to_keep_is_nothing_to_publish() -> None:
    publisher = FakePublisher()
    await DeadQueue(publisher, routing.Names(), [], metrics()).bury()
    assert publisher.published == []
