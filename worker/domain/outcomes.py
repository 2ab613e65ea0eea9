"""The facts about a recipient. Each is set once; precedence, not arrival, decides which one wins.

The facts of one recipient form a join semilattice: folding is commutative, associative and idempotent. So
results may come late, twice and in any order, and the status is the same. The order of precedence: a hard
bounce always wins. Otherwise the later attempt wins. Within one attempt a bounce wins over *sent*, *sent*
over *error*, a permanent error over a retryable one, and each of them over *unknown* and the claim.

A retry belongs to the winning fact. A refusal that may be repeated, or a retryable error, is *retrying* while
its next attempt is planned, with the same precedence. So only a fact that wins over it ends the retry.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from contracts.results import Bounce, BounceKind, Error, Sent
from worker.domain.bounces import may_be_repeated

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

REPLY_LIMIT: Final = 1_000
"""Characters of a server's reply that are kept, so that a long reply can always be recorded."""


class OutcomeStatus(StrEnum):
    """The status of a claimed recipient. A recipient without a status is *pending*."""

    SENDING = "sending"
    """Claimed: an attempt is under way."""
    SENT = "sent"
    """The channel took the message."""
    BOUNCED_HARD = "bounced_hard"
    """Refused or returned permanently."""
    BOUNCED_SOFT = "bounced_soft"
    """Refused or returned for now."""
    BOUNCED_IGNORED = "bounced_ignored"
    """An answer came back that says nothing about the address."""
    ERROR = "error"
    """The message could not be handed to the channel."""
    UNKNOWN = "unknown"
    """The claim expired without a result. The message may have been sent."""
    EXCLUDED = "excluded"
    """Left out at send time."""
    RETRYING = "retrying"
    """Waits for its next attempt."""


_RETRYABLE_ERROR: Final = 2
_RANK: Final = {
    OutcomeStatus.SENDING: 0,
    OutcomeStatus.UNKNOWN: 1,
    OutcomeStatus.ERROR: 3,
    OutcomeStatus.SENT: 4,
    OutcomeStatus.BOUNCED_IGNORED: 5,
    OutcomeStatus.BOUNCED_SOFT: 6,
    OutcomeStatus.BOUNCED_HARD: 7,
}
_SENT: Final = _RANK[OutcomeStatus.SENT]
_HARD: Final = 1 << 20
_BOUNCED: Final = {
    BounceKind.HARD: OutcomeStatus.BOUNCED_HARD,
    BounceKind.SOFT: OutcomeStatus.BOUNCED_SOFT,
    BounceKind.IGNORED: OutcomeStatus.BOUNCED_IGNORED,
}


def precedence(status: OutcomeStatus, attempt: int, *, retryable: bool = False) -> int:
    """Returns the weight of a fact: the fact with the greatest weight wins.

    Args:
        status: One of the statuses that a claim or a result gives.
        attempt: The attempt it belongs to, 1..32767.
        retryable: Whether a later attempt may work, for an error.

    Returns:
        `attempt * 16 + rank`, and a greater number for a hard bounce. 16 leaves room for further ranks.
        Claims and expired claims use the same arithmetic in SQL (`attempt * 16`, `attempt * 16 + 1`), and
        `cancel_remaining` reverses it.
    """
    rank = _RETRYABLE_ERROR if status is OutcomeStatus.ERROR and retryable else _RANK[status]
    weight = attempt * 16 + rank
    return weight | _HARD if status is OutcomeStatus.BOUNCED_HARD else weight


class Facts(NamedTuple):
    """The results of one recipient: the time of each fact, and the details of the winning fact.

    It is a tuple, since there is one per recipient: a frozen dataclass takes 1 µs to make, a tuple 0.3.
    """

    attempt: int
    status: OutcomeStatus
    precedence: int
    at: datetime
    sent_at: datetime | None = None
    bounced_at: datetime | None = None
    error_at: datetime | None = None
    reason: str | None = None
    code: str | None = None
    fault: str | None = None
    reply: str | None = None
    provider_id: str | None = None
    retryable: bool = False
    """Whether the attempt may be repeated: after a refusal for now, or a retryable error."""


def facts(result: Sent | Bounce | Error) -> Facts:
    """Reads one result as facts. Reply texts are cut to `REPLY_LIMIT` characters."""
    at, attempt = result.at, result.attempt
    if isinstance(result, Sent):
        # The same as precedence(), without its two look-ups: nearly every result is a `Sent`.
        weight = attempt * 16 + _SENT
        reply, provider_id = _short(result.reply), _short(result.provider_id)
        return Facts(
            attempt, OutcomeStatus.SENT, weight, at, sent_at=at, reply=reply, provider_id=provider_id
        )
    if isinstance(result, Bounce):
        status = _BOUNCED[result.kind]
        return Facts(
            attempt,
            status,
            precedence(status, attempt),
            at,
            bounced_at=at,
            reason=result.reason.value,
            code=result.status,
            fault=result.fault and result.fault.value,
            reply=_short(result.reply),
            retryable=may_be_repeated(result.kind, result.reason, result.status),
        )
    status = OutcomeStatus.ERROR
    return Facts(
        attempt,
        status,
        precedence(status, attempt, retryable=result.retryable),
        at,
        error_at=at,
        reason=_short(result.reason),
        reply=_short(result.detail),
        retryable=result.retryable,
    )


def join(one: Facts, other: Facts) -> Facts:
    """Joins the facts of one recipient: the earliest time of each, and the details of the winning fact."""
    strongest = max(one, other, key=_weight)
    return Facts(
        strongest.attempt,
        strongest.status,
        strongest.precedence,
        strongest.at,
        _earliest(one.sent_at, other.sent_at),
        _earliest(one.bounced_at, other.bounced_at),
        _earliest(one.error_at, other.error_at),
        strongest.reason,
        strongest.code,
        strongest.fault,
        strongest.reply,
        strongest.provider_id,
        strongest.retryable,
    )


def fold(results: Iterable[Sent | Bounce | Error]) -> dict[tuple[int, int], Facts]:
    """Folds results, in any order and with any repeats, into facts by (delivery_id, recipient)."""
    folded: dict[tuple[int, int], Facts] = {}
    for result in results:
        key = (result.delivery_id, result.recipient)
        known = folded.get(key)
        folded[key] = facts(result) if known is None else join(known, facts(result))
    return folded


def _weight(f: Facts) -> tuple[int, float, tuple[str, ...]]:
    # Two facts of one weight (a bounce reported twice in different words) need an order too: the earlier
    # wins, and of two with the same time the greater text.
    texts = (f.reason, f.code, f.fault, f.reply, f.provider_id)
    return f.precedence, -f.at.timestamp(), tuple(text or "" for text in texts)


def _earliest(one: datetime | None, other: datetime | None) -> datetime | None:
    if one is None or other is None:
        return one or other
    return min(one, other)


def _short(text: str | None) -> str | None:
    return text[:REPLY_LIMIT] if text else None
