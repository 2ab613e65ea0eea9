"""Shows values to people: consoles, numbers, the table of KPIs."""

from __future__ import annotations

import codecs
import json
import sys
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker.domain.text import plain

if TYPE_CHECKING:
    from collections.abc import Mapping

NOTHING: Final = "–"
"""Shown for a percentage of nothing and for a date that is not set."""

_WIDTH_ELSEWHERE: Final = 120
"""Columns if there is no terminal."""

_KPIS: Final = (
    ("to deliver", "to_deliver", None),
    ("sent", "sent", "sent_pct"),
    ("bounced", "bounced", None),
    ("  hard", "bounced_hard", None),
    ("  soft", "bounced_soft", None),
    ("  ignored", "bounced_ignored", None),
    ("errors", "errors", None),
    ("bounces and errors", None, "bounce_error_pct"),
    ("unknown", "unknown", None),
    ("excluded late", "excluded_late", None),
    ("cancelled", "cancelled", None),
    ("retrying", "retrying", None),
    ("sending", "sending", None),
    ("pending", "pending", None),
    ("opened", "opened", "open_pct"),
    ("  by persons", "human_opened", "human_open_pct"),
    ("clicked", "clicked", "click_pct"),
    ("  by persons", "human_clicked", "human_click_pct"),
    ("opted out", "optout", None),
    ("mirror page", "mirror", None),
    ("complained", "complained", "complaint_pct"),
)
_OF: Final = {
    "sent_pct": "of to deliver",
    "bounce_error_pct": "of all outcomes",
    "open_pct": "of sent",
    "click_pct": "of sent",
    "human_open_pct": "of sent",
    "human_click_pct": "of sent",
    "complaint_pct": "of sent",
}


def console(*, stderr: bool = False) -> Console:
    """Returns a console on the current standard output or error."""
    stream = sys.stderr if stderr else sys.stdout
    # Output that goes to a pipe ("| head") mostly ends in the terminal too: then Rich takes the width of
    # stderr.
    width = None if stream.isatty() or sys.stderr.isatty() else _WIDTH_ELSEWHERE
    return Console(file=stream, width=width, highlight=False, emoji=False, markup=False)


def to_json(value: object) -> str:
    """Returns a value as JSON on one line. Characters that are not printable become escapes.

    Args:
        value: A value that `json` can write. Times become ISO 8601, percentages numbers, other objects their
            `str`.
    """
    # A stream that is not UTF-8 would write its own escapes, which are not JSON.
    ascii_alone = codecs.lookup(sys.stdout.encoding or "ascii").name != "utf-8"
    text = json.dumps(value, ensure_ascii=ascii_alone, default=_plain)
    return (
        text if text.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
    )


def _plain(value: object) -> float | str:
    if isinstance(value, Decimal):
        return float(value)
    return value.isoformat() if isinstance(value, datetime) else str(value)


def number(count: int) -> str:
    """Returns a count with a separator between thousands."""
    return f"{count:,}"


def percent(value: float | None) -> str:
    """Returns a percentage with two decimals; a dash for None."""
    return NOTHING if value is None else f"{value:.2f} %"


def grid() -> Table:
    """Returns a table of two columns: names and values."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def kpi_table(kpis: Mapping[str, Any]) -> Table:
    """Returns the KPIs as a table.

    Args:
        kpis: The KPIs by their names in the view `deployment`.
    """
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim", no_wrap=True)
    for label, count, share in _KPIS:
        value = kpis[count] if count else None
        table.add_row(
            label,
            number(value) if value is not None else "",
            percent(kpis[share]) if share else "",
            _OF[share] if share else "",
            style="dim" if value == 0 else None,
        )
    return table


def title(label: str, *parts: str) -> Text:
    """Returns a headline: the delivery's label and further parts."""
    return Text.assemble((plain(label), "bold"), *(f"  {plain(part)}" for part in parts))
