"""Foreign text as people and spreadsheets may see it. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Final

_FORMULA: Final = tuple("=+-@＝＋－＠")
"""The first characters of a formula in a spreadsheet. Some spreadsheets also accept the wide forms."""


def plain(text: str) -> str:
    """Returns foreign text, such as an SMTP reply, without control characters."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in text)


def words(name: str) -> str:
    """Returns a name of the wire, such as a state or a cause, as words."""
    return plain(name.replace("_", " "))


def cell(value: object) -> object:
    """Returns a value for a cell of CSV, without formulas and without control characters.

    Text that begins as a formula gets an apostrophe before it. Numbers stay numbers; None is an empty cell.
    """
    if isinstance(value, datetime):
        return value.isoformat()
    if not isinstance(value, str):
        return value
    shown = plain(value)
    return f"'{shown}" if shown.lstrip("\ufffd ")[:1] in _FORMULA else shown
