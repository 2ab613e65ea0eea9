"""Crash points: the named places between two durable steps, at which a test lets this process die.

A durable step is a commit, a publish that the broker confirmed, an acknowledgement, the hand-over of a mail,
or a write to the disk. Between two of them a process may die at any moment. Each such place has a name here,
so that a test can let it happen there: with `SENDOFF_DEV_CRASH_AT=page.confirmed` the process ends with
SIGKILL when it passes the point, with `page.confirmed:3` at the third time. Only tests set this. Without it a
point is a call and a look at a constant, and no recipient's way has more than two points of its own: the
others are passed once for a batch.

`docs/guarantees.md` shows the list (`python -m dev.draw_crash_points`). `tests/unit/test_crash_points.py`
finds the durable steps in the source, and fails where one has no point behind it.
"""

from __future__ import annotations

import os
import signal
from typing import Final, NamedTuple


class Point(NamedTuple):
    """A place between two durable steps."""

    done: str
    """What is durable already."""
    missing: str
    """What is not."""


POINTS: Final[dict[str, Point]] = {
    "command.carried-out": Point(
        "The command is in its queue.", "Its transaction is carried out and not committed."
    ),
    "command.committed": Point(
        "State, pages and answer are committed.", "The answer is not published, the command not acknowledged."
    ),
    "request.handled": Point(
        "The answer to a command, or to a foreign sender, is published.",
        "What it answers is not acknowledged.",
    ),
    "start.carried-out": Point(
        "The delivery is confirmed.", "The transaction of its start is carried out and not committed."
    ),
    "start.committed": Point("The delivery is started, its pages are open.", "None of them is leased."),
    "page.leased": Point("A page is leased.", "None of its messages is published."),
    "publish.written": Point(
        "Of the messages that were written, any part may be with the broker.", "The broker confirmed none."
    ),
    "page.confirmed": Point(
        "The broker has every message of a page.", "The page is not marked as published."
    ),
    "page.published": Point("The page is marked as published.", "Its process takes no other page."),
    "claim.granted": Point("Recipients are claimed.", "None of them is handed over."),
    "hand-over.marked": Point("Hand-overs are marked.", "The relay has none of these mails."),
    "smtp.written": Point("A mail is written whole, the relay may have it.", "Its reply is not read."),
    "send.tried": Point("The relay has answered.", "The result is not published."),
    "claim.given-back": Point("A claim is given back.", "Its message is in hand."),
    "result.confirmed": Point(
        "The broker has the results of a batch.", "Their send messages are not acknowledged."
    ),
    "outcome.recorded": Point(
        "Outcomes and counters of a delivery are committed.",
        "Nobody looked whether it is done, and the results are not acknowledged.",
    ),
    "breaker.tripped": Point(
        "A delivery is paused by the circuit breaker.", "The results are not acknowledged."
    ),
    "outcome.finished": Point("A delivery is finished.", "The results are not acknowledged."),
    "batch.recorded": Point("All of a batch is committed.", "None of its messages is acknowledged."),
    "dead.confirmed": Point(
        "The dead queue has what cannot be handled.", "The message that it came in is not acknowledged."
    ),
    "grant.committed": Point("A foreign sender's claims are committed.", "It does not know of them."),
    "stats.recounted": Point("Drift is repaired.", "The KPIs are not published."),
    "stats.answered": Point("The KPIs are published.", "The request is not acknowledged."),
    "claims.ended": Point(
        "Claims whose leases expired are given back, or unknown.", "Other deliveries are not looked at."
    ),
    "rest.cancelled": Point(
        "The rest of a delivery whose validity is over is counted as cancelled.",
        "Those who wait for a retry do not have their final status.",
    ),
    "retries.ended": Point("Some who waited for a retry have their final status.", "Others may still wait."),
    "retries.opened": Point(
        "Pages with due retries are open.", "The delivery is not moved to *retry pending*."
    ),
    "pages.inspected": Point(
        "Pages are counted, the next look is set.", "They are neither closed nor opened again."
    ),
    "pages.closed": Point("Pages that are done are closed.", "Lost pages are not opened again."),
    "pages.reopened": Point("Lost pages are open again.", "None of them is leased."),
    "delivery.finished": Point("The scheduler finished a delivery.", "Its event is in the outbox."),
    "alerts.sampled": Point("The progress of deliveries is stored.", "Old samples are not deleted."),
    "alerts.looked": Point("Old samples are deleted.", "No alert is raised."),
    "alerts.raised": Point("An alert is raised, its event is in the outbox.", "Nobody is told of it."),
    "event.leased": Point("Events of the outbox are leased.", "None is published."),
    "event.confirmed": Point("The broker has the events.", "They are still in the outbox."),
    "event.deleted": Point("The events are out of the outbox.", "The next ones are not leased."),
    "tracking.recorded": Point(
        "A delivery's tracking events and counters are committed.", "Their messages are not acknowledged."
    ),
    "tracker.confirmed": Point("The broker has a reader's event.", "The reader is not answered."),
    "tracker.spooled": Point("A reader's event is on the disk.", "The reader is not answered."),
    "tracker.replayed": Point("The broker has the events of a spool file.", "The file is still there."),
    "returned.confirmed": Point(
        "The broker has what a returned mail says.", "The mail is not answered, its file not moved."
    ),
    "returned.kept": Point("A returned mail is kept for a person.", "It is not answered."),
    "webhook.part": Point("The broker has a part of what a call says.", "It may not have the rest."),
    "webhook.confirmed": Point("The broker has all that a call says.", "The call is not answered."),
}
"""Every point by its name: the part, and the last durable step."""

VARIABLE: Final = "SENDOFF_DEV_CRASH_AT"
"""The environment's variable: the name of a point, and after a colon at which passing; 1 if none is said."""

_ARMED: Final = os.environ.get(VARIABLE, "")
_passed: dict[str, int] = {}


def crash_point(name: str) -> None:
    """Ends this process with SIGKILL if a test chose this point; otherwise does nothing."""
    if _ARMED:
        _passed[name] = _passed.get(name, 0) + 1
        chosen, _, passing = _ARMED.partition(":")
        if name == chosen and _passed[name] == int(passing or 1):
            os.kill(os.getpid(), signal.SIGKILL)
