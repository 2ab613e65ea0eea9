"""A preparation with tracked links: what is stored, and the sentences where it cannot be."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from worker.operations.prepare import PreparationRequest, Prepared, prepare

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.stack import Stack

MAIL = """
[email]
from = "news@example.org"
subject = "Hello"
text = "See https://example.org/{{ shop }} or leave: {{ unsubscribe_url }}"
html = '<a href="https://example.org/{{ shop }}?a=1&amp;b=2">x</a><a data-notrack href="https://example.org">y</a>'
"""
NONE = "and this installation has none"
ADVICE = "set SENDOFF_TRACKER_URL and SENDOFF_TRACKER_KEYS"
TRACKED = "[tracking]\nopens = true\nclicks = true\n"


async def prepared(
    stack: Stack,
    definition: str,
    *,
    tracker: bool = True,
    channel: str = "email",
    delivery: int | None = None,
) -> Prepared:
    file, people = stack.folder / "delivery.toml", stack.folder / "people.csv"
    file.write_text(f'label = "Test"\nchannel = "{channel}"\n{definition}')
    people.write_text("address,shop\nana@example.org,a&b\n")
    channels = ("email", "null", "letter")
    return await prepare(
        stack.db, PreparationRequest(file, people, "ana", delivery, channels, tracker=tracker)
    )


async def stored(stack: Stack, delivery_id: int) -> tuple[dict[str, Any], list[tuple[Any, ...]]]:
    async with stack.db.session() as session:
        content = await session.connection.fetchval(
            "SELECT content::text FROM sendoff.delivery_content WHERE delivery_id = $1", delivery_id
        )
        links = await session.connection.fetch(
            "SELECT preparation, number, part, target FROM sendoff.link"
            " WHERE delivery_id = $1 ORDER BY number",
            delivery_id,
        )
    return json.loads(content), [tuple(link) for link in links]


async def test_links_are_numbered_and_stored_with_their_targets(stack: Stack) -> None:
    done = await prepared(stack, TRACKED + MAIL)
    content, links = await stored(stack, done.delivery_id)
    assert content["html"] == (
        '<a href="{{ sendoff_link_1 }}">x</a><a href="https://example.org">y</a>{{ sendoff_pixel }}'
    )
    assert content["text"] == "See {{ sendoff_link_2 }} or leave: {{ unsubscribe_url }}"
    assert links == [
        (1, 1, "html", "https://example.org/{{ shop }}?a=1&amp;b=2"),
        (1, 2, "text", "https://example.org/{{ shop }}"),
    ]


async def test_the_next_preparation_replaces_the_links(stack: Stack) -> None:
    done = await prepared(stack, TRACKED + MAIL)
    again = MAIL.replace("example.org/{{ shop }}?a=1&amp;b=2", "example.org/new")
    await prepared(stack, TRACKED + again, delivery=done.delivery_id)
    _, links = await stored(stack, done.delivery_id)
    assert [(preparation, target) for preparation, _, part, target in links if part == "html"] == [
        (2, "https://example.org/new")
    ]
    await prepared(stack, MAIL, delivery=done.delivery_id)
    content, links = await stored(stack, done.delivery_id)
    assert links == []
    assert "sendoff_" not in content["html"]


@pytest.mark.parametrize(
    ("definition", "channel", "sentence"),
    [
        (
            TRACKED + MAIL.replace("{{ unsubscribe_url }}", ""),
            "email",
            f"tracking: this installation has no tracker: {ADVICE}, or leave [tracking] out.",
        ),
        (
            MAIL,
            "email",
            f"text, line 1: “unsubscribe_url” is a link to the tracker, {NONE}: {ADVICE}, or leave it out.",
        ),
        (TRACKED, "letter", "tracking: the sender of the channel “letter” is not Sendoff's."),
    ],
)
async def test_an_installation_without_a_tracker_says_so(
    stack: Stack, definition: str, channel: str, sentence: str
) -> None:
    done = await prepared(stack, definition, tracker=False, channel=channel)
    assert done.state == "preparation_failed"
    assert done.problems == (sentence,)


async def test_a_column_with_the_name_of_a_link_is_told_where_there_is_a_tracker(
    stack: Stack, tmp_path: Path
) -> None:
    file, people = tmp_path / "delivery.toml", tmp_path / "people.csv"
    file.write_text(f'label = "Test"\nchannel = "email"\n{MAIL}')
    people.write_text("address,shop,unsubscribe_url\nana@example.org,a,https://example.org/off\n")
    request = PreparationRequest(file, people, "ana", None, ("email",), tracker=True)
    (problem,) = (await prepare(stack.db, request)).problems
    assert problem.startswith("text, line 1: the column “unsubscribe_url” cannot be used in templates")
    request = PreparationRequest(file, people, "ana", None, ("email",))
    assert (await prepare(stack.db, request)).problems == ()
