"""Sends a delivery as an operator would, on the servers that the environment names: `make demo`.

Prints each command before what it says, compares what the SMTP sink received with what was recorded, and ends
with status 1 where they differ. Whatever it started ends with it, however it ends.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import demo_readers
import demo_recipients
from demo_commands import SIGNALS, Demo, DemoError, out
from demo_returns import Listener, ListenerError
from demo_sink import Sink, compare, show_message
from rich.console import Console
from rich.text import Text

HERE = Path(__file__).resolve().parent
OPERATOR = "ana"
READ_SECONDS = 30


def read(demo: Demo, sink: Sink, delivery: str) -> str:
    """Lets readers read, and waits until the KPIs say what they did; returns what is to be said.

    Raises:
        DemoError: The tracker or the listener answers wrongly, or the KPIs say something else.
    """
    out.print()
    out.print("Readers open, click, look at their copy on the web, unsubscribe and complain", style="bold")
    out.print("The servers of some return the message that they took", style="bold")
    (before,) = demo.lines(f"sendoff stats {delivery} --json")
    try:
        deeds = demo_readers.read_all(
            ((entry["recipient"], sink.read(entry)) for entry in sink.received(delivery)),
            Listener(demo.returned_port),
        )
    except (demo_readers.ReaderError, ListenerError) as error:
        raise DemoError(str(error)) from error
    later = len(deeds.returned)
    expected = {**deeds.kpis, "bounced_hard": before["bounced_hard"] + later, "sent": before["sent"] - later}
    deadline = time.monotonic() + READ_SECONDS
    while True:
        (answer,) = demo.lines(f"sendoff stats {delivery} --json")
        shown = {name: answer[name] for name in expected}
        if shown == expected:
            told = ", ".join(f"{shown[name]} {name}" for name in deeds.kpis)
            return f"The KPIs say what the readers did: {told}. Returned later and no longer sent: {later}."
        if time.monotonic() > deadline:
            raise DemoError(f"The readers and their servers did {expected}, and the KPIs say {shown}.")
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
            demo.running("sendoff run returned", folder / "returned.log"),
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
