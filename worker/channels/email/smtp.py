"""A pool of connections to the SMTP server. It returns the result of each message as a value."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import aiosmtplib

from worker.channels.email.failures import ERRORS, classify
from worker.channels.email.session import Session, SessionLost, in_words
from worker.channels.email.url import SmtpUrl
from worker.channels.protocol import ChannelUnreachable, Granted
from worker.domain.failures import Failure
from worker.domain.verdicts import Failed, Unsure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from worker.channels.email.dsn import DsnOptions
    from worker.channels.email.timeouts import Timeouts
    from worker.channels.protocol import HandOver
    from worker.domain.verdicts import Verdict

_TRIES: Final = 2
"""Connections that are tried for one message. Then its recipient waits for a later attempt."""
_FRESH_SECONDS: Final = 1.0
"""Seconds after its last reply for which the server counts as reachable without a check."""
_NEVER: Final = float("-inf")
_NOT_UNDERSTOOD: Final = (500, 502, 504)
"""Replies to EHLO of servers that do not know EHLO and may know HELO (RFC 5321 section 3.2)."""


class SmtpPool:
    """Connections to one SMTP server. They are opened when needed and kept for the next message.

    Any number of tasks may use it. As many messages are sent at the same time as there are connections.
    """

    def __init__(
        self, url: str, *, size: int, timeouts: Timeouts, messages_per_connection: int = 1000
    ) -> None:
        """Reads the settings. It does not connect yet.

        Args:
            url: Where the server is; see `worker.channels.email.url.SmtpUrl`.
            size: The most connections at a time.
            timeouts: How long each phase may take.
            messages_per_connection: After so many messages a connection is replaced. Many servers end long
                sessions, and a load balancer can choose another server for the new one.

        Raises:
            ValueError: The URL is not an SMTP URL; the message says why.
        """
        self.size: Final = size
        self._url = SmtpUrl.parse(url)
        self._timeouts = timeouts
        self._messages_per_connection = messages_per_connection
        self._slots = asyncio.Semaphore(size)
        self._idle: list[Session] = []
        self._heard_at = _NEVER
        self._closed = False

    async def ready(self) -> None:
        """Returns when the server has answered over one of the connections.

        Await it before recipients are claimed, so that no recipient loses an attempt in an outage.

        Raises:
            ChannelUnreachable: It does not answer.
        """
        if asyncio.get_running_loop().time() - self._heard_at < _FRESH_SECONDS:
            return
        async with self._slot():
            await self._give_back(await self._checked())

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """Reserves one of the connections.

        Raises:
            ChannelUnreachable: No connection was free in time. A message must not be sent long after its
                claim, since the claim may have expired or the delivery may have stopped.
        """
        try:
            async with asyncio.timeout(self._timeouts.connect):
                await self._slots.acquire()
        except TimeoutError as error:
            raise ChannelUnreachable(
                f"No connection to the SMTP server {self._url} came free within {self._timeouts.connect:g} s:"
                f" it answers slowly, or not any more.",
                Failure.BUSY,
            ) from error
        try:
            yield
        finally:
            self._slots.release()

    async def send(
        self,
        sender: str,
        recipient: str,
        message: bytes,
        *,
        smtputf8: bool = False,
        hand_over: HandOver | None = None,
        dsn: DsnOptions | None = None,
    ) -> Verdict:
        """Hands one message to the server.

        Args:
            sender: The envelope sender, as in `Mailbox.address`.
            recipient: The envelope recipient, likewise.
            message: The message, headers and body.
            smtputf8: An address or header in it is not ASCII (RFC 6531).
            hand_over: The right to hand it over; None if no mark is needed.
            dsn: Which reports to ask for, if the server offers that; None for what it does by itself.

        Returns:
            `Accepted` after a 2yz reply to the whole message. `Bounced` after a refusal of it. `Unsure` if no
            reply came after the final dot. `Failed` if nothing was sent for a reason on our side. A
            connection that is lost before the final dot is replaced once; then the result is `Failed`,
            retryable. A message for which no connection is free in time is `Failed`, retryable, too.
            `Withheld` if the claim is no longer ours.
        """
        right = hand_over or Granted()
        try:
            async with self._slot():
                return await self._send(sender, recipient, message, right, smtputf8=smtputf8, dsn=dsn)
        except ChannelUnreachable as error:
            return Failed("connection", retryable=True, detail=str(error))

    async def _send(
        self,
        sender: str,
        recipient: str,
        message: bytes,
        hand_over: HandOver,
        *,
        smtputf8: bool,
        dsn: DsnOptions | None,
    ) -> Verdict:
        session = self._take()
        lost = ""
        for _ in range(_TRIES):
            try:
                session = session or await self._open()
                verdict = await self._over(
                    session, sender, recipient, message, hand_over, smtputf8=smtputf8, dsn=dsn
                )
            except SessionLost as error:
                session, lost, self._heard_at = None, str(error), _NEVER
                continue
            if not isinstance(verdict, Unsure):
                self._heard()
            return verdict
        detail = f"The connection to the SMTP server {self._url} was lost before anything was sent: {lost}."
        return Failed("connection", retryable=True, detail=detail)

    async def _over(
        self,
        session: Session,
        sender: str,
        recipient: str,
        message: bytes,
        hand_over: HandOver,
        *,
        smtputf8: bool,
        dsn: DsnOptions | None,
    ) -> Verdict:
        try:
            return await session.send(sender, recipient, message, hand_over, smtputf8=smtputf8, dsn=dsn)
        finally:
            await self._give_back(session)

    def _take(self) -> Session | None:
        """Returns the last used session that is still open.

        The others stay idle until the server ends them.
        """
        while self._idle:
            session = self._idle.pop()
            if session.usable:
                return session
            session.abort()
        return None

    async def _give_back(self, session: Session) -> None:
        if not session.usable:
            session.abort()
        elif self._closed or session.messages >= self._messages_per_connection:
            await session.quit()
        else:
            self._idle.append(session)

    async def _checked(self) -> Session:
        """Returns a session over which the server has just answered."""
        while (session := self._take()) is not None:
            try:
                await session.check()
            except SessionLost:
                continue
            finally:
                if not session.usable:
                    session.abort()
            self._heard()
            return session
        return await self._open()

    async def _open(self) -> Session:
        smtp = self._url.client(self._timeouts.connect)
        try:
            async with asyncio.timeout(self._timeouts.connect):
                await smtp.connect()
                if smtp.is_ehlo_or_helo_needed:
                    await _greet(smtp)
            session = Session(smtp, self._timeouts)
        except BaseException as error:
            smtp.close()
            self._heard_at = _NEVER
            if not isinstance(error, ERRORS):
                raise
            what, advice = "cannot be used", "it runs and that the SMTP URL is right"
            if isinstance(error, aiosmtplib.SMTPAuthenticationError):
                what, advice = "refused the login", "the user and the password in the SMTP URL are right"
            sentence = f"The SMTP server {self._url} {what}: {in_words(error)}; check that {advice}."
            raise ChannelUnreachable(sentence, classify(error)) from error
        self._heard()
        return session

    def _heard(self) -> None:
        self._heard_at = asyncio.get_running_loop().time()

    async def close(self) -> None:
        """Ends all sessions. A session that is sending ends after its message."""
        self._closed = True
        idle, self._idle = self._idle, []
        await asyncio.gather(*(session.quit() for session in idle))


async def _greet(smtp: aiosmtplib.SMTP) -> None:
    """Sends EHLO, or HELO to a server that does not know EHLO (RFC 5321 section 3.2)."""
    try:
        await smtp.ehlo()
    except aiosmtplib.SMTPHeloError as error:
        if error.code not in _NOT_UNDERSTOOD:
            raise
        await smtp.helo()
