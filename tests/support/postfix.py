"""A Postfix of the tests' own: as Debian has it, in a folder of its own, taking mail and dropping it."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import subprocess
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

POSTFIX: Final = Path("/usr/sbin/postfix")
INSTALL: Final = Path(__file__).parents[2] / "dev" / "install.sh"
SECONDS: Final = 20

_MASTER: Final = """\
127.0.0.1:{port} inet n - n - 50 smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
proxymap unix - - n - - proxymap
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
anvil unix - - n - 1 anvil
tlsmgr unix - - n 1000? 1 tlsmgr
postlog unix-dgram n - n - 1 postlogd
"""

_MAIN: Final = {
    "compatibility_level": "3.6",
    "myhostname": "mx.example.org",
    "mydestination": "",
    "mynetworks": "127.0.0.0/8",
    "inet_protocols": "ipv4",
    "default_transport": "discard:",
    "relay_transport": "discard:",
    "smtpd_relay_restrictions": "permit_mynetworks, reject",
    "alias_maps": "",
    # Clients of the own network are spared the limits, unless this is empty.
    "smtpd_client_event_limit_exceptions": "",
}


class Postfix:
    """One that runs."""

    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        self._log = folder / "log"

    def logged(self, pattern: str) -> int:
        """Counts lines of its log."""
        return len(re.findall(pattern, self._log.read_text(errors="replace"))) if self._log.exists() else 0

    def taken(self) -> int:
        """Counts the messages that it took."""
        return self.logged(r"status=sent \(")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _folder(port: int, settings: dict[str, str]) -> Path:
    if not POSTFIX.exists():
        subprocess.run(["sh", str(INSTALL), "postfix"], check=True, timeout=600)
    folder = Path(tempfile.mkdtemp(prefix="sendoff-postfix-", dir="/var/tmp"))
    folder.chmod(0o755)
    for name in ("queue", "data"):
        (folder / name).mkdir(mode=0o755)
    shutil.chown(folder / "data", "postfix")
    own = {
        "queue_directory": str(folder / "queue"),
        "data_directory": str(folder / "data"),
        "maillog_file": str(folder / "log"),
        "maillog_file_prefixes": str(folder),
    }
    lines = [f"{name} = {value}" for name, value in {**_MAIN, **own, **settings}.items()]
    (folder / "main.cf").write_text("\n".join(lines) + "\n")
    (folder / "master.cf").write_text(_MASTER.format(port=port))
    return folder


@asynccontextmanager
async def running(**settings: str) -> AsyncIterator[Postfix]:
    """Runs one with these settings in its `main.cf`."""
    if os.getuid() != 0:
        pytest.skip("Postfix is started by root only")
    port = _free_port()
    folder = _folder(port, settings)
    process = await asyncio.create_subprocess_exec(
        str(POSTFIX), "-c", str(folder), "start-fg", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        await _answers(port, process)
        yield Postfix(folder, port)
    finally:
        stopping = await asyncio.create_subprocess_exec(
            str(POSTFIX), "-c", str(folder), "stop", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        await asyncio.wait_for(stopping.wait(), SECONDS)
        await asyncio.wait_for(process.wait(), SECONDS)
        shutil.rmtree(folder, ignore_errors=True)


async def _answers(port: int, process: asyncio.subprocess.Process) -> None:
    """Returns when it takes connections."""
    async with asyncio.timeout(SECONDS):
        while True:
            if process.returncode is not None:
                words = await process.stderr.read() if process.stderr else b""
                raise AssertionError(f"Postfix did not start: {words.decode(errors='replace')}")
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            greeting = await reader.readline()
            writer.close()
            assert greeting.startswith(b"220"), greeting
            return
