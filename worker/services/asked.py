"""The send messages of a batch: read, without doubles, and without recipients that do not exist."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from pydantic import TypeAdapter, ValidationError

from contracts.base import explain
from contracts.sends import Send
from worker.amqp.dead import Letter
from worker.db.audiences import why_absent
from worker.domain.failures import Busy

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from worker.amqp.messages import Consumer, Incoming
    from worker.channels.protocol import Lane, Lanes

_read = TypeAdapter(Send).validator.validate_json


class Sizes(Protocol):
    """Knows the number of a delivery's recipients: `worker.db.audiences.Audiences`."""

    async def sizes(self, delivery_ids: Collection[int]) -> dict[int, int | Busy]:
        """Returns them by delivery: 0 for no such delivery, a Busy where it cannot be read now."""


class Asked(NamedTuple):
    """A send message, and the AMQP message to acknowledge."""

    send: Send
    consumer: Consumer
    message: Incoming
    lane: Lane | None
    """The lane of its address; None if nothing is limited."""
    since: float
    """When it was read, in the time of the event loop."""


ByDelivery = dict[int, dict[int, Asked]]
"""Messages by delivery and recipient."""


def read(
    batch: Iterable[Incoming], consumer: Consumer, lanes: Lanes | None, now: float
) -> tuple[ByDelivery, list[Letter], list[Incoming]]:
    """Reads a batch.

    Args:
        batch: The messages.
        consumer: The consumer that they came over.
        lanes: Knows the lane of an address; None if nothing is limited.
        now: The time of the event loop.

    Returns:
        The latest message for each recipient; those that cannot be read, with the reason; and the doubles,
        which are to be acknowledged.
    """
    found: ByDelivery = {}
    unread: list[Letter] = []
    doubles: list[Incoming] = []
    for message in batch:
        try:
            send = _read(message.body)
        except ValidationError as error:
            unread.append(Letter(message, f"The send message could not be read: {explain(error)}"))
            continue
        one = Asked(send, consumer, message, lanes.of(send.address) if lanes else None, now)
        asked = found.setdefault(send.delivery_id, {})
        double = asked.setdefault(send.recipient, one)
        if double is not one:
            earlier, later = sorted((double, one), key=lambda a: a.send.attempt)
            asked[send.recipient] = later
            doubles.append(earlier.message)
    return found, unread, doubles


def take_absent(asked: ByDelivery, sizes: Mapping[int, int | Busy]) -> list[Letter]:
    """Takes out the messages whose recipient does not exist, before each delivery has its turn.

    One by one, each cost a claim, a look-up and a confirm: behind a thousand, an honest message waited 4 s.
    """
    letters = []
    for delivery_id, of_one in asked.items():
        size = sizes[delivery_id]
        if not isinstance(size, Busy):  # else they are claimed and refused
            letters += [Letter(of_one.pop(r).message, why_absent(size)) for r in list(of_one) if r > size]
    return letters
