"""A pool of connections to the SMTP server. It returns the result of each message as a value."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Final, cast

import aiosmtplib
import structlog

from worker.channels.email.envelope import enveloped
from worker.channels.email.failures import ERRORS, classify, is_limit
from worker.channels.email.lanes import Lanes
from worker.channels.email.limits import Limits
from worker.channels.email.providers import read_providers
from worker.channels.email.session import Session, SessionLost, in_words
from worker.channels.email.slots import Slots
from worker.channels.email.url import SmtpUrl
from worker.channels.protocol import ChannelUnreachable, Granted
from worker.domain.failures import Failure
from worker.domain.verdicts import Failed, Unsure

if TYPE_CHECKING:
    from worker.channels.email.dsn import DsnOptions
    from worker.channels.email.envelope import Enveloped
    from worker.channels.email.lane import Lane
    from worker.channels.email.providers import Providers
    from worker.channels.email.slots import Waiter
    from worker.channels.email.timeouts import Timeouts
    from worker.channels.protocol import HandOver
    from worker.domain.verdicts import Verdict

log = structlog.get_logger(__name__)

_TRIES: Final = 2
"""Connections that are tried for one message. Then its recipient waits for a later attempt."""
_FRESH_SECONDS: Final = 1.0
"""Seconds after its last reply for which the server counts as reachable without a check."""
_NEVER: Final = float("-inf")
_NOT_UNDERSTOOD: Final = (500, 502, 504)
"""Replies to EHLO of servers that do not know EHLO and may know HELO (RFC 5321 section 3.2)."""


class _NoMore(Exception):
    """The server takes no further connection beside those that are open."""


class _NotWelcome(ChannelUnreachable):
    """The server wants TLS or a login first."""


class SmtpPool:
    """Connections to one SMTP server. They are opened when needed and kept for the next message.

    Any number of tasks may use it. As many messages are sent at the same time as there are connections. If
    the server limits connections or messages, the pool shrinks to what it takes, pauses, and steps up again;
    no message is at fault for that.
    """

    def __init__(
        self,
        url: str,
        *,
        size: int,
        timeouts: Timeouts,
        messages_per_connection: int = 1000,
        providers: Providers | None = None,
        per_minute: int = 0,
    ) -> None:
        """Reads the settings. It does not connect yet.

        Args:
            url: Where the server is; see `worker.channels.email.url.SmtpUrl`.
            size: The most connections at a time.
            timeouts: How long each phase may take.
            messages_per_connection: After so many messages a connection is replaced. Many servers end long
                sessions, and a load balancer can choose another server for the new one.
            providers: Which domains are limited together; None for the list of ours.
            per_minute: The most messages a minute that are begun, of all processes; 0 for no limit.

        Raises:
            ValueError: The URL is not an SMTP URL; the message says why.
        """
        self.size: Final = size
        self._url = SmtpUrl.parse(url)
        self._timeouts = timeouts
        self._messages_per_connection = messages_per_connection
        self._idle: list[Session] = []
        self._sessions: list[Session] = []
        """All that were open when the last one was opened."""
        self._opening = 0
        """How many are being opened."""
        slots = self._slots = Slots(size)
        self.lanes: Final = Lanes(
            str(self._url), providers or read_providers(), slots.connections, slots.pace, per_minute
        )
        self._limits = Limits(str(self._url), self._slots)
        self._welcome = False
        """Whether the server is known to want no TLS and no login first."""
        self._heard_at = _NEVER
        self._closed = False

    async def ready(self) -> None:
        """Returns when the server has answered over one of the connections.

        Await it before recipients are claimed, so that no recipient loses an attempt in an outage.

        Raises:
            ChannelUnreachable: It does not answer.
        """
        now = asyncio.get_running_loop().time()
        if now - self._heard_at < _FRESH_SECONDS and not self._slots.paused(now):
            return
        deadline = now + self._timeouts.connect
        while True:
            await self._take_slot(deadline)
            try:
                session = await self._checked()
                await self._give_back(session)
            except _NoMore:
                continue
            finally:
                self._slots.give()
            return

    async def _take_slot(self, deadline: float, mail: Enveloped | None = None) -> Session | None:
        """Reserves one of the connections.

        Returns:
            The session on which the message was begun, behind another; None if it was not begun.

        Raises:
            ChannelUnreachable: No connection was free in time. A message must not be sent long after its
                claim, since the claim may have expired or the delivery may have stopped.
        """
        try:
            return await self._slots.take(deadline, mail)
        except TimeoutError as error:
            seconds = f"{self._timeouts.connect:g} s"
            sentence = (
                f"The SMTP server {self._url} limits how fast it takes messages, now for more than {seconds}:"
                f" {self._slots.because}."
                if self._slots.because
                else f"No connection to the SMTP server {self._url} came free within {seconds}: it answers"
                f" slowly, or not any more."
            )
            raise ChannelUnreachable(sentence, Failure.BUSY) from error

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
            retryable. It *waits* if the message is not at fault: the server cannot be reached, takes no more
            connections, wants a pause, or wants something else of this client first. `Withheld` if the claim
            is no longer ours.
        """
        right = hand_over or Granted()
        mail = enveloped(sender, recipient, message, smtputf8=smtputf8, dsn=dsn)
        try:
            return await self._send(recipient, mail, right)
        except ChannelUnreachable as error:
            reason = "authentication" if isinstance(error, _NotWelcome) else "connection"
            return Failed(reason, retryable=True, detail=str(error), waits=True)

    async def _send(self, recipient: str, mail: Enveloped, hand_over: HandOver) -> Verdict:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeouts.connect
        lane = self.lanes.of(recipient)
        lost: list[SessionLost] = []
        while len(lost) < _TRIES:
            if not await self._limits.lane_free(lane):
                if lost and lost[-1].closing:
                    break
                return self._limits.held(lane)
            session = await self._take_slot(deadline, mail)
            try:
                if not lane.free(loop.time()):
                    if session:
                        session.abort()  # it was begun there
                    continue  # others of its lane came first
                session = session or self._take() or await self._open()
                number = lane.begin(loop.time())
                try:
                    verdict = await session.send(mail, hand_over, partial(self._next, session))
                finally:
                    self._limits.end(lane, number)
                return self._weighed(lane, recipient, verdict)
            except _NoMore:
                continue  # there is another, which comes free
            except SessionLost as error:
                lost.append(error)
                self._heard_at = _NEVER
                if error.closing and session is not None:
                    self._told_to_go(lane, session, str(error))
                continue
            finally:
                await self._leave(session)
        detail = (
            f"The connection to the SMTP server {self._url} was lost before anything was sent: {lost[-1]}."
        )
        failed = Failed("connection", retryable=True, detail=detail)
        return self._limits.told_to_go_again(lane, recipient, failed) if lost[-1].closing else failed

    def _told_to_go(self, lane: Lane, session: Session, because: str) -> None:
        """Reads a 421: it ends a session that has done enough, or wants a pause of a new one."""
        if self._limits.ends_session(lane, session.messages, because):
            # “Too many messages on this connection”: the next one ends in time.
            self._messages_per_connection = min(self._messages_per_connection, session.messages - 1)

    def _weighed(self, lane: Lane, recipient: str, verdict: Verdict) -> Verdict:
        """Returns the verdict on a message; one that waits if it says nothing of the message."""
        if isinstance(verdict, Unsure):
            return verdict
        self._heard()
        weighed = self._limits.weighed(lane, recipient, verdict)
        if isinstance(weighed, Failed) and weighed.waits:
            self._welcome = False
        return weighed

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

    def _next(self, session: Session) -> Waiter | None:
        """Returns the message to begin on a session behind the one that it sends, if there is one."""
        full = self._closed or session.messages >= self._messages_per_connection
        return None if full or self._slots.pace.feeling else self._slots.begin_next(session.offers)

    async def _leave(self, session: Session | None) -> None:
        """Passes the place and the session on to the message that was begun on it, or gives both back."""
        follower = session.follower if session else None
        if session and follower:
            if self._slots.hand(follower, session):
                return
            session.abort()  # the server waits for a message that goes another way
        try:
            if session:
                await self._give_back(session)
        finally:
            self._slots.give()

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
        """Opens a session.

        Raises:
            ChannelUnreachable: The server cannot be used now.
            _NoMore: It takes no further connection beside those that are open.
        """
        smtp = self._url.client(self._timeouts.connect)
        self._opening += 1
        try:
            async with asyncio.timeout(self._timeouts.connect):
                await smtp.connect()
                if smtp.is_ehlo_or_helo_needed:
                    await _greet(smtp)
                if self._url.login:
                    await self._url.login.into(smtp)
                session = Session(smtp, self._timeouts)
                await self._ask(session, smtp)
        except BaseException as error:
            if smtp.transport is not None:
                cast("asyncio.Transport", smtp.transport).abort()  # TLS would wait for the server's farewell
            smtp.close()
            self._opening -= 1
            if not isinstance(error, ERRORS):
                self._heard_at = _NEVER
                raise
            limited = is_limit(error)
            held = self._held()
            if (held or self._opening) and (limited or classify(error) is not Failure.BROKEN):
                self._takes_no_more(held, in_words(error))
                raise _NoMore from error
            self._heard_at = _NEVER
            if limited:
                sentence = (
                    f"The SMTP server {self._url} takes no more connections from here: {in_words(error)};"
                    f" what else on this machine is connected to it, and how many does it allow?"
                )
                raise ChannelUnreachable(sentence, Failure.BUSY) from error
            what, advice = "cannot be used", "it runs and that the SMTP URL is right"
            if isinstance(error, aiosmtplib.SMTPAuthenticationError):
                what, advice = "refused the login", "the user and the password or token are right"
            sentence = f"The SMTP server {self._url} {what}: {in_words(error)}; check that {advice}."
            raise ChannelUnreachable(sentence, classify(error)) from error
        self._opening -= 1
        self._heard()
        held = self._held()
        self._sessions.append(session)
        self._slots.connections.took(held + 1, asyncio.get_running_loop().time())
        self._slots.wake()
        return session

    async def _ask(self, session: Session, smtp: aiosmtplib.SMTP) -> None:
        """Finds out before the first message whether the server wants TLS or a login that we did not offer.

        Raises:
            ChannelUnreachable: It does; the sentence says which.
        """
        if self._welcome or not any(map(smtp.supports_extension, ("starttls", "auth"))):
            return
        wanted = await session.welcome()
        if wanted:
            session.abort()
            advice = (
                "TLS: begin SENDOFF_SMTP_URL with smtp+starttls:// or smtps://"
                if "tls" in wanted.lower()
                else "a login: give it a user and a password"
            )
            sentence = f"The SMTP server {self._url} takes no message yet: {wanted}. It wants {advice}."
            raise _NotWelcome(sentence, Failure.BROKEN)
        self._welcome = True

    def _held(self) -> int:
        """Returns how many connections are open."""
        self._sessions = [session for session in self._sessions if session.open]
        return len(self._sessions)

    def _takes_no_more(self, held: int, because: str) -> None:
        connections = self._slots.connections
        if connections.refused(held, asyncio.get_running_loop().time()):
            log.warning(
                "the SMTP server takes fewer connections than SENDOFF_SMTP_CONNECTIONS",
                server=str(self._url),
                takes=connections.limit,
                because=because,
            )

    def _heard(self) -> None:
        self._heard_at = asyncio.get_running_loop().time()

    def stop_waiting(self) -> None:
        """From now on no message waits for a connection."""
        self._slots.stop_waiting()

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
