"""One SMTP session: mail transactions, and what the server answered as values.

The one boundary that counts is the final dot of DATA. A server acts only upon it (RFC 5321 section 4.1.1.4):
where a connection is lost before it was written, nothing was sent, and the message may go out over another
one. Once it was written, only a reply can tell. The dot is therefore written alone, after the body has left
for the network.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING, Final, cast

import aiosmtplib
from aiosmtplib.protocol import normalize_message_line_endings

from worker.domain.bounces import classify, reply_line
from worker.domain.verdicts import Accepted, Bounced, Failed, Unsure

if TYPE_CHECKING:
    from worker.domain.verdicts import Verdict

_GOODBYE_SECONDS: Final = 2.0
"""How long a server may take to answer QUIT; nothing hangs on it."""
_SHUTTING_DOWN: Final = 421
_GO_AHEAD: Final = 354

_OWN_FAULT: Final[dict[int, tuple[str, bool]]] = {
    # RFC 4954 sections 4 and 6. An operator can mend the settings, and no recipient is to blame: try again.
    454: ("authentication", True),
    530: ("authentication", True),
    534: ("authentication", True),
    535: ("authentication", True),
    538: ("authentication", True),
    # RFC 5321 section 4.2.2: the server did not understand us, and will not the next time.
    500: ("protocol", False),
    502: ("protocol", False),
    503: ("protocol", False),
    504: ("protocol", False),
    555: ("protocol", False),
}
"""Refusals of this client rather than of the message or its recipient: the reason, and whether to retry."""

_PROVIDER_ID: Final = re.compile(
    r"queued as <?([^\s>]+)"  # Postfix
    r"|\bid=(\S+)"  # Exim
    r"|(\w{10,}) Message accepted"  # Sendmail
    r"|^250 (?:2\.\d\.\d )?Ok:? ([\w-]{20,})$",  # hosted relays that answer with the id alone
    re.IGNORECASE,
)


class ConnectionLost(Exception):  # noqa: N818 - named for what happened, as a verdict is
    """The session cannot go on, and the final dot was not written: nothing was sent. The message says why."""


class Session:
    """A session with the server, for one message at a time."""

    def __init__(self, smtp: aiosmtplib.SMTP, reply_seconds: float) -> None:
        """Takes over a client that is connected and has greeted the server.

        Args:
            smtp: The client.
            reply_seconds: How long to wait for any one reply, and for the body to leave.

        Raises:
            ConnectionLost: It is not connected any more.
        """
        self._smtp = smtp
        self._reply_seconds = reply_seconds
        self._between_messages = True
        self.messages = 0
        """Transactions begun so far."""
        # The write buffer counts as full from its first byte, so that draining it means that it is empty.
        self._transport().set_write_buffer_limits(high=0)

    @property
    def usable(self) -> bool:
        """Whether it is open, as far as is known, and not in the middle of anything."""
        return self._between_messages and self._smtp.is_connected

    async def check(self) -> None:
        """Asks the server for a sign of life.

        Raises:
            ConnectionLost: There was none.
        """
        self._between_messages = False
        await self._command(b"NOOP")
        self._between_messages = True

    async def send(self, sender: str, recipient: str, message: bytes, *, smtputf8: bool) -> Verdict:
        """Carries out one mail transaction (RFC 5321 section 3.3).

        Args:
            sender: The envelope sender.
            recipient: The envelope recipient.
            message: The message, headers and body.
            smtputf8: An address or header in it is not ASCII (RFC 6531).

        Raises:
            ConnectionLost: The connection broke, or the server is closing it; nothing was sent.
        """
        if smtputf8 and not self._smtp.supports_extension("smtputf8"):
            return Failed(
                "smtputf8_unsupported",
                retryable=False,
                detail="An address is not ASCII before its @, and the SMTP server does not offer SMTPUTF8.",
            )
        # Until the transaction has ended: one that is cancelled leaves the session in the middle of it.
        self._between_messages = False
        self.messages += 1
        body = normalize_message_line_endings(message)
        refusal = await self._envelope(sender, recipient, self._options(body, smtputf8=smtputf8))
        if refusal is None:
            await self._write_body(body)
        verdict = refusal or await self._end_of_data()
        self._between_messages = isinstance(verdict, Accepted | Bounced)
        return verdict

    def _options(self, body: bytes, *, smtputf8: bool) -> list[bytes]:
        options = []
        if self._smtp.supports_extension("size"):
            options.append(b"SIZE=%d" % len(body))  # RFC 1870: refused now rather than after it was sent
        if smtputf8:
            options += [b"BODY=8BITMIME", b"SMTPUTF8"]  # RFC 6531 section 3.6 asks for both
        return options

    async def _envelope(self, sender: str, recipient: str, options: list[bytes]) -> Bounced | Failed | None:
        """Everything up to the leave to send the body; returns the refusal, if there is one."""
        reply = await self._command(b"MAIL", b"FROM:" + _path(sender), *options)
        if not _done(reply):
            return await self._refused(reply, recipient_named=False)
        reply = await self._command(b"RCPT", b"TO:" + _path(recipient))
        if not _done(reply):
            return await self._refused(reply)
        reply = await self._command(b"DATA")
        return None if reply.code == _GO_AHEAD else await self._refused(reply)

    async def _refused(
        self, reply: aiosmtplib.SMTPResponse, *, recipient_named: bool = True
    ) -> Bounced | Failed:
        refusal = _refusal(reply, recipient_named=recipient_named)
        if refusal is None:
            raise ConnectionLost(f"the server answered out of turn: {reply_line(*reply)}")
        if isinstance(refusal, Bounced):
            await self._reset()
        return refusal

    async def _reset(self) -> None:
        """Forgets the envelope, so that the session can go on with the next message; or drops the session."""
        with contextlib.suppress(ConnectionLost):
            if _done(await self._command(b"RSET")):
                return
        self.abort()

    async def _command(self, *words: bytes) -> aiosmtplib.SMTPResponse:
        try:
            reply = await self._smtp.execute_command(*words, timeout=self._reply_seconds)
        except (aiosmtplib.SMTPException, OSError) as error:
            raise ConnectionLost(in_words(error)) from error
        if reply.code == _SHUTTING_DOWN:
            raise ConnectionLost(reply_line(*reply))
        return reply

    async def _write_body(self, body: bytes) -> None:
        """Puts the body on the network, dots doubled (RFC 5321 section 4.5.2), without the final one."""
        transport = self._transport()
        stuffed = body.replace(b"\r\n.", b"\r\n..")
        transport.write(b"." + stuffed if stuffed.startswith(b".") else stuffed)
        try:
            if transport.get_write_buffer_size():
                async with asyncio.timeout(self._reply_seconds):
                    # The name by which asyncio's own streams call it.
                    await self._protocol()._drain_helper()  # noqa: SLF001
        except OSError as error:
            raise ConnectionLost(in_words(error)) from error

    async def _end_of_data(self) -> Verdict:
        """Writes the final dot; from there on, silence leaves the outcome open."""
        protocol = self._protocol()
        self._transport().write(b".\r\n")
        try:
            reply = await protocol.read_response(timeout=self._reply_seconds)
        except (aiosmtplib.SMTPException, OSError) as error:
            return Unsure(f"The message was written whole, and no answer came: {in_words(error)}.")
        line = reply_line(*reply)
        if _done(reply):
            return Accepted(line, _provider_id(line))
        if reply.code == _SHUTTING_DOWN:
            detail = f"The SMTP server is closing and did not take the message: {line}"
            return Failed("service_unavailable", retryable=True, detail=detail)
        return _refusal(reply) or Unsure(
            f"The message was written whole, and the answer neither takes nor refuses it: {line}"
        )

    def _transport(self) -> asyncio.WriteTransport:
        if not self._smtp.is_connected:
            raise ConnectionLost("the server closed it")
        return cast("asyncio.WriteTransport", self._smtp.transport)

    def _protocol(self) -> aiosmtplib.protocol.SMTPProtocol:
        if self._smtp.protocol is None:
            raise ConnectionLost("the server closed it")
        return self._smtp.protocol

    async def quit(self) -> None:
        """Ends the session politely, if that can be had soon."""
        with contextlib.suppress(aiosmtplib.SMTPException, OSError):
            await self._smtp.quit(timeout=_GOODBYE_SECONDS)
        self.abort()

    def abort(self) -> None:
        """Drops the connection at once, with whatever is still unwritten."""
        if self._smtp.is_connected:
            self._transport().abort()
        self._smtp.close()


def in_words(error: BaseException) -> str:
    """Puts an error of the connection into words that fit into a sentence."""
    if isinstance(error, aiosmtplib.SMTPResponseException):
        return reply_line(error.code, error.message)
    return (str(error) or "it took too long").rstrip(".")


def _done(reply: aiosmtplib.SMTPResponse) -> bool:
    return reply.code // 100 == 2  # noqa: PLR2004 - 2yz, positive completion (RFC 5321 section 4.2.1)


def _path(address: str) -> bytes:
    return b"<" + address.encode() + b">"


def _refusal(reply: aiosmtplib.SMTPResponse, *, recipient_named: bool = True) -> Bounced | Failed | None:
    """What a 4yz or 5yz reply says; None for a reply of another class, which does not answer the command."""
    line = reply_line(*reply)
    if reply.code in _OWN_FAULT:
        reason, retryable = _OWN_FAULT[reply.code]
        return Failed(reason, retryable, f"The SMTP server refused this client: {line}")
    if reply.code // 100 not in (4, 5):
        return None
    meaning = classify(reply.code, reply.message, recipient_named=recipient_named)
    return Bounced(meaning.kind, meaning.reason, meaning.status, line, meaning.fault)


def _provider_id(line: str) -> str | None:
    found = _PROVIDER_ID.search(line)
    return next((group for group in found.groups() if group), None) if found else None
