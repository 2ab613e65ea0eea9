"""The local servers as a person starts them: what a killed `run` leaves behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

DEV = Path(__file__).parents[2] / "dev"


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} within {seconds} s"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_run_takes_its_servers_and_their_data_along(tmp_path: Path) -> None:
    note = tmp_path / "note"
    command = f"setsid sleep 600 & echo $! $SENDOFF_DEV_STATE > {note}.new; mv {note}.new {note}; wait"
    arguments = [sys.executable, str(DEV / "servers.py"), "run", "--", "sh", "-c", command]
    with subprocess.Popen(arguments, stderr=subprocess.DEVNULL) as runner:
        try:
            wait_until(note.exists, 60, "the command was to start")
        finally:
            runner.send_signal(signal.SIGKILL)
    child, state = note.read_text().split()
    pids = [int(child)]
    if Path(state).exists():
        pids += json.loads(Path(state).read_text())["pids"].values()
    wait_until(lambda: not any(map(is_alive, pids)), 30, f"{pids} were to end")
    wait_until(lambda: not Path(state).parent.exists(), 10, "the data was to go")
