"""The connection: writes bytes, and reads the replies in their order (RFC 5321 section 4.2).

aiosmtplib connects, starts TLS, greets and logs in. Its protocol waits for each reply before the next
command, and drops unexpected replies. After the login this protocol replaces it on the same transport. It may
write several commands at once (RFC 2920), and counts the replies. An unexpected reply ends the connection,
since all later replies would be read as those of the wrong command.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, cast

from worker.channels.email.replies import SmtpReplyReader

if TYPE_CHECKING:
    from worker.channels.email.replies import SmtpReply

SHUTTING_DOWN: Final = 421
"""The reply with which a server closes the connection. It may come instead of any reply (RFC 5321 section
3.8)."""
_PIECE: Final = 65_536
"""Octets that TLS encrypts at once. asyncio buffers 64 KiB of encrypted octets, and this number more."""


class WireLost(Exception):
    """The connection is lost, or its replies cannot be trusted any more; the message says why."""


class Wire(asyncio.Protocol):
    """A connection after its greeting, for one task at a time."""

    def __init__(self, transport: asyncio.Transport) -> None:
        """Takes over an open transport from its protocol. No reply may be outstanding."""
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._outstanding = 0
        """The number of replies that have not come yet."""
        self._replies: deque[SmtpReply] = deque()
        self._reader = SmtpReplyReader()
        self._waiter: asyncio.Future[None] | None = None
        self._wanted = 0
        self._seconds = 0.0
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._write_paused = False
        self._lost: str | None = None
        transport.set_protocol(self)

    @property
    def open(self) -> bool:
        """Whether the connection is open, as far as we know."""
        return self._lost is None and not self._transport.is_closing()

    def write(self, data: bytes, *, replies: int) -> None:
        """Writes without waiting.

        Args:
            data: Whole commands, or the end of a message.
            replies: How many replies the server must send for it.

        Raises:
            WireLost: The connection was lost before; nothing was written.
        """
        if not self.open:
            raise WireLost(self._lost or "the server closed it")
        self._outstanding += replies
        self._transport.write(data)

    async def write_through(self, data: bytes, seconds: float) -> None:
        """Writes bytes that get no reply, and returns when they have left for the network, within `seconds`.

        Encrypted bytes count as having left, since asyncio does not tell. So the data is written in pieces:
        otherwise all of it could be encrypted at once.

        Raises:
            WireLost: They did not leave in time, or the connection is lost.
        """
        # The buffer counts as full from its first bytes, so that `resume_writing` means that it is empty. The
        # limit is not 0: TLS would treat an empty buffer as full.
        self._transport.set_write_buffer_limits(high=1)
        deadline = self._loop.time() + seconds
        for start in range(0, len(data), _PIECE):
            self.write(data[start : start + _PIECE], replies=0)
            await asyncio.sleep(0)  # asyncio reports a loss only between two turns of the loop, so pause
            while self._write_paused and self._lost is None:
                await self._wait(0, deadline - self._loop.time())
        if self._lost is not None:
            raise WireLost(self._lost)
        self._transport.set_write_buffer_limits()

    async def gather(self, replies: int, seconds: float) -> None:
        """Returns when so many replies have come, or fewer if the server closes the connection or it is lost.

        Args:
            replies: How many.
            seconds: How long each of them may take.
        """
        while len(self._replies) < replies and self._lost is None and not self._leaving():
            await self._wait(replies, seconds)

    async def reply(self, seconds: float) -> SmtpReply:
        """Returns the next reply, within so many seconds.

        Raises:
            WireLost: It did not come in time, or the connection is lost.
        """
        while not self._replies:
            if self._lost is not None:
                raise WireLost(self._lost)
            await self._wait(1, seconds)
        return self._replies.popleft()

    def abort(self, reason: str = "we closed it") -> None:
        """Drops the connection at once, with all unwritten bytes.

        Replies that have come can still be read.
        """
        self._lose(reason)
        self._transport.abort()

    async def _wait(self, wanted: int, seconds: float) -> None:
        self._wanted = wanted
        self._waiter = self._loop.create_future()
        self._seconds = seconds
        self._deadline = self._loop.time() + seconds
        if self._timer is None or self._timer.when() > self._deadline:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(self._deadline, self._look_at_clock)
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _leaving(self) -> bool:
        return bool(self._replies) and self._replies[-1].code == SHUTTING_DOWN

    def _look_at_clock(self) -> None:
        """Runs at an earlier deadline. One timer serves many waits, since deadlines only move forward."""
        self._timer = None
        if self._waiter is None or self._lost is not None:
            return
        if self._loop.time() >= self._deadline:
            self.abort("it took too long")
        else:
            self._timer = self._loop.call_at(self._deadline, self._look_at_clock)

    def _lose(self, reason: str) -> None:
        if self._lost is None:
            self._lost = reason
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wake()

    def data_received(self, data: bytes) -> None:
        """Takes the server's bytes: a part of a reply, or several replies."""
        if self._lost is not None:
            return
        try:
            for reply in self._reader.feed(data):
                self._take(reply)
        except ValueError as error:
            self.abort(str(error))
        if not (self._outstanding or self._reader.between_replies):
            self.abort("the server spoke out of turn")

    def _take(self, reply: SmtpReply) -> None:
        if not self._outstanding:
            raise ValueError(f"the server spoke out of turn: {reply.code} {reply.text[:200]}")
        self._outstanding -= 1
        self._replies.append(reply)
        self._deadline = self._loop.time() + self._seconds
        if reply.code == SHUTTING_DOWN or len(self._replies) >= self._wanted > 0:
            self._wake()

    def eof_received(self) -> None:
        """The server has closed its side and will not answer any more, so we close ours."""
        self._lose("the server closed it")

    def connection_lost(self, exc: Exception | None) -> None:
        """One side has closed the transport."""
        self._lose(str(exc).rstrip(".") if exc and str(exc) else "the server closed it")

    def pause_writing(self) -> None:
        """More bytes are written than the network takes now."""
        self._write_paused = True

    def resume_writing(self) -> None:
        """The network has taken it."""
        self._write_paused = False
        self._wake()


def take_over(transport: asyncio.BaseTransport | None) -> Wire:
    """Makes a wire of a library's transport.

    Raises:
        WireLost: It is already closed.
    """
    if transport is None or transport.is_closing():
        raise WireLost("the server closed it")
    return Wire(cast("asyncio.Transport", transport))
