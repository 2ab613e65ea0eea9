"""The local servers as a person starts them: what a killed `run` leaves behind, and the sink's fates."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import aiosmtplib
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEV = Path(__file__).parents[2] / "dev"
MESSAGE = (
    b"From: a@example.org\r\nMessage-ID: <one@example.org>\r\nSubject: =?utf-8?q?=C3=A9?=\r\n\r\n.dots\r\n"
)


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} within {seconds} s"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_run_takes_its_servers_and_their_data_along(tmp_path: Path) -> None:
    note = tmp_path / "note"
    command = f"setsid sleep 600 & echo $! $SENDOFF_DEV_STATE > {note}.new; mv {note}.new {note}; wait"
    arguments = [sys.executable, str(DEV / "servers.py"), "run", "--", "sh", "-c", command]
    with subprocess.Popen(arguments, stderr=subprocess.DEVNULL) as runner:
        try:
            wait_until(note.exists, 60, "the command was to start")
        finally:
            runner.send_signal(signal.SIGKILL)
    child, state = note.read_text().split()
    pids = [int(child)]
    if Path(state).exists():
        pids += json.loads(Path(state).read_text())["pids"].values()
    wait_until(lambda: not any(map(is_alive, pids)), 30, f"{pids} were to end")
    wait_until(lambda: not Path(state).parent.exists(), 10, "the data was to go")


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path / "received"
    process = subprocess.Popen(
        [sys.executable, str(DEV / "sink.py"), "--port", str(port), "--dir", str(folder)]
    )

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(answers, 10, "the sink was to answer")
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
