"""Returned mail and webhooks in this process, as `sendoff run returned` and `run webhooks` run them."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiosmtplib
from pydantic import SecretStr

from tests.support.stack import until
from worker.bootstrap_intake import open_intake
from worker.domain.keys import read_keys
from worker.domain.return_path import Reference, ReturnPath
from worker.lifecycle import run_services

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.stack import Stack
    from worker.bootstrap_intake import Intake as Parts
    from worker.settings import Settings

SECONDS = 20
KEYS = f"1:{'k' * 32}"
RETURNS = ReturnPath(read_keys(KEYS), "returns.example.org")
FAILED = """Final-Recipient: rfc822; {address}
Action: failed
Status: 5.1.1
Diagnostic-Code: smtp; 550 5.1.1 <{address}>: no such user
"""


@asynccontextmanager
async def taking(settings: Settings, *services: str, **changes: Any) -> AsyncIterator[Parts]:
    """Runs services without a database; they must end well."""
    stop = asyncio.Event()
    nowhere = {"database_url": "postgresql://127.0.0.1:1/none"}
    async with open_intake(settings.model_copy(update=nowhere | changes), services, stop) as intake:
        running = asyncio.create_task(run_services(intake.services, stop, grace=SECONDS))
        try:
            yield intake
        finally:
            stop.set()
            await running


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def name_of(*reference: int) -> str:
    sender = RETURNS.sender(Reference(*reference))
    assert sender is not None
    return sender


class Intake:
    """A running intake, and clients that bring mail to it."""

    def __init__(self, port: int, parts: Parts, folder: Path) -> None:
        self.port = port
        self.parts = parts
        self.folder = folder

    async def bring(self, data: bytes, *recipients: str) -> str:
        """Brings a mail over SMTP; returns the reply to the final dot."""
        client = aiosmtplib.SMTP(hostname="127.0.0.1", port=self.port, start_tls=False, timeout=20)
        async with client:
            _, reply = await client.sendmail("", list(recipients), data)
        return reply

    def counted(self, outcome: str) -> float:
        labels = {"outcome": outcome}
        return self.parts.registry.get_sample_value("sendoff_returned_mails_total", labels) or 0

    def kept(self) -> list[bytes]:
        return [file.read_bytes() for file in sorted(self.folder.glob("*.eml"))]


@asynccontextmanager
async def intake(stack: Stack, *services: str, **changes: Any) -> AsyncIterator[Intake]:
    port = free_port()
    folder = stack.folder / "kept"
    settings = {
        "bounce_keys": SecretStr(KEYS),
        "returned_port": port,
        "returned_folder": folder,
        "tick": 0.05,
    }
    async with AsyncExitStack() as opened:
        parts = await opened.enter_async_context(taking(stack.settings, "returned", **(settings | changes)))
        if services:
            await opened.enter_async_context(stack.running(*services))
        if port == (settings | changes)["returned_port"]:
            await until(lambda: listening(port))
        yield Intake(port, parts, folder)


async def listening(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


def maildir(folder: Path) -> Path:
    for name in ("new", "cur", "tmp"):
        (folder / name).mkdir(parents=True)
    return folder
