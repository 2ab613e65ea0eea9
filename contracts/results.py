"""Results: what became of one attempt for one recipient."""

from __future__ import annotations

from enum import StrEnum
from json.encoder import encode_basestring_ascii as _text
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, cast

from pydantic import Field, WithJsonSchema

from contracts.base import AttemptNumber, DeliveryId, Instant, Message, Name, Quoted, RecipientNumber
from contracts.batch import Batch, Decoded, check_size
from contracts.routing import BOUNCE, ERROR, SENT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime


class BounceKind(StrEnum):
    """What a bounce says about the address."""

    HARD = "hard"
    """The address does not work. There is no further attempt."""
    SOFT = "soft"
    """It says nothing final about the address. Whether there is a further attempt follows from `status` and
    `reason`."""
    IGNORED = "ignored"
    """Nothing: an automatic answer, for example."""


class BounceReason(StrEnum):
    """Why a message bounced. A reason that is not listed is read as `not_defined`, never refused."""

    USER_UNKNOWN = "user_unknown"
    """There is no such mailbox."""
    ACCOUNT_DISABLED = "account_disabled"
    """The mailbox exists and is closed."""
    MAILBOX_FULL = "mailbox_full"
    """The mailbox takes no more messages for now."""
    MOVED = "moved"
    """The mailbox moved, without a forwarding address."""
    INVALID_DOMAIN = "invalid_domain"
    """The address's domain does not exist or takes no mail."""
    UNREACHABLE = "unreachable"
    """The recipient's server could not be reached."""
    EXPIRED = "expired"
    """A relay tried for its whole time and gave up."""
    REFUSED = "refused"
    """The recipient's server refused, without a better reason."""
    RATE_LIMITED = "rate_limited"
    """Too many messages in too short a time."""
    GREYLISTED = "greylisted"
    """The server always defers a first attempt and takes a later one."""
    SPAM = "spam"
    """Taken for spam, or the sender's address is on a block list."""
    AUTHENTICATION = "authentication"
    """SPF, DKIM or DMARC failed."""
    POLICY = "policy"
    """Against a policy of the recipient's server."""
    TOO_LARGE = "too_large"
    """The message is larger than the recipient's server takes."""
    CONTENT = "content"
    """The message's form or media could not be handled."""
    PROTOCOL = "protocol"
    """The servers did not understand each other."""
    SYSTEM = "system"
    """The recipient's server has trouble of its own."""
    AUTO_REPLY = "auto_reply"
    """An automatic answer, such as an absence note."""
    NOT_DEFINED = "not_defined"
    """None of these, or not known."""

    @classmethod
    def _missing_(cls, value: object) -> BounceReason | None:
        return cls.NOT_DEFINED if isinstance(value, str) else None


class Fault(StrEnum):
    """Whose fault a bounce is."""

    RECIPIENT = "recipient"
    """The recipient's mailbox or address."""
    SENDER = "sender"
    """The sender's name, address or authentication."""
    CONTENT = "content"
    """The message itself."""
    INFRASTRUCTURE = "infrastructure"
    """The servers or the network between."""


class Result(Message):
    """The fields of every result."""

    delivery_id: DeliveryId
    """The delivery that was sent."""
    recipient: RecipientNumber
    """The recipient's number in the delivery."""
    attempt: AttemptNumber
    """The attempt that this is the result of."""
    at: Instant
    """When the channel gave this outcome."""


class Sent(Result):
    """The channel took the message."""

    provider_id: Quoted | None = None
    """The channel's own identifier of the message."""
    reply: Quoted | None = None
    """The channel's answer, word for word, of any length."""


class Bounce(Result):
    """The channel or the recipient's server refused the message, or returned it later."""

    kind: Annotated[BounceKind, Field(strict=False)]
    """How the bounce weighs."""
    reason: Annotated[
        BounceReason,
        Field(strict=False),
        WithJsonSchema({"type": "string", "examples": [reason.value for reason in BounceReason]}),
    ] = BounceReason.NOT_DEFINED
    """The reason: one of the names in the examples. Any other name is read as `not_defined`."""
    status: Annotated[str, Field(pattern=r"^[245]\.[0-9]{1,3}\.[0-9]{1,3}$")] | None = None
    """The enhanced status code (RFC 3463), if there is one."""
    reply: Quoted | None = None
    """The server's answer or the report's diagnosis, word for word; of any length."""
    fault: Annotated[Fault, Field(strict=False)] | None = None
    """Whose fault it is; null if that is not known."""


class Error(Result):
    """The message could not be handed to the channel at all."""

    reason: Name
    """Why, as a short name: `template`, `connection`, …"""
    retryable: bool
    """Whether a later attempt may work."""
    detail: Quoted | None = None
    """What went wrong, for a person; of any length."""


class Taken(NamedTuple):
    """The fields of a `Sent`, for writing only: its numbers come from a message that was checked.

    Nearly every recipient has one. It takes 0.4 µs to make and write one, and 1.8 µs for a `Sent`.
    """

    delivery_id: int
    recipient: int
    attempt: int
    at: datetime
    """With its time zone, which is UTC."""
    reply: str | None = None
    provider_id: str | None = None


MODELS: Final[dict[str, type[Result]]] = {SENT: Sent, BOUNCE: Bounce, ERROR: Error}
"""The kinds of results by their routing keys."""

_BATCHES: Final[dict[str, Batch[Any]]] = {key: Batch(model) for key, model in MODELS.items()}
_KEYS: Final[dict[type, str]] = {**{model: key for key, model in MODELS.items()}, Taken: SENT}


def routing_key(result: Sent | Taken | Bounce | Error) -> str:
    """Names the routing key that a result is published with."""
    return _KEYS[type(result)]


def decode(routing_key: str, body: bytes) -> Decoded[Any]:
    """Reads a body of results: one, or an array of up to 1,000 that share the routing key.

    Args:
        routing_key: `sent`, `bounce` or `error`.
        body: The message's body.

    Returns:
        The results that fit (`Sent`, `Bounce` or `Error`, as the routing key says), and what did not, each
        with the sentence that says why. Nothing is raised.
    """
    batch = _BATCHES.get(routing_key)
    if batch is None:
        return Decoded([], [(body, f"No result has the routing key {routing_key!r}.")])
    return batch.decode(body)


def encode(
    results: Sequence[Sent] | Sequence[Taken] | Sequence[Bounce] | Sequence[Error],
) -> bytes:
    """Writes results of one kind as an array, in compact JSON.

    Raises:
        ValueError: There are none, or more than 1,000, or they are not all of one kind.
    """
    kinds = {type(result) for result in results}
    if len(kinds) != 1:
        raise ValueError("One body carries results of exactly one kind: group them by their routing key.")
    kind = kinds.pop()
    if kind is Taken:
        check_size(results)
        return _encode_taken(cast("Sequence[Taken]", results))
    return _BATCHES[_KEYS[kind]].encode(results)


def _encode_taken(taken: Sequence[Taken]) -> bytes:
    parts = []
    last, at = None, ""
    for t in taken:
        if t.at is not last:  # what never waits is sent in one moment
            last, at = t.at, t.at.isoformat()
        provider_id = "null" if t.provider_id is None else _text(t.provider_id)
        reply = "null" if t.reply is None else _text(t.reply)
        parts.append(
            f'{{"delivery_id":{t.delivery_id},"recipient":{t.recipient},"attempt":{t.attempt},"at":"{at}",'
            f'"provider_id":{provider_id},"reply":{reply}}}'
        )
    return f"[{','.join(parts)}]".encode()
