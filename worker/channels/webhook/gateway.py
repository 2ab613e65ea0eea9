"""The connections to one gateway. It returns the result of each message as a value."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import structlog

from worker.channels.email.patience import Patience
from worker.channels.email.slots import Slots
from worker.channels.protocol import ChannelUnreachable
from worker.channels.webhook.answers import Answer, rule_of
from worker.channels.webhook.call import CallLost, Connection
from worker.channels.webhook.hosts import connect
from worker.domain.failures import Failure
from worker.domain.verdicts import Bounced, Failed

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Sequence

    from worker.channels.protocol import HandOver
    from worker.channels.webhook.call import CallTimeouts
    from worker.domain.verdicts import Verdict
    from worker.domain.webhook_options import GatewayUrl

log = structlog.get_logger(__name__)

_TRIES: Final = 2
"""Connections that are tried for one message. Then its recipient waits for a later attempt."""
_HEARD_SECONDS: Final = 1.0
"""Seconds after its last answer for which the gateway counts as reachable without a check."""
_ROUNDS: Final = 50
"""So often a message waits while others pass. A gateway that takes a quarter of what comes refuses one in a
million so often by chance."""
_NEVER: Final = float("-inf")


class Gateway:
    """Connections to one gateway. They are opened when needed and kept for the next message.

    Any number of tasks may use it. As many calls are made at the same time as there are connections. If the
    gateway wants a pause, all messages wait, and then one alone goes first; no message is at fault for that.
    """

    def __init__(
        self,
        url: GatewayUrl,
        *,
        size: int,
        timeouts: CallTimeouts,
        allow_private: bool,
        context: ssl.SSLContext,
    ) -> None:
        """Takes the settings. It does not connect yet.

        Args:
            url: Where the gateway is.
            size: The most connections at a time.
            timeouts: How long each phase may take.
            allow_private: Whether the gateway may be at this machine or in a private network.
            context: Checks its certificate.
        """
        self.size: Final = size
        self._url = url
        self._timeouts = timeouts
        self._allow_private = allow_private
        self._context = context
        self._slots = Slots(size)
        self._idle: list[Connection] = []
        self._patience = Patience(rounds=_ROUNDS)
        self._heard_at = _NEVER
        self._closed = False

    async def ready(self) -> None:
        """Returns when a connection to the gateway can be opened, or was used just now.

        No call is made for that: a gateway would count it.

        Raises:
            ChannelUnreachable: It cannot be reached, or it wants a pause.
        """
        now = asyncio.get_running_loop().time()
        if now - self._heard_at < _HEARD_SECONDS and not self._slots.paused(now):
            return
        async with self._slot(now + self._timeouts.connect):
            if self._idle:  # the oldest makes room for the new one
                await self._idle.pop(0).close()
            connection = await self._open()
            self._heard_at = asyncio.get_running_loop().time()
            await self._give_back(connection)

    @asynccontextmanager
    async def _slot(self, deadline: float) -> AsyncIterator[None]:
        """Reserves one of the connections; raises ChannelUnreachable if none is free in time."""
        try:
            await self._slots.take(deadline)
        except TimeoutError as error:
            seconds = f"{self._timeouts.connect:g} s"
            sentence = (
                f"The gateway {self._url} takes no messages now, for more than {seconds}:"
                f" {self._slots.because}."
                if self._slots.because
                else f"No connection to the gateway {self._url} came free within {seconds}: it is slow."
            )
            raise ChannelUnreachable(sentence, Failure.BUSY) from error
        try:
            yield
        finally:
            self._slots.give()

    async def post(
        self, recipient: str, headers: Sequence[tuple[bytes, bytes]], body: bytes, hand_over: HandOver
    ) -> Verdict:
        """Posts one message.

        Args:
            recipient: Whose message it is, for as long as it is put off.
            headers: The headers, without those of HTTP itself.
            body: The body.
            hand_over: The right to hand it over.

        Returns:
            What the answer means. `Unsure` if the whole call was written and no answer came. `Failed` if
            nothing was handed over for a reason on our side. It *waits* if the message is not at fault: the
            gateway cannot be reached, wants a pause, or does not know us. `Withheld` if the claim is no
            longer ours.
        """
        deadline = asyncio.get_running_loop().time() + self._timeouts.connect
        lost = ""
        try:
            for _ in range(_TRIES):
                async with self._slot(deadline):
                    connection = await self._take() or await self._open()
                    try:
                        answer = await connection.post(headers, body, hand_over)
                    except CallLost as error:
                        lost = str(error)
                        continue
                    finally:
                        await self._give_back(connection)
                return self._weighed(recipient, answer) if isinstance(answer, Answer) else answer
        except ChannelUnreachable as error:
            return Failed("connection", retryable=True, detail=str(error), waits=True)
        self._heard_at = _NEVER
        detail = f"The connection to the gateway {self._url} was lost before the body was sent: {lost}."
        return Failed("connection", retryable=True, detail=detail)

    def _weighed(self, recipient: str, answer: Answer) -> Verdict:
        """Returns what an answer means for its message; a failure that waits if it says nothing of it."""
        now = asyncio.get_running_loop().time()
        self._heard_at = now
        rule = rule_of(answer.status)
        verdict = rule.verdict(answer)
        pace = self._slots.pace
        if rule.outcome != "wait":
            self._patience.passed(recipient)
            if pace.feeling:
                pace.went_well(now)
                self._slots.wake()
            return verdict
        if not pace.feeling:
            log.warning("the gateway takes no messages now", gateway=str(self._url), because=answer.reply)
        pace.slow_down(answer.reply, now, answer.wait(datetime.now(UTC)))
        if not isinstance(verdict, Bounced) or not self._patience.put_off(recipient):
            return verdict
        detail = f"The gateway {self._url} takes no messages now: {verdict.reply}"
        return Failed(verdict.reason.value, retryable=True, detail=detail, waits=True)

    async def _take(self) -> Connection | None:
        """Returns the last used connection that is still open."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
            await connection.close()
        return None

    async def _open(self) -> Connection:
        """Opens a connection, or raises ChannelUnreachable."""
        try:
            stream = await connect(
                self._url,
                allow_private=self._allow_private,
                context=self._context,
                seconds=self._timeouts.connect,
            )
        except ChannelUnreachable:
            self._heard_at = _NEVER
            raise
        return Connection(stream, self._url, self._timeouts)

    async def _give_back(self, connection: Connection) -> None:
        if connection.usable and not self._closed:
            self._idle.append(connection)
        else:
            await connection.close()

    def stop_waiting(self) -> None:
        """From now on no message waits for a connection."""
        self._slots.stop_waiting()

    async def close(self) -> None:
        """Closes all connections. One that is in use is closed after its call."""
        self._closed = True
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.close()
