"""Standard output and error of a command. No text and no device ends a command with a traceback."""

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


class OutputClosed(Exception):
    """Nobody reads standard output any more ("| head"). This is not an error."""


class OutputLost(Exception):
    """Standard output cannot be written; the message says why.

    It is not an OSError: an OSError means that the database or the broker cannot be reached.
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
    """Drops text that cannot be written: a full disk under a log must not stop a worker."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def open_streams() -> None:
    """Replaces Python's standard output and error by our streams.

    If the caller closed a stream (`>&-`), its text is dropped. A character that the locale's encoding does
    not have is written as an escape. If the encoding is ASCII, as in the locale C, UTF-8 is used.
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
    """Writes the buffered rest of standard output.

    Raises:
        OutputClosed, OutputLost: As any write to it.
    """
    sys.stdout.flush()


def discard_output() -> None:
    """Drops the buffered rest of standard output, so that Python does not write it again at its exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)


def _text(raw: io.FileIO, encoding: str, by_line: bool) -> io.TextIOWrapper:
    known = "utf-8" if codecs.lookup(encoding).name == "ascii" else encoding
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=known, errors="backslashreplace", line_buffering=by_line
    )
