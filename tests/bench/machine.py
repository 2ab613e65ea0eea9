"""What a run costs: processor time and peak memory by process, and the machine that it ran on."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

SERVERS = {"RabbitMQ": "rabbitmq", "Postgres": "postgres"}
"""What `dev/servers.py` calls them, by the name to show."""

Processes = dict[str, list[int]]
"""Process ids by a name to show; each stands for itself and all below it."""


class CaseFailed(Exception):
    """A case could not be measured, or what it did was wrong; the message says why. The others go on."""


@dataclass(frozen=True)
class Measured:
    """What one run came to: how many of what it is about, seconds, processor seconds and peak MiB by process.

    A case that is about something else than a rate leaves `count` at 0 and puts it into `figures`, by unit.
    """

    count: int = 0
    seconds: float = 0
    cpu: Mapping[str, float] = field(default_factory=dict)
    peak: Mapping[str, float] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        return self.count / self.seconds if self.seconds else 0.0

    @property
    def cost(self) -> float:
        """Processor seconds of all processes for a thousand."""
        return sum(self.cpu.values()) / self.count * 1000 if self.count else 0.0


@dataclass(frozen=True)
class Case:
    """One thing to measure, as often as asked."""

    part: str
    name: str
    run: Callable[[], Awaitable[Measured]]
    rounds: int


def servers() -> Processes:
    """Returns the local broker and database; nothing where others than `dev/` run them."""
    state = os.environ.get("SENDOFF_DEV_STATE")
    pids = json.loads(Path(state).read_text())["pids"] if state else {}
    return {shown: [pids[name]] for shown, name in SERVERS.items() if name in pids}


def _stat(pid: int) -> tuple[int, float]:
    """Returns the parent and the processor seconds, its own and of children that ended (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[1]), sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _with_children(pids: Iterable[int]) -> list[int]:
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            children.setdefault(_stat(int(folder.name))[0], []).append(int(folder.name))
        except OSError:
            continue  # it ended meanwhile
    found, rest = [], list(pids)
    while rest:
        pid = rest.pop()
        found.append(pid)
        rest += children.get(pid, [])
    return found


def cpu_seconds(processes: Processes) -> dict[str, float]:
    """Returns the processor time that each has used so far, with all below it."""
    used = {}
    for name, pids in processes.items():
        used[name] = 0.0
        for pid in _with_children(pids):
            try:
                used[name] += _stat(pid)[1]
            except OSError:
                continue
    return used


def peak_mib(processes: Processes) -> dict[str, float]:
    """Returns the most memory that any single process of each name has held at once."""
    peaks = {}
    for name, pids in processes.items():
        peaks[name] = 0.0
        for pid in _with_children(pids):
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            found = re.search(r"^VmHWM:\s+(\d+)", status, re.MULTILINE)
            peaks[name] = max(peaks[name], int(found[1]) / 1024 if found else 0.0)
    return peaks


class Meter:
    """Reads the processor time of processes and of the servers from its making on."""

    def __init__(self, processes: Processes) -> None:
        self._own = processes
        self._all = processes | servers()
        self._before = cpu_seconds(self._all)
        self._started = asyncio.get_running_loop().time()

    def read(self, count: int) -> Measured:
        """Returns what there was since, for `count` recipients or messages."""
        seconds = asyncio.get_running_loop().time() - self._started
        after = cpu_seconds(self._all)
        used = {name: after[name] - before for name, before in self._before.items()}
        return Measured(count, seconds, used, peak_mib(self._own))


def describe() -> str:
    """Names the machine in a line."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{len(os.sched_getaffinity(0))} cores {model[1] if model else platform.machine()}, "
        f"{memory:.0f} GiB, Linux {platform.release()}, Python {platform.python_version()}"
    )
