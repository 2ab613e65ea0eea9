"""Standard output and error of a command: no text and no device can end it in a traceback."""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_STDIN: Final = 0
_STDOUT: Final = 1
_STDERR: Final = 2


class OutputClosed(Exception):  # noqa: N818 - the name is the sentence
    """Nobody reads standard output any more ("| head"), which is no error."""


class OutputLost(Exception):  # noqa: N818 - the name is the sentence
    """Standard output cannot be written; the message says why.

    It is no OSError: those mean that the database or the broker is out of reach.
    """


class _Output(io.FileIO):
    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError as error:
            raise OutputClosed from error
        except OSError as error:
            raise OutputLost(
                f"Standard output cannot be written: {error.strerror}. What was asked for may have been done."
            ) from error


class _Errors(io.FileIO):
    """Loses what cannot be written: nobody is left to tell, and a full disk under a log stops no worker."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def open_streams() -> None:
    """Puts streams of ours in the place of Python's.

    A stream that was closed by the caller (`>&-`) leads nowhere. A character that the locale's encoding does
    not have is written as an escape. Where the encoding is ASCII, as in the locale C, it is UTF-8 instead.
    """
    for descriptor in (_STDIN, _STDOUT, _STDERR):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free, which is this
    if sys.stdin is None:
        sys.stdin = open(_STDIN, encoding="utf-8", closefd=False)  # noqa: SIM115 - stays open
    for name, kind, descriptor in (("stdout", _Output, _STDOUT), ("stderr", _Errors, _STDERR)):
        before = getattr(sys, name)
        encoding = before.encoding if before else "utf-8"
        by_line = descriptor == _STDERR or os.isatty(descriptor)
        setattr(sys, name, _text(kind(descriptor, "w", closefd=False), encoding, by_line=by_line))


def close_output() -> None:
    """Writes what is left on standard output.

    Raises:
        OutputClosed, OutputLost: As any write to it.
    """
    sys.stdout.flush()


def discard_output() -> None:
    """Sends what is still to be written nowhere, so that Python does not try it again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)


def _text(raw: io.FileIO, encoding: str, by_line: bool) -> io.TextIOWrapper:
    known = "utf-8" if codecs.lookup(encoding).name == "ascii" else encoding
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=known, errors="backslashreplace", line_buffering=by_line
    )
