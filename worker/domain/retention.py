"""Reads how long deliveries are kept. Pure."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final

_WRITTEN: Final = re.compile(r"([1-9][0-9]{0,4})d")


def read_age(text: str) -> timedelta:
    """Reads an age in days, such as "400d".

    Only days: some people who write "12m" mean minutes and others months, and a mistake would lose a year.

    Raises:
        ValueError: it is not such an age.
    """
    match = _WRITTEN.fullmatch(text.strip())
    if match is None:
        raise ValueError("give a number of days, such as 400d")
    return timedelta(days=int(match[1]))
