"""Channels for tests that look at what is tried."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from worker.channels.null import NullChannel
from worker.domain.verdicts import Accepted, Unsure

if TYPE_CHECKING:
    from contracts.sends import Send
    from worker.channels.protocol import HandOver
    from worker.domain.verdicts import Verdict


class Counting(NullChannel):
    """Counts the tries of each recipient; says of some that nobody knows."""

    def __init__(self, unsure: frozenset[int] = frozenset()) -> None:
        self.tries: Counter[int] = Counter()
        self.unsure = unsure

    async def send(self, compiled: None, send: Send, hand_over: HandOver) -> Verdict:  # noqa: ARG002
        self.tries[send.recipient] += 1
        return Unsure("the line went dead") if send.recipient in self.unsure else Accepted("fine")
