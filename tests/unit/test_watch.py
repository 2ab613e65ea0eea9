"""What `sendoff watch` and `sendoff stats` say, without a terminal or a server."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from contracts.states import State
from worker.cli.show import kpi_table, percent
from worker.cli.watch import View
from worker.domain.pace import Pace
from worker.domain.text import plain

NONE = (
    *("bounced_ignored", "unknown", "excluded_late", "cancelled", "retrying"),
    *("opened", "clicked", "optout", "mirror", "human_opened", "human_clicked", "complained"),
)
ROW: dict[str, Any] = dict.fromkeys(NONE, 0) | {
    "delivery_id": 7,
    "label": "Autumn [red]",
    "channel": "email",
    "state": "in_progress",
    "state_reason": None,
    "contact_date": None,
    "started_at": datetime(2026, 1, 1, tzinfo=UTC),
    "finished_at": None,
    "to_deliver": 10_000,
    "sent": 1_000,
    "bounced": 20,
    "bounced_hard": 15,
    "bounced_soft": 5,
    "errors": 3,
    "sending": 7,
    "pending": 8_970,
    "sent_pct": 10.0,
    "bounce_error_pct": 2.25,
    "open_pct": 0.0,
    "click_pct": None,
    "human_open_pct": 0.0,
    "human_click_pct": None,
    "complaint_pct": 0.0,
}


def seen(*points: tuple[float, int]) -> Pace:
    pace = Pace()
    for at, settled in points:
        pace.note(at, settled)
    return pace


def text(renderable: Any) -> str:
    out = io.StringIO()
    Console(file=out, width=100, markup=False).print(renderable)
    return out.getvalue()


@given(
    rate=st.integers(1, 5_000),
    step=st.floats(0.1, 60),
    looks=st.integers(2, 200),
    remaining=st.integers(0, 10**7),
)
def test_a_steady_pace_is_told_as_it_is(rate: int, step: float, looks: int, remaining: int) -> None:
    pace = Pace()
    for look in range(looks):
        pace.note(look * step, round(look * step * rate))
    assert pace.rate is not None
    assert abs(pace.rate - rate) <= 1 / step + 0.01
    left = pace.left(remaining)
    assert left is None or abs(left.total_seconds() - remaining / pace.rate) <= 1


def test_the_pace_forgets_what_was_long_ago() -> None:
    pace = seen((0, 0), (1, 1_000), (2, 1_000), (6, 1_000), (11, 1_000))
    assert pace.rate == 0
    assert pace.left(5) is None
    assert seen((0, 0)).rate is None


def test_a_line_says_where_the_delivery_stands_how_fast_and_for_how_long() -> None:
    line = View(ROW, seen((0, 523), (1, 1_023)), away=False).line()
    assert line == (
        "in progress  1,023 of 10,000  500/s  0:00:18 left"
        "  sent 1,000  bounced 20  errors 3  pending 8,970  sending 7"
    )


def test_an_ended_delivery_tells_its_overall_pace() -> None:
    ended = ROW | {"state": "finished", "finished_at": ROW["started_at"] + timedelta(seconds=2)}
    assert "finished  1,023 of 10,000  in 2.0 s  512/s  sent" in View(ended, Pace(), away=False).line()


def test_a_reason_is_shown_while_it_holds() -> None:
    paused = ROW | {"state": "paused", "state_reason": "typo \x1b[2J"}
    assert View(paused, Pace(), away=False).line().endswith("Reason: typo \ufffd[2J")
    assert "Reason" not in View(paused | {"state": "in_progress"}, Pace(), away=False).line()
    scheduled = ROW | {"state": "start_pending", "contact_date": datetime(2030, 5, 1, 9, tzinfo=UTC)}
    assert "Begins at 2030-05-01 09:00:00 UTC." in View(scheduled, Pace(), away=False).line()


def test_an_outage_is_said_and_the_last_counts_stay_on_the_screen() -> None:
    away = View(ROW, Pace(), away=True)
    assert away.line() == "The database is out of reach; waiting for it."
    assert "sent 1,000" in text(away.live())
    assert "out of reach" in text(away.live())


def test_the_screen_shows_every_state_and_an_empty_delivery() -> None:
    empty = ROW | dict.fromkeys(("to_deliver", "sent", "bounced", "errors", "sending", "pending"), 0)
    for state in State:
        shown = text(View(empty | {"state": state.value}, Pace(), away=False).live())
        assert "Autumn [red]  delivery 7  email" in shown
        assert "0 of 0" in shown


def test_a_percentage_of_nothing_is_a_dash_and_the_table_names_its_whole() -> None:
    lines = [line.split() for line in text(kpi_table(ROW)).splitlines()]
    assert ["sent", "1,000", "10.00", "%", "of", "to", "deliver"] in lines
    assert ["opened", "0", "0.00", "%", "of", "sent"] in lines
    assert ["clicked", "0", "–", "of", "sent"] in lines
    assert ["bounces", "and", "errors", "2.25", "%", "of", "all", "outcomes"] in lines
    assert percent(None) == "–"


@given(st.text())
def test_foreign_text_never_reaches_the_terminal_as_a_command(foreign: str) -> None:
    assert plain(foreign).isprintable()
