"""Draws the state machine of a delivery into docs/states.md, from the table that the code goes by.

`python dev/draw_states.py` writes the page, `--check` says whether it is up to date.
"""

from __future__ import annotations

import sys
from pathlib import Path

from contracts.commands import Reason
from contracts.states import State
from worker.domain.states import MOVES, OVER, RUNNING, UNDER_WAY

PAGE = Path(__file__).parents[1] / "docs" / "states.md"

_HEAD = """\
# States of a delivery

Drawn from `worker/domain/states.py` by `python dev/draw_states.py`. Every change of state is one statement,
which names the states it expects. If the delivery is in another state, another process was first, and nothing
changes. `sendoff.delivery_transition` records each change with operator, time and reason.

A delivery to more recipients than `SENDOFF_SECOND_APPROVAL_ABOVE` stays `ready` after the first OK, which is
answered with `awaiting_approval`. The OK of another operator for the same preparation confirms it.

"""

_GROUPS_HEAD = """\
Some columns of `sendoff.delivery_record` follow from the state. Statements name groups of states by them:
"""

GROUPS = {"running": RUNNING, "under_way": UNDER_WAY, "over": OVER}


def page() -> str:
    """Returns the page: a diagram, the table that it is drawn from, and the groups."""
    arrows = [
        f"    {origin} --> {goal}: {move.value.replace('_', ' ')}"
        for move, (origins, goals) in MOVES.items()
        for origin in origins
        for goal in goals
    ]
    first = f"    {State.READY} --> {State.READY}: first OK of two ({Reason.AWAITING_APPROVAL})"
    diagram = ["```mermaid", "stateDiagram-v2", f"    [*] --> {State.EDITING}", *arrows, first, "```", ""]
    rows = [
        f"| {_names(origins)} | {move.value.replace('_', ' ')} | {_names(goals)} |"
        for move, (origins, goals) in MOVES.items()
    ]
    table = ["| from | by | to |", "|---|---|---|", *rows, ""]
    columns = [f"| `{name}` | {_names(states)} |" for name, states in GROUPS.items()]
    groups = [_GROUPS_HEAD, "| column | states |", "|---|---|", *columns, ""]
    return _HEAD + "\n".join([*diagram, *table, *groups])


def _names(states: tuple[State, ...]) -> str:
    return ", ".join(f"`{state}`" for state in states)


def main() -> None:
    """Writes the page, or with `--check` exits 1 where it differs."""
    if "--check" not in sys.argv:
        PAGE.write_text(page())
    elif not PAGE.exists() or PAGE.read_text() != page():
        sys.exit(f"docs/{PAGE.name} differs from worker/domain/states.py: run python dev/draw_states.py")


if __name__ == "__main__":
    main()
