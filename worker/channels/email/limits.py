"""What a refusal says about limits: whose they are, who slows down, and whose message waits."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from contracts.results import BounceReason
from worker.channels.email.lane import SLOW_SECONDS
from worker.channels.email.patience import Patience, blames_the_client, defers
from worker.channels.email.wire import SHUTTING_DOWN
from worker.domain.bounces import classify
from worker.domain.verdicts import Accepted, Bounced, Failed

if TYPE_CHECKING:
    from worker.channels.email.lane import Lane
    from worker.channels.email.slots import Slots
    from worker.domain.verdicts import Verdict

log = structlog.get_logger(__name__)


class Limits:
    """Reads refusals for one relay.

    A limit is the relay's or a lane's: a relay passes on what a provider says, or is the provider's own
    server. It is the lane's if messages of other lanes pass.
    """

    def __init__(self, server: str, slots: Slots) -> None:
        """Takes the relay's name for sentences, and its places."""
        self._server = server
        self._slots = slots
        self._patience = Patience()
        self._turns: dict[Lane, asyncio.Event] = {}
        """Lanes for which a message waits; set when the lane gives a connection back."""

    def end(self, lane: Lane, number: int) -> None:
        """Notes that a message of a lane gave its connection back: `Lane.end`."""
        lane.end(number, asyncio.get_running_loop().time())
        if turn := self._turns.pop(lane, None):
            turn.set()

    async def lane_free(self, lane: Lane) -> bool:
        """Returns whether a lane takes one more, at once or in a moment.

        A moment is cheaper than to give the claim back, and too short to hold up others for long.
        """
        loop = asyncio.get_running_loop()
        if lane.free(loop.time()):
            return True
        until = loop.time() + SLOW_SECONDS
        while loop.time() < until and lane.opens_at <= loop.time():
            turn = self._turns.setdefault(lane, asyncio.Event())
            with suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await turn.wait()
            if lane.free(loop.time()):
                return True
        return False

    def held(self, lane: Lane) -> Failed:
        """Returns the verdict on a message whose lane has no free place now: it waits."""
        detail = f"Messages to {lane.name} wait: {lane.because}."
        return Failed(BounceReason.RATE_LIMITED.value, retryable=True, detail=detail, waits=True)

    def ends_session(self, lane: Lane, messages: int, because: str) -> bool:
        """Reads a 421: it ends a session that has done enough, or wants a pause of a new one.

        Args:
            lane: The lane of the message.
            messages: The number of messages of the session.
            because: The server's words.

        Returns:
            Whether so many messages are too many for one session.
        """
        if messages == 1:
            self._slow_down(lane, because)
            return False
        return classify(SHUTTING_DOWN, because).reason is BounceReason.RATE_LIMITED

    def told_to_go_again(self, lane: Lane, recipient: str, failed: Failed) -> Verdict:
        """Returns the verdict on a message that was answered with 421 on more than one session."""
        now = asyncio.get_running_loop().time()
        if now >= lane.opens_at and lane.others_active(now):
            self._pause_lane(lane, failed.detail, now)
        return self._put_off_or(lane, recipient, failed)

    def weighed(self, lane: Lane, recipient: str, verdict: Verdict) -> Verdict:
        """Returns the verdict on a message; one that waits if it says nothing of the message."""
        if isinstance(verdict, Bounced | Failed) and blames_the_client(verdict):
            if isinstance(verdict, Bounced):
                self._slow_down(lane, verdict.reply)
            elif verdict.reason == "authentication":
                self._slow_all_down(verdict.detail)
            else:
                self._slow_down(lane, verdict.detail)
            return self._put_off_or(lane, recipient, verdict)
        if isinstance(verdict, Accepted | Bounced):
            now = asyncio.get_running_loop().time()
            self._patience.passed(recipient)
            if isinstance(verdict, Bounced) and defers(verdict):
                if lane.deferred():
                    self._slow_down(lane, verdict.reply)
                return verdict
            lane.passed(now)
            if self._slots.pace.feeling:
                self._slots.pace.went_well(now)
                self._slots.wake()
        return verdict

    def _slow_down(self, lane: Lane, because: str) -> None:
        now = asyncio.get_running_loop().time()
        if lane.own_limit(now):
            self._pause_lane(lane, because, now)
        else:
            self._slow_all_down(because)

    def _pause_lane(self, lane: Lane, because: str, now: float) -> None:
        if not lane.pace.feeling:
            log.warning("a domain wants a pause", server=self._server, domain=lane.name, because=because)
        lane.slow_down(because, now)

    def _slow_all_down(self, because: str) -> None:
        pace = self._slots.pace
        if not pace.feeling:
            log.warning("the SMTP server wants a pause", server=self._server, because=because)
        pace.slow_down(because, asyncio.get_running_loop().time())

    def _put_off_or(self, lane: Lane, recipient: str, verdict: Bounced | Failed) -> Verdict:
        """Puts a message off for a limit; the verdict stands if only this one meets it."""
        if not self._patience.put_off(recipient, lane.answered, own=lane.pace.feeling):
            return verdict
        if isinstance(verdict, Failed):
            return replace(verdict, waits=True)
        who = f"{lane.name} limits" if lane.pace.feeling else f"The SMTP server {self._server} limits"
        detail = f"{who} how fast it takes messages: {verdict.reply}"
        return Failed(verdict.reason.value, retryable=True, detail=detail, waits=True)
