"""`dev/sink.py`: what it does is decided by the recipient, and what it accepted is kept."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import aiosmtplib
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

SINK = Path(__file__).parents[2] / "dev" / "sink.py"
MESSAGE = (
    b"From: a@example.org\r\nMessage-ID: <one@example.org>\r\nSubject: =?utf-8?q?=C3=A9?=\r\n\r\n.dots\r\n"
)


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path / "received"
    process = subprocess.Popen([sys.executable, str(SINK), "--port", str(port), "--dir", str(folder)])

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        deadline = time.monotonic() + 10
        while not answers():
            assert time.monotonic() < deadline, "the sink does not answer"
            time.sleep(0.05)
        yield port, folder
    finally:
        process.terminate()
        process.wait(10)


async def send(port: int, recipient: str) -> int:
    """Returns the code of the answer, 0 where the connection ended without one."""
    async with aiosmtplib.SMTP(hostname="127.0.0.1", port=port, timeout=10) as client:
        try:
            await client.sendmail("a@example.org", [recipient], MESSAGE, mail_options=["SMTPUTF8"])
        except aiosmtplib.SMTPRecipientsRefused as refused:
            return refused.recipients[0].code
        except aiosmtplib.SMTPResponseException as answer:
            return answer.code
        except aiosmtplib.SMTPServerDisconnected:
            return 0
        return 250


async def test_the_local_part_decides_what_the_sink_does(sink: tuple[int, Path]) -> None:
    port, folder = sink
    fates = {
        "ana@example.org": 250,
        "élodie@exämple.org": 250,
        "slow-1-ana@example.org": 250,
        "unknown-ana@example.org": 550,
        "Bounce-ana@example.org": 550,
        "full-ana@example.org": 452,
        "down-ana@example.org": 421,
        "spam-ana@example.org": 554,
        "drop-ana@example.org": 0,
    }

    codes = await asyncio.gather(*(send(port, recipient) for recipient in fates))

    assert dict(zip(fates, codes, strict=True)) == fates
    index = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
    assert sorted(entry["recipient"] for entry in index) == sorted(
        name for name, code in fates.items() if code in {0, 250}
    )
    assert {entry["message_id"] for entry in index} == {"<one@example.org>"}
    assert all((folder / entry["file"]).read_bytes().endswith(MESSAGE) for entry in index)
    assert os.access(folder / index[0]["file"], os.R_OK)
