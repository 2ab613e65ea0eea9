"""Which messages wait for a limit of the server: those of which it is not known to be their own. Pure."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from contracts.results import BounceReason
from worker.domain.verdicts import Bounced, Failed

if TYPE_CHECKING:
    from worker.domain.verdicts import Verdict

ROUNDS: Final = 3
"""So often a message is put off while others pass. Then the limit is its own, and the refusal stands."""
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


class Patience:
    """Puts messages off without an end while no other passes either, else a few times."""

    def __init__(self, *, rounds: int = ROUNDS) -> None:
        """Begins with nobody put off.

        Args:
            rounds: How often a message is put off while others pass.
        """
        self._rounds = rounds
        self._passed = 0
        self._put_off: OrderedDict[str, tuple[int, int]] = OrderedDict()
        """By recipient: how often, and how many messages had passed by then."""

    def passed(self, recipient: str) -> None:
        """Notes that the server took a recipient's message, or refused it for a reason of its own."""
        self._passed += 1
        self._put_off.pop(recipient, None)

    def put_off(self, recipient: str) -> bool:
        """Whether to put a recipient's message off once more. Otherwise the refusal stands."""
        rounds, passed = self._put_off.pop(recipient, (0, -1))
        rounds += self._passed != passed
        if rounds > self._rounds:
            return False
        self._put_off[recipient] = (rounds, self._passed)
        if len(self._put_off) > _KEPT:
            self._put_off.popitem(last=False)
        return True
