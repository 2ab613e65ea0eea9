"""The fields of a delivery report (RFC 3464 section 2), as servers really write them.

Real reports have groups without an empty line between them, a group cut in two by one, fields in any order,
and replies of several lines that are not folded. So a new group begins where a field comes again.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST_GROUPS: Final = 100
_LONGEST_LINE: Final = 2_000
_LONGEST_VALUE: Final = 4_000

_OF_RECIPIENT: Final = frozenset(
    {"original-recipient", "final-recipient", "x-actual-recipient", "action", "status", "diagnostic-code"}
)
"""The fields that are read. Others are passed over, with their folded lines."""
_NAMES_RECIPIENT: Final = frozenset({"original-recipient", "final-recipient"})
_FIELD: Final = re.compile(r"[ \t>]{0,4}([A-Za-z][A-Za-z-]{2,40})[ \t]*:[ \t]*(.*)")
_REPLY: Final = re.compile(r"[ \t]*[45]\d\d[ -]")


def has_fields(text: str) -> bool:
    """Returns whether a text holds the fields of a report, perhaps in the midst of other words."""
    return bool(_ANY.search(text))


_ANY: Final = re.compile(
    r"^[ \t>]{0,4}(final-recipient|diagnostic-code)[ \t]*:", re.IGNORECASE | re.MULTILINE
)


def groups(text: str) -> Iterator[dict[str, str]]:
    """Yields the fields of each recipient by their names in lower case.

    Args:
        text: The text of the report, or one that holds its fields somewhere.

    Yields:
        Those of `_OF_RECIPIENT` that are there; lines of a value are parted by line feeds.
    """
    count = 0
    group: dict[str, str] = {}
    last: str | None = None
    after_gap = False
    for long_line in text.splitlines():
        line = long_line[:_LONGEST_LINE]
        if not line.strip():
            after_gap = True
            continue
        found = _FIELD.match(line)
        name = found[1].lower() if found else ""
        if found and name in _OF_RECIPIENT:
            if name in group or (after_gap and name in _NAMES_RECIPIENT and _complete(group)):
                yield group
                count += 1
                if count == _MOST_GROUPS:
                    return
                group = {}
            group[name] = found[2].strip()
            last = name
        elif last is not None and not (found and _is_name(name)):
            # A reply goes on after an empty line only with its code; other lines there are not the report's.
            if not after_gap or _REPLY.match(line):
                group[last] = f"{group[last]}\n{line.strip()}"[:_LONGEST_VALUE]
            elif after_gap:
                last = None
        else:
            last = None
        after_gap = False
    if group:
        yield group


def _complete(group: dict[str, str]) -> bool:
    return bool(_NAMES_RECIPIENT & group.keys()) and bool({"action", "status"} & group.keys())


def _is_name(name: str) -> bool:
    """Returns whether the word before a colon is a field's name, and not the beginning of a folded reply."""
    return "-" in name or name in ("from", "to", "subject", "date", "received")
