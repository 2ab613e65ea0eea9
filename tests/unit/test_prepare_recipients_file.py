"""The recipients file: every bad row is told by its line, and costs no other."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.domain.recipients_file import LONGEST_ROW, RecipientsFile, RecipientsFileInvalid

Row = tuple[int, list[str], str | None]


def read(text: str) -> list[Row]:
    return list(RecipientsFile(io.StringIO(text, newline="").readline))


def good(text: str) -> list[tuple[int, list[str]]]:
    return [(line, fields) for line, fields, fault in read(text) if fault is None]


def bad(text: str) -> list[tuple[int, str]]:
    return [(line, fault) for line, _, fault in read(text) if fault is not None]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_rows_are_numbered_by_their_first_line_whatever_ends_them(end: str) -> None:
    text = end.join(["address,note", "a,1", "", 'b,"two', 'lines"', "c,3"])
    assert [(line, fields[0]) for line, fields in good(text)] == [(2, "a"), (4, "b"), (6, "c")]


def test_header_names_are_trimmed() -> None:
    assert RecipientsFile(io.StringIO("\u00a0address , n\u200b\n").readline).columns == ("address", "n")


def test_semicolons_or_tabs_separate_where_the_header_has_no_comma() -> None:
    assert good("address\tname\na\tx;y\n") == [(2, ["a", "x;y"])]
    assert good("address\t\na\n") == [(2, ["a"])]
    assert good("address;name\na;x,y\n") == [(2, ["a", "x,y"])]
    assert good("address,a;b\na;c,d\n") == [(2, ["a;c", "d"])]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("line", ["sep={}\n", "SEP={}\r\n", '"sep={}"\n', "\nsep={}\n\n"])
def test_a_first_line_may_name_the_separator_and_is_no_row(separator: str, line: str) -> None:
    head = line.format(separator)
    rows = good(f"{head}address{separator}a.b\nx{separator}1\n")
    assert rows == [(head.count("\n") + 2, ["x", "1"])]


def test_what_only_begins_as_such_a_line_is_a_header() -> None:
    assert RecipientsFile(io.StringIO("sep=;x,address\n").readline).columns == ("sep=;x", "address")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "^it is empty; its first line must name the columns$"),
        ("\n\n", "^it is empty; its first line must name the columns$"),
        ("email,name\n", "^it has no column “address”; its header names email, name$"),
        ("address,name,name\n", "^two columns are named “name”$"),
        ("address,,name\n", "^column 2 has no name that can be read$"),
        (
            "address,name,\n",
            "^its header ends with a separator that no name follows; remove it from every line$",
        ),
        (
            "address;name;; \n",
            "^its header ends with 2 separators that no name follows; remove them from every",
        ),
        (
            "sep=|\naddress|n\n",
            "^its first line names the separator “|”; it may be a comma, a semicolon or a tab$",
        ),
        ("sep=;\n\n", "^it is empty; its first line must name the columns$"),
        ("address,a\0b\n", "^column 2 has no name that can be read$"),
        ('address,"name', "^its header cannot be read: a quote is not closed$"),
        (
            "address" + "," * LONGEST_ROW,
            "^its header cannot be read: it is longer than 131072 characters, or a quote is not closed$",
        ),
        ('address,"a"b\n', "^its header cannot be read: its quotes cannot be read: "),
    ],
)
def test_a_header_that_cannot_be_used_refuses_the_file(text: str, reason: str) -> None:
    with pytest.raises(RecipientsFileInvalid, match=reason):
        read(text)


def test_a_row_that_does_not_fit_the_header_is_told() -> None:
    assert bad("address,n\na\nb,1,2\nc,1\n") == [
        (2, "it has 1 fields where the header has 2"),
        (3, "it has 3 fields where the header has 2"),
    ]


def test_a_nul_character_spoils_its_row_alone() -> None:
    text = "address,n\na,\0\nb,2\n"
    assert bad(text) == [(2, "it holds a NUL character")]
    assert good(text) == [(3, ["b", "2"])]


def test_a_quote_that_is_never_closed_costs_its_own_line_alone() -> None:
    text = 'address,n\na,1\nb,"2\nc,3\nd,4\n'
    assert bad(text) == [(3, "a quote is not closed")]
    assert good(text) == [(2, ["a", "1"]), (4, ["c", "3"]), (5, ["d", "4"])]


def test_a_quote_that_is_never_closed_costs_its_own_line_alone_in_a_large_file_too() -> None:
    rows = 20_000
    text = 'address,n\n"a,1\n' + "".join(f"b{i},{i}\n" for i in range(rows))
    assert [line for line, _ in bad(text)] == [2]
    assert [line for line, _ in good(text)] == list(range(3, 3 + rows))


@pytest.mark.parametrize("size", [LONGEST_ROW - 3, LONGEST_ROW, 3 * LONGEST_ROW + 7])
def test_a_row_that_is_too_long_costs_itself_alone(size: int) -> None:
    text = "address,n\na,1\n" + "x" * size + ",2\nc,3\n"
    assert [line for line, _ in bad(text)] == [3]
    assert good(text) == [(2, ["a", "1"]), (4, ["c", "3"])]


def test_a_last_row_that_is_too_long_ends_the_file() -> None:
    assert [line for line, _ in bad("address,n\n" + "x" * LONGEST_ROW * 2)] == [2]


def test_a_field_beyond_the_limit_of_the_csv_module_cannot_occur() -> None:
    assert csv.field_size_limit() >= LONGEST_ROW


FIELD = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=12)


@given(st.lists(st.tuples(FIELD, FIELD), max_size=8))
def test_what_a_csv_writer_writes_is_read_back(rows: list[tuple[str, str]]) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(["address", "note"])
    writer.writerows(rows)
    assert [fields for _, fields in good(buffer.getvalue())] == [list(row) for row in rows]


@given(st.text(st.sampled_from('a,"\n\r;\0'), max_size=60))
def test_no_text_stops_the_reading_and_every_row_has_a_line_of_its_own(text: str) -> None:
    rows = read("address,n\n" + text)
    lines = [line for line, _, _ in rows]
    assert lines == sorted(set(lines))
    assert all(len(fields) == 2 for _, fields, fault in rows if fault is None)


def test_blank_lines_before_the_header_are_lines_and_no_header() -> None:
    assert read("\n  \naddress,n\na,1\n") == [(4, ["a", "1"], None)]
    assert read("\n" * 3 + "address;n\na;1\n") == [(5, ["a", "1"], None)]


def test_blank_lines_before_the_header_take_nothing_from_the_length_of_its_row() -> None:
    blank = " " * 80_000 + "\n"
    header = "address,n" + " " * 80_000 + "\n"
    assert read(blank + header + "a,1\n") == [(3, ["a", "1"], None)]


def test_a_row_as_long_as_may_be_is_read_and_one_character_more_is_told() -> None:
    """The length is that of the whole row, over all its lines, with their ends."""
    for first in ("a,", 'a,"b\n'):
        for extra, fits in ((0, True), (1, False)):
            last = "\n" if first == "a," else '"\n'
            row = first + "x" * (LONGEST_ROW - 1 - len(first) - len(last) + extra) + last
            told = [fault for _, _, fault in read("address,n\n" + row)]
            assert (told == [None]) == fits
            if not fits:
                assert told[0] == "it is longer than 131072 characters, or a quote is not closed"


def test_rows_do_not_add_up_to_one_that_is_too_long() -> None:
    row = "x" * (LONGEST_ROW // 2) + ",1\n"
    assert bad("address,n\n" + row * 5) == []


def test_a_quote_in_the_middle_of_a_field_is_told() -> None:
    ((line, fault),) = bad('address,n\na,"b"c\nd,1\n')
    assert line == 2
    assert fault.startswith("its quotes cannot be read: ")


@pytest.mark.parametrize(
    ("blank", "lines"), [("\n" * LONGEST_ROW, LONGEST_ROW), (" " * (LONGEST_ROW - 1) + "\n", 1)]
)
def test_any_number_of_blank_characters_before_the_header_is_no_row(blank: str, lines: int) -> None:
    assert read(f"{blank}address\na\n") == [(lines + 2, ["a"], None)]


@pytest.mark.parametrize("blank", [*" \t\u00a0\u3000\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"])
def test_names_are_trimmed_of_whatever_a_spreadsheet_leaves_behind(blank: str) -> None:
    assert RecipientsFile(io.StringIO(f"n,{blank}address{blank}\n").readline).columns == ("n", "address")


@pytest.mark.parametrize("kept", [*"X\u3001\u2010"])
def test_names_are_trimmed_of_nothing_else(kept: str) -> None:
    assert RecipientsFile(io.StringIO(f"address,{kept}n{kept}\n").readline).columns == (
        "address",
        f"{kept}n{kept}",
    )
