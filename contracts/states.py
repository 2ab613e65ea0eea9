"""The states of a delivery, as replies, events and statistics carry them."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """The state of a delivery."""

    EDITING = "editing"
    """Being written; nothing was computed yet."""
    PREPARING = "preparing"
    """Its audience and content are being computed."""
    PREPARATION_FAILED = "preparation_failed"
    """The preparation found errors; it has to be prepared again."""
    READY = "ready"
    """Prepared; waits for its confirmation."""
    START_PENDING = "start_pending"
    """Confirmed; waits for its contact date."""
    IN_PROGRESS = "in_progress"
    """Being sent."""
    RETRY_PENDING = "retry_pending"
    """Only recipients that wait for a retry are left."""
    PAUSED = "paused"
    """Nothing is sent until it is resumed."""
    FINISHED = "finished"
    """Every recipient is accounted for."""
    STOPPED = "stopped"
    """Ended by an operator; what was not sent is cancelled."""
    FAILED = "failed"
    """Ended because it could not go on."""
