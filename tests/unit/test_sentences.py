"""What the console says that a delivery does and waits for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.states import State
from worker.domain.sentences import Part, Speed, average, headline, settled
from worker.web.console.rendering import sentence

NOW = datetime(2026, 11, 27, 14, 0, tzinfo=UTC)
COUNTS = (
    *("to_deliver", "sent", "bounced", "errors", "unknown", "excluded_late"),
    *("cancelled", "retrying", "sending", "pending"),
)
ROW: dict[str, Any] = dict.fromkeys(COUNTS, 0) | {
    "state_reason": None,
    "contact_date": None,
    "confirmed_by": "ana",
    "first_approval_by": None,
    "first_approval_at": None,
    "first_approval_until": None,
    "started_at": None,
    "finished_at": None,
    "next_due_at": None,
    "messages_per_hour": None,
}

FIRST = {
    "to_deliver": 9_000,
    "first_approval_by": "bob",
    "first_approval_at": NOW,
    "first_approval_until": NOW + timedelta(hours=4),
}
SECOND = "bob gave the first of two OKs at 14:00. It waits for the OK of another operator until 18:00."
ROLE_FIRST = (
    "Waits for its confirmation by an operator with the Start deliveries role: it goes to 1 recipient."
)


def said(state: State, speed: Speed | None = None, **changes: Any) -> str:
    parts = headline({**ROW, "state": state.value, **changes}, NOW, speed or Speed())
    return "".join(plain(part) for part in parts)


def plain(part: Part) -> str:
    return f"{part:%H:%M}" if isinstance(part, datetime) else f"{part:,}" if isinstance(part, int) else part


@given(
    st.sampled_from(State),
    st.fixed_dictionaries({name: st.integers(0, 2_000_000) for name in COUNTS}),
    st.one_of(st.none(), st.text(min_size=1)),
    st.one_of(st.none(), st.datetimes(timezones=st.just(UTC), min_value=datetime(2000, 1, 1))),  # noqa: DTZ001
    st.builds(Speed, st.one_of(st.none(), st.floats(0, 1e6)), st.one_of(st.none(), st.just(timedelta(9)))),
)
def test_every_state_is_a_sentence_that_can_be_drawn(
    state: State, counts: dict[str, int], reason: str | None, at: datetime | None, speed: Speed
) -> None:
    row = {
        **ROW,
        **counts,
        "state": state.value,
        "state_reason": reason,
        "contact_date": at,
        "next_due_at": at,
    }
    parts = headline(row, NOW, speed)
    assert isinstance(parts[-1], str)
    assert parts[-1].rstrip()[-1] in ".!?"
    assert "<script" not in sentence(parts)


@pytest.mark.parametrize(
    ("state", "changes", "expected"),
    [
        (State.READY, {"to_deliver": 1}, ROLE_FIRST),
        (State.READY, FIRST, SECOND),
        (State.READY, {}, "Prepared, but nobody is left to send to. Prepare it with other recipients."),
        (State.START_PENDING, {"contact_date": NOW + timedelta(hours=2)},
         "Confirmed by ana. Waits for its contact date, 16:00."),
        (State.PAUSED, {"state_reason": "typo in the subject", "pending": 1_500},
         "Paused: typo in the subject. Nothing is sent to the other 1,500 until it is resumed."),
        (State.STOPPED, {"state_reason": "Wrong list!", "cancelled": 7},
         "Stopped: Wrong list! 7 recipients were not tried."),
        (State.FINISHED, {"to_deliver": 5_000, "unknown": 1},
         "Finished: all 5,000 recipients have an outcome. 1 is unknown: somebody must settle it."),
        (State.FINISHED, {"to_deliver": 1}, "Finished: the recipient has an outcome."),
        (State.RETRY_PENDING, {"retrying": 12, "next_due_at": NOW + timedelta(minutes=5)},
         "Everybody was tried. 12 wait for another attempt, the next at 14:05."),
        (State.RETRY_PENDING, {"retrying": 12, "next_due_at": NOW},
         "Everybody was tried. 12 wait for another attempt."),
        (State.IN_PROGRESS, {"to_deliver": 9_000, "sent": 100, "next_due_at": NOW + timedelta(hours=1)},
         "Being sent: 100 of 9,000. The next recipients are due at 15:00."),
        (State.IN_PROGRESS, {"to_deliver": 9, "messages_per_hour": 3_600},
         "Being sent: 0 of 9, not faster than 3,600 an hour."),
        (State.FAILED, {"state_reason": None}, "It cannot go on."),
    ],
)  # fmt: skip
def test_what_is_said(state: State, changes: dict[str, Any], expected: str) -> None:
    assert said(state, **changes) == expected


def test_how_fast_it_goes_and_when_it_is_done() -> None:
    speed = Speed(22_900.4, timedelta(seconds=26))
    told = said(State.IN_PROGRESS, speed, to_deliver=1_000_000, sent=412_030, sending=5)
    assert told == "Being sent: 412,030 of 1,000,000, 22,900 a second, done about 14:00."


def test_a_reason_is_text_and_no_markup() -> None:
    row = {**ROW, "state": "paused", "state_reason": "<script>alert(1)</script>\x07"}
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\ufffd" in sentence(headline(row, NOW))


def test_the_average_is_of_what_has_ended() -> None:
    row = {**ROW, "state": "finished", "sent": 90, "errors": 10, "started_at": NOW, "finished_at": NOW}
    assert settled(row) == 100
    assert average({**row, "finished_at": NOW + timedelta(seconds=20)}) == 5
    assert average({**row, "finished_at": NOW + timedelta(seconds=20), "state": "paused"}) is None
