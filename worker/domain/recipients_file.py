"""Reads the recipients file, CSV (RFC 4180) with a header, row by row. A bad row never loses another."""

from __future__ import annotations

import csv
import re
from collections import deque
from contextlib import suppress
from itertools import takewhile
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LONGEST_ROW: Final = 131_072
"""The most characters of a row, over all its lines: the csv module's limit for one field."""

_SEPARATOR: Final = re.compile(r'"?sep=(.)"?[\r\n]*', re.IGNORECASE)
"""The line that names the separator for a spreadsheet."""
_SEPARATORS: Final = (",", ";", "\t")
"""The separators. The first of them that the header contains separates the columns."""

TRIMMED: Final = (
    "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
)
"""Characters that are removed at both ends of names and addresses: white space, no-break and zero-width
spaces, and the marks of writing direction that spreadsheets add."""


class RecipientsFileInvalid(Exception):
    """The file as a whole cannot be used; the message says why."""


class _RowTooLong(Exception):
    """A row is longer than `LONGEST_ROW`."""


class _Lines:
    """Gives lines to a csv reader and keeps those of the current row, to read them again.

    If a quote is never closed, a reader takes all lines that follow into one row. Only the first of them is
    wrong. The others are read again, as rows of their own.
    """

    def __init__(self, readline: Callable[[int], str]) -> None:
        self._readline = readline
        self._again: deque[str] = deque()
        self._row: list[str] = []
        self._length = 0
        self.number = 0
        """The number of lines given so far."""

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else self._readline(LONGEST_ROW)
        if not line:
            raise StopIteration
        self.number += 1
        self._row.append(line)
        self._length += len(line)
        if self._length >= LONGEST_ROW:
            raise _RowTooLong
        return line

    def peek(self) -> str:
        """Returns the next line without consuming it."""
        if not self._again:
            self._again.append(self._readline(LONGEST_ROW))
        return self._again[0]

    def start_row(self) -> None:
        """Forgets the lines of the row before."""
        self._row.clear()
        self._length = 0

    def drop_first(self) -> None:
        """Drops the first line of the current row, and gives the others again."""
        first, *others = self._row
        self.number -= len(others)
        self._again.extendleft(reversed(others))
        while (
            not self._again and first and first[-1] not in "\r\n"
        ):  # the end of the line was beyond the limit
            first = self._readline(LONGEST_ROW)


class RecipientsFile:
    """The rows below a header.

    Columns are separated by commas. If the header has no commas, they are separated by semicolons, which
    spreadsheets use in many countries, or else by tabs. As in spreadsheets, a first line `sep=;` names the
    separator and is not a row. Blank lines are not rows.
    """

    def __init__(self, readline: Callable[[int], str], required: str = "address") -> None:
        """Reads the header.

        Args:
            readline: Returns the next line with its end, or at most so many characters of it; "" at the end.
            required: The column that must be there.

        Raises:
            RecipientsFileInvalid: The file is empty, or its header is not usable.
        """
        self._lines = _Lines(readline)
        first = self._first_line()
        named = _SEPARATOR.fullmatch(first)
        if named:
            next(self._lines)
        delimiter = named[1] if named else next((c for c in _SEPARATORS if c in first.strip()), ",")
        if delimiter not in _SEPARATORS:
            raise RecipientsFileInvalid(
                f"its first line names the separator “{delimiter}”; it may be a comma, a semicolon or a tab"
            )
        self._first_line()
        self._lines.start_row()
        self._reader = csv.reader(self._lines, strict=True, delimiter=delimiter)
        try:
            header = next(self._reader)
        except StopIteration:
            raise RecipientsFileInvalid("it is empty; its first line must name the columns") from None
        except (csv.Error, _RowTooLong) as error:
            raise RecipientsFileInvalid(f"its header cannot be read: {_words(error)}") from None
        self.columns = _check_header([name.strip(TRIMMED) for name in header], required)
        """The names of the columns, trimmed."""

    def _first_line(self) -> str:
        """Returns the next line that is not blank, without consuming it; "" at the end."""
        while (line := self._lines.peek()) and not line.strip():
            with suppress(_RowTooLong):  # blank, so that it belongs to no row
                next(self._lines)
            self._lines.start_row()
        return line

    def __iter__(self) -> Iterator[tuple[int, list[str], str | None]]:
        """Yields each row: the number of its first line, its fields, and what is wrong with it, if anything.

        A wrong row has no fields.
        """
        width = len(self.columns)
        while True:
            self._lines.start_row()
            line = self._lines.number + 1
            try:
                fields = next(self._reader)
            except StopIteration:
                return
            except (csv.Error, _RowTooLong) as error:
                self._lines.drop_first()
                yield line, [], _words(error)
                continue
            if not fields:
                continue
            if len(fields) != width:
                yield line, [], f"it has {len(fields)} fields where the header has {width}"
            elif "\0" in "".join(fields):
                yield line, [], "it holds a NUL character"
            else:
                yield line, fields, None


def _check_header(names: list[str], required: str) -> tuple[str, ...]:
    nameless = sum(1 for _ in takewhile(lambda name: not name, reversed(names)))
    if 0 < nameless < len(names):
        raise RecipientsFileInvalid(
            f"its header ends with {nameless} separators that no name follows; remove them from every line"
            if nameless > 1
            else "its header ends with a separator that no name follows; remove it from every line"
        )
    for place, name in enumerate(names, 1):
        if not name or not name.isprintable():
            raise RecipientsFileInvalid(f"column {place} has no name that can be read")
        if name in names[: place - 1]:
            raise RecipientsFileInvalid(f"two columns are named “{name}”")
    if required not in names:
        raise RecipientsFileInvalid(f"it has no column “{required}”; its header names {', '.join(names)}")
    return tuple(names)


def _words(error: Exception) -> str:
    if isinstance(error, _RowTooLong):
        return f"it is longer than {LONGEST_ROW} characters, or a quote is not closed"
    if str(error) == "unexpected end of data":
        return "a quote is not closed"
    return f"its quotes cannot be read: {error}"
