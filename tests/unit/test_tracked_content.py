"""Tracked links and the pixel in a content: which links, and that nothing else changes."""

from __future__ import annotations

from html import unescape
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.domain.content import EmailContent
from worker.domain.keys import read_keys
from worker.domain.link_names import PIXEL, link_name
from worker.domain.links import MOST_LINKS, Keys, Links
from worker.domain.template_checks import check
from worker.domain.templates import Renderer
from worker.domain.tracked_content import NotTrackable, TrackedContent, Tracking, language, track

BOTH = Tracking(opens=True, clicks=True)
CLICKS = Tracking(clicks=True)


def content(**parts: Any) -> EmailContent:
    return EmailContent.model_validate({"from": "a@example.org", "subject": "s", **parts})


def tracked(source: str, part: str = "html", how: Tracking = CLICKS) -> tuple[str, list[str]]:
    """Returns the new source, with links as «number», and the targets."""
    done = track(content(**{part: source}), how)
    text = getattr(done.content, part)
    for link in done.links:
        text = text.replace(f"{{{{ {link_name(link.number)} }}}}", f"«{link.number}»")
    return text.replace(f"{{{{ {PIXEL} }}}}", "«pixel»"), [link.target for link in done.links]


@pytest.mark.parametrize(
    ("source", "after", "targets"),
    [
        ('<a href="https://a.org/x">y</a>', '<a href="«1»">y</a>', ["https://a.org/x"]),
        ("<A\n HREF = 'HTTP://a.org'>", "<A\n HREF = '«1»'>", ["HTTP://a.org"]),
        ("<a href=http://a.org/?b=c>y</a>", "<a href=«1»>y</a>", ["http://a.org/?b=c"]),
        ('<a href=" https://a.org ">', '<a href=" «1» ">', ["https://a.org"]),
        ('<area shape="rect" href="https://a.org">', '<area shape="rect" href="«1»">', ["https://a.org"]),
        (
            '<a class="b"href="https://a.org/?b=1&amp;c=2" href="https://b.org">',
            '<a class="b"href="«1»" href="https://b.org">',
            ["https://a.org/?b=1&amp;c=2"],
        ),
        (
            '<a href="https://a.org">1</a><a href="https://b.org">2</a><a href="https://a.org">3</a>',
            '<a href="«1»">1</a><a href="«2»">2</a><a href="«1»">3</a>',
            ["https://a.org", "https://b.org"],
        ),
        ('<a href="https&#58;//a.org">', '<a href="«1»">', ["https&#58;//a.org"]),
        ('<a href="https://a.org/é#ü">', '<a href="«1»">', ["https://a.org/é#ü"]),
        ("<a title='a>b' href='https://a.org'>", "<a title='a>b' href='«1»'>", ["https://a.org"]),
    ],
)
def test_the_targets_of_links_are_replaced_and_nothing_else(
    source: str, after: str, targets: list[str]
) -> None:
    assert tracked(source) == (after, targets)


@pytest.mark.parametrize(
    "source",
    [
        '<a href="#top">',
        '<a href="">',
        "<a href>",
        "<a name='https://a.org'>",
        '<a href="mailto:a@b.org?subject=https://a.org">',
        '<a href="tel:+123">',
        '<a href="/path">',
        '<a href="//a.org">',
        '<a href="javascript:alert(1)">',
        '<a href="ftp://a.org">',
        '<a href="data:text/html,https://a.org">',
        '<img src="https://a.org/b.png">',
        '<link href="https://a.org/b.css">',
        "<!-- <a href='https://a.org'> -->",
        "<style>a { content: '<a href=https://a.org>' }</style>",
        "<p title='<a href=https://a.org>'>",
        "<a href='https://a.org",
        "{# <a href='https://a.org'> #}",
        "{% raw %}<a href='https://a.org'>{% endraw %}",
        "<a href='{{ unsubscribe_url }}'>",
        "<a href='{{ mirror_url }}'>",
        "<a href='https://b.org/?next={{ unsubscribe_url }}'>",
        "{% for i in items %}<a href='https://a.org/{{ i }}'>{% endfor %}",
        "{% for i in items %}<a href='https://a.org/{{ loop.index }}'>{% endfor %}",
        "{% set u = 'https://a.org' %}<a href='{{ u }}'>",
        "<a href='https://a.org/{% if x %}b'>{% else %}c'>{% endif %}",
    ],
)
def test_other_links_are_left_alone(source: str) -> None:
    assert tracked(source) == (source, [])


def test_a_link_that_is_not_to_be_tracked_loses_only_the_word_that_says_so() -> None:
    source = (
        '<a data-notrack href="https://a.org">1</a><a href="https://a.org" DATA-NOTRACK="yes" id="b">2</a>'
    )
    assert tracked(source) == ('<a href="https://a.org">1</a><a href="https://a.org" id="b">2</a>', [])


def test_a_target_that_the_html_does_not_track_is_not_tracked_in_the_text() -> None:
    html, text = "<a data-notrack href='https://a.org?b=1&amp;c'>", "https://a.org?b=1&c https://b.org"
    assert [link.target for link in track(content(html=html, text=text), CLICKS).links] == ["https://b.org"]


@pytest.mark.parametrize(
    ("source", "targets"),
    [
        ('<a href="{{ url }}">', ["{{ url }}"]),
        ('<a href="https://a.org/{{ id }}?b={{ "}}" }}">', ['https://a.org/{{ id }}?b={{ "}}" }}']),
        ('<a href="{% if x %}https://a.org{% else %}https://b.org{% endif %}">', None),
        ("<a {% if x %}class='a>b'{% endif %} href='https://a.org'>", ["https://a.org"]),
        ("<a {% if x %}class='a' {% endif %}href='https://a.org'>", ["https://a.org"]),
        ("<a{{ attributes }} href='https://a.org'>", ["https://a.org"]),
        ("{% for i in items %}<a href='https://a.org'>{% endfor %}", ["https://a.org"]),
        ("{%- if x -%}  <a href='https://a.org'>{%- endif %}", ["https://a.org"]),
        ("\ue000<a href='https://a.org/\ue000'>", ["https://a.org/\ue000"]),
        ("<p>\r\n<a href='https://a.org'>\r</p>", ["https://a.org"]),
    ],
)
def test_templates_in_and_around_links_are_understood(source: str, targets: list[str] | None) -> None:
    after, found = tracked(source)
    assert found == (targets or [source.split('"')[1]])
    assert after == source.replace("\r\n", "\n").replace("\r", "\n").replace(found[0], "«1»")


@pytest.mark.parametrize(
    ("source", "after"),
    [
        ("See https://a.org/x.", "See «1»."),
        ("(https://a.org/b(c)) and https://b.org/?q=1, or <https://c.org>!", "(«1») and «2», or <«3»>!"),
        ("„https://a.org“ 'https://b.org' *https://c.org*", "„«1»“ '«2»' *«3»*"),
        ("Read https://a.org/{{ id }}, now", "Read «1», now"),
        ("{% if x %}https://a.org{% endif %}", "{% if x %}«1»{% endif %}"),
        ("https://a.org/{% if x %}b{% endif %}", "«1»"),
        ("{% if x %}https://a.org/{% if y %}b{% endif %}{% endif %}", None),
        ("{% for i in items %}https://a.org/{{ i }}\n{% endfor %}", None),
        ("{{ unsubscribe_url }} {{ url }} a.org mailto:a@b.org", None),
    ],
)
def test_links_in_the_text_are_found_as_mail_programs_find_them(source: str, after: str | None) -> None:
    assert tracked(source, "text")[0] == (after or source)


@pytest.mark.parametrize(
    ("source", "after"),
    [
        ("<p>x</p>", "<p>x</p>«pixel»"),
        ("<body>x</body></html>\n", "<body>x«pixel»</body></html>\n"),
        ("<body>x</BODY ></html>", "<body>x«pixel»</BODY ></html>"),
        ("<!-- </body> --><body>x", "<!-- </body> --><body>x«pixel»"),
        ("<body></body><p>{{ '</body>' }}</p>", "<body>«pixel»</body><p>{{ '</body>' }}</p>"),
    ],
)
def test_the_pixel_stands_before_the_end_of_the_body(source: str, after: str) -> None:
    assert tracked(source, how=Tracking(opens=True)) == (after, [])


def test_opens_alone_leave_links_alone_and_a_text_has_no_pixel() -> None:
    done = track(
        content(text="https://a.org", html="<a href='https://a.org' data-notrack>"), Tracking(opens=True)
    )
    assert done.content.text == "https://a.org"
    assert done.links == ()


def test_too_many_links_are_told() -> None:
    source = "".join(f"<a href='https://a.org/{n}'>" for n in range(MOST_LINKS + 1))
    with pytest.raises(NotTrackable, match=r"^it has 1,001 links; 1,000 can be tracked$"):
        track(content(html=source), CLICKS)


@pytest.mark.parametrize("part", ["html", "text"])
def test_a_brace_before_a_link_stays_one(part: str) -> None:
    source = "{https://a.org} {<a href={https://b.org>} {"
    done = track(content(**{part: source}), BOTH)
    assert filled(done, part, {PIXEL: "", "name": ""}) == source


def test_a_content_that_is_too_large_with_its_links_is_told() -> None:
    source = "{{ '' }}" * 3_300 + "<a href='https://a.org'>" * 100
    with pytest.raises(
        NotTrackable, match=r"^with tracked links, html, line 1: it has more than 10,000 words"
    ):
        track(content(html=source), CLICKS)


@pytest.mark.parametrize(
    ("source", "found"),
    [('<!doctype html><HTML class=x LANG="pt-BR">', "pt-BR"), ("<html><body lang='de'>", ""), ("<p>", "")],
)
def test_the_language_is_what_the_document_says(source: str, found: str) -> None:
    assert language(source) == found


# What the author wrote must come out as before, but for the targets: filled in, they are what they were.

_PIECES = st.sampled_from(
    [
        "<p>",
        "</p>\n",
        "text & more ",
        '<a href="https://a.org/?x=1&amp;y={{ name }}">',
        "<a href='https://b.org'>",
        "<a href=https://c.org/{{ name }}>",
        "</a>",
        "https://d.org/{{ name }}/x, ",
        "{% if name %}https://e.org{% endif %} ",
        "{% if name %}<a href='https://f.org/{% if missing is defined %}a{% endif %}'>{% endif %}",
        "{% for i in 'ab' %}<a href='https://g.org/{{ i }}'>{{ i }}</a>{% endfor %}",
        "<!-- <a href='https://h.org'> -->",
        "{# a comment #}",
        "{{ name }}",
        '<a href="#{{ name }}" title="<b>">',
        "<",
        '"',
        "'",
        "é\n",
        "</body>",
        "<a {{ name }} href=",
    ]
)


def filled(done: TrackedContent, part: str, values: dict[str, Any]) -> str | None:
    """Renders a tracked content with the targets themselves in place of the links to them."""
    targets = {
        link_name(link.number): Renderer(content(**{part: f"{link.target}\n"})).render(values)
        for link in done.links
    }
    texts = {name: (getattr(rendered, part) or "")[:-1] for name, rendered in targets.items()}
    rendered = Renderer(done.content).render(values | texts)
    return rendered.html if part == "html" else rendered.text


@given(
    st.lists(_PIECES, min_size=1, max_size=12),
    st.sampled_from(["html", "text"]),
    st.sampled_from(["Zoë", ""]),
)
def test_a_tracked_content_says_what_it_said(pieces: list[str], part: str, name: str) -> None:
    source = "".join(pieces)
    if not source.strip():
        return
    plain = content(**{part: source})
    values = {"name": name}
    done = track(plain, CLICKS)
    before = Renderer(plain).render(values)
    expected = before.html if part == "html" else before.text
    after = filled(done, part, values)
    # A target is HTML already: filled in as a value it is escaped once more.
    assert after is not None
    assert expected is not None
    assert unescape(unescape(after)) == unescape(unescape(expected))


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_any_source_that_is_a_template_can_be_tracked(source: str) -> None:
    if not source.strip() or "\0" in source:
        return
    plain = content(html=source, text=source)
    if not check(plain, ["name"]):
        done = track(plain, BOTH)
        links = Links("https://t.org", Keys(read_keys(f"1:{'x' * 32}")))
        renderer = Renderer(done.content)
        rendered = renderer.render({"name": "x", **renderer.links.of(links, 1, 1)})
        assert "https://t.org/o/" in (rendered.html or "")
