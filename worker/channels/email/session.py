"""One SMTP session: carries out mail transactions, and returns the server's answers as values.

The final dot of DATA decides. A server acts only on it (RFC 5321 section 4.1.1.4). If a connection is lost
before the dot was written, nothing was sent, and the message may go over another connection. After the dot
was written, only a reply says whether the message was taken. So the dot of a large body is written alone,
after the body has left for the network. A small body and its dot are written together.

If the server offers it, MAIL, RCPT and DATA are written at once (RFC 2920), so that a message takes two round
trips. They are written behind the dot of the message before (the same, section 3.1) if another message waits
for a connection, and the server answers soon: one write and one read for each message, instead of two.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING, Final

import aiosmtplib

from contracts.results import BounceReason
from worker.channels.email.envelope import Offers
from worker.channels.email.wire import SHUTTING_DOWN, WireLost, take_over
from worker.crashing import crash_point
from worker.domain.bounces import classify, reply_line
from worker.domain.verdicts import Accepted, Bounced, Failed, Unsure, Withheld

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from worker.channels.email.envelope import Enveloped
    from worker.channels.email.replies import SmtpReply
    from worker.channels.email.slots import Waiter
    from worker.channels.email.timeouts import Timeouts
    from worker.channels.protocol import HandOver
    from worker.domain.verdicts import Verdict

_GOODBYE_SECONDS: Final = 2.0
"""Seconds that a server may take to answer QUIT. The answer does not matter."""
_GO_AHEAD: Final = 354
_WANTS_MORE: Final = 530
_COMMANDS: Final = 3
_MAIL, _RCPT, _DATA = range(_COMMANDS)
"""The commands of an envelope, by their index."""
_AT_ONCE: Final = 16_384
"""The most octets of a body that are written together with the dot: a new socket of Linux takes them at
once."""
_SOON: Final = 0.1
"""Seconds. A message is not begun behind one of a server that took longer for the answer to its last dot."""

_OWN_FAULT: Final[dict[int, tuple[str, bool]]] = {
    # RFC 4954 sections 4 and 6. An operator can mend the settings, and no recipient is at fault: try again.
    454: ("authentication", True),
    530: ("authentication", True),
    534: ("authentication", True),
    535: ("authentication", True),
    538: ("authentication", True),
    # RFC 5321 section 4.2.2: the server did not understand us, and another attempt would not help.
    500: ("protocol", False),
    502: ("protocol", False),
    503: ("protocol", False),
    504: ("protocol", False),
    555: ("protocol", False),
}
"""Refusals of this client, not of the message or its recipient: the reason, and whether to retry."""

_PROVIDER_ID: Final = re.compile(
    r"queued as <?([^\s>]+)"  # Postfix
    r"|\bid=(\S+)"  # Exim
    r"|(\w{10,}) Message accepted"  # Sendmail
    r"|^250 (?:2\.\d\.\d )?Ok:? ([\w-]{20,})$",  # hosted relays that answer with only the id
    re.IGNORECASE,
)


class SessionLost(Exception):
    """The session is lost before the final dot was written: nothing was sent. The message says why."""

    def __init__(self, why: str, *, closing: bool = False) -> None:
        """Takes the reason, and whether the server said that it closes the session (421)."""
        super().__init__(why)
        self.closing = closing


class Session:
    """A session with the server, for one message at a time; the next one may be begun behind its dot."""

    def __init__(self, smtp: aiosmtplib.SMTP, timeouts: Timeouts) -> None:
        """Takes over the connection of a client that has greeted the server.

        The client must not be used again.

        Args:
            smtp: The client.
            timeouts: How long to wait in each phase.

        Raises:
            SessionLost: The client is not connected any more.
        """
        self.offers: Final = Offers.of(smtp.supports_extension)
        """What the server offers."""
        self.follower: Waiter | None = None
        """The message that was begun behind the last dot, and is to be sent next."""
        self._answers_soon = False
        self._timeouts = timeouts
        self._loop = asyncio.get_running_loop()
        self._between_messages = True
        self.messages = 0
        """The number of transactions that were begun."""
        try:
            self._wire = take_over(smtp.transport)
        except WireLost as error:
            raise SessionLost(str(error)) from error

    @property
    def usable(self) -> bool:
        """Whether it is open, as far as we know, and between two transactions."""
        return self._between_messages and self._wire.open

    @property
    def open(self) -> bool:
        """Whether the connection is open, as far as we know."""
        return self._wire.open

    async def welcome(self) -> str:
        """Asks whether the server takes messages from us, with an envelope that is withdrawn at once.

        Returns:
            The server's words if it wants TLS or a login first (530, RFC 3207 and RFC 4954); else empty.

        Raises:
            SessionLost: It does not answer.
        """
        self._between_messages = False
        reply = await self._command(b"MAIL FROM:<>\r\n")
        await self._reset()
        self._between_messages = True
        return reply_line(*reply) if reply.code == _WANTS_MORE else ""

    async def check(self) -> None:
        """Checks that the server answers.

        Raises:
            SessionLost: It does not answer.
        """
        self._between_messages = False
        await self._command(b"NOOP\r\n")
        self._between_messages = True

    async def send(
        self,
        mail: Enveloped,
        hand_over: HandOver,
        next_one: Callable[[], Waiter | None] = lambda: None,
    ) -> Verdict:
        """Carries out one mail transaction (RFC 5321 section 3.3).

        Args:
            mail: The message with its envelope. If it is that of `follower`, it was begun already.
            hand_over: The right to hand over. It is begun with the envelope, or here if the envelope was
                written before, and must be granted before the body.
            next_one: Returns the message to begin behind the dot, if there is one. It becomes `follower`.

        Raises:
            SessionLost: The connection broke, or the server closes it; nothing was sent.
        """
        if not mail.fits(self.offers):
            return Failed(
                "smtputf8_unsupported",
                retryable=False,
                detail="An address is not ASCII before its @, and the SMTP server does not offer SMTPUTF8.",
            )
        begun, self.follower = self.follower is not None, None
        commands = mail.commands(self.offers)
        # Until the transaction has ended: a cancelled one leaves the session unusable.
        self._between_messages = False
        self.messages += 1
        # At the same time as the round trips of the envelope, not after them. A message that was begun behind
        # another is marked only now: one that waits must not be in doubt.
        marking = hand_over.begin()
        if self.offers.pipelining:
            refusal = await self._envelope_at_once(b"" if begun else b"".join(commands))
        else:
            refusal = await self._envelope(commands)
        if isinstance(refusal, Bounced):
            await self._reset()
        verdict = (
            refusal or await self._withheld(marking, hand_over) or await self._hand_over(mail.body, next_one)
        )
        self._between_messages = isinstance(verdict, Accepted | Bounced)
        return verdict

    async def _withheld(self, marking: Awaitable[bool], hand_over: HandOver) -> Withheld | Failed | None:
        """Returns why the body must not be sent; None if it may be sent.

        After the server's 354 we can only drop the connection: a dot alone would send an empty message.
        """
        if not await marking:
            self.abort()
            return Withheld()
        if hand_over.expired:
            # The process or the machine was suspended for so long that another sender may take the claim.
            self.abort()
            sentence = "The sender was stopped for longer than its lease: nothing was sent."
            return Failed("suspended", retryable=True, detail=sentence)
        return None

    async def _envelope(self, commands: tuple[bytes, ...]) -> Bounced | Failed | None:
        """Sends the envelope, up to the server's 354; returns the refusal, if there is one."""
        for number, command in enumerate(commands):
            seconds = self._timeouts.data if number == _DATA else self._timeouts.command
            refusal = _judged(number, await self._command(command, seconds))
            if refusal is not None:
                return refusal
        return None

    async def _envelope_at_once(self, commands: bytes) -> Bounced | Failed | None:
        """Sends the envelope in one write, if the server offers that (RFC 2920 section 3.1).

        Args:
            commands: The envelope; nothing if it was sent behind the message before.
        """
        if commands:
            self._write(commands, replies=_COMMANDS)
        await self._wire.gather(_COMMANDS, self._timeouts.command)
        for number in range(_COMMANDS):
            refusal = _judged(number, await self._reply())
            if refusal is not None:
                if isinstance(refusal, Bounced):
                    await self._withdraw(number)
                return refusal
        return None

    async def _withdraw(self, refused: int) -> None:
        """Ends a transaction after a command was refused, while the commands behind it were already sent.

        A server may answer 354 although there is no recipient. Then a dot alone ends the body (RFC 2920
        section 3.1). The reply to it does not matter: the message was refused before. If MAIL was refused and
        RCPT was not, the dot might send an empty message to the recipient. Then the connection is dropped.
        """
        with contextlib.suppress(SessionLost):
            later = [await self._reply() for _ in range(refused + 1, _COMMANDS)]
            if later and later[-1].code == _GO_AHEAD:
                if any(map(_done, later)):
                    self.abort()
                else:
                    await self._command(b".\r\n")
            return
        self.abort()

    async def _reset(self) -> None:
        """Resets the envelope, so that the session can take the next message; or drops the session."""
        with contextlib.suppress(SessionLost):
            if _done(await self._command(b"RSET\r\n")):
                return
        self.abort()

    async def _command(self, command: bytes, seconds: float | None = None) -> SmtpReply:
        self._write(command, replies=1)
        return await self._reply(seconds)

    def _write(self, data: bytes, *, replies: int) -> None:
        try:
            self._wire.write(data, replies=replies)
        except WireLost as error:
            raise SessionLost(str(error)) from error

    async def _reply(self, seconds: float | None = None) -> SmtpReply:
        try:
            reply = await self._wire.reply(seconds or self._timeouts.command)
        except WireLost as error:
            raise SessionLost(str(error)) from error
        if reply.code == SHUTTING_DOWN:
            raise SessionLost(reply_line(*reply), closing=True)
        return reply

    async def _hand_over(self, body: bytes, next_one: Callable[[], Waiter | None]) -> Verdict:
        """Writes the body, dots doubled (RFC 5321 section 4.5.2), and the final dot; returns the verdict."""
        stuffed = body.replace(b"\r\n.", b"\r\n..")
        if stuffed.startswith(b"."):
            stuffed = b"." + stuffed
        if len(stuffed) > _AT_ONCE:
            try:
                await self._wire.write_through(stuffed, self._timeouts.block)
            except WireLost as error:
                raise SessionLost(str(error)) from error
            stuffed = b""
        behind = self._behind(next_one)
        self._write(stuffed + b".\r\n" + behind, replies=1 + (_COMMANDS if behind else 0))
        # From here on the outcome is not known without a reply.
        crash_point("smtp.written")
        written_at = self._loop.time()
        try:
            reply = await self._wire.reply(self._timeouts.dot)
        except WireLost as error:
            return Unsure(f"The message was written whole, and no answer came: {error}.")
        self._answers_soon = self._loop.time() - written_at < _SOON
        line = reply_line(*reply)
        if _done(reply):
            return Accepted(line, _provider_id(line))
        if reply.code == SHUTTING_DOWN:
            detail = f"The SMTP server is closing and did not take the message: {line}"
            return Failed("service_unavailable", retryable=True, detail=detail)
        return _refusal(reply) or Unsure(
            f"The message was written whole, and the answer neither takes nor refuses it: {line}"
        )

    def _behind(self, next_one: Callable[[], Waiter | None]) -> bytes:
        """Returns the commands of the next message, which becomes `follower`; nothing if there is none.

        A server that answers late would hold it up, while other connections come free.
        """
        if not (self.offers.pipelining and self._answers_soon):
            return b""
        self.follower = next_one()
        mail = self.follower.enveloped if self.follower else None
        return b"".join(mail.commands(self.offers)) if mail else b""

    async def quit(self) -> None:
        """Ends the session with QUIT, if the server answers soon."""
        with contextlib.suppress(SessionLost, TimeoutError):
            async with asyncio.timeout(_GOODBYE_SECONDS):
                await self._command(b"QUIT\r\n")
        self.abort()

    def abort(self) -> None:
        """Drops the connection at once, with all unwritten bytes."""
        self._wire.abort()


def in_words(error: BaseException) -> str:
    """Returns words for an error of the connection that fit into a sentence."""
    if isinstance(error, aiosmtplib.SMTPResponseException):
        return reply_line(error.code, error.message)
    return (str(error) or "it took too long").rstrip(".")


def _done(reply: SmtpReply) -> bool:
    return reply.code // 100 == 2  # noqa: PLR2004 - 2yz, positive completion (RFC 5321 section 4.2.1)


def _judged(command: int, reply: SmtpReply) -> Bounced | Failed | None:
    """Returns what a reply to a command of the envelope means; None if the next command may follow.

    Raises:
        SessionLost: The reply does not answer that command.
    """
    if reply.code == _GO_AHEAD if command == _DATA else _done(reply):
        return None
    refusal = _refusal(reply, recipient_named=command != _MAIL)
    if refusal is None:
        raise SessionLost(f"the server answered out of turn: {reply_line(*reply)}")
    return refusal


def _refusal(reply: SmtpReply, *, recipient_named: bool = True) -> Bounced | Failed | None:
    """Returns what a 4yz or 5yz reply means; None for another class, which does not answer the command."""
    if reply.code // 100 not in (4, 5):
        return None
    line = reply_line(*reply)
    meaning = classify(reply.code, reply.text, recipient_named=recipient_named)
    # Words before codes: some servers say 454, which is a failed login, when they mean that it is too fast.
    if reply.code in _OWN_FAULT and meaning.reason is not BounceReason.RATE_LIMITED:
        reason, retryable = _OWN_FAULT[reply.code]
        return Failed(reason, retryable, f"The SMTP server refused this client: {line}")
    return Bounced(meaning.kind, meaning.reason, meaning.status, line, meaning.fault)


def _provider_id(line: str) -> str | None:
    found = _PROVIDER_ID.search(line)
    return next((group for group in found.groups() if group), None) if found else None
