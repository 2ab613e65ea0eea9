"""Every number of the console leads to the rows behind it, and every log can be searched and exported."""

from __future__ import annotations

import csv
import html
import json
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from urllib.parse import unquote

from contracts import routing
from tests.support import tracking
from tests.support.channels import Counting
from tests.support.console import shown, visiting
from tests.support.deliveries import SOON
from tests.support.results import bounced
from tests.support.stack import until

if TYPE_CHECKING:
    import pytest

    from tests.support.console import Visitor
    from tests.support.stack import Stack

QUICK = SOON | {"page_look_after": 0.05, "claim_lease": 0.3, "result_lease": 0.3}
WAVES = '[[waves]]\nshare = "50%"\n[[waves]]\nshare = "rest"\nafter = "1h"\n'


class Numbers(HTMLParser):
    """The numbers of a page, each with where it leads; shares and rates are none."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str | None, int]] = []
        self._to: str | None = None
        self._said = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "a":
            self._to = given.get("href")
        elif tag == "p" and given.get("class") == "headline":
            self._said = True
        elif tag == "data" and not self._said and "class" not in given:
            value = given["value"] or ""
            if value.isdigit():
                self.found.append((self._to, int(value)))

    def handle_endtag(self, tag: str) -> None:
        if tag == "a":
            self._to = None
        elif tag == "p":
            self._said = False


def numbers(page: str) -> list[tuple[str | None, int]]:
    parser = Numbers()
    parser.feed(page.partition("<main")[2])
    return parser.found


async def lived_through(stack: Stack) -> int:
    """A delivery with something of everything, and different numbers of it."""
    rows = [f"user{i}@{'example.org' if i % 3 else 'other.example'},p{i}" for i in range(1, 31)]
    out = ["no address,p98", "none,p99", "user1@example.org,p1"]
    number = await stack.prepare([*rows, *out], columns="address,profile_id")
    async with stack.running(channel=Counting(frozenset({3, 4, 11, 12})), **QUICK):
        await stack.confirm(number)
        await stack.finished(number)
        hard = [bounced(number, n) for n in (5, 6, 7)]
        await stack.publish(routing.RESULTS, routing.BOUNCE, json.dumps(hard).encode())
        events = (
            tracking.event(number, 8, "open", "e1"),
            tracking.event(number, 9, "open", "e2", user_agent=tracking.SCANNER),
            tracking.event(number, 10, "click", "e3", url="https://example.org/a?b=1&c=2"),
            tracking.event(number, 13, "click", "e4", url="https://example.org/a?b=1&c=2"),
            tracking.event(number, 14, "optout", "e5"),
            tracking.event(number, 15, "mirror", "e6"),
            tracking.event(number, 16, "complaint", "e7"),
        )
        await tracking.publish(stack, *events)
        await tracking.recorded(stack, len(events))

        async def counted() -> bool:
            row = await stack.deployment(number)
            return (row["bounced"], row["opened"], row["complained"]) == (3, 6, 1)

        await until(counted)
    return number


async def rows_behind(visitor: Visitor, address: str) -> int:
    """How many recipients, or lines that were left out, a page lists."""
    page = await visitor.get(html.unescape(address))
    body = page.partition('<table class="cards">')[2].partition("</table>")[0]
    return len(set(re.findall(r'<td data-label="(?:Number|Line)".*?</td>', body, re.DOTALL)))


async def test_every_number_leads_to_as_many_rows(stack: Stack) -> None:
    number = await lived_through(stack)
    base = f"/deliveries/{number}"
    async with visiting(stack) as visitor, stack.running("stats"):
        pages = [
            "/",
            base,
            *(f"{base}/{name}" for name in ("bounces", "domains", "links", "curve", "causes")),
        ]
        found = [(path, *one) for path in pages for one in numbers(await visitor.get(path))]
        recounted = await visitor.press(await visitor.get(base), f"{base}/stats")
        found += [("stats", *one) for one in numbers(recounted)]
        alone = {(path, value) for path, to, value in found if to is None}
        assert alone == {(base, 1)}, "the number of the preparation is no number of rows"
        linked = {(to, value) for _, to, value in found if to is not None and value}
        assert len(linked) > 25
        assert [(to, n) for to, n in sorted(linked) if await rows_behind(visitor, to) != n] == []


async def test_a_wave_leads_to_its_first_recipients(stack: Stack) -> None:
    number = await stack.prepare(30, extra=WAVES)
    base = f"/deliveries/{number}"
    async with visiting(stack) as visitor:
        waves = [one for one in numbers(await visitor.get(base)) if one[0] and "after=" in one[0]]
        assert waves == [(f"{base}/log?after=0", 15), (f"{base}/log?after=15", 15)]
        second = shown(await visitor.get(f"{base}/log?after=15"))
        assert " 16 user" in second
        assert " 15 user" not in second


async def test_the_dialog_leads_to_whom_it_goes_and_who_is_left_out(stack: Stack) -> None:
    number = await stack.prepare(["a@example.org", "b@example.org", "none", "a@example.org"])
    base = f"/deliveries/{number}"
    async with visiting(stack) as visitor, stack.running("confirm"):
        dialog = await visitor.press(await visitor.get(base), f"{base}/confirm")
        found = [(to, value) for to, value in numbers(dialog) if to is not None]
        assert found == [
            (f"{base}/log", 2),
            (f"{base}/exclusions?cause=duplicate", 1),
            (f"{base}/exclusions?cause=invalid", 1),
        ]
        assert [await rows_behind(visitor, to) for to, _ in found] == [2, 1, 1]


async def test_every_log_is_searched_and_exported_with_its_filters(stack: Stack) -> None:
    number = await lived_through(stack)
    base = f"/deliveries/{number}"
    exports = {
        "log.csv": ("address", 30),
        "log.csv?status=unknown": ("address", 4),
        "log.csv?status=bounced&reason=user_unknown&code=5.1.1&q=user6": ("address", 1),
        "log.csv?q=p8": ("address", 1),
        "log.csv?domain=other.example": ("address", 10),
        "tracking.csv": ("address", 7),
        "tracking.csv?kind=opened&human=yes": ("address", 5),
        "tracking.csv?kind=click&q=USER13@": ("address", 1),
        "exclusions.csv": ("line", 3),
        "exclusions.csv?cause=invalid&q=p98": ("line", 1),
    }
    async with visiting(stack) as visitor:
        for path, (column, rows) in exports.items():
            answer = await visitor.client.get(f"{base}/{path}")
            assert answer.headers["content-type"].startswith("text/csv")
            name = f"delivery-{number}-{path.partition('?')[0]}"
            assert answer.headers["content-disposition"] == f'attachment; filename="{name}"'
            read = list(csv.DictReader(answer.text.splitlines()))
            assert len({row[column] for row in read}) == len(read) == rows, path
            if "csv?" in path and "domain" not in path:
                page = await visitor.get(f"{base}/{path.replace('.csv', '')}")
                assert path in unquote(html.unescape(page)), "the page exports what it shows"
        assert "10 user10@" in shown(await visitor.get(f"{base}/tracking?q=user10@"))
        assert "Recipient 10 of 30" in shown(await visitor.get(f"{base}/tracking?q=10"))
        assert "Nothing fits." in await visitor.get(f"{base}/tracking?q=user1@")
        assert "Nobody fits." in await visitor.get(f"{base}/exclusions?q=nobody")
    async with visiting(stack, None) as visitor:
        await visitor.sign_in("ana", look="on")
        for path in exports:
            await visitor.get(f"{base}/{path}", 403)
        for path in ("tracking?q=user", "exclusions?q=p9", "log?q=user"):
            await visitor.get(f"{base}/{path}", 403)
        await visitor.get("/kept-out/quarantine?q=a@example.org", 403)


async def test_a_long_log_is_exported_whole(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    number = await stack.prepare([f"user{i}@example.org" for i in range(1, 24)] + ["none"] * 7)
    monkeypatch.setattr("worker.web.console.logs._EXPORTED", 5)
    monkeypatch.setattr("worker.db.console._RANGE", 4)
    monkeypatch.setattr("worker.db.console._RANGES", 2)
    base = f"/deliveries/{number}"
    async with visiting(stack) as visitor:
        text = await visitor.get(f"{base}/log.csv")
        assert [row["recipient"] for row in csv.DictReader(text.splitlines())] == [*map(str, range(1, 24))]
        text = await visitor.get(f"{base}/exclusions.csv")
        assert [row["line"] for row in csv.DictReader(text.splitlines())] == [*map(str, range(25, 32))]


async def test_who_is_kept_out_says_since_when_until_when_and_by_whom(stack: Stack) -> None:
    number = await lived_through(stack)
    await stack.rows(
        "INSERT INTO sendoff.quarantined_address (channel, address, address_key, cause, added_by, expires_at)"
        " VALUES ('email', 'Tom@example.org', 'tom@example.org', 'asked', 'ana', now() + interval '1 day')"
    )
    async with visiting(stack) as visitor:
        page = shown(await visitor.get("/kept-out/quarantine"))
        assert "Tom@example.org asked" in page
        assert " ana" in page
        assert "Tom@" in await visitor.get("/kept-out/quarantine?q=TOM@example.org")
        assert "It is not on the list." in await visitor.get("/kept-out/quarantine?q=tim@example.org")
        page = shown(await visitor.get("/kept-out/denylist?q=p14"))
        assert "p14 optout" in page
        assert f"for good delivery {number}" in page
        assert "p16" not in page
