"""Looks at this machine and at the relay for `sendoff check`: settings, TLS, disk, channels."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from worker.auth.tokens import open_verifier
from worker.channels.protocol import ChannelUnreachable
from worker.channels.registry import CHANNELS
from worker.domain.servers import unprotected
from worker.links import open_links
from worker.operations.findings import Finding, ok, unreachable, warning, wrong
from worker.services.tracking import open_machines

if TYPE_CHECKING:
    from worker.channels.protocol import Probe
    from worker.settings import Settings

PROBES: Final = {name: kind.probe for name, kind in CHANNELS.items() if kind.probe is not None}
"""What there is to look at, by channel."""
_MEGABYTE: Final = 1_000_000
_LOW: Final = 500 * _MEGABYTE
"""Bytes below which a folder that we write to is nearly full."""


def open_files(settings: Settings) -> None:
    """Reads the files that settings name.

    Raises:
        SettingsError: one is missing, or is wrong.
    """
    open_verifier(settings)
    open_machines(settings)
    open_links(settings)


def configuration(settings: Settings) -> Finding:
    """Looks at the settings, which can be read."""
    if ignored := settings.misspelt:
        return wrong("configuration", f"Variables are ignored: {'; '.join(ignored)}.")
    if conflicts := settings.conflicts:
        return warning("configuration", f"{'; '.join(conflicts)}.")
    return ok("configuration", "The settings can be read.")


def tls(settings: Settings) -> Finding:
    """Looks whether the way to a server on another machine is protected."""
    weak = unprotected(settings.database_url, settings.amqp_url)
    if weak:
        return warning("tls", f"Not protected on the way: {' '.join(weak.values())}")
    return ok("tls", "What leaves this machine for broker and database is encrypted, and they are verified.")


def disk(settings: Settings) -> Finding:
    """Looks at the folders that processes with these settings write to."""
    folders = {"SENDOFF_RETURNED_FOLDER": (settings.returned_folder, _LOW)}
    if settings.tracker_url:
        folders["SENDOFF_TRACKER_SPOOL"] = (Path(settings.tracker_spool), settings.tracker_spool_size)
    found = []
    for name, (folder, needed) in folders.items():
        at = next((each for each in (folder, *folder.absolute().parents) if each.is_dir()), Path("/"))
        free = shutil.disk_usage(at).free
        if free < needed:
            found.append(
                f"{name} ({folder}) has {free // _MEGABYTE} MB left, and may need {needed // _MEGABYTE} MB"
            )
    if found:
        return warning("disk", f"{'; '.join(found)}.")
    return ok("disk", f"There is room for {' and '.join(folders)}. Postgres does not tell of its own disk.")


async def channel(settings: Settings, name: str, probe: Probe) -> Finding:
    """Looks at the server of a channel."""
    if name not in settings.channels:
        return ok(probe.part, f"None is needed: there is no channel “{name}”.")
    try:
        seen = await probe.look(settings)
    except ValueError as error:
        return wrong(probe.part, str(error))
    except ChannelUnreachable as error:
        return unreachable(probe.part, str(error))
    return (warning if seen.limited else ok)(probe.part, seen.message)
