"""What the commands print of foreign text: nothing that a terminal obeys or a spreadsheet calculates."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.cli.show import to_json
from worker.domain.text import cell, plain

TEXTS = st.text(
    st.one_of(st.characters(), st.sampled_from("\x00\t\r\n\x1b\x7f\x9b\u2028\u202e\ud800=+-@＝ '"))
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_json_is_of_printable_characters_and_says_the_same(value: object) -> None:
    text = to_json(value)
    assert text.isprintable()
    assert json.loads(text) == value


def test_json_has_letters_as_they_are_and_times_in_iso_8601() -> None:
    assert to_json({"zoë": datetime(2026, 12, 1, 9, tzinfo=UTC)}) == '{"zoë": "2026-12-01T09:00:00+00:00"}'


def test_a_percentage_is_a_number_in_json() -> None:
    assert to_json({"sent_pct": Decimal("99.50"), "open_pct": None}) == '{"sent_pct": 99.5, "open_pct": null}'


@given(TEXTS)
def test_a_cell_is_printable_and_begins_no_formula(text: str) -> None:
    shown = str(cell(text))
    assert shown.isprintable()
    assert shown.strip()[:1] not in tuple("=+-@＝＋－＠")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("=1+1", "'=1+1"),
        ("+49 30 1", "'+49 30 1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1+1", "'\ufffd=1+1"),
        ("\r-2", "'\ufffd-2"),
        ("ana@example.org", "ana@example.org"),
        (-5, -5),
        (None, None),
        (datetime(2026, 12, 1, tzinfo=UTC), "2026-12-01T00:00:00+00:00"),
    ],
)
def test_only_text_that_begins_as_a_formula_is_changed(value: object, shown: object) -> None:
    assert cell(value) == shown


@given(TEXTS)
def test_plain_text_keeps_its_length_and_what_can_be_printed(text: str) -> None:
    shown = plain(text)
    assert shown.isprintable()
    assert [a for a, b in zip(text, shown, strict=True) if a != b] == [c for c in text if not c.isprintable()]


@pytest.mark.parametrize(("typed", "completed"), [("sendoff pau", "pause"), ("sendoff pause --al", "--all")])
def test_a_shell_completes_commands_and_options(typed: str, completed: str) -> None:
    asked = {
        "_SENDOFF_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split()) - 1),
    }
    command = [sys.executable, "-m", "worker"]
    done = subprocess.run(
        command, env=os.environ | asked, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.split() == [completed]
