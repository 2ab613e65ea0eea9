"""The sources of returned mail, as the settings say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.domain.return_path import looks_like_ours
from worker.returned.listener import Listener
from worker.returned.maildir import Maildir
from worker.settings import SettingsError
from worker.signing import open_return_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.domain.return_path import ReturnPath
    from worker.returned.sources import Source
    from worker.settings import Settings


def open_references(settings: Settings) -> ReturnPath:
    """Returns what tells which attempt a mail is about.

    Raises:
        SettingsError: There are no keys, or they cannot be read.
    """
    references = open_return_path(settings)
    if references is None:
        raise SettingsError(
            "What comes back is told by signed names, and there is no key: set SENDOFF_BOUNCE_KEYS or"
            " SENDOFF_BOUNCE_KEYS_FILE, here and for the senders."
        )
    return references


def open_sources(settings: Settings, references: ReturnPath, count: Callable[[str], None]) -> list[Source]:
    """Returns the sources, which do not run yet.

    Args:
        settings: The settings.
        references: Says which addresses are ours.
        count: Counts a mail that a source refuses, by the reason.

    Raises:
        SettingsError: There is no source.
    """
    sources: list[Source] = []
    if settings.returned_port:
        listener = Listener(
            settings.returned_host,
            settings.returned_port,
            longest=settings.returned_size,
            forged=lambda address: looks_like_ours(address) and references.read(address) is None,
            count=count,
        )
        sources.append(listener)
    if settings.returned_maildir is not None:
        maildir = Maildir(settings.returned_maildir, every=settings.tick)
        sources.append(maildir)
    if not sources:
        raise SettingsError(
            "Returned mail has no source: set SENDOFF_RETURNED_PORT or SENDOFF_RETURNED_MAILDIR."
        )
    return sources
