"""Standard output and error of a command: no text and no device can end it in a traceback."""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

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
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - stays open
    sys.stdout = _text(_Output(_STDOUT, "w", closefd=False), sys.stdout.encoding, sys.stdout.isatty())
    sys.stderr = _text(_Errors(_STDERR, "w", closefd=False), sys.stderr.encoding, by_line=True)


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
