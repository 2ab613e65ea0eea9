"""Tables of what was measured, for a terminal and as Markdown, and the ratios beside their goals."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table

from tests.bench.machine import SERVERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from rich.console import Console

    from tests.bench.machine import Measured

Results = dict[str, "list[Measured]"]
"""What was measured, round by round, by the name of the case."""


@dataclass(frozen=True)
class Sheet:
    """A table: the first column is text, the others are figures."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def print(self, console: Console) -> None:
        table = Table(title=self.title, title_justify="left")
        for number, heading in enumerate(self.headings):
            table.add_column(heading, justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)

    def markdown(self) -> str:
        head = "| " + " | ".join(self.headings) + " |"
        rule = "|---|" + "--:|" * (len(self.headings) - 1)
        rows = ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n".join([f"**{self.title}**", "", head, rule, *rows, ""])


def figure(value: float) -> str:
    """Writes a number with three digits that matter."""
    for least, digits in ((100, 0), (10, 1), (1, 2)):
        if abs(value) >= least:
            return f"{value:,.{digits}f}"
    return f"{value:.3f}"


def spread(values: Iterable[float]) -> str:
    """Writes least and most."""
    found = list(values)
    return "" if len(found) == 1 else f"{figure(min(found))} – {figure(max(found))}"


def median(runs: Sequence[Measured], value: Callable[[Measured], float]) -> float:
    """Returns the median over the rounds."""
    return statistics.median(map(value, runs))


def rates(title: str, results: Results, unit: str = "recipients") -> Sheet:
    """Rate and cost of each case."""
    rows = []
    for name, runs in results.items():
        rows.append(
            [
                name,
                f"{runs[0].count:,}",
                figure(median(runs, lambda m: m.rate)),
                spread(m.rate for m in runs),
                figure(median(runs, lambda m: m.cost)),
                str(len(runs)),
            ]
        )
    return Sheet(title, ["", unit, f"{unit}/s", "spread", "CPU s per 1,000", "runs"], rows)


def costs(title: str, results: Results) -> Sheet:
    """Processor seconds for a thousand, by process: the servers last."""
    names = list(dict.fromkeys(name for runs in results.values() for m in runs for name in m.cpu))
    names.sort(key=lambda name: name in SERVERS)
    rows = []
    for case, runs in results.items():
        cells = [
            figure(median(runs, lambda m, n=name: m.cpu[n] / m.count * 1000)) if name in runs[0].cpu else ""
            for name in names
        ]
        rows.append([case, *cells, figure(median(runs, lambda m: m.cost))])
    return Sheet(title, ["CPU s per 1,000", *names, "all"], rows)


def memory(title: str, results: Results) -> Sheet:
    """Peak memory of the largest single process of each name."""
    names = list(dict.fromkeys(name for runs in results.values() for m in runs for name in m.peak))
    rows = [
        [case, *(figure(max(m.peak[n] for m in runs)) if n in runs[0].peak else "" for n in names)]
        for case, runs in results.items()
    ]
    return Sheet(title, ["peak MiB", *names], rows)


def figures(title: str, results: Results) -> Sheet:
    """Whatever else cases measured, median and spread."""
    rows = [
        [
            name if len(results) == 1 else f"{case}: {name}",
            figure(median(runs, lambda m, n=name: m.figures[n])),
            spread(m.figures[name] for m in runs),
            str(len(runs)),
        ]
        for case, runs in results.items()
        for name in runs[0].figures
    ]
    return Sheet(title, ["", "median", "spread", "runs"], rows)


def ratio(
    results: Results, one: Iterable[str], other: Iterable[str], value: Callable[[Measured], float]
) -> list[float]:
    """Returns, round by round, the best of some cases over the best of others.

    Both were measured in the same round, so that a machine whose speed drifts does not count. Where one was
    measured in fewer rounds, only those count.
    """
    ours = [results[name] for name in one if name in results]
    theirs = [results[name] for name in other if name in results]
    rounds = min(map(len, ours + theirs), default=0) if ours and theirs else 0
    return [
        max(value(runs[i]) for runs in ours) / max(value(runs[i]) for runs in theirs) for i in range(rounds)
    ]


def goals(lines: Sequence[tuple[str, str, Sequence[float], Mapping[str, float]]]) -> Sheet:
    """Prints each goal with what was reached.

    Args:
        lines: What, its unit (`×`, `%`, ` s`, …), the values by round, and its goal as {"least": …} or
            {"most": …}. A line without values was not measured.
    """
    rows = []
    for what, unit, values, goal in lines:
        (kind, limit), *_ = goal.items()
        wanted = f"{'≥' if kind == 'least' else '≤'} {figure(limit)}{unit}"
        if not values:
            rows.append([what, wanted, "not measured", "", ""])
            continue
        middle = statistics.median(values)
        met = middle >= limit if kind == "least" else middle <= limit
        rows.append([what, wanted, f"{figure(middle)}{unit}", spread(values), "yes" if met else "no"])
    return Sheet("Ratios beside their goals", ["", "goal", "median", "by round", "met"], rows)
