"""An SMTP server that keeps what it accepts and delivers nothing: `python dev/sink.py --port P --dir D`.

What happens is decided by the recipient's local part, so that a test or the demo can ask for any fate:

    unknown-…  bounce-…   550 5.1.1 at RCPT
    full-…                452 4.2.2 at RCPT
    down-…                421 4.3.2 at RCPT, and the connection is closed
    spam-…                554 5.7.1 after DATA
    slow-…                accepted, but the answer to DATA takes 2 seconds; slow-7-… takes 7 (60 at most)
    drop-…                accepted, but the connection is closed after DATA without an answer
    anything else         accepted

Each accepted message is a file `<folder>/<number>.eml` below the directory: as received, after the lines
`X-MailFrom:`, `X-RcptTo:` and `X-Received-At:`. `index.jsonl` has a line per message and recipient,
`{"recipient", "sender", "message_id", "file", "at"}`, `at` in Unix seconds. The line is there before the
answer is given.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import re
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

import uvloop
from aiosmtpd.smtp import SMTP

if TYPE_CHECKING:
    from aiosmtpd.smtp import Envelope, Session

REFUSED_AT_RCPT = {
    "unknown": "550 5.1.1 No such user here",
    "bounce": "550 5.1.1 No such user here",
    "full": "452 4.2.2 Mailbox full",
    "down": "421 4.3.2 System not accepting messages",
}
FATE = re.compile(r"(unknown|bounce|full|down|spam|slow|drop)-(?:(\d+)-)?", re.IGNORECASE)
DEFAULT_DELAY, LONGEST_DELAY = 2, 60
FILES_PER_FOLDER = 1000
MESSAGE_ID = re.compile(rb"^message-id:\s*(\S+)", re.IGNORECASE | re.MULTILINE)


class Sink:
    """The handler that aiosmtpd calls for each command.

    Args:
        folder: where messages and the index go; one that exists already is continued.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._index = os.open(folder / "index.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._prefix = f"{time.time_ns() // 1_000_000:x}"
        self._count = 0

    async def handle_EHLO(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, session: Session, _envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        """Announces pipelining too: aiosmtpd reads one command after another from its buffer (RFC 2920)."""
        session.host_name = hostname
        return [*responses[:-1], "250-PIPELINING", "250-ENHANCEDSTATUSCODES", responses[-1]]

    async def handle_MAIL(  # noqa: N802
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Accepts any sender."""
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 2.1.0 Sender accepted"

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Refuses by local part, or adds the recipient."""
        fate = FATE.match(address)
        refusal = REFUSED_AT_RCPT.get(fate[1].lower()) if fate else None
        if refusal is None:
            envelope.rcpt_tos.append(address)
            envelope.rcpt_options.extend(options)
            return "250 2.1.5 Recipient accepted"
        if refusal.startswith("421"):
            asyncio.get_running_loop().call_soon(cast("asyncio.Transport", server.transport).close)
        return refusal

    async def handle_DATA(self, server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        """Refuses as spam, or keeps the message and answers, late or not at all where that is asked for."""
        fates = {fate[1].lower(): fate[2] for fate in map(FATE.match, envelope.rcpt_tos) if fate}
        if "spam" in fates:
            return "554 5.7.1 Message refused as spam"
        name = self._keep(envelope)
        if "drop" in fates:
            cast("asyncio.Transport", server.transport).abort()
        elif "slow" in fates:
            await asyncio.sleep(min(int(fates["slow"] or DEFAULT_DELAY), LONGEST_DELAY))
        return f"250 2.0.0 Kept as {name}"

    def _keep(self, envelope: Envelope) -> str:
        folder, number = divmod(self._count, FILES_PER_FOLDER)
        self._count += 1
        name = f"{self._prefix}-{folder:04}/{number:03}.eml"
        path = self._folder / name
        if number == 0:
            path.parent.mkdir()
        content, sender, at = envelope.original_content or b"", envelope.mail_from, time.time()
        recipients = ", ".join(envelope.rcpt_tos)
        trace = f"X-MailFrom: {sender}\r\nX-RcptTo: {recipients}\r\nX-Received-At: {at:.6f}\r\n"
        path.write_bytes(trace.encode("utf-8", "surrogateescape") + content)
        found = MESSAGE_ID.search(content, 0, content.find(b"\r\n\r\n"))
        entry = {
            "sender": sender,
            "message_id": found[1].decode("utf-8", "replace") if found else None,
            "file": name,
            "at": at,
        }
        lines = [json.dumps({"recipient": recipient, **entry}) + "\n" for recipient in envelope.rcpt_tos]
        os.write(self._index, "".join(lines).encode())
        return name


async def serve(port: int, folder: Path) -> None:
    """Serves until SIGTERM or SIGINT."""
    sink = Sink(folder)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    server = await loop.create_server(
        lambda: SMTP(
            sink, enable_SMTPUTF8=True, hostname="sink.localhost", ident="Sendoff SMTP sink", loop=loop
        ),
        "127.0.0.1",
        port,
        backlog=512,
    )
    await ended.wait()
    server.close()


def main() -> None:
    """Reads the command line and serves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dir", type=Path, required=True)
    given = parser.parse_args()
    logging.getLogger("mail").setLevel(logging.CRITICAL)
    uvloop.run(serve(given.port, given.dir))


if __name__ == "__main__":
    main()
