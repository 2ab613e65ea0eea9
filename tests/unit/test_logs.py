"""Lines of the log: what a publisher wrote is cut, and no terminal obeys it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

import pytest
import structlog

from worker.telemetry import logs

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    logging.basicConfig(handlers=handlers, level=level, force=True)
    structlog.reset_defaults()


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_line_is_bounded_and_printable(
    log_format: Literal["console", "json"], capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(log_format, "info")
    text = "\x1b[31mred\nsecond line " + "x" * 100_000
    structlog.get_logger("test").warning("a message", reason=text)
    logging.getLogger("library").warning("foreign %s", text)
    said = capsys.readouterr().err
    assert (said.count("\n"), "\x1b" in said) == (2, False)
    assert "red" in said
    assert len(said) < 2 * (logs.LONGEST + 500)


@pytest.mark.usefixtures("restored")
def test_a_traceback_keeps_its_lines_and_nothing_that_a_terminal_obeys(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("console", "info")
    try:
        raise ValueError("\x1b[31mred")  # noqa: TRY301 - what is logged is the traceback
    except ValueError:
        structlog.get_logger("test").exception("it failed")
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert "[31mred" in said
    assert len(said.splitlines()) > 3
