"""Who of an earlier delivery is written to: how it is written, and from which delivery."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from contracts.states import State
from worker.domain.retarget import Criterion, CriterionInvalid, Who, read_criterion, refuse_source


@pytest.mark.parametrize("who", sorted(set(Who) - {Who.CLICKED}))
def test_each_criterion_is_read_by_its_name(who: Who) -> None:
    assert read_criterion(who) == Criterion(who)
    assert str(read_criterion(who, persons=True)) == f"{who}, persons"


def test_a_link_keeps_its_own_equals_signs() -> None:
    criterion = read_criterion("clicked=https://e.example/?a=b")
    assert criterion == Criterion(Who.CLICKED, "https://e.example/?a=b")
    assert str(criterion) == "clicked=https://e.example/?a=b"


@pytest.mark.parametrize(
    ("url", "urls", "pattern"),
    [
        ("https://e.example/?a=b", ("https://e.example/?a=b",), None),
        (
            "https://bücher.example/é",
            ("https://bücher.example/é", "https://xn--bcher-kva.example/%C3%A9"),
            None,
        ),
        ("anything", ("anything",), None),
        (
            "https://e.example/p?of={{ recipient }}&x=50%25_a",
            (
                "https://e.example/p?of={{ recipient }}&x=50%25_a",
                "https://e.example/p?of=%7B%7B%20recipient%20%7D%7D&x=50%25_a",
            ),
            "https://e.example/p?of=%&x=50\\%25\\_a",
        ),
        ("{{ site }}", ("{{ site }}",), "%"),
        ("{{ a }}/ö{{ b | upper }}", ("{{ a }}/ö{{ b | upper }}",), "%/ö%"),
        ("https://{{ shop }}.e.example/ö", None, "https://%.e.example/\\%C3\\%B6"),
    ],
)
def test_a_link_is_looked_for_as_clicks_name_it(
    url: str, urls: tuple[str, ...] | None, pattern: str | None
) -> None:
    criterion = Criterion(Who.CLICKED, url)
    assert urls is None or criterion.urls == urls
    assert criterion.pattern == pattern


@pytest.mark.parametrize("text", ["", "opened", "clicked", "clicked=", "failed=x", "clicked=" + "x" * 8_193])
def test_anything_else_is_a_sentence(text: str) -> None:
    with pytest.raises(CriterionInvalid, match=r"is none of failed, soft, .*, not-clicked and clicked=URL"):
        read_criterion(text)


def test_outcomes_are_those_of_a_delivery_that_is_over() -> None:
    over = {state for state in State if refuse_source(42, state, None) is None}
    assert over == {State.FINISHED, State.STOPPED, State.FAILED}
    assert refuse_source(42, State.IN_PROGRESS, None) == (
        "The delivery 42 is in progress: its outcomes are known when it is over."
    )
    assert "42" in str(refuse_source(42, State.FINISHED, datetime(2026, 1, 1, tzinfo=UTC)))
