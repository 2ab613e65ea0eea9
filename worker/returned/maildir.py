"""Returned mail from a Maildir: each file of `new/` is read, and then moved to `cur/` as seen."""

from __future__ import annotations

import asyncio
from email.parser import BytesHeaderParser
from typing import TYPE_CHECKING, Final

import structlog

from worker.lifecycle import pause
from worker.returned.mime import LONGEST_MAIL, field
from worker.returned.sources import AT_ONCE, Answer

if TYPE_CHECKING:
    from pathlib import Path

    from worker.returned.sources import Take

log = structlog.get_logger(__name__)

_LONGEST_HEADER: Final = 100_000
_MOST_FILES: Final = 10_000
_DELIVERED_TO: Final = ("Delivered-To", "X-Original-To", "Envelope-To", "X-Envelope-To", "To")
"""The fields in which servers write the address of a delivered mail (the last is the author's word)."""


class MaildirMissing(Exception):
    """There is no Maildir at the path; the message says so."""


class Maildir:
    """Reads a Maildir. Any number of processes may read the same one."""

    def __init__(self, path: Path, *, every: float) -> None:
        """Takes the path.

        Args:
            path: The folder with `new` and `cur`.
            every: Seconds from one look to the next.
        """
        self._new, self._cur = path / "new", path / "cur"
        self._every = every
        self._unreadable: set[str] = set()

    async def run(self, take: Take, stop: asyncio.Event) -> None:
        """Gives each mail to `take` until `stop`; a mail that cannot be taken now is offered again later.

        Raises:
            MaildirMissing: There is none at the path.
        """
        if not (self._new.is_dir() and self._cur.is_dir()):
            raise MaildirMissing(f"{self._new.parent} is no Maildir: it has no folders “new” and “cur”.")
        while not stop.is_set():
            await self.look(take, stop)
            await pause(stop, self._every)

    async def look(self, take: Take, stop: asyncio.Event) -> None:
        """Gives the mails that are there now to `take`."""
        names = await asyncio.to_thread(self._names)
        for start in range(0, len(names), AT_ONCE):
            if stop.is_set():
                return
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._one(name, take)) for name in names[start : start + AT_ONCE]]
            if any(task.result() is Answer.LATER for task in tasks):
                return

    async def _one(self, name: str, take: Take) -> Answer:
        mail = await asyncio.to_thread(self._read, name)
        if mail is None:
            return Answer.TAKEN
        answer = await take(mail, delivered_to(mail))
        if answer is Answer.TAKEN:
            await asyncio.to_thread(self._seen, name)
        return answer

    def _names(self) -> list[str]:
        found = []
        for entry in self._new.iterdir():
            if entry.name not in self._unreadable and not entry.name.startswith("."):
                found.append(entry.name)
            if len(found) == _MOST_FILES:
                break
        self._unreadable &= {entry.name for entry in self._new.iterdir()} if self._unreadable else set()
        return sorted(found)

    def _read(self, name: str) -> bytes | None:
        try:
            with (self._new / name).open("rb") as file:
                return file.read(LONGEST_MAIL)
        except FileNotFoundError:  # another process took it
            return None
        except OSError as error:
            log.warning("returned mail cannot be read", file=str(self._new / name), because=str(error))
            self._unreadable.add(name)
            return None

    def _seen(self, name: str) -> None:
        base = name.partition(":2,")[0]
        try:
            (self._new / name).rename(self._cur / f"{base}:2,S")
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("returned mail cannot be moved", file=str(self._new / name), because=str(error))
            self._unreadable.add(name)


def delivered_to(mail: bytes) -> list[str]:
    """Returns the addresses that a mail was delivered to, as its header names them."""
    header = BytesHeaderParser().parsebytes(mail[:_LONGEST_HEADER])
    return [address for name in _DELIVERED_TO if (address := field(header, name))]
