"""Logs: structlog for our lines and the libraries', as text for people or JSON for machines."""

from __future__ import annotations

import io
import logging
import sys
from typing import TYPE_CHECKING, Any, Final, Literal, TextIO

import structlog

if TYPE_CHECKING:
    from collections.abc import MutableMapping


LONGEST: Final = 1_000
"""Characters of one text in a line: the reason of a refusal may quote a whole body."""


def bound(_: object, __: str, event_dict: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Cuts every text of a line and escapes what a terminal would obey: publishers write some of them.

    Args:
        event_dict: The line, as structlog hands it from processor to processor; it is changed.
    """
    for name, value in event_dict.items():
        if isinstance(value, str):
            event_dict[name] = _escaped(value if len(value) <= LONGEST else f"{value[:LONGEST]}…")
    return event_dict


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _write_traceback(to: TextIO, fault: Any) -> None:  # noqa: ANN401 - as structlog names it
    """Writes a traceback whose last line may quote what a publisher wrote."""
    written = io.StringIO()
    structlog.dev.plain_traceback(written, fault)
    to.write("\n".join(map(_escaped, written.getvalue().split("\n"))))


def configure(log_format: Literal["auto", "console", "json"], level: str) -> None:
    """Configures the logs, on stderr.

    Args:
        log_format: `auto` is `console` in a terminal and `json` elsewhere.
        level: The least level: debug, info, warning or error.
    """
    console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        bound,
    ]
    if not console:
        shared.append(structlog.processors.format_exc_info)
    renderer: Any = (
        # By default Rich also prints local variables, and with them tokens and addresses.
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_write_traceback)
        if console
        else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    least = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=least, force=True)
    # aiosmtpd logs what each client says, addresses among it.
    logging.getLogger("mail.log").setLevel(logging.WARNING)
    # httpx2 logs what it asks, with the tokens in the addresses.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    # They log every attempt to connect as an error. Our own lines say that the broker is away.
    for noisy in ("aiormq", "aio_pika"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
