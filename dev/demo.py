"""Sends a delivery as an operator would, on the servers that the environment names: `make demo`.

Prints each command before what it says, compares what the SMTP sink received with what was recorded, and ends
with status 1 where they differ. Whatever it started ends with it, however it ends.
"""

from __future__ import annotations

import argparse
import contextlib
import email
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from email.policy import default
from pathlib import Path
from typing import TYPE_CHECKING, Any

import demo_readers
import demo_recipients
from backends import die_with_parent
from rich.console import Console
from rich.text import Text

from worker.domain.mailbox import mailbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).resolve().parent
OPERATOR = "ana"
SENDER = "news@example.org"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOP_SECONDS = 10
READ_SECONDS = 30
SHOWN = "sakura."  # the received message to show: one that plain ASCII could not carry

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
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        tracker = {
            "SENDOFF_TRACKER_URL": f"http://127.0.0.1:{port}",
            "SENDOFF_TRACKER_PORT": str(port),
            "SENDOFF_TRACKER_KEYS": f"1:{secrets.token_urlsafe(32)}",
        }
        self._environment = {**os.environ, "PATH": path, **tracker}
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


class Sink:
    """What the SMTP sink received since now, of one delivery."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._index = folder / "index.jsonl"
        self._start = self._index.stat().st_size if self._index.exists() else 0

    def received(self, delivery: str) -> Iterator[dict[str, Any]]:
        """Yields the entries of the index that are this delivery's, by sender and Message-ID."""
        if not self._index.exists():
            return
        with self._index.open("rb") as index:
            index.seek(self._start)
            for line in index:
                entry = json.loads(line)
                if entry["sender"] == SENDER and entry["message_id"].startswith(f"<{delivery}-"):
                    yield entry

    def read(self, entry: dict[str, str]) -> bytes:
        """Returns a message as it was received."""
        return (self._folder / entry["file"]).read_bytes()


def show_message(sink: Sink, delivery: str) -> None:
    """Prints one of the messages, decoded as a mail program would.

    Raises:
        DemoError: There is none.
    """
    chosen = next((e for e in sink.received(delivery) if e["recipient"].startswith(SHOWN)), None)
    chosen = chosen or next(sink.received(delivery), None)
    if chosen is None:
        raise DemoError(f"The sink received nothing from {SENDER}.")
    message = email.message_from_bytes(sink.read(chosen), policy=default)
    out.print()
    out.print("One of the messages, as the SMTP server received it", style="bold")
    for name in ("From", "To", "Subject", "Date", "Message-ID", "List-Unsubscribe", "Content-Type"):
        value = str(message[name]).split("; boundary")[0]
        out.print(Text.assemble((f"  {name}: ", "dim"), value), soft_wrap=True)
    body = message.get_body(("plain",))
    out.print()
    for line in (body.get_content() if body else "").strip().splitlines():
        out.print(f"  {line}", soft_wrap=True)
    out.print()


def compare(demo: Demo, sink: Sink, delivery: str) -> str:
    """Compares the sink's index with the sending log, recipient by recipient; returns what is to be said.

    Raises:
        DemoError: Somebody who was sent has no message or several, or a message is nobody's.
    """
    received = Counter(entry["recipient"] for entry in sink.received(delivery))
    sent = Counter(
        mailbox(row["address"]).address for row in demo.lines(f"sendoff log {delivery} --status sent --json")
    )
    if received != sent:
        wrong = [a for a in received.keys() | sent.keys() if received[a] != sent[a]]
        told = ", ".join(f"{a}: {received[a]} received, {sent[a]} sent" for a in sorted(wrong)[:10])
        raise DemoError(f"The sink and the sending log differ for {len(wrong)} addresses: {told}.")
    held, count = f"{received.total():,}", f"{sent.total():,}"
    return f"The server holds {held} messages: exactly one for each of the {count} recipients that were sent."


def read(demo: Demo, sink: Sink, delivery: str) -> str:
    """Lets readers read, and waits until the KPIs say what they did; returns what is to be said.

    Raises:
        DemoError: The tracker answers wrongly, or the KPIs say something else.
    """
    out.print()
    out.print("Readers open, click, look at their copy on the web and unsubscribe", style="bold")
    try:
        deeds = demo_readers.read_all(
            (entry["recipient"], sink.read(entry)) for entry in sink.received(delivery)
        )
    except demo_readers.ReaderError as error:
        raise DemoError(str(error)) from error
    deadline = time.monotonic() + READ_SECONDS
    while True:
        (answer,) = demo.lines(f"sendoff stats {delivery} --json")
        shown = {name: answer[name] for name in deeds.kpis}
        if shown == deeds.kpis:
            told = ", ".join(f"{count} {name}" for name, count in shown.items())
            return f"The KPIs say what the readers did: {told}."
        if time.monotonic() > deadline:
            raise DemoError(f"The readers did {deeds.kpis}, and the KPIs say {shown}.")
        time.sleep(0.2)


def next_steps() -> None:
    """Says where to look next."""
    out.print()
    out.print("Where to look next", style="bold")
    steps = (
        ("README.md", "what Sendoff does and how to run it"),
        ("docs/architecture.md", "how a confirm becomes recorded outcomes"),
        ("docs/contracts.md", "how another service publishes commands and results"),
        ('eval "$(make -s up)"', "servers that stay; then type the commands above yourself"),
        ("make demo N=100000", "the same, larger"),
        ("make demo PAGE=1", "the same, and then the page on which operators confirm"),
    )
    width = max(len(what) for what, _ in steps)
    for what, why in steps:
        out.print(Text.assemble("  ", (what.ljust(width), "bold"), f"  {why}"), soft_wrap=True)


def show_page(demo: Demo) -> None:
    """Prepares another delivery, for a person to confirm, and shows both on the console until Ctrl-C.

    Raises:
        DemoError: It ended by itself.
    """
    demo.run(f"sendoff prepare delivery.toml --recipients recipients.csv --operator {OPERATOR}")
    out.print()
    out.print("Another delivery waits for you: open the page, sign in, and press Confirm send.", style="bold")
    out.print("Ctrl-C ends the demo and removes its servers.")
    demo.console()


def run(folder: Path, recipients: int, channel: str, *, page: bool) -> None:
    """Runs the demo in a folder of its own.

    Raises:
        DemoError: Something went wrong.
    """
    demo = Demo(folder)
    sink = Sink(Path(os.environ["SENDOFF_DEV_SINK"]))
    began = time.monotonic()
    definition = (HERE / "demo" / "delivery.toml").read_text()
    (folder / "delivery.toml").write_text(definition.replace('channel = "email"', f'channel = "{channel}"'))
    demo_recipients.write(folder / "recipients.csv", recipients)
    out.print(f"A delivery to {recipients:,} rows of a recipients file, over the channel “{channel}”.")
    demo.run("sendoff migrate")
    demo.run(f"sendoff operator add {OPERATOR} --role start_deliveries")
    demo.run("head -n 6 recipients.csv")
    prepared = demo.read(
        f"sendoff prepare delivery.toml --recipients recipients.csv --operator {OPERATOR}",
        seconds=120 + recipients / 1_000,
    )
    delivery = re.findall(r"^delivery_id +(\d+)$", prepared, re.MULTILINE)[0]
    try:
        with (
            demo.running("sendoff run", demo.log),
            demo.running("sendoff run tracker", folder / "tracker.log"),
        ):
            demo.run(f"sendoff confirm {delivery} --operator {OPERATOR} --yes")
            demo.run(f"sendoff watch {delivery}", seconds=120 + recipients / 20)
            told = read(demo, sink, delivery) if channel == "email" else ""
            demo.run(f"sendoff stats {delivery}")
            demo.run(f"sendoff log {delivery} --status bounced | head -n 6")
            if channel == "email":
                received = compare(demo, sink, delivery)
                show_message(sink, delivery)
                out.print(received, style="green", soft_wrap=True)
                out.print(told, style="green", soft_wrap=True)
            if page:
                show_page(demo)
    except DemoError as error:
        kept = Path(tempfile.gettempdir()) / f"sendoff-demo-{os.getpid()}.log"
        shutil.copyfile(demo.log, kept)
        raise DemoError(f"{error} What the worker said is in {kept}.") from error
    out.print(f"All of it took {time.monotonic() - began:.0f} s.")
    next_steps()


def interrupt(number: int, _: object) -> None:
    """Ends the demo in good order; a second signal does not disturb that.

    Raises:
        KeyboardInterrupt: for Ctrl-C.
    """
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def main() -> int:
    """Reads the command line and runs the demo; 1 with a sentence where it fails."""
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0] if __doc__ else None)
    parser.add_argument("--recipients", type=int, default=1_000, help="rows of the recipients file")
    parser.add_argument("--channel", choices=("email", "null"), default="email")
    parser.add_argument("--page", action="store_true", help="end with the console, until Ctrl-C")
    given = parser.parse_args()
    if given.recipients < 1:
        parser.error("--recipients must be at least 1")
    if "SENDOFF_DEV_SINK" not in os.environ:
        parser.error('there are no servers to run on: use make demo, or eval "$(make -s up)" first')
    for number in SIGNALS:
        signal.signal(number, interrupt)
    try:
        with tempfile.TemporaryDirectory(prefix="sendoff-demo-") as folder:
            run(Path(folder), given.recipients, given.channel, page=given.page)
    except DemoError as error:
        out.print()
        Console(stderr=True, highlight=False, markup=False).print(str(error), style="red", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
