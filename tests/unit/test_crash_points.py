"""Every durable step of the services has a crash point behind it; every point is known, shown and used."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from dev import draw_crash_points
from worker.crashing import POINTS, VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
WORKER = ROOT / "worker"
FAULTS = ROOT / "tests/faults/test_crash_points.py"
POINT = "crash_point"

LOOKED_AT = ("services", "amqp", "returned", "web/tracker", "web/webhooks", "db/holding.py", "duties.py")
LEFT_OUT = ("amqp/bulk/", "amqp/pika/", *(f"web/tracker/{n}.py" for n in ("app", "catalog", "pages")))
"""The transports carry what others publish and acknowledge; the rest reads, and makes nothing durable."""

CALLS = {
    *("until_done", "write_by_halves"),
    *("publish", "bury", "reply_to", "acknowledge"),
    *("fsync", "rename", "unlink", "spool.append", "kept.keep"),
    *("channel.send", "executions.begin", "starts.begin"),
}
"""What makes something durable: a name, or the last two of a dotted one."""
STORES = {"accounts", "alerts", "breaker", "deliveries", "finisher", "outbox", "pages"}
"""What services call the parts that write to the database: each method of theirs is a transaction."""

EVERYWHERE = {
    "acknowledge": "the way of a message ends with it; another message has its own",
    "bury": "`DeadQueue.bury` has the point",
}
"""Calls that need no point behind them, wherever they are, with the reason."""
READS = "it only reads"
CALLER = "its callers have the point"
LATER = "the point is where its caller goes on"
BUDGET = "it is about how fast, and no recipient's way: the next second has its own"
WITHIN = "what it carries out has the points"
EXCEPTIONS = {
    "services/claims.py ClaimsService.handle reply_to": LATER,
    "services/claims.py ClaimsService._answer until_done looking for a delivery": READS,
    "services/commands.py ConfirmService.handle reply_to": LATER,
    "services/events.py EventsService.handle until_done publishing events": WITHIN,
    "services/events.py EventsService._publish publish": CALLER,
    "services/fanout.py FanoutService._take until_done leasing pages with a limit": LATER,
    "services/fanout.py FanoutService._take until_done leasing pages": LATER,
    "services/fanout.py FanoutService._idle_for until_done reading the next turn": READS,
    "services/fanout.py FanoutService._release pages.release": "the lease ends anyway",
    "services/fanout.py FanoutService._publish until_done reading a page": READS,
    "services/flow.py FlowService.lease until_done leasing messages and connections": BUDGET,
    "services/flow.py FlowService.report until_done reporting what is held back": BUDGET,
    "services/results.py ResultsService._record_delivery until_done looking how far a delivery is": WITHIN,
    "services/results.py ResultsService._look breaker.progress": READS,
    "services/schedule.py ScheduleService._pages_to_inspect pages.to_inspect": READS,
    "services/schedule.py ScheduleService._open_retries deliveries.await_retries": "the duty ends with it",
    "services/schedule.py ScheduleService._alert alerts.raise_due": "what is raised is in the outbox",
    "services/send.py SendService._read_content until_done reading the content": READS,
    "services/stats.py StatsService._compute until_done computing stats": CALLER,
    "services/stats.py StatsService._compute until_done reading the live counters": READS,
    "services/stats.py StatsService._answer reply_to": LATER,
    "services/stats.py StatsService._reply reply_to": LATER,
    "amqp/reports.py Reports._publish publish": CALLER,
    "amqp/prompt.py PromptPublisher.publish publish": CALLER,
    "amqp/requests.py reply_to publish": CALLER,
    "amqp/routes.py KeepingPublisher.publish publish": CALLER,
    "duties.py waiting.look pages.oldest_due": READS,
    "duties.py Duties.unless_busy until_done": WITHIN,
    "returned/maildir.py Maildir._seen rename": "the way of a mail ends with it",
    "web/tracker/outlet.py Outlet._publish publish": CALLER,
    "web/tracker/outlet.py Outlet._spooled spool.append": CALLER,
    "web/tracker/spool.py Spool._write fsync": CALLER,
    "web/tracker/spool.py Spool._begin fsync": "the file is empty",
    "web/tracker/spool.py Spool.taken unlink": "the way of a file ends with it",
}
"""Other calls that need none: the file, the function, the call and what it does, with the reason."""

SEVERAL = {
    "console.py ConsoleReads.log": READS,
    "flow.py Flow.lease": BUDGET,
    "partitions.py look": READS,
    "profiles.py messages": READS,
    "suppression.py Suppression.lift": "one of three statements, by the table",
}
"""Functions of `worker/db` that open more than one transaction and need no point, with the reason."""


class Step(NamedTuple):
    """A durable step, and whether a point follows it before the next one."""

    name: str
    call: str
    followed: bool


def steps(source: str, file: str) -> Iterator[Step]:
    """Finds the durable steps of a file, function by function."""
    for name, function in _functions(ast.parse(source), ()):
        calls = sorted(
            (node.lineno, node.col_offset, call, _doing(node))
            for node in _own(function)
            if isinstance(node, ast.Call) and (call := _durable(node.func))
        )
        for at, (*_, call, doing) in enumerate(calls):
            if call != POINT:
                followed = at + 1 < len(calls) and calls[at + 1][2] == POINT
                yield Step(f"{file} {name} {call} {doing}".strip(), call, followed)


def _functions(node: ast.AST, name: tuple[str, ...]) -> Iterator[tuple[str, ast.AST]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield ".".join((*name, child.name)), child
            yield from _functions(child, (*name, child.name))
        else:
            own = (*name, child.name) if isinstance(child, ast.ClassDef) else name
            yield from _functions(child, own)


def _own(function: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function without the functions within it: those are passed on and called elsewhere."""
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from _own(child)


def _durable(called: ast.expr) -> str:
    """Returns the name of a call that makes something durable, or of a point; otherwise nothing."""
    *before, owner, last = ["", *ast.unparse(called).split(".")]
    two = f"{owner.lstrip('_')}.{last}"
    if last == POINT or last in CALLS:
        return last
    stores = owner in STORES and "metrics" not in before
    return two if two in CALLS or stores else ""


def _doing(call: ast.Call) -> str:
    """What `until_done` and `write_by_halves` are told that they do."""
    last = call.args[-1] if call.args else None
    named = isinstance(last, ast.Constant) and _durable(call.func) == "until_done"
    return str(last.value) if named and isinstance(last, ast.Constant) else ""


def sources() -> dict[str, str]:
    files = [file for part in LOOKED_AT for file in [WORKER / part, *(WORKER / part).rglob("*.py")]]
    names = {str(file.relative_to(WORKER)): file for file in files if file.suffix}
    return {n: file.read_text("utf-8") for n, file in names.items() if not n.startswith(LEFT_OUT)}


def test_every_durable_step_has_a_crash_point_behind_it() -> None:
    found = [step for file, source in sources().items() for step in steps(source, file)]
    without = {step.name for step in found if not step.followed and step.call not in EVERYWHERE}
    assert without - EXCEPTIONS.keys() == set(), "a crash point (worker/crashing.py), or a reason here"
    assert EXCEPTIONS.keys() - without == set(), "these have a point now, or are gone"


@pytest.mark.parametrize(
    "step",
    [
        "await self._parts.retrying.until_done(Idempotent(self._more), 'doing more')",
        "await self._parts.publisher.publish('x', 'y', [])",
        "await self._parts.pages.close(1, [2])",
        "self._spool.append(lines)",
    ],
)
def test_a_new_step_without_a_point_is_found(step: str) -> None:
    function = f"async def more(self):\n    {step}\n"
    assert [one.followed for one in steps(function, "f.py")] == [False]
    behind = f"{function}    await publish()\n    crash_point('x')\n"
    assert [one.followed for one in steps(behind, "f.py")] == [False, True]
    assert [one.followed for one in steps(f"{function}    crash_point('x')\n", "f.py")] == [True]


def test_every_method_of_the_database_is_one_transaction() -> None:
    """A second one in the same function would be a step that no service sees."""
    several = set()
    for file in (WORKER / "db").rglob("*.py"):
        for name, function in _functions(ast.parse(file.read_text("utf-8")), ()):
            calls = [ast.unparse(n.func) for n in _own(function) if isinstance(n, ast.Call)]
            opened = [c for c in calls if c.startswith(("self._db.", "db.")) and not c.endswith("until_done")]
            if len(opened) > 1 and POINT not in calls:
                several.add(f"{file.name} {name}")
    assert several == SEVERAL.keys()


def test_the_points_of_the_code_are_those_of_the_list_each_in_one_place() -> None:
    used: list[str] = []
    for file in WORKER.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == POINT:
                used += [n.value for n in ast.walk(node.args[0]) if _is_point(n)]  # type: ignore[attr-defined]
    assert sorted(used) == sorted(POINTS)


def _is_point(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value


def test_a_worker_dies_at_every_point_in_a_test() -> None:
    constants = {
        n.value for n in ast.walk(ast.parse(FAULTS.read_text("utf-8"))) if isinstance(n, ast.Constant)
    }
    assert POINTS.keys() - constants == set()


def test_the_page_of_guarantees_shows_the_points() -> None:
    there = draw_crash_points.PAGE.read_text("utf-8")
    assert draw_crash_points.page(there) == there, "run python -m dev.draw_crash_points"
    with pytest.raises(ValueError, match="no table"):
        draw_crash_points.page("")


@pytest.mark.parametrize(
    ("chosen", "passed", "status"),
    [
        ("", 1, 0),
        ("page.leased", 1, -signal.SIGKILL),
        ("page.leased:2", 1, 0),
        ("page.leased:2", 2, -signal.SIGKILL),
        ("page.published", 3, 0),
    ],
)
def test_a_process_dies_at_the_chosen_passing(chosen: str, passed: int, status: int) -> None:
    program = f"from worker.crashing import crash_point\nfor _ in range({passed}): crash_point('page.leased')"
    run = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {VARIABLE: chosen}, cwd=ROOT, check=False
    )
    assert run.returncode == status
