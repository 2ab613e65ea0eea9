"""Keeps the servers of one instance running; started by `servers.py`, never by hand.

It is the parent of every server and the only thing that starts or stops one. Its standard input is a leash,
a pipe that whoever started it holds: when that end closes, for whatever reason, the servers go and the folder
with them, unless the word `release` came first. Its standard output reports progress, then `ready` or
`failed: <why>`. Should the supervisor itself be killed, the kernel ends its children (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import backends
import instance
import programs

if TYPE_CHECKING:
    from collections.abc import Callable

START_SECONDS = 120
STOP_SECONDS = 15
COMMAND_SECONDS = 5
RESTARTS, RESTART_WINDOW = 5, 60.0
PR_SET_PDEATHSIG = 1


class Stop(Exception):  # noqa: N818 - not an error
    """The leash was let go or a signal came."""


class StartError(Exception):
    """A server did not come up."""


def die_with_parent(number: signal.Signals) -> Callable[[], None]:
    """Returns what a child calls first, to be sent a signal by the kernel when its parent ends."""
    parent = os.getpid()
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def arrange() -> None:
        if libc:
            libc.prctl(PR_SET_PDEATHSIG, int(number))
            if os.getppid() != parent:
                os._exit(1)

    return arrange


class Supervisor:
    """Starts, watches and stops a list of servers."""

    def __init__(self, home: instance.Instance, servers: list[backends.Server]) -> None:
        self.home = home
        self.servers = servers
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.started: dict[str, list[float]] = {server.name: [] for server in servers}
        self.leash: int | None = sys.stdin.fileno()
        self.stopping = False
        self.wake, waker = socket.socketpair()
        for end in (self.wake, waker):
            end.setblocking(False)  # noqa: FBT003 - positional only
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        self.waker = waker
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._asked_to_stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def _asked_to_stop(self, *_: object) -> None:
        self.stopping = True

    @property
    def released(self) -> bool:
        """Says whether the starter has let the servers go on without it."""
        return self.leash is None

    def pause(self, seconds: float) -> None:
        """Waits until something happens, so long at most.

        Raises:
            Stop: the servers are to end.
        """
        sources = [self.wake.fileno()] if self.leash is None else [self.wake.fileno(), self.leash]
        readable, _, _ = select.select(sources, [], [], seconds)
        if self.wake.fileno() in readable:
            with contextlib.suppress(BlockingIOError):
                self.wake.recv(4096)
        if self.leash in readable and self.leash is not None:
            if not os.read(self.leash, 64).startswith(b"release"):
                raise Stop
            self.leash = None
        if self.stopping:
            raise Stop

    def start(self, server: backends.Server) -> None:
        """Starts one server, its output going to its log."""
        server.prepare()
        self.started[server.name].append(time.monotonic())
        with (self.home.folder / f"{server.name}.log").open("ab") as log:
            self.running[server.name] = subprocess.Popen(
                server.command,
                env=server.environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=server.user,
                group=server.user,
                extra_groups=[] if server.user else None,
                preexec_fn=die_with_parent(server.orphan),  # noqa: PLW1509 - there are no threads here
            )
        self.home.save(
            {"supervisor": os.getpid(), **{name: child.pid for name, child in self.running.items()}}
        )

    def start_all(self) -> None:
        """Starts every server and waits until each is ready.

        Raises:
            StartError: one of them ended, or was not ready in time.
        """
        deadline = time.monotonic() + START_SECONDS
        for server in self.servers:
            report(f"starting {server.name}")
            self.start(server)
            self.pause(0)
        waiting = list(self.servers)
        while waiting:
            for server in waiting:
                if self.running[server.name].poll() is not None:
                    raise StartError(f"{server.name} ended while it started. {self.last_words(server)}")
            waiting = [server for server in waiting if not server.ready()]
            if waiting and time.monotonic() > deadline:
                late = waiting[0]
                raise StartError(f"{late.name} was not ready in {START_SECONDS} s. {self.last_words(late)}")
            self.pause(0.05 if waiting else 0)

    def last_words(self, server: backends.Server) -> str:
        """Returns the end of a server's log in one line."""
        log = (self.home.folder / f"{server.name}.log").read_text(errors="replace")
        return "Its last words: " + " / ".join(log.split("\n")[-12:])

    def watch(self) -> None:
        """Starts again whatever dies, not more than a few times a minute, until it is told to stop."""
        while True:
            self.pause(1.0)
            now = time.monotonic()
            for server in self.servers:
                recent = [at for at in self.started[server.name] if at > now - RESTART_WINDOW]
                self.started[server.name] = recent
                if self.running[server.name].poll() is None or len(recent) > RESTARTS:
                    continue
                if not recent or now - recent[-1] > 2 ** len(recent) / 4:
                    log(f"{server.name} died ({self.running[server.name].returncode}); starting it again")
                    self.start(server)

    def stop(self) -> None:
        """Ends every server, the name server of Erlang last, and by force what does not end in time."""
        last = [child for name, child in self.running.items() if name == "epmd"]
        rest = [child for name, child in self.running.items() if name != "epmd"]
        stop_signals = {
            self.running[server.name]: server.stop for server in self.servers if server.name in self.running
        }
        for group in (rest, last):
            for child in group:
                if child.poll() is None:
                    child.send_signal(stop_signals[child])
            deadline = time.monotonic() + STOP_SECONDS
            for child in group:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(max(0.0, deadline - time.monotonic()))
            for child in group:
                if child.poll() is None:
                    log(f"process {child.pid} did not end in time; killing it")
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(child.pid, signal.SIGKILL)
                    child.wait(5)


def end_commands(folder: Path) -> None:
    """Ends what `run` started on this instance and what that started in turn, known by their environment."""
    mark = b"SENDOFF_DEV_RUN=" + str(folder).encode()

    def found() -> list[int]:
        pids = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if mark in path.read_bytes().split(b"\0"):
                    pids.append(int(path.parent.name))
        return pids

    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in found():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + COMMAND_SECONDS
        while found() and time.monotonic() < deadline:
            time.sleep(0.05)


def report(line: str) -> None:
    """Tells the starter, who may be gone."""
    with contextlib.suppress(OSError):
        os.write(1, line.replace("\n", " ").encode() + b"\n")


def log(line: str) -> None:
    """Writes to the supervisor's own log."""
    print(time.strftime("%Y-%m-%dT%H:%M:%S"), line, file=sys.stderr, flush=True)


def main(folder: Path) -> int:
    """Runs one instance from its start to its end."""
    supervisor = None
    try:
        home, _mark = instance.claim(folder)
        found = programs.find()
        supervisor = Supervisor(home, backends.native(home, found) if found else backends.compose(home))
        supervisor.start_all()
        report("ready")
        supervisor.watch()
    except Stop:
        log("stopping")
    except (StartError, instance.NoPortsError, OSError, subprocess.SubprocessError) as error:
        log(str(error))
        report(f"failed: {error}")
        return 1
    finally:
        if supervisor:
            end_commands(folder)
            supervisor.stop()
        if not (supervisor and supervisor.released):
            shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
