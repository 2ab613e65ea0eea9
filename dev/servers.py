"""The local servers that the demo and the tests run on: a private RabbitMQ, Postgres and SMTP sink.

    up              start them for this checkout, or find them running; print their settings
    down            stop just those and remove their data
    env             print the settings of those that are up
    run -- COMMAND  run a command on fresh servers of its own, which end with it
    install         install what `.venv` needs and Debian leaves out of Python

Settings go to standard output as `export` lines, all else to standard error. `up` leaves servers behind only
once all are ready: interrupted or killed before that, it takes them along. `run` never touches those of `up`.
Nothing is needed but Python 3.11; the sink needs `.venv`, which the Makefile builds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import backends
import instance
import programs
from supervisor import START_SECONDS, die_with_parent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOCK_SECONDS = 300
READY_SECONDS = START_SECONDS + 30
STOP_SECONDS = 60
GRACE_SECONDS = 20


class RefusedError(Exception):
    """What was asked for cannot be done; the message says why."""


def say(line: str) -> None:
    """Tells a person how far it is."""
    print(f"servers: {line}", file=sys.stderr, flush=True)


class Orphaned(SystemExit):
    """The process that started this one is gone."""


PARENT = os.getppid()


def check_parent() -> None:
    """Ends this process where its parent was killed, so that `make` cannot be outlived.

    Raises:
        Orphaned: it was.
    """
    if os.getppid() != PARENT:
        raise Orphaned(1)


@contextlib.contextmanager
def checkout_lock() -> Iterator[None]:
    """Lets one `up` or `down` of this checkout work at a time."""
    deadline = time.monotonic() + LOCK_SECONDS
    told = False
    while (held := instance.lock(instance.CHECKOUT / "dev")) is None:
        if not told:
            say("waiting for another up or down of this checkout")
            told = True
        if time.monotonic() > deadline:
            raise RefusedError(
                "Another up or down of this checkout is still at work; wait for it or stop it."
            )
        check_parent()
        time.sleep(0.1)
    try:
        yield
    finally:
        os.close(held)


class Starting:
    """A supervisor on its leash, from its start until it is released or has ended."""

    def __init__(self, folder: Path, held: int) -> None:
        status, status_writer = os.pipe()
        leash_reader, self._leash = os.pipe()
        with (folder / "supervisor.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(instance.CHECKOUT / "dev" / "supervisor.py"), str(folder)],
                stdin=leash_reader,
                stdout=status_writer,
                stderr=log,
                cwd="/",
                start_new_session=True,
                pass_fds=(held,),
            )
        os.close(status_writer)
        os.close(leash_reader)
        os.close(held)
        self._status = status

    def wait_ready(self) -> None:
        """Waits until every server is ready.

        Raises:
            RefusedError: they do not start; the message gives the reason.
        """
        deadline = time.monotonic() + READY_SECONDS
        text = b""
        while time.monotonic() < deadline:
            check_parent()
            if not select.select([self._status], [], [], 0.2)[0]:
                continue
            part = os.read(self._status, 65536)
            if not part:
                raise RefusedError("The servers ended while they started.")
            *lines, text = (text + part).split(b"\n")
            for line in lines:
                words = line.decode(errors="replace")
                if words == "ready":
                    return
                if words.startswith("failed: "):
                    raise RefusedError(words.removeprefix("failed: "))
                say(words)
        raise RefusedError(f"The servers were not ready within {READY_SECONDS} seconds.")

    def release(self) -> None:
        """Lets the servers go on when this process ends."""
        os.write(self._leash, b"release\n")

    def end(self) -> None:
        """Stops the servers, and returns when they are gone."""
        os.close(self._leash)
        self._process.wait(STOP_SECONDS)


def start(folder: Path) -> Starting:
    """Makes an instance's folder and starts its supervisor; installs first what is missing on the machine."""
    if not backends.PYTHON.exists():
        raise RefusedError("The SMTP sink needs .venv, which is not there: run make venv first.")
    if programs.find() is None and not (shutil.which("apt-get") is None and programs.has_compose()):
        programs.install(servers=True)
    folder.mkdir(mode=0o711, exist_ok=True)
    folder.chmod(0o711)
    deadline = time.monotonic() + 1
    while (held := instance.lock(folder)) is None:  # somebody may be just asking whether it is taken
        if time.monotonic() > deadline:
            raise RefusedError(f"Another process is using {folder}.")
        time.sleep(0.01)
    return Starting(folder, held)


def is_up(folder: Path) -> bool:
    """Says whether an instance has a supervisor."""
    held = instance.lock(folder) if folder.exists() else None
    if held is not None:
        os.close(held)
    return folder.exists() and held is None


def print_settings(folder: Path) -> None:
    """Prints what a shell evaluates to reach the servers.

    Raises:
        RefusedError: there are none.
        BrokenPipeError: nobody reads any more.
    """
    found = instance.load(folder)
    if not found or not is_up(folder):
        raise RefusedError("No servers are running for this checkout: run make up.")
    for name, value in found[0].settings().items():
        print(f"export {name}={shlex.quote(value)}")
    sys.stdout.flush()


def up(folder: Path) -> None:
    """Starts this checkout's servers unless they run, and prints their settings."""
    with checkout_lock():
        instance.sweep(folder)
        began = time.monotonic()
        if is_up(folder):
            wait_answering(folder)
            print_settings(folder)
        else:
            starting = start(folder)
            try:
                starting.wait_ready()
                print_settings(folder)
            except BaseException:
                starting.end()
                raise
            starting.release()
            say(f"ready after {time.monotonic() - began:.1f} s; logs in {folder}")
        note = instance.CHECKOUT / ".dev"
        with contextlib.suppress(OSError):  # a convenience, and the checkout may be read-only
            note.mkdir(exist_ok=True)
            (note / "servers").unlink(missing_ok=True)
            (note / "servers").symlink_to(folder)


def wait_answering(folder: Path) -> None:
    """Waits until servers that are running already, or being started again by their supervisor, answer.

    Raises:
        RefusedError: one of them does not.
    """
    found = instance.load(folder)
    if found is None:
        raise RefusedError("The servers are just being stopped; try again.")
    native = programs.find()
    waiting = backends.native(found[0], native) if native else backends.compose(found[0])
    deadline = time.monotonic() + READY_SECONDS
    while waiting := [server for server in waiting if not server.ready()]:
        check_parent()
        if time.monotonic() > deadline:
            raise RefusedError(
                f"{waiting[0].name} does not answer; see {folder}, then run make down and make up."
            )
        time.sleep(0.1)


def down(folder: Path) -> None:
    """Stops this checkout's servers, if there are any, and removes their data."""
    with checkout_lock():
        found = instance.load(folder)
        if is_up(folder) and found:
            supervisor = found[1]["supervisor"]
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(supervisor, number)
                deadline = time.monotonic() + STOP_SECONDS
                while is_up(folder) and time.monotonic() < deadline:
                    time.sleep(0.05)
                if not is_up(folder):
                    break
            else:
                raise RefusedError(f"The supervisor, process {supervisor}, could not be stopped.")
            say("stopped")
        else:
            say("nothing is running")
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            (instance.CHECKOUT / ".dev" / "servers").unlink(missing_ok=True)


def run(folder: Path, command: list[str]) -> int:
    """Runs a command on servers of its own and returns its status, 128 + n where signal n ended it."""
    with checkout_lock():
        instance.sweep(folder)
        folder = folder.with_name(f"{folder.name}-run-{os.getpid()}")
        starting = start(folder)
    try:
        starting.wait_ready()
        found = instance.load(folder)
        if found is None:
            raise RefusedError("The servers went away while the command was to start.")
        settings = {**os.environ, **found[0].settings(), "SENDOFF_DEV_RUN": str(folder)}
        return _supervise(command, settings)
    finally:
        starting.end()


def _supervise(command: list[str], settings: dict[str, str]) -> int:
    """Runs a command in the foreground; what ends this process ends the command first."""
    interrupted: list[float] = []
    # The terminal sends an interrupt to the command as well, which then ends in its own way and time.
    signal.signal(signal.SIGINT, lambda *_: interrupted.append(time.monotonic()))
    try:
        child = subprocess.Popen(
            command,
            env=settings,
            preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509 - there are no threads here
        )
    except OSError as error:
        raise RefusedError(f"The command cannot be started: {error}") from error
    try:
        while child.poll() is None and not (
            interrupted and time.monotonic() > interrupted[0] + GRACE_SECONDS
        ):
            check_parent()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(0.2)
    finally:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
        status = child.wait()
    return status if status >= 0 else 128 - status


def arguments() -> tuple[str, list[str]]:
    """Reads the command line: the action, and the command for `run`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["up", "down", "env", "run", "install"])
    parser.add_argument("command", nargs=argparse.REMAINDER, help="for run: -- COMMAND [ARGUMENT...]")
    given = parser.parse_args()
    command = given.command[1:] if given.command[:1] == ["--"] else given.command
    if (given.action == "run") != bool(command):
        parser.error("run, and only run, takes a command: servers.py run -- COMMAND [ARGUMENT...]")
    return given.action, command


def main() -> int:
    """Does what the command line says; 1 with a sentence where that cannot be done."""
    action, command = arguments()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        folder = instance.base_folder() / instance.checkout_key()
        match action:
            case "run":
                return run(folder, command)
            case "up":
                up(folder)
            case "down":
                down(folder)
            case "env":
                print_settings(folder)
            case "install":
                programs.install(servers=False)
    except (RefusedError, programs.UnavailableError, PermissionError) as error:
        say(str(error))
        return 1
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # or Python complains once more at its end
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
