"""The accounts of the bulk transport against the plainest model of them: sets."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.amqp.bulk.address import read_address
from worker.amqp.bulk.confirms import Confirms
from worker.amqp.bulk.errors import ProtocolError
from worker.amqp.ledger import Ledger
from worker.amqp.messages import Outgoing

if TYPE_CHECKING:
    from worker.amqp.bulk.confirms import Flight

verdicts = st.lists(st.tuples(st.integers(1, 40), st.booleans(), st.booleans()), max_size=40)


def numbered(first: int, count: int) -> list[Outgoing]:
    return [Outgoing(b"", "t", str(tag)) for tag in range(first, first + count)]


def ids(flight: Flight) -> list[int]:
    return [int(message.message_id or 0) for message in flight.finished.result()]


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), verdicts)
def test_confirms_and_refusals_in_any_order_are_counted_once(
    sizes: list[int], said: list[tuple[int, bool, bool]]
) -> None:
    async def scenario() -> None:
        confirms, flights, total = Confirms(), [], 0
        for size in sizes:
            flights.append(confirms.add(numbered(total + 1, size), "x", "k"))
            total += size
        known: dict[int, bool] = {}
        for tag, multiple, positive in said:
            if tag > total:
                with pytest.raises(ProtocolError):
                    confirms.confirmed(tag, multiple=multiple, positive=positive)
                continue
            confirms.confirmed(tag, multiple=multiple, positive=positive)
            for t in range(1 if multiple else tag, tag + 1):
                known.setdefault(t, positive)
            assert confirms.outstanding == total - len(known)
            for flight in flights:
                covered = range(flight.first, flight.last + 1)
                assert flight.finished.done() == all(t in known for t in covered)
                if flight.finished.done():
                    assert ids(flight) == [t for t in covered if not known[t]]
        oldest = next((t for t in range(1, total + 1) if t not in known), None)
        assert (confirms.oldest is None) == (oldest is None)
        if confirms.oldest is not None and oldest is not None:
            assert confirms.oldest.first <= oldest <= confirms.oldest.last
        confirms.abandon()
        assert [t for flight in flights for t in ids(flight)] == [
            t for t in range(1, total + 1) if not known.get(t, False)
        ]
        assert confirms.outstanding == 0

    asyncio.run(scenario())


@given(
    st.integers(1, 8),
    st.lists(st.integers(1, 10) | st.lists(st.integers(0, 50), max_size=10), max_size=20),
)
def test_acknowledgements_name_what_is_settled_and_nothing_else(
    gap: int, steps: list[int | list[int]]
) -> None:
    ledger = Ledger(gap)
    given_out, settled, acknowledged = 0, set[int](), set[int]()

    def acknowledge(*, everything: bool = False) -> None:
        upto, alone = ledger.due(everything=everything)
        if upto:
            covered = set(range(1, upto + 1)) - acknowledged
            # The broker closes the channel for a tag that it does not know, even one that ends a range.
            assert upto in covered
            assert covered <= settled
            acknowledged.update(covered)
        for tag in alone:
            assert tag in settled - acknowledged
            acknowledged.add(tag)

    for step in steps:
        if isinstance(step, int):
            ledger.delivered(range(given_out + 1, given_out + step + 1))
            given_out += step
        else:
            tags = {tag for tag in step if 0 < tag <= given_out}  # some of them not for the first time
            settled |= tags
            ledger.handled(tags)
            acknowledge()
            assert len(settled - acknowledged) <= gap
    acknowledge(everything=True)
    assert acknowledged == settled


def test_what_is_settled_in_order_is_one_range() -> None:
    ledger = Ledger(100)
    ledger.delivered(range(1, 501))
    ledger.handled(range(1, 301))
    assert ledger.due() == (300, [])
    ledger.handled([302, 303])
    assert ledger.due() == (0, [])
    ledger.handled([301])
    assert ledger.due() == (303, [])


def test_a_broker_url_is_read_as_aio_pika_reads_it() -> None:
    address = read_address("amqps://a%40b:p%2Fq@host:1234/%2Fv?heartbeat=7&cafile=/ca.pem")
    assert (address.host, address.port, address.user, address.password) == ("host", 1234, "a@b", "p/q")
    assert (address.vhost, address.secure, address.heartbeat) == ("/v", True, 7)
    assert address.options["cafile"] == "/ca.pem"


@pytest.mark.parametrize("url", ["amqp://h", "amqp://h/", "amqp://h/%2F"])
def test_what_a_broker_url_leaves_out_is_the_default(url: str) -> None:
    address = read_address(url)
    assert (address.port, address.user, address.password, address.vhost) == (5672, "guest", "guest", "/")
    assert not address.secure


@pytest.mark.parametrize(
    "url", ["http://h", "amqp://h:x/", "amqp://h/?heartbeat=-1", "amqp://h/?heartbeat=soon"]
)
def test_a_broker_url_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_address(url)
