"""The local servers that the demo and the tests run on: a private RabbitMQ, Postgres and SMTP sink.

    up              start them for this checkout, or find them running; print their settings
    down            stop just those and remove their data
    run -- COMMAND  run a command on fresh servers of its own, which end with it
    install         install what `.venv` needs and Debian leaves out of Python
    install browser install the browser that tests of the console drive

Settings go to standard output as `export` lines, all else to standard error. `up` leaves servers behind only
once all are ready: interrupted or killed before that, it takes them along. `run` never touches those of `up`.
Nothing is needed but Linux and Python 3.11; the sink needs `.venv`, which the Makefile builds.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import backends
from backends import DEV, die_with_parent, mark, pause, say, set_parent_death_signal, tries

INSTALL_SECONDS = 1800
READY_SECONDS = 2 * backends.START_SECONDS
STOP_SECONDS = 60
COMMAND_SECONDS = 20


def install(*packages: str) -> None:
    """Installs Debian's packages."""
    script = ["timeout", "--foreground", str(INSTALL_SECONDS), "sh", str(DEV / "install.sh")]
    if packages and subprocess.call([*script, *packages], stdout=2) != 0:
        sys.exit(f"servers: Installing {' '.join(packages)} failed; the reason stands above.")


def install_browser() -> None:
    """Installs Debian's Chromium. Ubuntu has none as a package: the tests that need it are skipped there."""
    if shutil.which("chromium") is None:
        script = ["timeout", "--foreground", str(INSTALL_SECONDS), "sh", str(DEV / "install.sh"), "chromium"]
        if subprocess.call(script, stdout=2) != 0:
            say("Chromium could not be installed; the tests that drive it are skipped.")


def checkout_folder() -> Path:
    """Returns where the servers of this checkout live, in a folder of this user; sweeps up beside it.

    It lies outside the checkout, because Postgres never runs as root and the user `postgres` cannot reach
    into `/root`; others may pass through it, not list it. In another network, as in another container, it is
    another one.
    """
    base = Path(f"/var/tmp/sendoff-{os.getuid()}")  # noqa: S108 - its owner is checked
    base.mkdir(exist_ok=True)
    if base.lstat().st_uid != os.getuid():
        sys.exit(f"servers: {base} is not this user's; remove it and try again.")
    base.chmod(0o711)
    name = f"{DEV.parent} {Path('/proc/self/ns/net').readlink()}"
    folder = base / hashlib.sha256(name.encode()).hexdigest()[:10]
    for left in base.glob(f"{folder.name}*"):
        if held := mark(str(left)):  # who kept it was killed outright
            shutil.rmtree(left, ignore_errors=True)
            held.close()
    return folder


def keep(folder: Path, *, stay: bool) -> None:
    """Keeps servers until this process is told to end, or its parent ends; their folder goes with them.

    To `stay` is to print the settings when all are ready, and to outlive the parent from then on.
    """
    os.umask(0o077)
    servers = backends.Servers(folder)
    folder.mkdir()
    folder.chmod(0o711)  # for the user postgres
    try:
        servers.start()
        if stay:
            os.write(1, exports(servers.settings()))
            set_parent_death_signal(0)
        os.dup2(os.open(folder / "keeper.log", os.O_WRONLY | os.O_CREAT, 0o600), 2)
        os.dup2(2, 1)
        while True:
            (folder / "state.new").write_text(json.dumps(servers.state(), indent=1))
            (folder / "state.new").replace(folder / "state.json")
            while not servers.revive():
                pause(1)
    finally:
        if not stay:
            end_commands(f"SENDOFF_DEV_STATE={folder / 'state.json'}")
        servers.end()
        shutil.rmtree(folder, ignore_errors=True)


def end_commands(sign: str) -> None:
    """Ends what has a sign in its environment: what `run` ran, and what that started in turn."""

    def found() -> list[int]:
        pids = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):  # it ended, or is somebody else's
                if sign.encode() in path.read_bytes().split(b"\0"):
                    pids.append(int(path.parent.name))
        return pids

    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in found():
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        for _ in tries(COMMAND_SECONDS):
            if not found():
                return


def exports(settings: dict[str, str]) -> bytes:
    """Returns settings as lines for a shell to evaluate."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in settings.items()).encode()


def start(folder: Path, *, stay: bool) -> subprocess.Popen[bytes] | None:
    """Starts a process that keeps servers in a folder, and waits until they are ready.

    Returns:
        The process, or none if the folder has one.
    """
    if not backends.PYTHON.exists():
        sys.exit("servers: The SMTP sink needs .venv, which is not there: run make venv first.")
    wanted = {"rabbitmq-server": backends.RABBITMQ, "postgresql": backends.POSTGRES}
    install(*(package for package, program in wanted.items() if backends.find(program) is None))
    held = mark(str(folder))
    if held is None:
        return None
    process = subprocess.Popen(
        [sys.executable, __file__, "keep", str(folder), *(["stay"] if stay else [])],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=(held.fileno(),),
        preexec_fn=die_with_parent(signal.SIGTERM, backends.SIGNALS),  # noqa: PLW1509 - there are no threads
    )
    held.close()
    try:
        for _ in tries(READY_SECONDS):
            if (folder / "state.json").exists():
                return process
            if process.poll() is not None:
                sys.exit("servers: The servers were not started.")
        sys.exit("servers: The servers were not ready in time.")
    except BaseException:
        end(process)
        raise


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends what keeps servers, and returns when they are gone."""
    process.terminate()
    process.wait(STOP_SECONDS)


def state(folder: Path) -> Any:  # noqa: ANN401 - from JSON
    """Returns the settings and the process ids of servers; FileNotFoundError where they are not ready."""
    return json.loads((folder / "state.json").read_text())


def up(folder: Path) -> None:
    """Starts this checkout's servers unless they run, and prints their settings."""
    began = time.monotonic()
    for _ in tries(READY_SECONDS):
        if start(folder, stay=True):
            say(f"ready after {time.monotonic() - began:.1f} s; logs in {folder}")
            return
        with suppress(FileNotFoundError, ConnectionRefusedError):  # just being started, or started again
            found = state(folder)
            for port in found["ports"]:
                socket.create_connection(("127.0.0.1", port), 2).close()
            os.write(1, exports(found["settings"]))
            return
    sys.exit("servers: The servers of this checkout do not answer; run make down, and make up again.")


def down(folder: Path) -> None:
    """Stops this checkout's servers, if there are any; their data goes with them."""
    asked = False
    for _ in tries(READY_SECONDS):
        if held := mark(str(folder)):
            held.close()
            say("stopped" if asked else "nothing is running")
            return
        with suppress(FileNotFoundError, ProcessLookupError):
            os.kill(state(folder)["pids"]["keeper"], signal.SIGTERM)
            asked = True
    sys.exit(f"servers: The servers in {folder} do not stop.")


def run(folder: Path, command: list[str]) -> int:
    """Runs a command on servers of its own and returns its status, 128 + n where signal n ended it."""
    folder = folder.with_name(f"{folder.name}-run-{os.getpid()}")
    process = start(folder, stay=False)
    if process is None:
        sys.exit(f"servers: Another process is using {folder}.")
    try:
        environment = {**os.environ, **state(folder)["settings"]}
        leash = die_with_parent(signal.SIGTERM)
        child = subprocess.Popen(command, env=environment, preexec_fn=leash)  # noqa: PLW1509 - no threads here
        try:
            status = child.wait()
        except KeyboardInterrupt:  # the terminal sends it to the command as well, which ends in its own way
            status = child.wait(COMMAND_SECONDS)
    finally:
        end(process)  # and the command, if it still runs
    return status if status >= 0 else 128 - status


def main() -> int:
    """Does what the command line says; 1 with a sentence where that cannot be done."""
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, lambda number, _: sys.exit(128 + number))
    set_parent_death_signal(signal.SIGTERM)  # so that a killed `make` is not outlived
    try:
        match sys.argv[1:]:
            case ["keep", folder, *stay]:
                keep(Path(folder), stay=bool(stay))
            case ["up"]:
                up(checkout_folder())
            case ["down"]:
                down(checkout_folder())
            case ["run", "--", *command] if command:
                return run(checkout_folder(), command)
            case ["install", "browser"]:
                install_browser()
            case ["install"]:
                install(*([] if importlib.util.find_spec("ensurepip") else ["python3-venv"]))
            case _:
                say(__doc__ or "")
                return 2
    except (OSError, subprocess.SubprocessError) as error:
        sys.exit(f"servers: {error}")
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
