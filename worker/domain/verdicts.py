"""What a channel says of one attempt: values, so that whoever settles the message decides in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contracts.results import BounceKind, BounceReason, Fault


@dataclass(frozen=True, slots=True)
class Accepted:
    """The channel took the message and answers for it from here on."""

    reply: str
    """The channel's answer."""
    provider_id: str | None = None
    """The channel's own identifier of the message, where its answer names one."""


@dataclass(frozen=True, slots=True)
class Bounced:
    """The channel refused the message; nothing was sent."""

    kind: BounceKind
    reason: BounceReason
    status: str
    """RFC 3463; begins with 5 where the channel says that it is permanently, with 4 where it may pass."""
    reply: str
    """The channel's answer."""
    fault: Fault


@dataclass(frozen=True, slots=True)
class Failed:
    """The message could not be handed over, for a reason on our side; nothing was sent."""

    reason: str
    """A short name, as in `contracts.results.Error`."""
    retryable: bool
    """Whether a later try of the same message may work."""
    detail: str
    """What went wrong, in a sentence."""


@dataclass(frozen=True, slots=True)
class Unsure:
    """The message was handed over whole and no answer came: it may or may not have been taken.

    It is never tried again by itself; the recipient becomes `unknown` when its claim runs out.
    """

    detail: str
    """What happened, in a sentence."""


@dataclass(frozen=True, slots=True)
class Withheld:
    """Nothing was sent: the claim was not ours to hand over any more. It goes back, for others to take."""


Verdict = Accepted | Bounced | Failed | Unsure | Withheld
"""What became of one attempt."""
