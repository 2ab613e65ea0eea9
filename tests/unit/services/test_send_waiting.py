"""The send service while the channel puts messages off: no attempt is used, and a pause or a stop holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.support.fakes_send import ACCEPTED, RELAY, FakeClaims, OpenConsumer, Setup, wanted
from tests.support.stack import until
from worker.domain.verdicts import Failed
from worker.lifecycle import beside

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

PUT_OFF = Failed("rate_limited", retryable=True, detail="too fast", waits=True)


def is_true(condition: Callable[[], object]) -> Callable[[], Awaitable[object]]:
    async def look() -> object:
        return condition()

    return look


class Watched(FakeClaims):
    """Does something when a claim is given back."""

    def __init__(self, then: Callable[[Watched], Any] = lambda _: None) -> None:
        super().__init__()
        self.then = then

    async def give_back(self, delivery_id: int, claims: Mapping[int, int], *, in_hand: bool = False) -> int:
        given = await super().give_back(delivery_id, claims, in_hand=in_hand)
        self.then(self)
        return given


async def test_what_is_put_off_is_claimed_again_as_the_same_attempt() -> None:
    consumer = OpenConsumer([wanted(1, 4, attempt=3), wanted(1, 5)])
    setup = Setup(concurrency=RELAY)
    setup.consumers = [consumer]
    setup.channel.told[4] = [PUT_OFF, PUT_OFF, ACCEPTED]
    async with beside(setup.run(), "send") as running:
        await until(is_true(lambda: len(consumer.acknowledged) == 2))
        setup.stop.set()
        await running
    assert sorted((r.recipient, r.attempt) for r in setup.results) == [(4, 3), (5, 1)]
    assert [t.attempt for t in setup.channel.tried if t.recipient == 4] == [3, 3, 3]
    tokens = [claim.token for claim in setup.claims.asked]
    assert len(set(tokens)) == 3
    assert setup.claims.given_back == [(1, {4: tokens[0]}), (1, {4: tokens[1]})]
    assert setup.claims.in_hand == [True, True], "its page is not published again"
    assert [list(claim.asked) for claim in setup.claims.asked] == [[4, 5], [4], [4]]


async def test_what_is_put_off_and_not_granted_again_is_settled_and_nothing_is_said() -> None:
    consumer = OpenConsumer([wanted(1, 4)])
    setup = Setup(concurrency=RELAY, claims=Watched(lambda claims: claims.nobody.add((1, 4))))
    setup.consumers = [consumer]
    setup.channel.told[4] = PUT_OFF
    async with beside(setup.run(), "send") as running:
        await until(is_true(lambda: consumer.acknowledged))
        setup.stop.set()
        await running
    assert (setup.results, len(setup.channel.tried)) == ([], 1)


async def test_what_is_put_off_when_the_process_stops_goes_back_to_the_queue() -> None:
    consumer = OpenConsumer([wanted(1, 4)])
    setup = Setup(concurrency=RELAY, claims=Watched(lambda _: setup.stop.set()))
    setup.consumers = [consumer]
    setup.channel.told[4] = PUT_OFF
    await setup.run()
    assert (setup.results, setup.claims.held, consumer.acknowledged) == ([], {}, [])
    assert setup.channel.hurried
    assert not consumer.consuming
