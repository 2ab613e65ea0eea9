"""The commands of one demo, each printed and run, and the processes behind them."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends import die_with_parent
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RETURNS = "returns.example.org"
"""The domain to which servers return mail."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOP_SECONDS = 10

out = Console(highlight=False, emoji=False, markup=False)


class DemoError(Exception):
    """Something is not as it should be; the message says what."""


class Demo:
    """The commands of one demo, run in its folder, and the processes behind them.

    Each runs in a session of its own, out of the reach of a terminal's Ctrl-C: the demo ends them in order.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "worker.log"
        # The commands of this environment come first, so that a person could type what is printed.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
            tracker, self.returned_port = one.getsockname()[1], other.getsockname()[1]
        own = {
            "SENDOFF_TRACKER_URL": f"http://127.0.0.1:{tracker}",
            "SENDOFF_TRACKER_PORT": str(tracker),
            "SENDOFF_TRACKER_KEYS": f"1:{secrets.token_urlsafe(32)}",
            "SENDOFF_BOUNCE_DOMAIN": RETURNS,
            "SENDOFF_BOUNCE_KEYS": f"1:{secrets.token_urlsafe(32)}",
            "SENDOFF_RETURNED_PORT": str(self.returned_port),
        }
        self._environment = {**os.environ, "PATH": path, **own}
        self._behind: dict[str, subprocess.Popen[bytes]] = {}

    @contextlib.contextmanager
    def running(self, command: str, log: Path) -> Iterator[None]:
        """Runs a command in the background; the log takes what it says."""
        self._say(f"{command} > {log.name} 2>&1 &")
        with log.open("wb") as said:
            process = self._behind[command] = self._start(command, stdout=said, stderr=subprocess.STDOUT)
        try:
            yield
        finally:
            del self._behind[command]
            _end(process, STOP_SECONDS)

    def run(self, command: str, *, seconds: float = 120) -> None:
        """Prints a command and runs it on this terminal.

        Raises:
            DemoError: It failed, took too long, or a process behind it ended meanwhile.
        """
        self._say(command)
        self._wait(command, self._start(command), seconds)

    def read(self, command: str, *, seconds: float = 120) -> str:
        """Prints a command, runs it, and prints and returns what it said; raises as `run`."""
        self._say(command)
        with tempfile.TemporaryFile() as said:
            self._wait(command, self._start(command, stdout=said), seconds)
            said.seek(0)
            text = said.read().decode()
        out.print(text, end="", soft_wrap=True)
        return text

    def lines(self, command: str) -> Iterator[Any]:
        """Runs a command without a word, and yields its output, which is one JSON value per line."""
        process = self._start(command, stdout=subprocess.PIPE)
        try:
            yield from map(json.loads, process.stdout or ())
            process.wait(STOP_SECONDS)
        finally:
            _end(process, STOP_SECONDS)
        if process.returncode:
            raise DemoError(f"“{command}” ended with status {process.returncode}.")

    def console(self) -> None:
        """Runs the console on this terminal until somebody interrupts the demo.

        Raises:
            DemoError: It ended by itself, or the worker did.
        """
        self._say("sendoff run console")
        # Only the address is of interest; a port that is taken by another program is no reason to fail.
        self._environment |= {"SENDOFF_CONSOLE_PORT": "0", "SENDOFF_LOG_LEVEL": "warning"}
        self._wait("sendoff run console", self._start("sendoff run console"), float("inf"))

    def _say(self, command: str) -> None:
        out.print()
        out.print(Text.assemble(("$ ", "dim"), (command, "bold")), soft_wrap=True)

    def _start(self, command: str, **streams: Any) -> subprocess.Popen[bytes]:  # noqa: ANN401 - Popen's own
        """Starts a command. A signal meanwhile waits, so that nothing runs that nobody knows of."""
        process = None
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            process = subprocess.Popen(
                ["/bin/sh", "-c", command if "|" in command else f"exec {command}"],
                cwd=self.folder,
                env=self._environment,
                start_new_session=True,
                preexec_fn=_child(die_with_parent(signal.SIGTERM)),  # noqa: PLW1509 - there are no threads
                **streams,
            )
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        except BaseException:
            if process is not None:
                _end(process, 5)
            raise
        return process

    def _wait(self, command: str, process: subprocess.Popen[bytes], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        try:
            while process.poll() is None:
                for behind, running in self._behind.items():
                    if running.poll() is not None:
                        raise DemoError(f"“{behind}” ended by itself.")
                if time.monotonic() > deadline:
                    raise DemoError(f"“{command}” did not end within {seconds:.0f} s.")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
        finally:
            _end(process, 5)
        if process.returncode:
            raise DemoError(f"“{command}” ended with status {process.returncode}.")


def _child(arrange: Callable[[], None]) -> Callable[[], None]:
    def prepare() -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        arrange()

    return prepare


def _end(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Ends a session if its first process has not ended: asked to, then made to."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
