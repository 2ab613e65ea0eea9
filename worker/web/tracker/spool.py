"""A folder that keeps tracking events while the broker is away.

Each process appends to a file of its own, which it holds locked. A line is a routing key and a body for the
broker. A line counts when it is written, synchronised to the disk and ended: a process that is killed in the
middle of one has not answered for it. A file whose lock is free is nobody's any more, and the process that
has the broker publishes it. That may happen twice: events count once.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

log = structlog.get_logger(__name__)

_LARGEST_FILE: Final = 8_000_000
"""Bytes after which a new file is begun: as much as is read into memory to be published."""


class SpoolUnusable(Exception):
    """The folder cannot be used. The message names the setting and says why."""


class NotKept(Exception):
    """The events could not be kept: the spool is full, or the disk fails."""


class Kept(NamedTuple):
    """One line of a spool: a message for the broker."""

    routing_key: str
    body: bytes


class Spool:
    """The folder, for one process. Its methods are called one at a time, apart from `size`."""

    def __init__(self, folder: Path, limit: int) -> None:
        """Opens the folder, and makes it if it is not there.

        Args:
            folder: The folder. Several processes may share it.
            limit: The most bytes in it.

        Raises:
            SpoolUnusable: It cannot be made or written to.
        """
        self._folder = folder
        self._limit = limit
        self._file: int | None = None
        self._written = 0
        self.size = 0
        """Bytes in the folder, as this process knows it."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._begin()
            self._end()
            self.look()
        except OSError as error:
            raise SpoolUnusable(
                f"SENDOFF_TRACKER_SPOOL: the folder {folder} cannot be used: {error.strerror}."
            ) from error

    @property
    def full(self) -> bool:
        """Whether it takes no more."""
        return self.size >= self._limit

    async def append(self, messages: Sequence[Kept]) -> None:
        """Keeps messages; returns when they are on the disk.

        Raises:
            NotKept: They are not kept.
        """
        await asyncio.to_thread(self._append, messages)

    def _append(self, messages: Sequence[Kept]) -> None:
        lines = b"".join(b"%s %s\n" % (m.routing_key.encode(), m.body) for m in messages)
        if self.size + len(lines) > self._limit:
            raise NotKept(f"The spool {self._folder} is full: it has {self.size:,} bytes.")
        try:
            if self._file is None or self._written >= _LARGEST_FILE:
                self._end()
                self._begin()
            self._write(lines)
        except OSError as error:
            self._end()  # what was written of a line must not join the next one
            raise NotKept(f"The spool {self._folder} cannot be written: {error.strerror}.") from error

    def _write(self, lines: bytes) -> None:
        file = self._file
        if file is None:
            raise OSError("no file is open")
        rest = memoryview(lines)
        while rest:
            rest = rest[os.write(file, rest) :]
        os.fsync(file)
        self._written += len(lines)
        self.size += len(lines)

    def _begin(self) -> None:
        path = self._folder / f"{secrets.token_hex(8)}.events"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._written = 0
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)  # else the file's name may be lost with the power
        finally:
            os.close(folder)

    def _end(self) -> None:
        if self._file is not None:
            os.close(self._file)  # frees the lock
            self._file = None

    def close(self) -> None:
        """Lets go of the file. What is in it is published by the process that runs next."""
        self._end()

    def look(self) -> list[Path]:
        """Returns the files of the folder, and counts their bytes."""
        sizes: dict[Path, int] = {}
        for path in self._folder.glob("*.events"):
            try:
                sizes[path] = path.stat().st_size
            except FileNotFoundError:
                continue  # another process has published it
        self.size = sum(sizes.values())
        return sorted(sizes)

    def release(self) -> None:
        """Ends the file that is written, so that it can be published; the next event begins a new one."""
        self._end()

    @contextmanager
    def taken(self, path: Path) -> Iterator[list[Kept] | None]:
        """Reads a file that nobody holds, and removes it if the block ends well.

        Yields:
            Its messages; None if another process holds it, or has published it.
        """
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield None
            return
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            if os.fstat(file).st_nlink == 0:
                yield None
                return
            with os.fdopen(os.dup(file), "rb") as content:
                yield _lines(content.read())
            path.unlink(missing_ok=True)
        finally:
            os.close(file)


def _lines(content: bytes) -> list[Kept]:
    found = []
    for line in content.split(b"\n")[:-1]:  # behind the last line end is what nobody answered for
        key, _, body = line.partition(b" ")
        found.append(Kept(key.decode("ascii", "replace"), body))
    return found
