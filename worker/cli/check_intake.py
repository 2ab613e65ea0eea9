"""What `sendoff check` looks at of the tracker, returned mail and webhooks, whether they run or not."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Final

from worker.links import open_keys
from worker.operations.findings import Finding, PartStatus
from worker.returned.keeping import MOST_FILES
from worker.returned.opening import open_references
from worker.settings import SettingsError
from worker.web.server import AddressUnavailable, check_address
from worker.web.webhooks.service import read_providers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from worker.settings import Settings

    Look = Callable[[Settings], Awaitable[list[Finding]]]


class _Wrong(Exception):
    """Something is not as it must be; the message says what."""


def _part(name: str) -> Callable[[Callable[[Settings], Awaitable[str]]], Look]:
    """Makes the finding of a part out of a look that returns a sentence, or raises one."""

    def finding(look: Callable[[Settings], Awaitable[str]]) -> Look:
        @wraps(look)
        async def found(settings: Settings) -> list[Finding]:
            try:
                return [Finding(name, PartStatus.OK, await look(settings))]
            except (_Wrong, SettingsError, AddressUnavailable) as error:
                return [Finding(name, PartStatus.WRONG, str(error))]

        return found

    return finding


@_part("tracker")
async def _tracker(s: Settings) -> str:
    if not s.tracker_url:
        return "None is set up: SENDOFF_TRACKER_URL is not set."
    open_keys(s)
    await asyncio.to_thread(_writable, "SENDOFF_TRACKER_SPOOL", Path(s.tracker_spool))
    await check_address(s.tracker_host, s.tracker_port, named="SENDOFF_TRACKER_HOST and SENDOFF_TRACKER_PORT")
    return f"Its keys, its spool and {s.tracker_host}:{s.tracker_port} can be used."


@_part("returned")
async def _returned(s: Settings) -> str:
    if not s.bounce_domain and s.returned_maildir is None:
        return (
            "None is set up: SENDOFF_BOUNCE_DOMAIN is not set, and so mail is returned to the “from” address."
        )
    open_references(s)
    await asyncio.to_thread(_writable, "SENDOFF_RETURNED_FOLDER", s.returned_folder)
    await asyncio.to_thread(_room, s.returned_folder)
    if s.returned_maildir is not None:
        await asyncio.to_thread(_maildir, s.returned_maildir)
    if s.returned_port:
        named = "SENDOFF_RETURNED_HOST and SENDOFF_RETURNED_PORT"
        await check_address(s.returned_host, s.returned_port, named=named)
    if not s.bounce_domain:
        return "It can be read. SENDOFF_BOUNCE_DOMAIN is not set: bounces are known by the Message-ID alone."
    return f"Mail to {s.bounce_domain} can be taken and read."


@_part("webhooks")
async def _webhooks(s: Settings) -> str:
    if s.webhooks_file is None:
        return "None are set up: SENDOFF_WEBHOOKS_FILE is not set."
    open_references(s)
    age = timedelta(seconds=s.webhooks_max_age)
    names = [provider.name for provider in await asyncio.to_thread(read_providers, s.webhooks_file, age)]
    if s.relay_provider and s.relay_provider not in names:
        raise _Wrong(
            f"Messages carry the reference for {s.relay_provider} (SENDOFF_RELAY_PROVIDER), and"
            f" {s.webhooks_file} has no table [{s.relay_provider}]: its calls are not served."
        )
    named = "SENDOFF_WEBHOOKS_HOST and SENDOFF_WEBHOOKS_PORT"
    await check_address(s.webhooks_host, s.webhooks_port, named=named)
    return f"Calls of {', '.join(names)} can be taken."


PARTS: Final[Mapping[str, Look]] = {"tracker": _tracker, "returned": _returned, "webhooks": _webhooks}
"""By part, what looks at it."""


def _writable(setting: str, folder: Path) -> None:
    """Checks that a folder can be written, or made: nothing is made here."""
    there = (
        folder if folder.exists() else next(parent for parent in folder.absolute().parents if parent.exists())
    )
    if not there.is_dir():
        raise _Wrong(f"{setting}: {there} is no folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        what = "written" if there == folder else f"made in {there}"
        raise _Wrong(f"{setting}: the folder {folder} cannot be {what} by this user.")


def _room(folder: Path) -> None:
    if folder.exists() and sum(1 for _ in folder.iterdir()) >= MOST_FILES:
        raise _Wrong(
            f"SENDOFF_RETURNED_FOLDER: {folder} is full, with {MOST_FILES:,} mails that only a person can"
            " read. Look at them and remove them: until then others like them are lost."
        )


def _maildir(folder: Path) -> None:
    for name in ("new", "cur"):
        if not (folder / name).is_dir():
            raise _Wrong(f"SENDOFF_RETURNED_MAILDIR: {folder} is no Maildir: it has no folder “{name}”.")
        _writable("SENDOFF_RETURNED_MAILDIR", folder / name)
