"""Tasks: every one has an owner, and the end of waiting is told from a death."""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path

import pytest

from worker.domain.failures import Stopped
from worker.lifecycle import Background, ServiceDied, beside, on_stop, run_services, unless_stopped, watched

WORKER = Path(__file__).parents[2] / "worker"
OWNER = WORKER / "lifecycle.py"
SECONDS = 20


def makes_a_task_of_nobodys(node: ast.AST) -> bool:
    """Whether it is `asyncio.create_task`, `loop.create_task` or `ensure_future`; a TaskGroup's is fine."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name)):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
    if name == "ensure_future":
        return True
    if name != "create_task":
        return False
    made_by = node.func.value if isinstance(node.func, ast.Attribute) else None
    return not (isinstance(made_by, ast.Name) and made_by.id == "group")


def test_every_task_is_somebodys() -> None:
    bare = {
        f"{file.relative_to(WORKER)}:{node.lineno}"
        for file in WORKER.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if file != OWNER and isinstance(node, ast.Call) and makes_a_task_of_nobodys(node)
    }
    assert bare == set()


class Failing:
    name = "failing"

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def run(self, stop: asyncio.Event) -> None:
        await stop.wait()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._fail())

    async def _fail(self) -> None:
        raise self._error


def stopped() -> asyncio.Event:
    stop = asyncio.Event()
    stop.set()
    return stop


async def test_a_service_that_stops_waiting_for_a_server_ends_well() -> None:
    await run_services([Failing(Stopped("away"))], stopped(), grace=SECONDS)


async def test_a_service_that_dies_while_another_stops_waiting_is_named_with_its_reason() -> None:
    services = [Failing(Stopped("away")), Failing(LookupError("the reason"))]
    with pytest.raises(ServiceDied, match=r"LookupError\('the reason'\)"):
        await run_services(services, stopped(), grace=SECONDS)


async def test_work_is_given_up_at_a_stop_and_what_is_done_is_returned() -> None:
    never = asyncio.Event()

    async def done() -> str:
        return "done"

    async with asyncio.timeout(SECONDS):
        assert await unless_stopped(stopped(), done()) == "done"
        with pytest.raises(Stopped):
            await unless_stopped(stopped(), never.wait())


async def test_a_task_that_dies_ends_the_block_that_is_watched() -> None:
    async def die() -> None:
        raise LookupError("the reason")

    never = asyncio.Event()
    task = Background(die(), "dying")
    async with asyncio.timeout(SECONDS):
        with pytest.raises(ExceptionGroup) as died:
            async with watched(task.watch):
                await never.wait()
    assert died.group_contains(LookupError, match="the reason")


async def test_a_task_that_is_ended_is_no_death() -> None:
    never = asyncio.Event()

    async def wait() -> None:
        await never.wait()

    task = Background(wait(), "waiting")
    await task.end()
    async with asyncio.timeout(SECONDS):
        await task.watch()


async def test_an_action_at_a_stop_that_raises_ends_the_block() -> None:
    async def act() -> None:
        raise LookupError("the reason")

    never = asyncio.Event()
    async with asyncio.timeout(SECONDS):
        with pytest.raises(ExceptionGroup) as died:
            async with on_stop(stopped(), act):
                await never.wait()
    assert died.group_contains(LookupError)


async def test_what_runs_beside_a_block_ends_with_it() -> None:
    never = asyncio.Event()
    async with asyncio.timeout(SECONDS), beside(never.wait(), "beside") as task:
        pass
    assert task.cancelled()
