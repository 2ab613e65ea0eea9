"""What a delivery does and waits for, in a sentence. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from contracts.states import State
from worker.domain.states import OVER, RUNNING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

Part = str | int | datetime
"""A text, a count, or a moment: pages show the last two in the viewer's language and zone."""

SETTLED: Final = ("sent", "bounced", "errors", "unknown", "excluded_late", "cancelled")
"""The parts of the account that nothing is waited for any more."""

_ENDING: Final = ("pending", "sending", "retrying")


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast it goes."""

    rate: float | None = None
    """Recipients a second; None if it is not known."""
    left: timedelta | None = None
    """How long the rest takes at this rate; None if that is not known."""


UNKNOWN_SPEED: Final = Speed()


def settled(row: Mapping[str, Any]) -> int:
    """Returns how many recipients have their outcome."""
    return sum(int(row[name]) for name in SETTLED)


def average(row: Mapping[str, Any]) -> float | None:
    """Returns the rate over the whole run of a delivery that is over, or None."""
    if State(row["state"]) not in OVER or row["started_at"] is None or row["finished_at"] is None:
        return None
    took: float = max((row["finished_at"] - row["started_at"]).total_seconds(), 0.001)
    return settled(row) / took


def headline(row: Mapping[str, Any], now: datetime, speed: Speed = UNKNOWN_SPEED) -> list[Part]:
    """Says what a delivery does, and what it waits for.

    Args:
        row: The row of the query `read_shown`.
        now: The time, with its time zone.
        speed: How fast it goes.
    """
    state = State(row["state"])
    if state in RUNNING:
        return _running(row, now, speed)
    return _AT_REST[state](row)


def _running(row: Mapping[str, Any], now: datetime, speed: Speed) -> list[Part]:
    done, total = settled(row), int(row["to_deliver"])
    if State(row["state"]) is State.RETRY_PENDING:
        said: list[Part] = ["Everybody was tried. ", int(row["retrying"]), " wait for another attempt"]
        due = row["next_due_at"]
        return [*said, ", the next at ", due, "."] if due and due > now else [*said, "."]
    said = ["Being sent: ", done, " of ", total]
    if speed.rate:
        said += [", ", round(speed.rate), " a second"]
    if speed.left is not None:
        said += [", done about ", now + speed.left]
    due = row["next_due_at"]
    if not speed.rate and due and due > now and not row["sending"]:
        return [*said, ". The next recipients are due at ", due, "."]
    if row["messages_per_hour"]:
        return [*said, ", not faster than ", int(row["messages_per_hour"]), " an hour."]
    return [*said, "."]


def _ready(row: Mapping[str, Any]) -> list[Part]:
    if not row["to_deliver"]:
        return ["Prepared, but nobody is left to send to. Prepare it with other recipients."]
    if row["first_approval_by"]:
        first, until = (
            f"{row['first_approval_by']} gave the first of two OKs at ",
            row["first_approval_until"],
        )
        return [
            first,
            row["first_approval_at"],
            ". It waits for the OK of another operator until ",
            until,
            ".",
        ]
    who = "an operator with the Start deliveries role"
    said: list[Part] = ["Waits for its confirmation by ", who, ": it goes to ", int(row["to_deliver"])]
    return [*said, " recipient" if row["to_deliver"] == 1 else " recipients", "."]


def _start_pending(row: Mapping[str, Any]) -> list[Part]:
    by = f"Confirmed by {row['confirmed_by']}. " if row["confirmed_by"] else "Confirmed. "
    if row["contact_date"] is None:
        return [by, "It starts at once."]
    return [by, "Waits for its contact date, ", row["contact_date"], "."]


def _paused(row: Mapping[str, Any]) -> list[Part]:
    rest = sum(int(row[name]) for name in _ENDING)
    return ["Paused", *_because(row), " Nothing is sent to the other ", rest, " until it is resumed."]


def _finished(row: Mapping[str, Any]) -> list[Part]:
    said: list[Part] = ["Finished: all ", int(row["to_deliver"]), " recipients have an outcome."]
    if row["to_deliver"] == 1:
        said = ["Finished: the recipient has an outcome."]
    if row["unknown"]:
        what = (
            " is unknown: somebody must settle it."
            if row["unknown"] == 1
            else (" are unknown: somebody must settle them.")
        )
        said += [" ", int(row["unknown"]), what]
    return said


def _stopped(row: Mapping[str, Any]) -> list[Part]:
    return ["Stopped", *_because(row), " ", int(row["cancelled"]), " recipients were not tried."]


def _because(row: Mapping[str, Any]) -> list[Part]:
    reason = row["state_reason"]
    return [f": {reason}" + ("" if reason[-1] in ".!?" else ".")] if reason else ["."]


_AT_REST: Final[dict[State, Callable[[Mapping[str, Any]], list[Part]]]] = {
    State.EDITING: lambda _: ["It is being written. Nothing is prepared yet."],
    State.PREPARING: lambda _: ["Its recipients and its content are being prepared."],
    State.PREPARATION_FAILED: lambda row: [
        "The preparation failed",
        *_because(row),
        " Correct it, and prepare it again.",
    ],
    State.READY: _ready,
    State.START_PENDING: _start_pending,
    State.PAUSED: _paused,
    State.FINISHED: _finished,
    State.STOPPED: _stopped,
    State.FAILED: lambda row: ["It cannot go on", *_because(row)],
}
"""What is said of the states in which nothing is sent."""
