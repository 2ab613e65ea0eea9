"""What tracking events say: each counts once, is a person's or a machine's; an opt-out is heeded or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from contracts.tracking import TrackingKind
from worker.domain.machines import Sort

if TYPE_CHECKING:
    from collections.abc import Iterable

    from contracts.tracking import TrackingEvent
    from worker.domain.machines import Machines

USER_AGENT_LIMIT: Final = 500
"""Characters of a user agent that are kept, and judged by."""


class Tracked(NamedTuple):
    """An event with what was judged of it."""

    event: TrackingEvent
    user_agent: str | None
    machine_rule: str | None
    """The rule by which it is a machine's; None for a person's."""
    heeded: bool
    """Whether it is an opt-out after which nobody is written to again."""


def fold(events: Iterable[TrackingEvent]) -> dict[int, dict[str, TrackingEvent]]:
    """Returns events by delivery and event_id; of those with the same, the first stands."""
    folded: dict[int, dict[str, TrackingEvent]] = {}
    for event in events:
        folded.setdefault(event.delivery_id, {}).setdefault(event.event_id, event)
    return folded


def judge(event: TrackingEvent, machines: Machines) -> Tracked:
    """Says who is behind an event, and whether it is an opt-out to be heeded.

    An opt-out is heeded whoever sends it, but for scanners, which follow every link. The one-click opt-out of
    RFC 8058 is a POST that the mailbox's provider sends for a person, so that a program's may well be a
    person's; and writing to somebody who opted out weighs more than losing somebody who did not.
    """
    user_agent = event.user_agent[:USER_AGENT_LIMIT] if event.user_agent else None
    rule = machines.judge(user_agent)
    heeded = event.kind is TrackingKind.OPTOUT and (rule is None or rule.sort is not Sort.SCANNER)
    return Tracked(event, user_agent, rule.name if rule else None, heeded)
