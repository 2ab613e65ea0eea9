"""Text templates made from HTML templates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.domain.completion import completed
from worker.domain.content import EmailContent
from worker.domain.plain_text import text_of
from worker.domain.templates import Renderer, RenderFailed


def text(html: str, **values: object) -> str:
    """Returns the text that a recipient with these values gets."""
    table = {"from": "n@example.org", "subject": "a", "html": html}
    content = completed(EmailContent.model_validate(table), lambda *_: b"")
    rendered = Renderer(content).render(values).text
    assert rendered is not None
    return rendered


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("<h1>Hello</h1><p>We <b>love</b> a_b and *c*.</p>", "Hello\n\nWe love a_b and *c*.\n"),
        ("<p>a<br>b</p>", "a\nb\n"),
        ('<a href="https://x.org/?a=1&amp;b=2">Buy</a>', "Buy (https://x.org/?a=1&b=2)\n"),
        ('<a href="https://x.org">https://x.org</a>', "https://x.org\n"),
        ('<a href="mailto:a@x.org">a@x.org</a> <a href="#top">up</a>', "a@x.org up\n"),
        ('<a href="https://x.org"><img src="l.png" alt="Logo"></a>', "Logo (https://x.org)\n"),
        ("<ul><li>a</li><li>b</li></ul><ol><li>c</li></ol>", "* a\n* b\n\n1. c\n"),
        ("<table><tr><td><p>a</p><p>b</p></td></tr><tr><td>c</td><td>d</td></tr></table>", "a\n\nb\n\nc d\n"),
        ("<style>p {}</style><title>t</title><!-- c --><!--[if mso]>m<![endif]--><p>a</p>", "a\n"),
        ('<div style="color: red; DISPLAY:none">preheader</div><p hidden>b</p><p>a</p>', "a\n"),
        ("<p>&lt;a&gt; &amp; &euro;</p>", "<a> & €\n"),
        ("<p>a</p>&nbsp;<br><br><br><br><p>b</p>", "a\n\nb\n"),
    ],
)
def test_html_becomes_text_as_people_write_it(html: str, expected: str) -> None:
    assert text(html) == expected


def test_templates_go_on_working() -> None:
    html = """<p {% if vip %}class="v"{% endif %}>Dear {{ name|e }},</p>
        {% if vip %}<p>Thank you.</p>{% endif %}
        <ul>{% for item in items %}<li>{{ item|upper }}</li>{% endfor %}</ul>
        <p><a href="https://x.org/{% if vip %}v{% else %}n{% endif %}/{{ id }}">More</a></p>{# note #}"""
    some = text(html, vip=True, name="Zoë & <b>", items=["a", "b"], id=7)
    assert some == "Dear Zoë & <b>,\n\nThank you.\n\n* A\n* B\n\nMore (https://x.org/v/7)\n"
    none = text(html, vip=False, name="Z", items=[], id=7)
    assert none == "Dear Z,\n\n\nMore (https://x.org/n/7)\n"


def test_what_looks_like_a_template_in_the_words_stays_words() -> None:
    assert text("<p>&#123;&#123; 7*7 }} &#123;{{ v }} {% raw %}{{ v }}{% endraw %} {&#37; x</p>", v=1) == (
        "{{ 7*7 }} {1 {{ v }} {% x\n"
    )


@pytest.mark.parametrize(
    "html", ["<img src='x'>", "<style>a</style>", "{% if x %}", "{{", "a\ue000b", "{# #}"]
)
def test_there_may_be_no_text(html: str) -> None:
    assert text_of(html) is None


def test_a_text_of_the_author_stays() -> None:
    table = {"from": "n@example.org", "subject": "a", "html": "<p>h</p>", "text": "t"}
    content = EmailContent.model_validate(table)
    assert completed(content, lambda *_: b"") == content


PIECES = st.sampled_from(
    [*"ab &;{}%#<>/='\n", "<p>", "</p>", "<td>", "<a href='", "{{ v }}", "&#123;", "&#37;", "{%"]
)


@given(st.lists(PIECES, max_size=30).map("".join))
def test_words_never_become_a_template(html: str) -> None:
    table = {"from": "n@example.org", "subject": "a", "html": f"{html}."}
    try:
        Renderer(EmailContent.model_validate(table)).render({"v": "value"})
    except RenderFailed:
        return  # no template, so no text is made of it
    made = text_of(html)
    if made is not None and made.strip():
        table = {"from": "n@example.org", "subject": "a", "text": made}
        rendered = Renderer(EmailContent.model_validate(table)).render({"v": "value"}).text
        assert rendered is not None
        assert rendered.count("value") <= html.count("{{ v }}")
