"""Contents of deliveries: how often each is read, and what is kept."""

from __future__ import annotations

import pytest

from tests.support.fakes_send import FakeChannel, FakeContents
from worker.channels.contents import Contents
from worker.domain.content import ContentInvalid
from worker.domain.failures import Busy


class Setup:
    """Contents on fakes."""

    def __init__(self) -> None:
        self.channel = FakeChannel()
        self.store = FakeContents()
        self.contents = Contents(self.channel, self.store.content)


async def test_a_content_is_read_and_compiled_once() -> None:
    setup = Setup()
    assert [await setup.contents.compiled(number) for number in (1, 2, 1)] == ["of 1", "of 2", "of 1"]
    assert setup.store.read == [1, 2]
    assert setup.channel.prepared == [{"text": "of 1"}, {"text": "of 2"}]


async def test_a_content_that_nobody_can_be_sent_is_a_value_and_kept_as_well() -> None:
    setup = Setup()
    setup.store.changed[1] = {"broken": "no subject"}
    first, second = [await setup.contents.compiled(1) for _ in range(2)]
    assert isinstance(first, ContentInvalid)
    assert (first, str(first)) == (second, "no subject")
    assert setup.store.read == [1]


async def test_a_content_that_the_channel_trips_over_is_one_that_nobody_can_be_sent() -> None:
    setup = Setup()
    setup.store.changed[1] = {"nothing": "that is known"}
    compiled = await setup.contents.compiled(1)
    assert isinstance(compiled, ContentInvalid)
    assert str(compiled) == "KeyError('text')"


async def test_where_a_content_cannot_be_read_now_it_is_asked_for_again() -> None:
    setup = Setup()
    setup.store.raising[1] = Busy("too busy")
    with pytest.raises(Busy):
        await setup.contents.compiled(1)
    assert await setup.contents.compiled(1) == "of 1"


async def test_of_many_contents_the_64_used_last_are_kept() -> None:
    setup = Setup()
    for number in range(1, 65):
        await setup.contents.compiled(number)
    await setup.contents.compiled(1)
    await setup.contents.compiled(65)
    setup.store.read.clear()
    for number in (1, 65, 3, 2):
        await setup.contents.compiled(number)
    assert setup.store.read == [2]
