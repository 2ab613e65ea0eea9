"""The links of the bench's tracked delivery: what signs them, and for how many."""

from __future__ import annotations

from worker.domain.keys import read_keys
from worker.domain.links import Keys, Links

RECIPIENTS = 1_000
BASE = "https://track.example.org"
KEYS = f"1:{'k' * 32}"
LINKS = Links(BASE, Keys(read_keys(KEYS)))
