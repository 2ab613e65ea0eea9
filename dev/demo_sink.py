"""What the SMTP sink received in the demo: shown, and compared with what was recorded."""

from __future__ import annotations

import email
import json
from collections import Counter
from email.policy import default
from typing import TYPE_CHECKING, Any

from demo_commands import RETURNS, DemoError, out
from rich.text import Text

from worker.domain.mailbox import mailbox

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from demo_commands import Demo

OURS = f"@{RETURNS}"
SHOWN = "sakura."  # the received message to show: one that plain ASCII could not carry


class Sink:
    """What the SMTP sink received since now, of one delivery."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._index = folder / "index.jsonl"
        self._start = self._index.stat().st_size if self._index.exists() else 0

    def received(self, delivery: str) -> Iterator[dict[str, Any]]:
        """Yields the entries of the index that are this delivery's, by sender and Message-ID."""
        if not self._index.exists():
            return
        with self._index.open("rb") as index:
            index.seek(self._start)
            for line in index:
                entry = json.loads(line)
                if entry["sender"].endswith(OURS) and entry["message_id"].startswith(f"<{delivery}-"):
                    yield entry

    def read(self, entry: dict[str, str]) -> bytes:
        """Returns a message as it was received."""
        return (self._folder / entry["file"]).read_bytes()


def show_message(sink: Sink, delivery: str) -> None:
    """Prints one of the messages, decoded as a mail program would.

    Raises:
        DemoError: There is none.
    """
    chosen = next((e for e in sink.received(delivery) if e["recipient"].startswith(SHOWN)), None)
    chosen = chosen or next(sink.received(delivery), None)
    if chosen is None:
        raise DemoError(f"The sink received nothing from an address {OURS}.")
    message = email.message_from_bytes(sink.read(chosen), policy=default)
    out.print()
    out.print("One of the messages, as the SMTP server received it", style="bold")
    for name in ("From", "To", "Subject", "Date", "Message-ID", "List-Unsubscribe", "Content-Type"):
        value = str(message[name]).split("; boundary")[0]
        out.print(Text.assemble((f"  {name}: ", "dim"), value), soft_wrap=True)
    body = message.get_body(("plain",))
    out.print()
    for line in (body.get_content() if body else "").strip().splitlines():
        out.print(f"  {line}", soft_wrap=True)
    out.print()


def compare(demo: Demo, sink: Sink, delivery: str) -> str:
    """Compares the sink's index with the sending log, recipient by recipient; returns what is to be said.

    Raises:
        DemoError: Somebody who was sent has no message or several, or a message is nobody's.
    """
    received = Counter(entry["recipient"] for entry in sink.received(delivery))
    log = demo.lines(f"sendoff log {delivery} --json")
    # Also those whose message was returned later.
    sent = Counter(mailbox(row["address"]).address for row in log if row["sent_at"] is not None)
    if received != sent:
        wrong = [a for a in received.keys() | sent.keys() if received[a] != sent[a]]
        told = ", ".join(f"{a}: {received[a]} received, {sent[a]} sent" for a in sorted(wrong)[:10])
        raise DemoError(f"The sink and the sending log differ for {len(wrong)} addresses: {told}.")
    held, count = f"{received.total():,}", f"{sent.total():,}"
    return f"The server holds {held} messages: exactly one for each of the {count} recipients that were sent."
