"""Returned mail over LMTP (RFC 2033) or SMTP (RFC 5321): the client says which by its greeting.

A mail is answered with 250 only after it is safe, otherwise with 451, so that the client tries again.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any, Final

import structlog
from aiosmtpd.smtp import SMTP, syntax

from worker.lifecycle import pause
from worker.returned.mime import LONGEST_MAIL
from worker.returned.sources import AT_ONCE, Answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiosmtpd.smtp import Envelope, Session

    from worker.returned.sources import Take

log = structlog.get_logger(__name__)

_MOST_RECIPIENTS: Final = 50
_IDLE_SECONDS: Final = 300.0
_LONGEST_LINE: Final = 64_000
"""Octets that are read at once. A line may be longer, although RFC 5321 section 4.5.3.1.6 allows 1,000."""
_TAKEN: Final = "250 2.0.0 Taken"
_LATER: Final = "451 4.3.0 The mail cannot be taken now; try again later"
_TOO_LARGE: Final = "552 5.3.4 The mail is too large"


class ListenerUnavailable(Exception):
    """We cannot listen on the address; the message says why."""


class Listener:
    """Listens for returned mail."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        longest: int,
        forged: Callable[[str], bool],
        count: Callable[[str], None],
    ) -> None:
        """Takes the address. It does not listen yet.

        Args:
            host: The address to listen on.
            port: The port; 0 for any that is free.
            longest: Octets of a mail. A longer one is refused. Only the beginning of one is kept in memory.
            forged: Returns whether a recipient claims to be ours and is not.
            count: Counts a mail that never reaches `take`, by what became of it.
        """
        self._host, self._port = host, port
        self._longest = longest
        self._forged = forged
        self._count = count
        self._open: set[_Connection] = set()
        self._busy = 0
        self.address: tuple[str, int] | None = None
        """Where it listens; None before."""

    async def run(self, take: Take, stop: asyncio.Event) -> None:
        """Takes mails until `stop`; those that were sent whole by then are answered.

        Raises:
            ListenerUnavailable: The address is in use, or is not this machine's.
        """
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(
                lambda: self._protocol(take),
                self._host,
                self._port,
                reuse_port=hasattr(socket, "SO_REUSEPORT") or None,  # any number of processes
            )
        except OSError as error:
            raise ListenerUnavailable(
                f"Nothing can listen for returned mail on {self._host}:{self._port}: {error.strerror}."
            ) from error
        self.address = server.sockets[0].getsockname()[:2]
        log.info("listening for returned mail", host=self.address[0], port=self.address[1])
        try:
            await stop.wait()
            server.close()
            never = asyncio.Event()
            while self._busy:  # the grace of the process bounds it
                await pause(never, 0.05)
        finally:
            server.close()
            for connection in list(self._open):
                connection.end()

    def _protocol(self, take: Take) -> asyncio.Protocol:
        if len(self._open) >= AT_ONCE:
            return _TooMany()
        return _Connection(self, take, self._longest)

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        """Answers RCPT: nobody but us can make an address that is ours."""
        if self._forged(address):
            self._count("forged")
            return "550 5.1.1 There is no such address here"
        if len(envelope.rcpt_tos) >= _MOST_RECIPIENTS:
            return "452 4.5.3 Too many recipients"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(self, connection: _Connection, envelope: Envelope) -> str:  # noqa: N802 - as above
        """Answers the final dot, in LMTP once for each recipient (RFC 2033 section 4.2)."""
        self._busy += 1
        try:
            answer = await connection.take(envelope.original_content or b"", envelope.rcpt_tos)
        finally:
            self._busy -= 1
        line = _TAKEN if answer is Answer.TAKEN else _LATER
        return "\r\n".join([line] * (len(envelope.rcpt_tos) if connection.is_lmtp else 1))

    async def handle_exception(self, error: Exception) -> str:
        """Answers a fault of our own."""
        log.error("taking a returned mail failed", exc_info=error)
        return _LATER

    def refused(self) -> None:
        """Counts a mail that is too large."""
        self._count("too_large")

    def opened(self, connection: _Connection) -> None:
        """Counts a connection in."""
        self._open.add(connection)

    def closed(self, connection: _Connection) -> None:
        """Counts a connection out."""
        self._open.discard(connection)


class _Connection(SMTP):
    line_length_limit = _LONGEST_LINE

    def __init__(self, listener: Listener, take: Take, longest: int) -> None:
        super().__init__(
            listener,
            data_size_limit=longest,  # for what MAIL announces; `smtp_DATA` counts what comes
            enable_SMTPUTF8=True,
            ident="Sendoff",
            timeout=_IDLE_SECONDS,
            loop=asyncio.get_running_loop(),
        )
        self.take = take
        self.is_lmtp = False
        self._listener = listener
        self._longest = longest

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401 - asyncio's
        super().connection_made(transport)
        self._listener.opened(self)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._listener.closed(self)

    @syntax("LHLO hostname")
    async def smtp_LHLO(self, hostname: str) -> None:  # noqa: N802 - aiosmtpd's name
        self.is_lmtp = True
        await super().smtp_EHLO(hostname)

    async def smtp_DATA(self, arg: str | None) -> None:  # noqa: N802 - aiosmtpd's name
        """Reads a mail and keeps its beginning: aiosmtpd keeps each line, 340 MB for 10 MB of empty ones."""
        if await self.check_helo_needed():
            return
        if arg or self.envelope is None or not self.envelope.rcpt_tos:
            await self.push("501 Syntax: DATA" if arg else "503 Error: need RCPT command")
            return
        await self.push("354 End data with <CR><LF>.<CR><LF>")
        content, size = await self._content()
        if size > self._longest:
            self._listener.refused()
            status = _TOO_LARGE
        else:
            self.envelope.original_content = content
            status = await self._listener.handle_DATA(self, self.envelope)
        self._set_post_data_state()  # type: ignore[no-untyped-call]
        await self.push(status)

    async def _content(self) -> tuple[bytes, int]:
        """Returns the beginning of the mail, and how many octets the whole has."""
        kept, size, begins_line = bytearray(), 0, True
        while True:
            try:
                line = await self._reader.readuntil(b"\r\n")
            except asyncio.LimitOverrunError as error:
                line = await self._reader.read(error.consumed)
            if begins_line and line == b".\r\n":
                return bytes(kept[:LONGEST_MAIL]), size
            size += len(line)
            if len(kept) < LONGEST_MAIL:
                kept += line[1:] if begins_line and line.startswith(b".") else line
            begins_line = line.endswith(b"\r\n")

    def end(self) -> None:
        if self.transport is not None:
            self.transport.close()


class _TooMany(asyncio.Protocol):
    """Sends one more client away."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - for the type alone
        transport.write(b"421 4.3.2 Too many connections; try again later\r\n")
        transport.close()
