"""What is measured: the parts, and how large and how often each is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tests.bench import bare, ceilings, end_to_end, frameworks, freshness, latency, stages, tracker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.bench.installation import Installation
    from tests.bench.machine import Case, Measured

PARTS = (
    "ceilings", "stages", "bare", "null", "email", "smtp", "peers", "latency", "freshness", "tracker",
    "growth",
)  # fmt: skip
"""In the order in which a round goes through them."""


@dataclass(frozen=True)
class Sizes:
    """Recipients, messages or rows of each part."""

    rounds: int
    null: int
    email: int
    smtp: int
    documented: int
    tuned: int
    messages: int
    rows: int
    freshness: int
    alone: int
    beside: int
    clicks: int
    growth: tuple[tuple[int, int, int], ...]
    """Recipients, processes per service, and rounds at the most."""

    def with_rounds(self, rounds: int) -> Sizes:
        """Returns the same sizes, measured so often."""
        return replace(
            self,
            rounds=rounds,
            growth=tuple((n, copies, min(most, rounds)) for n, copies, most in self.growth),
        )


FULL = Sizes(
    rounds=3,
    null=100_000,
    email=20_000,
    smtp=3_000,
    documented=3_000,
    tuned=5_000,
    messages=200_000,
    rows=100_000,
    freshness=150_000,
    alone=200,
    beside=200_000,
    clicks=30_000,
    growth=(
        (10_000, 1, 3),
        (100_000, 1, 3),
        (1_000_000, 1, 2),
        (10_000, 2, 3),
        (100_000, 2, 3),
        (1_000_000, 2, 1),
    ),
)
QUICK = Sizes(
    rounds=1,
    null=20_000,
    email=3_000,
    smtp=1_000,
    documented=300,
    tuned=600,
    messages=50_000,
    rows=20_000,
    freshness=50_000,
    alone=50,
    beside=100_000,
    clicks=6_000,
    growth=((10_000, 1, 1), (50_000, 1, 1), (10_000, 2, 1)),
)


def cases(installation: Installation, chosen: Sequence[str], sizes: Sizes) -> tuple[list[Case], list[str]]:
    """Returns the cases of the chosen parts, and in sentences what has to be left out."""
    notes: list[str] = []
    found: dict[str, Case] = {}
    for part in PARTS:
        if part in chosen:
            for case in _part(installation, part, sizes, notes):
                found.setdefault(case.name, case)
    return list(found.values()), notes


def _part(installation: Installation, part: str, sizes: Sizes, notes: list[str]) -> list[Case]:
    rounds = sizes.rounds
    if part == "peers":
        try:
            frameworks.install()
        except frameworks.PeersAbsent as error:
            notes.append(str(error))
            return []
    cases: dict[str, Callable[[], list[Case]]] = {
        "ceilings": lambda: ceilings.cases(
            installation, messages=sizes.messages, rows=sizes.rows, rounds=rounds
        ),
        "stages": lambda: stages.cases(installation, recipients=sizes.rows, rounds=rounds),
        "bare": lambda: bare.cases(installation, recipients=sizes.null, rounds=rounds),
        "null": lambda: [end_to_end.case(installation, part, sizes.null, rounds=rounds)],
        "email": lambda: end_to_end.mails(installation, sizes.email, rounds=rounds, notes=notes),
        "smtp": lambda: [end_to_end.libraries(messages=sizes.smtp, rounds=rounds)],
        "peers": lambda: frameworks.cases(
            installation, documented=sizes.documented, tuned=sizes.tuned, rounds=rounds
        ),
        "latency": lambda: latency.cases(installation, alone=sizes.alone, beside=sizes.beside, rounds=rounds),
        "freshness": lambda: freshness.cases(installation, recipients=sizes.freshness, rounds=rounds),
        "tracker": lambda: tracker.cases(installation, clicks=sizes.clicks, rounds=rounds),
        "growth": lambda: end_to_end.growth(installation, sizes.growth),
    }
    return cases[part]()


def told(measured: Measured) -> str:
    """Says in a few words what a run came to."""
    if measured.figures:
        return ", ".join(f"{value:,.1f} {name}" for name, value in measured.figures.items())
    return f"{measured.rate:,.0f} a second"
