"""An SMTP server written by hand, to break off at exact places, and a pool that speaks to it."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from worker.channels.email.smtp import SmtpPool
from worker.channels.email.timeouts import Timeouts
from worker.domain.verdicts import Accepted, Unsure

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Sequence

    from worker.channels.email.providers import Providers
    from worker.domain.verdicts import Verdict

MESSAGE = b"Subject: hello\r\n\r\n.a line with a dot\r\n..\r\nend\r\n"
LARGE = b"Subject: large\r\n\r\n" + (b"0123456789" * 7 + b"\r\n") * 250_000
"""18 MB: more than the kernel takes for a peer that does not read."""
DROP, SILENCE, HOLD = "drop", "silence", "hold"


class Server:
    """Follows a script: for each verb the replies to give in turn, the last one for ever.

    A reply is a line, `drop` (abort the connection), `silence` (neither read nor answer any more) or `hold`
    (answer as servers do once `release` is set).
    `CONNECT`, `BODY` (before any of the body is read) and `DOT` (when the final dot has been read) stand for
    those moments. Unscripted, it answers as servers do: nothing after a refused MAIL, no DATA for nobody.
    """

    pipelining = False
    """Whether it is offered (RFC 2920)."""
    piecemeal = False
    """Whether every octet is written by itself."""

    def __init__(self, **script: list[str]) -> None:
        self.script = script
        self.hasty: list[str] = []
        """Commands after which more came before they were answered."""
        self.empty = 0
        """Bodies that were a lone dot."""
        self.ends: list[tuple[bytes, str]] = []
        """Each body that came whole, with the answer to it."""
        self._sender = self._recipient = False
        self._body = b""
        self.seen: Counter[str] = Counter()
        self.bodies: list[bytes] = []
        """Bodies that came whole, as they were on the wire."""
        self.commands: list[str] = []
        self.silent = asyncio.Event()
        self.release = asyncio.Event()
        self._over = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            await self._session(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._sender = self._recipient = False
        if not await self._answer(writer, "CONNECT", "220 ready"):
            return
        while line := await reader.readline():
            command = line.decode().rstrip("\r\n")
            self.commands.append(command)
            verb = command.split(" ")[0].split(":")[0].upper()
            if reader._buffer:  # noqa: SLF001 - what came with the command
                self.hasty.append(verb)
            if not await self._answer(writer, verb, self._default(verb)):
                return
            self._keep(verb)
            if verb == "DATA" and self._last == "354 go ahead":
                if not await self._answer(writer, "BODY", ""):
                    return
                await self._read_body(reader)
                if not await self._answer(writer, "DOT", "250 2.0.0 Ok: queued as 4F6B1234"):
                    return

    def _default(self, verb: str) -> str:
        if verb == "EHLO":
            return "250-here\r\n" + "250-PIPELINING\r\n" * self.pipelining + "250 SIZE 100000000"
        if verb == "RCPT" and not self._sender:
            return "503 5.5.1 MAIL first"
        if verb == "DATA":
            return "354 go ahead" if self._recipient else "554 5.5.1 No valid recipients"
        return "221 bye" if verb == "QUIT" else "250 2.0.0 Ok"

    def _keep(self, verb: str) -> None:
        if verb in ("MAIL", "RSET", "DATA"):
            self._sender = self._recipient = False
        if verb == "MAIL":
            self._sender = self._last.startswith("2")
        if verb == "RCPT":
            self._recipient = self._last.startswith("2")

    async def _read_body(self, reader: asyncio.StreamReader) -> None:
        self._body = await reader.readexactly(3)
        if self._body == b".\r\n":
            self.empty += 1
        else:
            self._body += await reader.readuntil(b"\r\n.\r\n")
            self.bodies.append(self._body)

    async def _answer(self, writer: asyncio.StreamWriter, verb: str, default: str) -> bool:
        replies = self.script.get(verb, [default])
        reply = self._last = replies[min(self.seen[verb], len(replies) - 1)] or default
        self.seen[verb] += 1
        if verb == "DOT":
            self.ends.append((self._body, reply))
        if reply == HOLD:
            self.silent.set()
            await self.release.wait()
            reply = self._last = default
        if reply == DROP:
            return False
        if reply == SILENCE:
            writer.transport.pause_reading()
            self.silent.set()
            await self._over.wait()
            return False
        if reply:
            data = reply.encode() + b"\r\n"
            for piece in [data[i : i + 1] for i in range(len(data))] if self.piecemeal else [data]:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            if reply.startswith("421"):
                return False
        return True

    def stop(self) -> None:
        self._over.set()
        self.drop_all()

    def drop_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


@asynccontextmanager
async def running(
    server: Server,
    *,
    size: int = 1,
    seconds: float = 5.0,
    tls: ssl.SSLContext | None = None,
    url: str = "smtp://127.0.0.1:{port}",
    timeouts: Timeouts | None = None,
    providers: Providers | None = None,
) -> AsyncIterator[SmtpPool]:
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, limit=2**25, ssl=tls)
    port = listening.sockets[0].getsockname()[1]
    phases = timeouts or Timeouts.all(seconds)
    pool = SmtpPool(url.format(port=port), size=size, timeouts=phases, providers=providers)
    try:
        yield pool
    finally:
        await pool.close()
        listening.close()
        server.stop()
        await listening.wait_closed()


async def send(pool: SmtpPool, message: bytes = MESSAGE) -> Verdict:
    return await pool.send("news@example.org", "ana@example.net", message)


def expect_true(server: Server, verdicts: Sequence[object]) -> None:
    """No message, “hello 0,”, “hello 1,” …, went out twice, and each verdict is what the server answered."""
    for number, verdict in enumerate(verdicts):
        answers = [answer for body, answer in server.ends if b"hello %d," % number in body]
        assert len(answers) <= 1, "a body whose dot was written never goes out again"
        if isinstance(verdict, Accepted):
            assert answers[0].startswith("250")
        elif not isinstance(verdict, Unsure):
            assert not answers or answers[0][0] in "45"
