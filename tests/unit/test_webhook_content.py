"""The content of the channel `webhook`: JSON whose texts are templates, and that no value can break."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from worker.channels.registry import CHANNELS
from worker.channels.webhook import checks
from worker.channels.webhook.address import gateway_address
from worker.channels.webhook.content import BodyRenderer, WebhookContent
from worker.domain.audience import AddressInvalid
from worker.domain.delivery_file import DeliveryFileInvalid, parse_delivery_file
from worker.domain.preflight import Check
from worker.domain.template_branches import Branch, untried_texts
from worker.domain.templates import RenderFailed
from worker.domain.tracked_content import NotTrackable, Tracking

OWN = {"address": "+41791234567", "recipient": 1, "delivery_id": 42}
SMS = '{"to": "{{ address }}", "text": "Hello {{ name }}", "parts": 2, "tags": ["news", null, 1.5, true]}'


def content(body: str) -> WebhookContent:
    return WebhookContent(body=body)


def render(body: str, **values: Any) -> Any:
    return json.loads(BodyRenderer(content(body)).render({**OWN, **values}))


def test_texts_are_filled_in_and_everything_else_stays() -> None:
    assert BodyRenderer(content(SMS)).render({**OWN, "name": "Zoë"}) == (
        '{"to":"+41791234567","text":"Hello Zoë","parts":2,"tags":["news",null,1.5,true]}'
    )
    assert render('[{"a.b": "{{ n }}", "a": {"b": "{{ n }}!"}}]', n=3) == [{"a.b": "3", "a": {"b": "3!"}}]
    assert render('{"a": "{% if n > 1 %}many{% else %}one{% endif %}", "b": ""}', n=2) == {
        "a": "many",
        "b": "",
    }


NAMES = st.sampled_from(["name", "city"])
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="{}%#"), max_size=20)
LEAVES = st.one_of(
    TEXTS,
    st.builds(lambda a, n, b: f"{a}{{{{ {n} }}}}{b}", TEXTS, NAMES, TEXTS),
    st.integers(-(2**53), 2**53),
    st.booleans(),
    st.none(),
    st.floats(allow_nan=False, allow_infinity=False),
)
TREES = st.recursive(LEAVES, lambda one: st.lists(one, max_size=4) | st.dictionaries(TEXTS, one, max_size=4))
VALUES = st.fixed_dictionaries(
    {"name": st.text(st.characters(exclude_categories=["Cs"])), "city": st.text(st.characters(codec="utf-8"))}
)


def expected(node: Any, values: dict[str, str]) -> Any:
    """What a body becomes, by another way than the code's."""
    if isinstance(node, str):
        # A line end of a template is a line feed, as Jinja reads it.
        source = node.replace("\r\n", "\n").replace("\r", "\n") if "{{" in node else node
        for name, value in values.items():
            source = source.replace(f"{{{{ {name} }}}}", value)
        return source
    if isinstance(node, dict):
        return {key: expected(child, values) for key, child in node.items()}
    return [expected(child, values) for child in node] if isinstance(node, list) else node


@given(TREES, VALUES)
def test_no_value_breaks_the_json_or_changes_anything_but_its_own_text(
    tree: Any, values: dict[str, str]
) -> None:
    assume(isinstance(tree, dict | list))
    body = BodyRenderer(content(json.dumps(tree))).render({**OWN, **values})
    body.encode()
    assume("{{" not in "".join(values.values()))  # only the other way would fill it in twice
    assert json.loads(body) == expected(tree, values)


@pytest.mark.parametrize(
    "value", ['","to":"x', "\\", '\\"', "\n\r\t\0\x1f", "\u2028", "💥", "{{ address }}", "]}"]
)
def test_a_value_stays_in_its_text(value: str) -> None:
    assert render(SMS, name=value)["text"] == f"Hello {value}"
    assert list(render(SMS, name=value)) == ["to", "text", "parts", "tags"]


def test_half_a_character_fails_its_recipient_alone() -> None:
    with pytest.raises(RenderFailed, match=r"body\.text"):
        BodyRenderer(content(SMS)).render({**OWN, "name": "\ud800"})


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("{", "body: it is not JSON: Expecting property name enclosed in double quotes: line 1 column 2"),
        ("'{}'", "it is not JSON"),
        ('"{{ address }}"', "it must be a JSON object or a list"),
        ("3", "it must be a JSON object or a list"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": -Infinity}', "-Infinity is not JSON"),
        ('{"a": 1e999}', "the number 1e999 is too large"),
        ('{"a": 1, "a": 2}', "the key 'a' is there twice"),
        ('{"{{ name }}": 1}', "is a key, and keys are no templates"),
        ('{"a": "\\ud800"}', "body.a: it holds half a character"),
        ('{"\\ud800": 1}', "it holds half a character"),
        ("[" * 40 + "]" * 40, "it is nested more than 32 deep"),
        ("[" * 100_000, "it is nested too deeply"),
        ('{"a": ' + "9" * 5_000 + "}", "body"),
        (json.dumps(["{{ address }}"] * 201), "more than 200 texts with templates"),
        (" ", "it must not be blank"),
    ],
)
def test_a_body_that_is_none_is_a_sentence(body: str, words: str) -> None:
    with pytest.raises(ValidationError) as refused:
        content(body)
    assert words in str(refused.value)


def test_a_delivery_file_has_a_table_of_its_own() -> None:
    tables = {name: kind.content for name, kind in CHANNELS.items()}
    head = b'label = "SMS"\nchannel = "webhook"\n'
    read = parse_delivery_file(head + b'[webhook]\nbody = \'{"to": "{{ address }}"}\'\n', tables)
    assert json.loads(read.content_json) == {"body": '{"to": "{{ address }}"}'}
    for table, words in (
        (b"", r"the \[webhook\] table with the content is missing"),
        (b"[webhook]\n", r"the key “webhook.body” is missing"),
        (b"[webhook]\nbody = '{}'\nurl = 'x'\n", r"there is no key “webhook.url”"),
        (b"[webhook]\nbody = '{'\n", r"webhook: body: it is not JSON"),
        (b"[email]\nsubject = 'x'\n", r"there is no key “email”"),
    ):
        with pytest.raises(DeliveryFileInvalid, match=words):
            parse_delivery_file(head + table, tables)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"to": "{{ address }}", "text": "{{ nme }}"}', "body.text, line 1: unknown variable “nme”"),
        ('{"to": "{{ address }}", "text": "{{"}', "body.text, line 1:"),
        ('{"to": "{{ address }}", "text": ["{% include \'x\' %}"]}', "body.text[0], line 1: “include” needs"),
        ('{"to": "{{ phone }}"}', "body: it does not say who gets it: write “{{ address }}”"),
        ('{"to": "{{ address }}", "text": "{{ mirror_url }}"}', "“mirror_url” shows an email"),
    ],
)
def test_what_nobody_can_be_sent_is_told_at_the_preparation(body: str, words: str) -> None:
    (found,) = checks.problems(content(body), ["name", "phone"], tracker=True)
    assert words in found


def test_a_body_without_faults_is_tried_with_recipients() -> None:
    assert checks.problems(content(SMS), ["name"]) == []
    assert checks.try_out(content(SMS), [(2, {"address": "+41791234567", "name": "Zoë"})]) == []
    body = content('{"to": "{{ address }}", "n": "{{ 1 / (count|int) }}"}')
    (found,) = checks.try_out(
        body, [(2, {"address": "a", "count": "1"}), (3, {"address": "b", "count": "0"})]
    )
    assert (
        found == "body.n, line 1: division by zero; so with the recipient in line 3 of the recipients file."
    )
    long = content('{"to": "{{ address }}", "n": "{{ text * 20 }}"}')
    (found,) = checks.try_out(long, [(2, {"address": "a", "text": "x" * 100_000})])
    assert "the result of * is too large" in found


def test_the_preflight_tells_links_that_lead_nowhere_and_branches_that_nobody_takes() -> None:
    body = (
        '{"to": "{{ address }}", "text": "http://localhost/{{ name }}{% if name == \'Bo\' %} Bo{% endif %}"}'
    )
    found = checks.look(content(body), [(1, {"address": "a", "name": "Zoë"})])
    assert [one.check for one in found] == [Check.INSECURE_LINK, Check.LOCAL_LINK, Check.UNTRIED_BRANCH]
    assert "Zoë" not in str(found)
    assert "body.text, line 1" in found[-1].message
    assert untried_texts(content(body).parts, [(1, {"address": "a", "name": "Bo"})]) == []
    assert untried_texts({"body.a": "{% for x in [] %}{% endfor %}"}, []) == [Branch("body.a", 1, "for")]


def test_a_person_sees_the_body_in_lines_and_nobody_counts_it() -> None:
    shown = checks.show({"body": SMS}, {**OWN, "name": "Zoë"})
    assert shown.text is not None
    assert shown.text.startswith('{\n  "to": "+41791234567",\n  "text": "Hello Zoë"')
    assert (shown.html, shown.subject) == (None, "")


def test_its_links_are_not_tracked() -> None:
    with pytest.raises(NotTrackable, match=r"leave \[tracking\] out"):
        checks.track(content(SMS), Tracking(clicks=True))


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("+41 79 123 45 67", "+41791234567"),
        ("+1 (555) 010-9999", "+15550109999"),
        ("+49/30.12345\u201167", "+49301234567"),
        ("fGh:APA91b_x-Y~z", "fGh:APA91b_x-Y~z"),
        ("user-17", "user-17"),
        ("0791234567", "0791234567"),
    ],
)
def test_addresses_are_numbers_in_one_form_or_tokens(written: str, address: str) -> None:
    assert gateway_address(written) == address


@pytest.mark.parametrize(
    "written", ["+", "+0791234567", "+41 79 ext 5", "+1234567890123456", "+123456", "+٤١٧٩١٢٣٤٥٦"]
)
def test_what_begins_as_a_number_and_is_none_is_left_out(written: str) -> None:
    with pytest.raises(AddressInvalid, match="begins as a telephone number"):
        gateway_address(written)


@pytest.mark.parametrize("written", ["a b", "Zoë", "a\tb", "a\u200bb"])
def test_a_token_holds_no_blank(written: str) -> None:
    with pytest.raises(AddressInvalid, match="a token is printable ASCII"):
        gateway_address(written)


@given(st.text())
def test_a_normal_form_is_its_own(text: str) -> None:
    try:
        address = gateway_address(text)
    except AddressInvalid:
        return
    assert gateway_address(address) == address
