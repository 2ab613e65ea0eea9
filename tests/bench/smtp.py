"""Messages per second into Postfix's smtp-sink: Sendoff's email channel, and aiosmtplib with `email.message`.

    .venv/bin/python -m tests.bench.smtp

Sendoff's is measured with tracked links and with a DKIM signature too (RSA, 2048 bits). They take turns, each
in processes of its own, so that a machine which changes its speed does so for all; compare the ratios.
smtp-sink reads and forgets, so it is the client that is measured. No Postfix is installed or started: where
the machine has no smtp-sink, Debian's package is unpacked beside the local servers' data.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from dev.unpacking import FOLDER, program
from tests.bench.smtp_client import CONTENTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SECONDS = 300
TRACKED = "sendoff, tracked"
TRACKED_GOAL = 0.9
"""The share of its rate that Sendoff keeps with tracked links."""
GOAL = 3.0
"""Times the libraries' rate that Sendoff is to reach."""


@dataclass
class Row:
    """What one way of sending reached with one content; one item of each list per round."""

    way: str
    content: str
    rates: list[float] = field(default_factory=list)
    """Messages per second, of all processes together."""
    client_us: list[float] = field(default_factory=list)
    """CPU microseconds per message of the client."""
    sink_us: list[float] = field(default_factory=list)
    """CPU microseconds per message of the sink."""


def sink_program() -> tuple[str, dict[str, str]]:
    """Finds smtp-sink, unpacking Debian's package if need be.

    Returns:
        The program, and the environment that it needs.

    Raises:
        SystemExit: There is none, and apt cannot get it.
    """
    found = program("postfix", "usr/sbin/smtp-sink")
    libraries = FOLDER / "postfix/usr/lib/postfix"
    return str(found), {"LD_LIBRARY_PATH": str(libraries)} if FOLDER in found.parents else {}


@contextmanager
def sink() -> Iterator[tuple[int, int]]:
    """Runs smtp-sink on a free port; gives its process id and the port."""
    smtp_sink, environment = sink_program()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    unprivileged = ["-u", "nobody"] if os.geteuid() == 0 else []
    call = [smtp_sink, *unprivileged, f"127.0.0.1:{port}", "1000"]
    process = subprocess.Popen(call, env=os.environ | environment)
    try:
        _wait_for(process, port)
        yield process.pid, port
    finally:
        process.kill()
        process.wait()


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise SystemExit("smtp-sink does not run; a line above may say why.")


def cpu_seconds(pid: int) -> float:
    """Returns the processor time that a process has used (proc(5), fields 14 and 15 of stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _round(row: Row, *, messages: int, connections: int, processes: int) -> None:
    """Sends once, with all processes at the same time, and notes what it took."""
    share = messages // processes
    with sink() as (pid, port):
        call = [sys.executable, "-m", "tests.bench.smtp_client", row.way, row.content]
        call += [str(number) for number in (port, connections, share)]
        clients = [
            subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(processes)
        ]
        try:
            for client in clients:
                if client.stdout is None or client.stdout.readline() != "ready\n":
                    raise SystemExit(f"A client of {row.way} did not get ready; its reason stands above.")
            before, started = cpu_seconds(pid), time.perf_counter()
            for client in clients:
                client.stdin.write("\n")  # type: ignore[union-attr] - it is a pipe
                client.stdin.flush()  # type: ignore[union-attr]
            client_cpu = sum(float(client.communicate(timeout=SECONDS)[0]) for client in clients)
            row.rates.append(share * processes / (time.perf_counter() - started))
            row.client_us.append(client_cpu / share / processes * 1e6)
            row.sink_us.append((cpu_seconds(pid) - before) / share / processes * 1e6)
        finally:
            for client in clients:
                client.kill()
                client.wait()


def measure(
    *,
    rounds: int = 5,
    messages: int = 6_000,
    connections: int = 10,
    processes: int = 1,
    contents: Sequence[str] = tuple(CONTENTS),
) -> list[Row]:
    """Measures each way with each content, round by round.

    Args:
        rounds: How often each.
        messages: How many a round, over all processes.
        connections: How many in each process, kept open.
        processes: Client processes at the same time.
        contents: Names out of `tests.bench.smtp_client.CONTENTS`.

    Returns:
        A row for each content and way: the libraries', and Sendoff's three.
    """
    ways = ("aiosmtplib", "sendoff", TRACKED, "sendoff, DKIM")
    rows = [Row(way, content) for content in contents for way in ways]
    for _ in range(rounds):
        for row in rows:
            _round(row, messages=messages, connections=connections, processes=processes)
    return rows


def ratios(rows: Sequence[Row], content: str, way: str = "sendoff", over: str = "aiosmtplib") -> list[float]:
    """Returns, for each round, the rate of one way over another's with a content."""
    by_way = {row.way: row for row in rows if row.content == content}
    return [ours / theirs for ours, theirs in zip(by_way[way].rates, by_way[over].rates, strict=True)]


def _spread(values: Sequence[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} – {max(values):{form}})"


def show(rows: Sequence[Row]) -> None:
    """Prints medians with their spread, and the ratio beside its goal."""
    table = Table(title="Messages into smtp-sink: median (least – most)")
    for heading in ("content", "way", "messages/s", "client CPU µs each", "sink CPU µs each", "ratio"):
        table.add_column(heading, justify="left" if heading in ("content", "way") else "right", no_wrap=True)
    for row in rows:
        ratio = _spread(ratios(rows, row.content), ".1f") if row.way == "sendoff" else ""
        if row.way == TRACKED:
            ratio = f"{_spread(ratios(rows, row.content, TRACKED, 'sendoff'), '.2f')} of untracked"
        cpu = [f"{statistics.median(values):,.0f}" for values in (row.client_us, row.sink_us)]
        table.add_row(row.content, row.way, _spread(row.rates, ",.0f"), *cpu, ratio)
    table.caption = f"Goal: a ratio of at least {GOAL:g}; with tracked links {TRACKED_GOAL:g} of untracked."
    Console(width=max(Console().width, 120)).print(table)


def main() -> None:
    """Reads the sizes and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=6_000, help="a round, over all processes")
    parser.add_argument("--connections", type=int, default=10, help="in each process")
    parser.add_argument("--processes", type=int, default=1)
    show(measure(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
