"""Reads files of suppressed addresses or profiles."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from worker.channels.registry import address_rule
from worker.db.suppression import Entry, Kind
from worker.domain.audience import AddressInvalid, address_key
from worker.domain.recipients_file import TRIMMED, RecipientsFile
from worker.domain.suppression import SuppressionCause

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FAULTS_KEPT: Final = 100
_LONGEST: Final = 1_000


def entry_of(
    kind: Kind, channel: str, name: str, cause: str, reason: str | None, expires_at: datetime | None
) -> Entry:
    """Makes an entry of an address or a profile.

    Raises:
        AddressInvalid: It is none.
    """
    text = name.strip(TRIMMED)[:_LONGEST]
    if not text:
        raise AddressInvalid("it is empty")
    if kind is Kind.DENYLIST:
        return Entry(text, text, cause, reason, expires_at)
    try:
        address = address_rule(channel)(text)
    except AddressInvalid as error:
        raise AddressInvalid(f"“{text}” is no address: {error}") from error
    return Entry(address_key(address), address, cause, reason, expires_at)


class Rows:
    """The entries of a file, and what is wrong with its other lines."""

    def __init__(self, file: RecipientsFile, kind: Kind, channel: str) -> None:
        """Takes the file, after its header was read."""
        self._file = file
        self._kind = kind
        self._channel = channel
        self.faults: list[tuple[int, str]] = []
        """The first hundred, by line."""
        self.more_faults = 0

    def __iter__(self) -> Iterator[Entry]:
        """Yields the entries."""
        name = "address" if self._kind is Kind.QUARANTINE else "profile_id"
        for line, fields, fault in self._file:
            values = dict(zip(self._file.columns, fields, strict=False))
            try:
                if fault is not None:
                    raise AddressInvalid(fault)
                cause = values.get("cause", "").strip() or SuppressionCause.MANUAL
                expires_at = _moment(values.get("expires_at", "").strip())
                reason = values.get("reason", "").strip()[:_LONGEST] or None
                yield entry_of(self._kind, self._channel, values[name], cause[:_LONGEST], reason, expires_at)
            except ValueError as error:
                if len(self.faults) < _FAULTS_KEPT:
                    self.faults.append((line, str(error)))
                else:
                    self.more_faults += 1


@contextmanager
def reading(path: Path, kind: Kind, channel: str) -> Iterator[Rows]:
    """Opens a file.

    Raises:
        RecipientsFileInvalid: Its header cannot be used.
        OSError, UnicodeDecodeError: It cannot be read.
    """
    required = "address" if kind is Kind.QUARANTINE else "profile_id"
    with path.open(encoding="utf-8-sig", newline="") as text:
        yield Rows(RecipientsFile(text.readline, required), kind, channel)


def _moment(text: str) -> datetime | None:
    if not text:
        return None
    try:
        read = datetime.fromisoformat(text)
        return read.astimezone(UTC) if read.tzinfo else read.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"“{text}” is no time such as 2026-12-01T09:00+01:00") from error
