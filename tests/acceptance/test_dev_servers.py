"""`dev/servers.py` as `make` and a person use it: nothing else is disturbed, and nothing stays behind."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import re
import shutil
import signal
import smtplib
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aio_pika
import asyncpg
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
DEV = ROOT / "dev"
SECONDS = 100  # one start, on a machine that does much else


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


@dataclass(frozen=True)
class Checkout:
    """A checkout of its own, so that a developer's `make up` is left alone."""

    root: Path
    folder: Path

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(self.root / "dev/servers.py"), *arguments]

    def call(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def pids(self) -> dict[str, int]:
        found: dict[str, int] = json.loads((self.folder / "state.json").read_text())["pids"]
        return found

    def left_behind(self) -> list[str]:
        """Folders of this checkout's servers, and processes that name one in arguments or environment."""
        mark = str(self.folder).encode()
        left = [str(path) for path in self.folder.parent.glob(f"{self.folder.name}*")]
        for process in Path("/proc").glob("[0-9]*"):
            try:
                told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            except OSError:  # ended, or somebody else's
                continue
            if mark in told and is_alive(int(process.name)):
                left.append(told.partition(b"PATH=")[0].decode(errors="replace"))
        return left

    def expect_nothing_left(self) -> None:
        wait_until(lambda: not self.left_behind(), 30, f"{self.left_behind()} was to go")


@pytest.fixture
def make_checkout(tmp_path: Path) -> Iterator[Callable[[str], Checkout]]:
    made: list[Checkout] = []

    def make(name: str) -> Checkout:
        root = tmp_path / name
        shutil.copytree(DEV, root / "dev", ignore=shutil.ignore_patterns("__pycache__"))
        (root / ".venv").symlink_to(ROOT / ".venv")
        tell = [sys.executable, "-c", "import servers; print(servers.checkout_folder())"]
        told = subprocess.run(tell, cwd=root / "dev", capture_output=True, text=True, timeout=10, check=True)
        made.append(Checkout(root, Path(told.stdout.strip())))
        return made[-1]

    yield make
    for each in made:
        each.call("down")


@pytest.fixture
def checkout(make_checkout: Callable[[str], Checkout]) -> Checkout:
    return make_checkout("checkout")


def settings(exports: str) -> dict[str, str]:
    """What a shell makes of the lines that `up` printed."""
    assert re.fullmatch(r"(export SENDOFF_[A-Z_]+=\S+\n)+", exports)
    script = f"{exports}env"
    shell = subprocess.run(
        ["/bin/sh"], env={}, input=script, capture_output=True, text=True, timeout=10, check=True
    )
    return {
        name: value
        for name, _, value in (line.partition("=") for line in shell.stdout.splitlines())
        if "SENDOFF" in name
    }


def ask_all(found: dict[str, str]) -> None:
    """Has each server do something."""

    async def ask() -> None:
        database = await asyncpg.connect(found["SENDOFF_DATABASE_URL"], timeout=10)
        assert await database.fetchval("SELECT current_database()") == "sendoff"
        await database.close()
        async with await aio_pika.connect(found["SENDOFF_AMQP_URL"], timeout=10) as broker:
            await (await broker.channel()).declare_queue(exclusive=True, timeout=10)

    asyncio.run(ask())
    with smtplib.SMTP("127.0.0.1", int(found["SENDOFF_SMTP_URL"].rpartition(":")[2]), timeout=10) as sink:
        sink.sendmail("a@example.org", ["ana@example.org"], "Subject: Hello\n\nHi\n")
    assert (Path(found["SENDOFF_DEV_SINK"]) / "index.jsonl").exists()


def test_up_starts_servers_once_and_down_removes_just_those(checkout: Checkout) -> None:
    first = checkout.call("up")
    assert first.returncode == 0, first.stderr
    assert "ready after" in first.stderr
    found = settings(first.stdout)
    ask_all(found)
    pids = checkout.pids()
    assert {"rabbitmq", "postgres", "sink", "epmd"} < pids.keys()
    assert (checkout.folder / "state.json").stat().st_mode & 0o077 == 0

    second = checkout.call("up")
    assert (second.returncode, second.stdout, second.stderr) == (0, first.stdout, "")
    assert checkout.pids() == pids

    os.kill(pids["rabbitmq"], signal.SIGKILL)
    wait_until(
        lambda: (checkout.folder / "state.json").exists() and checkout.pids() != pids, 30, "a new start"
    )
    third = checkout.call("up")
    assert (third.returncode, third.stdout) == (0, first.stdout)
    ask_all(found)

    stopped = checkout.call("down")
    assert (stopped.returncode, stopped.stdout, stopped.stderr) == (0, "", "servers: stopped\n")
    assert not checkout.left_behind()
    own = json.loads(Path(os.environ["SENDOFF_DEV_STATE"]).read_text())["pids"]
    assert all(is_alive(pid) for pid in own.values()), "the servers of these tests were to stay"
    again = checkout.call("down")
    assert (again.returncode, again.stderr) == (0, "servers: nothing is running\n")


def test_instances_share_nothing(make_checkout: Callable[[str], Checkout], tmp_path: Path) -> None:
    one, two = make_checkout("one"), make_checkout("two")
    note = tmp_path / "note"
    script = f"env > {note}.new; mv {note}.new {note}; read line; exit 7"
    with (
        subprocess.Popen(
            one.command("up"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as up_one,
        subprocess.Popen(
            two.command("up"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as up_two,
        subprocess.Popen(
            one.command("run", "--", "sh", "-c", script), stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as run_one,
    ):
        outputs = [up.communicate(timeout=SECONDS)[0] for up in (up_one, up_two)]
        wait_until(note.exists, SECONDS, "the command was to start")
        of_run = dict(line.partition("=")[::2] for line in note.read_text().splitlines())
        all_settings = [
            *map(settings, outputs),
            {k: v for k, v in of_run.items() if k in settings(outputs[0])},
        ]
        for found in all_settings:
            ask_all(found)
        for name in all_settings[0]:
            assert len({found[name] for found in all_settings}) == 3, name
        folders = [Path(found["SENDOFF_DEV_STATE"]).parent for found in all_settings]
        assert len({(folder / "rabbitmq/.erlang.cookie").read_text() for folder in folders}) == 3

        run_one.communicate(b"\n", timeout=30)
        assert run_one.returncode == 7
    assert not folders[2].exists()
    one.call("down")
    assert not one.left_behind()
    ask_all(all_settings[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_up_that_is_broken_off_leaves_nothing_behind(checkout: Checkout, number: signal.Signals) -> None:
    with subprocess.Popen(
        checkout.command("up"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as up:
        for line in up.stderr or ():
            if "starting postgres" in line:
                break
        assert len(checkout.left_behind()) >= 3  # else this proves nothing
        up.send_signal(number)
        out, _ = up.communicate(timeout=30)
    assert (up.returncode == 0, out) == (False, "")
    checkout.expect_nothing_left()


def test_up_whose_settings_nobody_reads_leaves_nothing_behind(checkout: Checkout) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen(checkout.command("up"), stdout=writer, stderr=subprocess.DEVNULL) as up:
        os.close(writer)
        assert up.wait(SECONDS) == 1
    assert not checkout.left_behind()


def test_a_server_that_cannot_start_is_told_with_the_end_of_its_log(checkout: Checkout) -> None:
    up = checkout.call("up", SENDOFF_DEV_SHARED_MEGABYTES="0")
    assert (up.returncode, up.stdout) == (1, "")
    assert "servers: postgres ended while it started. Its log ends with:" in up.stderr
    assert (
        'invalid value for parameter "shared_buffers"' in up.stderr or "outside the valid range" in up.stderr
    )
    assert "Traceback" not in up.stderr
    assert not checkout.left_behind()


def test_after_its_keeper_was_killed_the_servers_end_and_can_be_started_anew(checkout: Checkout) -> None:
    assert checkout.call("up").returncode == 0
    pids = checkout.pids()
    os.kill(pids["keeper"], signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, pids.values())), 10, f"{pids} were to end")
    again = checkout.call("up")
    assert again.returncode == 0, again.stderr
    ask_all(settings(again.stdout))


@pytest.mark.parametrize("killed", ["the runner", "what started it"])
def test_a_killed_run_takes_its_servers_and_their_data_along(
    checkout: Checkout, tmp_path: Path, killed: str
) -> None:
    note = tmp_path / "note"
    command = f"setsid sleep 600 & echo $! $SENDOFF_DEV_STATE > {note}.new; mv {note}.new {note}; wait"
    runner = checkout.command("run", "--", "sh", "-c", command)
    starter = ["sh", "-c", '"$@"; true', "sh", *runner]
    arguments = runner if killed == "the runner" else starter
    with subprocess.Popen(arguments, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(note.exists, SECONDS, "the command was to start")
        finally:
            process.send_signal(signal.SIGKILL)
    child, state = note.read_text().split()
    pids = [int(child)]
    if Path(state).exists():
        pids += json.loads(Path(state).read_text())["pids"].values()
    wait_until(lambda: not any(map(is_alive, pids)), 30, f"{pids} were to end")
    wait_until(lambda: not Path(state).parent.exists(), 10, "the data was to go")
    checkout.expect_nothing_left()


CAREFUL = """
import os, pathlib, signal, socket, sys, time, urllib.parse
def interrupt(*_):
    address = urllib.parse.urlsplit(os.environ["SENDOFF_DATABASE_URL"])
    time.sleep(1)
    socket.create_connection((address.hostname, address.port), 5)  # while it tidies up, the servers are there
    pathlib.Path(sys.argv[1]).unlink()
    sys.exit(3)
signal.signal(signal.SIGINT, interrupt)
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
"""


def test_at_ctrl_c_a_command_ends_in_its_own_way_and_the_servers_after_it(
    checkout: Checkout, tmp_path: Path
) -> None:
    note = tmp_path / "note"
    runner = checkout.command("run", "--", sys.executable, "-c", CAREFUL, str(note))
    with subprocess.Popen(runner, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        wait_until(note.exists, SECONDS, "the command was to start")
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.wait(40) == 3
    assert not note.exists(), "the command was to have time"
    assert not checkout.left_behind()


def test_the_status_of_a_command_that_a_signal_ended_is_told(checkout: Checkout) -> None:
    assert checkout.call("run", "--", "sh", "-c", "kill -KILL $$").returncode == 137
    assert not checkout.left_behind()


def test_ports_that_somebody_has_or_is_about_to_have_are_passed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DEV)
    backends: Any = importlib.import_module("backends")
    here, there = (backends.Servers(Path(place, "the same name")) for place in ("/here", "/there"))
    assert abs(here.amqp - there.amqp) >= backends.BLOCK_SIZE
    here.mark.close()
    with socket.create_server(("127.0.0.1", here.postgres)):
        third = backends.Servers(Path("/third/the same name"))
    assert here.amqp != third.amqp != there.amqp
    third.mark.close()
    there.mark.close()


def test_what_cannot_be_installed_is_told(tmp_path: Path) -> None:
    install = ["/bin/sh", str(DEV / "install.sh"), "some-server"]
    done = subprocess.run(
        install, env={"PATH": str(tmp_path)}, capture_output=True, text=True, timeout=10, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Sendoff needs some-server, and there is no apt to install them")
