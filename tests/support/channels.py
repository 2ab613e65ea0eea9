"""Channels for tests that look at what is tried."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from worker.channels.null import NullChannel
from worker.domain.verdicts import Accepted, Bounced, Failed, Unsure

if TYPE_CHECKING:
    from contracts.sends import Send
    from worker.channels.protocol import HandOver
    from worker.domain.verdicts import Verdict


class Right:
    """A right to hand over, whose answer the test gives at once or later."""

    def __init__(self, *, answer: bool | None = None, expired: bool = False) -> None:
        self.answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if answer is not None:
            self.answer.set_result(answer)
        self.begun = 0
        self.expired = expired

    def begin(self) -> asyncio.Future[bool]:
        self.begun += 1
        return self.answer


class Counting(NullChannel):
    """Counts the tries of each recipient; says of some that nobody knows."""

    def __init__(self, unsure: frozenset[int] = frozenset()) -> None:
        self.tries: Counter[int] = Counter()
        self.unsure = unsure

    async def send(self, compiled: None, send: Send, hand_over: HandOver) -> Verdict:  # noqa: ARG002
        self.tries[send.recipient] += 1
        return Unsure("the line went dead") if send.recipient in self.unsure else Accepted("fine")


class Gated(NullChannel):
    """Holds what is handed over until its gate is opened; then one of three is sent, bounces, fails."""

    concurrency = 20  # type: ignore[assignment]

    def __init__(self, *, all_sent: bool = False) -> None:
        self.gate = asyncio.Event()
        self._all_sent = all_sent
        self._holds = 0

    async def held(self) -> bool:
        """Whether it holds as many as it says, at least: a sender claims the next ones too."""
        return self._holds >= self.concurrency

    async def send(self, compiled: None, send: Send, hand_over: HandOver) -> Verdict:  # noqa: ARG002
        assert await hand_over.begin()
        self._holds += 1
        await self.gate.wait()
        if self._all_sent or send.recipient % 3 == 0:
            return Accepted("fine")
        if send.recipient % 3 == 1:
            return Bounced("hard", "user_unknown", "5.1.1", "550 unknown", "recipient")
        return Failed("refused", retryable=False, detail="no")
