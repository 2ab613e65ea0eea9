"""`sendoff watch`: the live deployment of a delivery, in a terminal or line by line."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, Final, Protocol

import typer
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from contracts.states import State
from worker.cli.asking import DeliveryArgument
from worker.cli.common import CommandRefused, database
from worker.cli.show import console, number, percent, title, to_json
from worker.db import reading
from worker.db.failures import ERRORS, classify
from worker.domain.failures import Failure
from worker.domain.pace import Pace
from worker.domain.sentences import SETTLED
from worker.domain.states import OVER
from worker.domain.text import plain, words
from worker.settings import Settings, read_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from rich.console import Console, RenderableType

_HELD: Final = (State.PAUSED, State.STOPPED, State.FAILED, State.PREPARATION_FAILED)
"""The states whose reason is shown."""

_OPEN: Final = ("pending", "sending", "retrying")
_LINE_SECONDS: Final = 1.0
_STATEMENT_SECONDS: Final = 5.0


class View:
    """The view of a delivery at one moment."""

    def __init__(self, row: Mapping[str, Any], pace: Pace, *, away: bool) -> None:
        """Takes the row of the view `deployment`, its pace, and whether the database is away."""
        self._row = row
        self._pace = pace
        self._away = away
        self.state = State(row["state"])
        self.settled = sum(row[name] for name in SETTLED)
        self.facts = (away, self.state, *(row[name] for name in (*SETTLED, *_OPEN, "opened", "clicked")))
        """The values whose change makes a new line. Times do not."""

    def line(self) -> str:
        """Returns the view as one line of text."""
        if self._away:
            return "The database is out of reach; waiting for it."
        total = self._row["to_deliver"]
        parts = [
            f"{words(self.state)}  {number(self.settled)} of {number(total)}",
            *self._speed(),
            self._counts(),
        ]
        return "  ".join((*parts, self._why())).rstrip()

    def record(self) -> dict[str, Any]:
        """Returns the view for programs: the row of `deployment`, and what was computed from it."""
        rate = None if self.state in OVER else self._pace.rate
        left = None if rate is None else self._pace.left(self._row["to_deliver"] - self.settled)
        computed = {
            "settled": self.settled,
            "rate": None if rate is None else round(rate, 1),
            "seconds_left": None if left is None else round(left.total_seconds()),
            "database_away": self._away,
        }
        return {**self._row, **computed}

    def live(self) -> RenderableType:
        """Returns the view for a terminal."""
        row = self._row
        head = title(row["label"], f"delivery {row['delivery_id']}", row["channel"], words(self.state))
        bar = Table.grid(padding=(0, 2), expand=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True, justify="right")
        share = percent(100 * self.settled / row["to_deliver"]) if row["to_deliver"] else ""
        amount = f"{number(self.settled)} of {number(row['to_deliver'])}"
        bar.add_row(
            ProgressBar(total=max(row["to_deliver"], 1), completed=self.settled),
            "  ".join((amount, share, *self._speed())),
        )
        lines: list[RenderableType] = [head, bar, Text(self._counts())]
        if why := self._why():
            lines.append(Text(why, style="yellow"))
        if self._away:
            lines.append(Text("The database is out of reach; waiting for it.", style="yellow"))
        return Group(*lines)

    def _speed(self) -> list[str]:
        row = self._row
        if self.state in OVER:
            if row["started_at"] is None or row["finished_at"] is None:
                return []
            took = max((row["finished_at"] - row["started_at"]).total_seconds(), 0.001)
            return [f"in {took:,.1f} s", f"{self.settled / took:,.0f}/s"]
        rate = self._pace.rate
        if rate is None:
            return []
        left = self._pace.left(row["to_deliver"] - self.settled)
        return [f"{rate:,.0f}/s", *([f"{left} left"] if left else [])]

    def _counts(self) -> str:
        row = self._row
        shown = [("sent", "sent"), ("bounced", "bounced"), ("errors", "errors")]
        shown += [(words(name), name) for name in (*SETTLED[3:], *_OPEN, "opened", "clicked") if row[name]]
        return "  ".join(f"{label} {number(row[name])}" for label, name in shown)

    def _why(self) -> str:
        if self.state is State.READY:
            return "Waits for its confirmation."
        if self.state is State.START_PENDING and self._row["contact_date"]:
            return f"Begins at {self._row['contact_date']:%Y-%m-%d %H:%M:%S} UTC."
        reason = self._row["state_reason"]
        return f"Reason: {plain(reason)}" if reason and self.state in _HELD else ""


def watch(
    delivery_id: DeliveryArgument,
    *,
    interval: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, max=60, help="How often to look.")
    ] = 0.5,
    until: Annotated[
        State | None, typer.Option(help="End in this state; without it in finished, stopped or failed.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, whenever something has changed.")
    ] = False,
) -> None:
    """Show a delivery's progress, rate, time left and KPIs until it has ended."""
    # Shows a hidden cursor again, however this ends.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    screen = _json_lines() if as_json else _screen(console())
    state = asyncio.run(_watch(read_settings(), delivery_id, screen, interval, until))
    if until not in (None, state):
        raise CommandRefused(f"The delivery is {words(state)}, it will not be {words(until)}.")


async def _watch(
    settings: Settings,
    delivery_id: int,
    screen: AbstractContextManager[_Screen],
    interval: float,
    until: State | None,
) -> State:
    async with database(settings, command_timeout=_STATEMENT_SECONDS) as db:
        row = await reading.deployment(db, delivery_id)
        if row is None:
            raise CommandRefused(f"There is no delivery {delivery_id}.")
        pace = Pace()
        away = False
        with screen as show:
            while True:
                view = View(row, pace, away=away)
                pace.note(time.monotonic(), view.settled)
                over = view.state in OVER or view.state is until
                show(view, last=over)
                if over:
                    return view.state
                await asyncio.sleep(interval)
                try:
                    row = await reading.deployment(db, delivery_id) or row
                    away = False
                except ERRORS as error:
                    if classify(error) is Failure.BROKEN:
                        raise
                    away = True


class _Screen(Protocol):
    def __call__(self, view: View, *, last: bool) -> None: ...


@contextlib.contextmanager
def _screen(out: Console) -> Iterator[_Screen]:
    if not out.is_terminal:
        yield _Lines(lambda view: out.print(view.line(), soft_wrap=True))
        return
    with Live(console=out, auto_refresh=False) as live:
        yield lambda view, last: live.update(view.live(), refresh=True)  # noqa: ARG005 - as _Screen names it


@contextlib.contextmanager
def _json_lines() -> Iterator[_Screen]:
    yield _Lines(lambda view: typer.echo(to_json(view.record())))


class _Lines:
    """At most one line a second, and only if something has changed."""

    def __init__(self, out: Callable[[View], None]) -> None:
        self._out = out
        self._facts: object = None
        self._state: State | None = None
        self._at = -_LINE_SECONDS

    def __call__(self, view: View, *, last: bool) -> None:
        now = time.monotonic()
        early = now - self._at < _LINE_SECONDS and view.state is self._state
        if view.facts == self._facts or (early and not last):
            return
        self._out(view)
        self._facts, self._state, self._at = view.facts, view.state, now
