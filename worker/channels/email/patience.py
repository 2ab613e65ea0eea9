"""Which messages wait for a limit of the server: those of which it is not known to be their own. Pure."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from contracts.results import BounceReason
from worker.domain.verdicts import Bounced, Failed

if TYPE_CHECKING:
    from worker.domain.verdicts import Verdict

ROUNDS: Final = 3
"""So often a message is put off while others of its lane pass. Then the refusal stands, as its own."""
ROUNDS_OF_LANE: Final = 8
"""And so often while only others pass, over four minutes. Then the lane takes nothing: the refusal stands."""
_KEPT: Final = 10_000
"""Recipients that are remembered."""
_OF_THE_CLIENT: Final = ("authentication", "service_unavailable")
"""Failures that say nothing of the message."""
_OF_THE_RECIPIENT: Final = ("1", "2")
"""Subjects of enhanced codes (RFC 3463): a limit with such a code is that of an address or a mailbox."""


def blames_the_client(verdict: Verdict) -> bool:
    """Whether a verdict says that the server wants something else of this client: a pause, a login, TLS."""
    if isinstance(verdict, Failed):
        return verdict.reason in _OF_THE_CLIENT
    if isinstance(verdict, Bounced):
        subject = verdict.status.split(".")[1]
        return verdict.reason is BounceReason.RATE_LIMITED and subject not in _OF_THE_RECIPIENT
    return False


def defers(verdict: Bounced) -> bool:
    """Whether a refusal says to try later, for a reason of the server's: it may meet all of its messages.

    Greylisting does not: that is each recipient's own.
    """
    if not verdict.status.startswith("4.") or verdict.reason is BounceReason.GREYLISTED:
        return False
    return verdict.reason is BounceReason.SYSTEM or verdict.status.startswith("4.7.")


class _PutOff(NamedTuple):
    """What is known of a recipient whose message was put off."""

    rounds: int
    """How often, with others of its lane passing since the time before."""
    others: int
    """How often, with any other passing since, or for a limit of its lane."""
    passed: int
    """How many messages had passed by then."""
    of_lane: int
    """How many of its lane had."""


class Patience:
    """Puts messages off without an end while no other passes either, else a few times."""

    def __init__(self, *, rounds: int = ROUNDS) -> None:
        """Begins with nobody put off.

        Args:
            rounds: How often a message is put off while others of its lane pass.
        """
        self._rounds = rounds
        self._passed = 0
        self._put_off: OrderedDict[str, _PutOff] = OrderedDict()

    def passed(self, recipient: str) -> None:
        """Notes that the server took a recipient's message, or refused it for a reason of its own."""
        self._passed += 1
        self._put_off.pop(recipient, None)

    def put_off(self, recipient: str, of_lane: int | None = None, *, own: bool = False) -> bool:
        """Whether to put a recipient's message off once more. Otherwise the refusal stands.

        Args:
            recipient: The recipient.
            of_lane: How many messages of its lane have passed; None if all are of one lane.
            own: Whether the limit is known to be that of its lane.
        """
        passed_of_lane = self._passed if of_lane is None else of_lane
        known = self._put_off.pop(recipient, _PutOff(0, 0, -1, -1))
        rounds = known.rounds + (passed_of_lane != known.of_lane)
        others = known.others + (own or self._passed != known.passed)
        if rounds > self._rounds or others > max(ROUNDS_OF_LANE, self._rounds):
            return False
        self._put_off[recipient] = _PutOff(rounds, others, self._passed, passed_of_lane)
        if len(self._put_off) > _KEPT:
            self._put_off.popitem(last=False)
        return True
