"""What the preflight finds in a content, beside other deliveries, and what of it blocks."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.commands import Reason
from worker.domain.completion import completed
from worker.domain.content import EmailContent
from worker.domain.preflight import Check, Found, Others, compare, findings, look, refuse_findings
from worker.domain.template_branches import untried

GOOD = '<p>Hi</p><a href="https://example.org/unsubscribe">Leave</a>'


def content(**parts: object) -> EmailContent:
    table = {"from": "n@example.org", "subject": "a", "html": GOOD} | parts
    return completed(EmailContent.model_validate(table), lambda *_: b"")


def told(sample: list[dict[str, Any]] | None = None, **parts: object) -> dict[str, str]:
    found = look(content(**parts), list(enumerate([{}] if sample is None else sample, 1)))
    assert all(one.message.endswith(".") for one in found)
    return {one.check: one.message for one in found}


def test_no_value_of_a_recipient_is_told() -> None:
    html = (
        GOOD
        + '<a href="http://{{ host }}/">a</a><a href="http://x.org/?{{ name }}">b</a><img src="{{ name }}">'
    )
    found = told([{"host": "secret.example", "name": "secret"}], html=html, subject="{{ name }}" * 20)
    assert len(found) == 4
    assert "secret" not in str(found)
    assert found["insecure_link"] == "A link that comes out of a value is not https, and 1 more."


def test_a_careful_mail_has_no_findings() -> None:
    assert told() == {}


@pytest.mark.parametrize(
    ("parts", "check", "words"),
    [
        ({"html": "<p>Hi</p>"}, Check.NO_OPT_OUT, "Nothing says how to unsubscribe"),
        ({"html": "<p>Hi</p>", "unsubscribe": "https://u.example.org"}, Check.NO_OPT_OUT, "only the header"),
        ({"html": GOOD + '<img src="https://x.org/a.png">', "text": "unsubscribe"}, Check.IMAGE_WITHOUT_ALT,
         "“https://x.org/a.png” has no alt"),
        ({"subject": "x" * 79}, Check.LONG_SUBJECT, "A subject has 79 characters"),
        ({"html": GOOD + "x" * 102_000}, Check.TOO_LARGE, "Gmail hides what is beyond 102,000"),
        ({"html": GOOD + '<a href="http://x.org/{{v}}">x</a>'}, Check.INSECURE_LINK, "“http://x.org/…”"),
        ({"text": "unsubscribe: http://x.org/u."}, Check.INSECURE_LINK, "is not https"),
        ({"html": GOOD + '<a href="/offers">x</a>'}, Check.LOCAL_LINK, "“/offers” leads nowhere"),
        ({"html": GOOD + '<a href="https://localhost/">x</a>'}, Check.LOCAL_LINK, "leads nowhere"),
        ({"html": GOOD + '<a href="https://10.0.0.1/">x</a><a href="https://[::1]/">y</a>'}, Check.LOCAL_LINK,
         "leads nowhere that recipients can reach, and 1 more"),
        ({"html": GOOD + '<a href="https://intranet/">x</a>'}, Check.LOCAL_LINK, "leads nowhere"),
        ({"html": GOOD + "{% if v == 8 %}\n<p>eight</p>{% endif %}"}, Check.UNTRIED_BRANCH,
         "html, line 1: no recipient of the sample takes “if”"),
    ],
)  # fmt: skip
def test_each_fault_is_told_alone(parts: dict[str, object], check: Check, words: str) -> None:
    found = told([{"v": 7}], **parts)
    assert list(found) == [check]
    assert words in found[check]


def test_an_image_that_hides_in_a_text_that_cannot_be_made_is_told_with_the_text() -> None:
    found = told(html='<img src="https://x.org/unsubscribe.png">')
    assert list(found) == [Check.NO_TEXT, Check.IMAGE_WITHOUT_ALT]


@pytest.mark.parametrize(
    "html",
    [
        '<a href="mailto:unsubscribe@x.org">x</a>',
        '<a href="{{ unsubscribe_url }}">x</a>',
        '<a href="https://x.org/1">Newsletter abbestellen</a>',
        '<a href="https://x.org/1">Se désabonner</a>',
        '<a href="https://x.org/1">Отписаться</a>',
    ],
)
def test_a_way_to_unsubscribe_is_known_in_many_languages(html: str) -> None:
    assert told([{"unsubscribe_url": "https://x.org/u/1"}], html=html) == {}


def test_pictures_without_meaning_and_other_schemes_are_no_faults() -> None:
    html = GOOD + '<img src="https://x.org/p.gif" alt=""><a href="tel:+491">x</a><a href="#top">y</a>'
    assert told(html=html) == {}


def test_branches_are_told_once_by_part_and_line() -> None:
    html = "{% if a %}1{% elif b %}2{% else %}3{% endif %}\n{% for x in c %}{{ x }}{% else %}none{% endfor %}"
    some = content(html=GOOD + html, subject="{% if a %}A{% endif %}")
    assert [(b.part, b.line, b.statement) for b in untried(some, [(1, {"a": 1, "b": 0, "c": [1]})])] == [
        ("text", 3, "elif"), ("text", 3, "else"), ("text", 4, "else"),
        ("html", 1, "elif"), ("html", 1, "else"), ("html", 2, "else"),
    ]  # fmt: skip
    everybody = [
        (1, {"a": 1, "b": 0, "c": []}),
        (2, {"a": 0, "b": 1, "c": [1]}),
        (3, {"a": 0, "b": 0, "c": []}),
    ]
    assert untried(some, everybody) == []
    found = look(some, everybody[:1])
    assert [one.message.partition(":")[0] for one in found] == [
        "html, line 1",
        "html, line 1",
        "html, line 2",
    ]


@given(a=st.booleans(), b=st.booleans())
def test_marks_change_nothing_that_a_recipient_sees(*, a: bool, b: bool) -> None:
    some = content(text="{% if a %}x{% if b %}y{% endif %}{% else %}z{% endif %}", html=None)
    left = {branch.statement for branch in untried(some, [(1, {"a": a, "b": b})])}
    assert ("else" in left) is a
    assert len(untried(some, [(1, {"a": a, "b": b})])) == {(1, 1): 1, (1, 0): 2}.get((a, b), 2)


@pytest.mark.parametrize(
    ("last", "now", "expected"),
    [(1_000, 2_001, True), (1_000, 2_000, False), (10, 60, False), (0, 100, True), (None, 10**6, False)],
)
def test_an_audience_is_compared_with_the_last_of_its_label(
    last: int | None, now: int, *, expected: bool
) -> None:
    others = Others(last_id=None if last is None else 7, last_to_deliver=last or 0)
    found = compare(now, others)
    assert [one.check for one in found] == ([Check.AUDIENCE_GREW] if expected else [])


def test_the_same_content_within_a_day_is_told() -> None:
    at = datetime(2026, 12, 1, 9, tzinfo=UTC)
    (found,) = compare(1, Others(same_id=7, same_confirmed_at=at))
    assert found == (
        Check.DUPLICATE,
        "The same content was confirmed at 2026-12-01T09:00:00+00:00 as delivery 7.",
    )


def test_only_what_is_named_blocks() -> None:
    others = Others((Found("no_text", "No text."), Found("of another version", "Something.")))
    assert refuse_findings(findings(1, others, ())) is None
    refused = refuse_findings(findings(1, others, (Check.NO_TEXT,)))
    assert refused is not None
    assert refused.reason is Reason.PREFLIGHT
    assert refused.message.endswith(": No text.")
