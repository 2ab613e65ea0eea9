"""Which tables the results make, and the goals that they are held against."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from tests.bench import (
    bare,
    ceilings,
    end_to_end,
    frameworks,
    freshness,
    latency,
    smtp,
    smtp_client,
    stages,
    tracker,
)
from tests.bench.report import Sheet, costs, figure, figures, goals, median, memory, rates, ratio, spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.bench.machine import Case, Measured
    from tests.bench.report import Results


def sheets(cases: Sequence[Case], results: Results, *, everything: bool = False) -> list[Sheet]:
    """Returns the tables of what was measured; those without rows are left out.

    Args:
        cases: What there was to measure.
        results: What it came to.
        everything: Whether all was asked for: goals that were not measured are shown then too.
    """

    def of(*parts: str) -> Results:
        return {c.name: results[c.name] for c in cases if c.part in parts and c.name in results}

    together, services = of("null", "email", "bare", "peers"), of("null", "email", "growth")
    found = [
        goals([line for line in _lines(cases, results) if everything or line[2]]),
        rates("From the confirmation to the last outcome durable", together),
        _over([c.name for c in cases if c.part == "null"], together),
        costs("Processor time by process", together),
        rates("Ceilings", of("ceilings"), "messages"),
        costs("Processor time of the ceilings", of("ceilings")),
        rates("Stages alone", of("stages")),
        costs("Processor time of the stages", of("stages")),
        _growth(of("null", "growth") if of("growth") else {}),
        memory("Peak memory of a process", services | of("peers")),
        figures("SMTP into smtp-sink, one process", of("smtp")),
        figures("Latency", of("latency", "freshness")),
        figures("Tracker", of("tracker")),
    ]
    return [sheet for sheet in found if sheet.rows]


def _lines(
    cases: Sequence[Case], results: Results
) -> list[tuple[str, str, Sequence[float], dict[str, float]]]:
    def rate(m: Measured) -> float:
        return m.rate

    null = [c.name for c in cases if c.part == "null"]
    documented, tuned = ([frameworks.name(peer, tuned=t) for peer in frameworks.PEERS] for t in (False, True))
    small, million = (end_to_end.name("null", n) for n in (10_000, 1_000_000))
    fresh = [m.figures["p99, ms"] for m in results.get(freshness.NAME, [])]
    peaks = [max(m.peak.values()) for name in (*null, small, million) for m in results.get(name, [])]
    return [
        (
            "null channel, end to end, over the best peer as documented",
            " ×",
            ratio(results, null, documented, rate),
            {"least": 30},
        ),
        (
            "null channel, end to end, over the best peer tuned",
            " ×",
            ratio(results, null, tuned, rate),
            {"least": 20},
        ),
        (
            "null channel, end to end, over the same without guarantees",
            " ×",
            ratio(results, null, [bare.NAME], rate),
            {"least": 1},
        ),
        (
            "fan-out alone, of the broker's own confirmed publishes",
            " ×",
            ratio(results, [stages.FANOUT], [ceilings.BROKER], rate),
            {"least": 0.6},
        ),
        (
            "recording alone, of the database's own guarded batches, narrow table",
            " ×",
            ratio(results, [stages.RECORDING], [ceilings.DATABASE], rate),
            {"least": 0.5},
        ),
        ("a million recipients", " s", [m.seconds for m in results.get(million, [])], {"most": 60}),
        (
            "cost per recipient at a million over that at ten thousand",
            " ×",
            ratio(results, [million], [small], lambda m: m.cost),
            {"most": 1.15},
        ),
        ("peak memory of the largest process of ours", " MiB", peaks, {"most": 150}),
        (
            "the same at a million over that at ten thousand",
            " ×",
            ratio(results, [million], [small], lambda m: max(m.peak.values())),
            {"most": 1.1},
        ),
        *(
            (
                f"SMTP, our channel over aiosmtplib and the standard library, {content}",
                " ×",
                [m.figures[end_to_end.RATIO.format(content)] for m in results.get(end_to_end.SMTP, [])],
                {"least": smtp.GOAL},
            )
            for content in smtp_client.CONTENTS
        ),
        *(
            (
                f"SMTP, with tracked links over without, {content}",
                " ×",
                [m.figures[end_to_end.TRACKED.format(content)] for m in results.get(end_to_end.SMTP, [])],
                {"least": smtp.TRACKED_GOAL},
            )
            for content in smtp_client.CONTENTS
        ),
        (
            "email, end to end, what a newsletter costs with tracked links over without",
            " ×",
            ratio(results, _of_mail(cases, tracked=True), _of_mail(cases, tracked=False), lambda m: m.cost),
            {"most": end_to_end.TRACKED_COST},
        ),
        (
            "one recipient on an idle system, confirm to recorded, 50th percentile",
            " ms",
            [m.figures["p50, ms"] for m in results.get(latency.ALONE, [])],
            {"most": 30},
        ),
        ("KPI freshness under full load, 99th percentile", " ms", fresh, {"most": 1000}),
        *(
            (f"{name}: {unit}", "", [m.figures[unit] for m in results.get(name, [])], limit)
            for name in (tracker.THERE, tracker.AWAY)
            for unit, limit in tracker.GOALS.items()
        ),
    ]


def _of_mail(cases: Sequence[Case], *, tracked: bool) -> list[str]:
    """Returns the name of the case of newsletters, with tracked links or without."""
    return [
        c.name
        for c in cases
        if c.part == "email" and "newsletter" in c.name and ("tracked" in c.name) is tracked
    ]


def _over(null: Sequence[str], results: Results) -> Sheet:
    """The null channel over each of the others: rate, and what a recipient costs all processes."""
    rows = []
    for name in results:
        faster = ratio(results, null, [name], lambda m: m.rate)
        cheaper = ratio(results, [name], null, lambda m: m.cost)
        if name not in null and faster:
            cells = [f"{figure(statistics.median(faster))} ×", spread(faster)]
            rows.append([name, *cells, f"{figure(statistics.median(cheaper))} ×", spread(cheaper)])
    headings = ["Sendoff, null channel, over", "rate", "by round", "its CPU over ours", "by round"]
    return Sheet("This project over the others", headings, rows)


def _growth(results: Results) -> Sheet:
    """Rate, cost and memory by the size of the audience and the number of processes."""
    first = next(iter(results.values()), [])
    base = results.get(end_to_end.name("null", 10_000), first)
    rows = [
        [
            name,
            figure(median(runs, lambda m: m.seconds)),
            figure(median(runs, lambda m: m.rate)),
            spread(m.rate for m in runs),
            figure(median(runs, lambda m: m.cost * 1000)),
            f"{median(runs, lambda m: m.cost) / median(base, lambda m: m.cost):.2f} ×",
            figure(max(max(m.peak.values()) for m in runs)),
            str(len(runs)),
        ]
        for name, runs in results.items()
    ]
    headings = [
        "",
        "seconds",
        "recipients/s",
        "spread",
        "CPU µs each",
        "over 10 thousand",
        "peak MiB",
        "runs",
    ]
    return Sheet("Growth", headings, rows)
