"""How long deliveries are kept, as a person writes it. Pure."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final

_WRITTEN: Final = re.compile(r"([1-9][0-9]{0,4})d")


def read_age(text: str) -> timedelta:
    """Reads an age in days, such as "400d".

    Days alone: of "12m", half the people who write it mean months, and the other half would lose a year.

    Raises:
        ValueError: it is none.
    """
    match = _WRITTEN.fullmatch(text.strip())
    if match is None:
        raise ValueError("give a number of days, such as 400d")
    return timedelta(days=int(match[1]))
