"""How the bench sums up: ratios by round, medians, goals."""

from __future__ import annotations

from tests.bench.machine import Measured
from tests.bench.report import Sheet, figure, goals, ratio, spread


def rate(per_second: float) -> Measured:
    return Measured(count=1000, seconds=1000 / per_second, cpu={"send": 1.0, "RabbitMQ": 2.0})


def test_a_ratio_compares_the_best_of_each_round() -> None:
    results = {
        "ours": [rate(100), rate(300), rate(500)],
        "one": [rate(10), rate(20)],
        "other": [rate(20), rate(10)],
    }
    assert ratio(results, ["ours"], ["one", "other", "absent"], lambda m: round(m.rate)) == [5.0, 15.0]
    assert ratio(results, ["ours"], ["absent"], lambda m: m.rate) == []
    assert ratio(results, ["absent"], ["one"], lambda m: m.rate) == []


def test_cost_is_of_all_processes_for_a_thousand() -> None:
    assert rate(100).cost == 3.0
    assert Measured().cost == Measured().rate == 0.0


def test_goals_say_whether_they_are_met_and_what_was_not_measured() -> None:
    sheet = goals(
        [
            ("faster", " ×", [29, 31, 40], {"least": 30}),
            ("shorter", " s", [61], {"most": 60}),
            ("absent", " %", [], {"least": 60}),
        ]
    )
    assert [list(row) for row in sheet.rows] == [
        ["faster", "≥ 30.0 ×", "31.0 ×", "29.0 – 40.0", "yes"],
        ["shorter", "≤ 60.0 s", "61.0 s", "", "no"],
        ["absent", "≥ 60.0 %", "not measured", "", ""],
    ]


def test_a_sheet_is_a_markdown_table() -> None:
    text = Sheet("Title", ["", "a"], [["row", "1"]]).markdown()
    assert text == "**Title**\n\n|  | a |\n|---|--:|\n| row | 1 |\n"


def test_figures_have_three_digits_that_matter() -> None:
    assert [figure(n) for n in (12345.6, 123.4, 12.34, 1.234, 0.1234, 0)] == [
        "12,346",
        "123",
        "12.3",
        "1.23",
        "0.123",
        "0.000",
    ]
    assert spread([2, 1]) == "1.00 – 2.00"
    assert spread([2]) == ""
