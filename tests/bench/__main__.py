"""`make bench`: this project, its parts, other frameworks doing the same job, and the ceilings, side by side.

Everything is measured round by round, so that a machine whose speed drifts does so for all of it; absolute
figures belong to that machine and that hour, ratios are what to compare. Each service runs in a process of
its own, as in production, beside the broker and the database on the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop
from rich.console import Console

from tests.bench import frameworks, plan
from tests.bench.installation import Installation
from tests.bench.machine import CaseFailed, Measured, describe
from tests.bench.summary import sheets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.bench.machine import Case


def say(line: str) -> None:
    """Tells a person how far it is."""
    print(f"bench: {line}", file=sys.stderr, flush=True)  # noqa: T201


async def measure(cases: Sequence[Case]) -> tuple[dict[str, list[Measured]], list[str]]:
    """Runs every case, round by round.

    Returns:
        What each came to, by its name, and in sentences what could not be measured.
    """
    results: dict[str, list[Measured]] = {}
    faults: dict[str, str] = {}
    for number in range(max((case.rounds for case in cases), default=0)):
        for case in cases:
            if number >= case.rounds or case.name in faults:
                continue
            try:
                measured = await case.run()
            except Exception as error:  # noqa: BLE001 - whatever it is, the others are worth measuring
                why = str(error) if isinstance(error, CaseFailed) else f"{type(error).__name__}: {error}"
                faults[case.name] = f"{case.name}: {why}"
                say(faults[case.name])
                continue
            results.setdefault(case.name, []).append(measured)
            say(f"round {number + 1}: {case.name}: {plan.told(measured)}")
    return results, list(faults.values())


async def run(chosen: Sequence[str], sizes: plan.Sizes) -> tuple[list[str], str]:
    """Measures the chosen parts and prints them; returns what to add, and all of it as Markdown."""
    async with Installation.open() as installation:
        # In a thread: it may install the peers, and the connection has heartbeats to answer.
        cases, notes = await asyncio.to_thread(plan.cases, installation, chosen, sizes)
        results, faults = await measure(cases)
        about = [f"{describe()}; {await installation.versions()}"]
    if "peers" in chosen:
        about.append(f"Peers: {frameworks.versions()}")
    found = sheets(cases, results, everything=set(chosen) == set(plan.PARTS))
    console = Console(width=140)
    console.print("\n".join(about))
    for sheet in found:
        sheet.print(console)
    told = [f"- {note}" for note in notes + faults]
    text = "\n\n".join([*about, "\n".join(told), *(sheet.markdown().rstrip() for sheet in found)])
    return notes + faults, text.replace("\n\n\n", "\n") + "\n"


def main() -> int:
    """Reads what to measure, and prints it."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(plan.PARTS)}; none means all")
    parser.add_argument("--quick", action="store_true", help="small sizes and one round: three minutes")
    parser.add_argument("--rounds", type=int, help="how often each is measured")
    parser.add_argument("--markdown", type=Path, help="a file for the tables")
    options = parser.parse_args()
    unknown = [part for part in options.parts if part not in plan.PARTS]
    if unknown:
        parser.error(f"There is no part {', '.join(unknown)}. The parts are {', '.join(plan.PARTS)}.")
    sizes = plan.QUICK if options.quick else plan.FULL
    if options.rounds:
        sizes = sizes.with_rounds(options.rounds)
    notes, markdown = uvloop.run(run(options.parts or plan.PARTS, sizes))
    for note in notes:
        say(note)
    if options.markdown:
        options.markdown.write_text(markdown)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        say("interrupted; everything that was started has ended")
        sys.exit(130)
