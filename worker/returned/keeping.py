"""A folder for mails that only a person can read."""

from __future__ import annotations

import os
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from worker.returned.mime import LONGEST_MAIL

if TYPE_CHECKING:
    from pathlib import Path

MOST_FILES: Final = 1_000
"""Mails that are kept. Then a person has to look before more are."""


class Kept:
    """The folder. Any number of processes may write into it."""

    def __init__(self, folder: Path) -> None:
        """Takes the folder; it is made when it is needed."""
        self._folder = folder

    def keep(self, mail: bytes, because: str) -> Path | None:
        """Writes a mail into a file of its own, with the reason in its first line.

        Returns:
            The file; None if the folder is full.

        Raises:
            OSError: The folder cannot be written.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if sum(1 for _ in os.scandir(self._folder)) >= MOST_FILES:
            return None
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}.eml"
        file = self._folder / name
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(f"X-Sendoff-Kept: {' '.join(because.split())}\r\n".encode())
            opened.write(mail[:LONGEST_MAIL])
        return file
