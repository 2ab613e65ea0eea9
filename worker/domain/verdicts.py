"""The results of one attempt, as values, so that one place decides what follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from contracts import results

if TYPE_CHECKING:
    from datetime import datetime

    from contracts.results import BounceKind, BounceReason, Fault
    from contracts.sends import Send


@dataclass(frozen=True, slots=True)
class Accepted:
    """The channel took the message and is responsible for it from now on."""

    reply: str
    """The channel's answer."""
    provider_id: str | None = None
    """The channel's own identifier of the message, if its answer names one."""


@dataclass(frozen=True, slots=True)
class Bounced:
    """The channel refused the message; nothing was sent."""

    kind: BounceKind
    reason: BounceReason
    status: str
    """RFC 3463. It begins with 5 for a permanent refusal, with 4 for a temporary one."""
    reply: str
    """The channel's answer."""
    fault: Fault | None
    """None if the answer does not say."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The message could not be handed over, for a reason on our side; nothing was sent."""

    reason: str
    """A short name, as in `contracts.results.Error`."""
    retryable: bool
    """Whether a later attempt with the same message may work."""
    detail: str
    """What went wrong, in a sentence."""
    waits: bool = False
    """Whether the channel takes the same message as soon as it is ready again. Then no attempt is used."""


@dataclass(frozen=True, slots=True)
class Unsure:
    """The whole message was handed over and no answer came: the channel may or may not have taken it.

    It is never tried again automatically. The recipient becomes `unknown` when its claim expires.
    """

    detail: str
    """What happened, in a sentence."""


@dataclass(frozen=True, slots=True)
class Withheld:
    """Nothing was sent, because the claim is no longer ours. It is undone, so that others can take it."""


Verdict = Accepted | Bounced | Failed | Unsure | Withheld
"""The result of one attempt."""


def result_of(
    send: Send, verdict: Verdict, at: datetime
) -> results.Taken | results.Bounce | results.Error | None:
    """Returns the result to publish; None where there is none yet, or nothing was sent.

    Args:
        send: The send message.
        verdict: What became of it.
        at: When it was known.
    """
    if isinstance(verdict, Accepted):
        return results.Taken(
            send.delivery_id, send.recipient, send.attempt, at, verdict.reply, verdict.provider_id
        )
    common: dict[str, Any] = {
        "delivery_id": send.delivery_id,
        "recipient": send.recipient,
        "attempt": send.attempt,
        "at": at,
    }
    match verdict:
        case Bounced():
            return results.Bounce(
                **common,
                kind=verdict.kind,
                reason=verdict.reason,
                status=verdict.status,
                reply=verdict.reply,
                fault=verdict.fault,
            )
        case Failed():
            return results.Error(
                **common, reason=verdict.reason, retryable=verdict.retryable, detail=verdict.detail
            )
        case Unsure() | Withheld():
            return None
