"""The rules for tracking events: each counts once; who sent it; whether an opt-out is applied."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from contracts.tracking import TrackingKind
from worker.domain.machines import Sort

if TYPE_CHECKING:
    from collections.abc import Iterable

    from contracts.tracking import TrackingEvent
    from worker.domain.machines import Machines

DENYLISTS: Final = (TrackingKind.OPTOUT, TrackingKind.COMPLAINT)
"""The kinds after which a profile is not written to again."""

USER_AGENT_LIMIT: Final = 500
"""Characters of a user agent that are kept, and compared with the rules."""


class Tracked(NamedTuple):
    """An event and its classification."""

    event: TrackingEvent
    user_agent: str | None
    machine_rule: str | None
    """The rule that matched a machine; None for a person."""
    heeded: bool
    """Whether it is an opt-out or a complaint that adds the profile to the denylist."""


def fold(events: Iterable[TrackingEvent]) -> dict[int, dict[str, TrackingEvent]]:
    """Returns events by delivery and event_id. If two have the same event_id, the first is kept."""
    folded: dict[int, dict[str, TrackingEvent]] = {}
    for event in events:
        folded.setdefault(event.delivery_id, {}).setdefault(event.event_id, event)
    return folded


def judge(event: TrackingEvent, machines: Machines) -> Tracked:
    """Classifies an event: a person or a machine, and whether it is an opt-out or a complaint to apply.

    Every opt-out is applied, except those of scanners, which follow every link. The one-click opt-out of RFC
    8058 is a POST that the mailbox's provider sends for a person. So an opt-out of a program may come from a
    person. To write to a person who opted out is worse than to lose one who did not.
    """
    user_agent = event.user_agent[:USER_AGENT_LIMIT] if event.user_agent else None
    rule = machines.judge(user_agent)
    scanned = event.kind is TrackingKind.OPTOUT and rule is not None and rule.sort is Sort.SCANNER
    heeded = event.kind in DENYLISTS and not scanned
    return Tracked(event, user_agent, rule.name if rule else None, heeded)
