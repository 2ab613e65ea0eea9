"""The rules by which an address goes into quarantine. Pure.

A hard bounce that is the recipient's fault is enough. A soft one is not: a mailbox is full over the holidays,
and a server is ill for a day. So soft errors are counted. Only those count that are the recipient's fault and
lie some time apart, and a success ends the count.
"""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Final

SOFT_ERRORS: Final = 5
"""So many soft errors in a row put an address into quarantine."""
APART: Final = timedelta(days=1)
"""An error that comes sooner after the last one is the same trouble, and does not count."""
WITHIN: Final = timedelta(days=10)
"""An error that comes later after the last one begins a new count."""
MAILBOX_FULL_FOR: Final = timedelta(days=30)
"""A full mailbox may be emptied: its address leaves the quarantine after so long."""
SETTLED: Final = timedelta(days=1)
"""A message that was sent so long ago and did not come back is a success."""


class SuppressionCause(StrEnum):
    """Why an address or a profile is not written to."""

    HARD_BOUNCE = "hard_bounce"
    """The address does not work."""
    SOFT_BOUNCE = "soft_bounce"
    """The address failed again and again."""
    MAILBOX_FULL = "mailbox_full"
    """The mailbox was full again and again."""
    OPTOUT = "optout"
    """The person unsubscribed."""
    COMPLAINT = "complaint"
    """The person took a message for spam."""
    MANUAL = "manual"
    """An operator said so."""
