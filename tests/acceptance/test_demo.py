"""`dev/demo.py` as `make demo` runs it, on the servers of these tests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.stack import Stack, until

if TYPE_CHECKING:
    from collections.abc import Iterator

DEMO = Path(__file__).parents[2] / "dev" / "demo.py"
FIGURE = re.compile(r"^(\w+(?: \w+)*) {2,}(\d+)\b", re.MULTILINE)


@pytest.fixture
def environment(stack: Stack, tmp_path: Path) -> dict[str, str]:
    """The demo's own database and queues; what it keeps for a while goes to the test's folder."""
    (tmp_path / "tmp").mkdir()
    return os.environ | {
        "SENDOFF_DATABASE_URL": stack.settings.database_url,
        "SENDOFF_QUEUE_PREFIX": stack.settings.queue_prefix,
        "TMPDIR": str(tmp_path / "tmp"),
    }


def left_behind(folder: Path) -> Iterator[str]:
    """What there is still of a demo: its files, and processes that work in its folder."""
    yield from (path.name for path in (folder / "tmp").iterdir())
    for process in Path("/proc").glob("[0-9]*/cwd"):
        try:
            place = process.readlink()
        except OSError:  # ended, or somebody else's
            continue
        if place.is_relative_to(folder):
            yield str(process)


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(DEMO), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def test_the_demo_sends_a_delivery_and_finds_every_message(
    environment: dict[str, str], tmp_path: Path
) -> None:
    done = run(environment, "--recipients", "200")
    assert (done.returncode, done.stderr) == (0, "")
    told = re.search(
        r"The KPIs say what the readers did: (\d+) opened, (\d+) clicked, (\d+) mirror, (\d+) optout,"
        r" (\d+) complained. Returned later and no longer sent: (\d+)\.",
        done.stdout,
    )
    assert told
    assert all(int(number) > 0 for number in told.groups())
    shown = {name: int(number) for name, number in FIGURE.findall(done.stdout)}  # the last of each
    assert [shown[name] for name in ("opened", "clicked", "mirror page", "opted out", "complained")] == [
        int(number) for number in told.groups()[:5]
    ]
    held = shown["sent"] + int(told[6])
    assert f"{held} messages: exactly one for each of the {held} recipients" in done.stdout
    assert "Subject: こんにちは さくら: what is new in November" in done.stdout
    assert "550 5.1.1" in done.stdout
    for command in (
        "migrate",
        "operator add",
        "prepare",
        "run",
        "run tracker",
        "run returned",
        "confirm",
        "watch",
        "stats",
    ):
        assert f"$ sendoff {command}" in done.stdout
    assert not list(left_behind(tmp_path))


def test_a_message_that_did_not_arrive_is_told_loudly_and_the_log_is_kept(
    environment: dict[str, str], tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = run(environment | {"SENDOFF_DEV_SINK": str(elsewhere)}, "--recipients", "3")
    assert done.returncode == 1
    assert "The sink and the sending log differ for 3 addresses" in done.stderr
    kept = re.search(r"What the worker said is in (\S+)\.$", done.stderr.strip())
    assert kept
    assert '"event": "running"' in Path(kept[1]).read_text()


@pytest.mark.parametrize(
    ("when", "number", "status", "arguments"),
    [
        ("$ sendoff prepare", signal.SIGINT, 130, ["--recipients", "5000"]),
        ("in progress", signal.SIGINT, 130, ["--recipients", "5000"]),
        ("in progress", signal.SIGTERM, 143, ["--recipients", "5000"]),
        ("The console is at http://127.0.0.1:", signal.SIGINT, 130, ["--recipients", "5", "--page"]),
    ],
)
async def test_interrupted_at_any_moment_it_leaves_nothing_behind(
    environment: dict[str, str],
    tmp_path: Path,
    when: str,
    number: signal.Signals,
    status: int,
    arguments: list[str],
) -> None:
    said = tmp_path / "said"
    with said.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(DEMO), *arguments),
            env=environment,
            stdout=out,
            stderr=out,
        )
    try:

        async def is_there() -> bool:
            return when in said.read_text()

        await until(is_there, 90 if "--page" in arguments else 30)
        process.send_signal(number)
        await asyncio.wait_for(process.wait(), 15)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    assert process.returncode == status
    assert "Traceback" not in said.read_text()
    assert not list(left_behind(tmp_path))
