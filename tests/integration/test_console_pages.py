"""The pages of the console, over HTTP and on a real database."""

from __future__ import annotations

import asyncio
import csv
import json
from typing import TYPE_CHECKING

import httpx2

from contracts import routing
from tests.support import tracking
from tests.support.channels import Counting
from tests.support.console import line, shown, visiting
from tests.support.deliveries import SOON, sent
from tests.support.results import bounced
from tests.support.stack import until
from worker.db import console as reads
from worker.operations.prepare import PreparationRequest, prepare
from worker.web.console.app import _READS

if TYPE_CHECKING:
    import pytest

    from tests.support.console import Visitor
    from tests.support.stack import Stack

QUICK = SOON | {"page_look_after": 0.05, "claim_lease": 0.3, "result_lease": 0.3}
LETTER = """
label = "A letter"
channel = "email"
[email]
from = "News <news@example.org>"
subject = "Hello {{ first_name }}"
text = "Dear {{ first_name }}"
html = "<p onclick='x()'>Dear {{ first_name }}<img src='https://spy.example/p.gif'></p>"
"""


async def lived_through(stack: Stack) -> int:
    """A delivery with something of everything."""
    rows = [f"user{i}@{'example.org' if i % 2 else 'other.example'},p{i}" for i in range(1, 13)]
    number = await stack.prepare([*rows, "no address,p99"], columns="address,profile_id")
    async with stack.running(channel=Counting(frozenset({3, 4})), **QUICK):
        await stack.confirm(number)
        await stack.finished(number)
        await stack.publish(routing.RESULTS, routing.BOUNCE, json.dumps([bounced(number, 5)]).encode())
        await tracking.publish(stack, tracking.event(number, 7, "open", "e1"))
        click = tracking.event(number, 8, "click", "e2", url="https://example.org/a?b=1&c=2")
        await tracking.publish(stack, click, key=routing.CLICK)
        complaint = tracking.event(number, 9, "complaint", "e3")
        await tracking.publish(stack, complaint, key=routing.COMPLAINT)
        await tracking.recorded(stack, 3)

        async def counted() -> bool:
            row = await stack.deployment(number)
            return bool(row["bounced"] == 1 and row["clicked"] == 1 and row["complained"] == 1)

        await until(counted)
    return number


async def test_every_page_of_a_delivery_and_every_number_that_leads_to_rows(stack: Stack) -> None:
    number = await lived_through(stack)
    base = f"/deliveries/{number}"
    async with visiting(stack) as visitor:
        page = shown(await visitor.get(base))
        assert "Finished: all 12 recipients have an outcome. 2 are unknown: somebody must" in page
        assert "9 sent 1 bounced 2 unknown" in page
        assert "Opened 2 22.22 % by people 2, 22.22 %" in page
        assert "Opted out 0 complained 1, 11.11 %" in page
        assert "Exact, as of" in page
        assert "hard user unknown 5.1.1 recipient 1" in shown(await visitor.get(f"{base}/bounces"))
        assert "<polyline" in await visitor.get(f"{base}/curve")
        assert "example.org 6" in shown(await visitor.get(f"{base}/domains"))
        assert "https://example.org/a?b=1&c=2 1 1 1" in shown(await visitor.get(f"{base}/links"))
        assert "invalid by the preparation 1" in shown(await visitor.get(f"{base}/causes"))
        assert "14 no address p99 invalid" in shown(await visitor.get(f"{base}/exclusions"))
        history = shown(await visitor.get(f"{base}/history"))
        assert "ready start pending ana" in history
        assert "confirm ana" in history
        log = await visitor.get(f"{base}/log?status=bounced&bounce_kind=hard&reason=user_unknown&code=5.1.1")
        assert "5 user5@example.org bounced hard" in shown(log)
        assert "user4@" not in log
        events = await visitor.get(
            f"{base}/tracking?kind=click&human=yes&url=https://example.org/a?b=1%26c=2"
        )
        assert "8 user8@other.example click" in shown(events)
        assert "user7@" not in events
        assert "3 user3@" in shown(await visitor.get(f"{base}/log?status=unknown"))
        one = shown(await visitor.get(f"{base}/recipients/8"))
        assert "user8@other.example" in one
        assert "click https://example.org/a?b=1&c=2" in one
        assert f"{number}/recipients/8" in await visitor.get("/profiles?id=p8")


async def test_a_search_finds_an_address_a_profile_and_a_number(stack: Stack) -> None:
    number = await sent(
        stack, [f"user{i}@example.org,p{i}" for i in range(1, 31)], columns="address,profile_id"
    )
    base = f"/deliveries/{number}/log"
    async with visiting(stack) as visitor:
        assert "7 user7@example.org" in shown(await visitor.get(f"{base}?q=USER7@"))
        assert "9 user9@example.org" in shown(await visitor.get(f"{base}?q=p9"))
        assert "Recipient 11 of 30" in shown(await visitor.get(f"{base}?q=11"))
        assert "Nobody fits." in await visitor.get(f"{base}?q=nobody")


async def test_the_log_is_read_by_pages_and_no_page_looks_through_all(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads, "PAGE", 10)
    monkeypatch.setattr(reads, "_RANGE", 10)
    monkeypatch.setattr(reads, "_RANGES", 2)
    number = await sent(stack, 64)
    base = f"/deliveries/{number}/log"
    async with visiting(stack) as visitor:
        found: list[str] = []
        page = await visitor.get(base)
        while True:
            found += [
                line for line in page.split() if line.startswith(f'href="/deliveries/{number}/recipients/')
            ]
            more = [line for line in page.split('"') if "log?after=" in line]
            if not more:
                break
            page = await visitor.get(more[0])
        assert len(found) == 64
        far = await visitor.get(f"{base}?q=user64@")
        assert "Nobody fits among the recipients up to 20." in shown(far)
        further = [line for line in far.split('"') if "after=20" in line]
        far = await visitor.get(further[0].replace("&amp;", "&"))
        assert "up to 40" in shown(far)
        assert "64 user64@example.org" in shown(await visitor.get(f"{base}?q=user64@&after=60"))


async def test_the_list_finds_by_label_number_state_and_channel_and_has_pages(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads, "PAGE", 3)
    numbers = [await stack.prepare(1) for _ in range(5)]
    async with visiting(stack) as visitor:
        page = await visitor.get("/")
        assert [f'href="/deliveries/{n}"' in page for n in numbers] == [False, False, True, True, True]
        older = await visitor.get(f"/?before={numbers[2]}")
        assert [f'href="/deliveries/{n}"' in older for n in numbers] == [True, True, False, False, False]
        assert f'href="/deliveries/{numbers[0]}"' in await visitor.get(
            f"/?q={numbers[0]}&show=ready&channel=null"
        )
        assert "No delivery fits" in await visitor.get("/?q=absent")
        assert "No delivery fits" in await visitor.get("/?show=over")
        assert "No delivery fits" in await visitor.get("/?channel=email")


async def test_an_empty_installation_says_what_to_do(stack: Stack) -> None:
    async with visiting(stack) as visitor:
        assert "There is no delivery yet. Prepare one:" in shown(await visitor.get("/"))
        assert "It is empty" in await visitor.get("/dead")
        assert "Nobody is kept out" in await visitor.get("/kept-out/quarantine")
        assert "Nobody is kept out" in await visitor.get("/kept-out/denylist")


async def test_a_delivery_without_recipients_has_every_page(stack: Stack) -> None:
    number = await stack.prepare(["", "none"])
    async with visiting(stack) as visitor:
        assert "nobody is left to send to" in await visitor.get(f"/deliveries/{number}")
        for name in (
            "log",
            "tracking",
            "links",
            "bounces",
            "domains",
            "curve",
            "causes",
            "history",
            "exclusions",
        ):
            await visitor.get(f"/deliveries/{number}/{name}")


async def test_the_export_is_csv_in_which_no_formula_runs(stack: Stack) -> None:
    number = await sent(stack, ["=cmd@example.org", "b@example.org"])
    async with visiting(stack) as visitor:
        text = await visitor.get(f"/deliveries/{number}/log.csv?status=sent")
        rows = list(csv.DictReader(text.splitlines()))
        assert [row["address"] for row in rows] == ["'=cmd@example.org", "b@example.org"]
        assert {row["status"] for row in rows} == {"sent"}


async def test_a_message_is_shown_as_a_recipient_gets_it_and_runs_nothing(stack: Stack) -> None:
    file, people = stack.folder / "letter.toml", stack.folder / "people.csv"
    file.write_text(LETTER)
    people.write_text("address,first_name\nana@example.org,<b>Ana</b>\nlayla@example.org,ليلى\n")
    request = PreparationRequest(file, people, "ana", None, stack.settings.channels)
    number = (await prepare(stack.db, request)).delivery_id
    async with visiting(stack) as visitor:
        page = await visitor.get(f"/deliveries/{number}/recipients/2")
        assert "Hello ليلى" in page
        assert '<iframe class="message" sandbox ' in page
        framed = await visitor.client.get(f"/deliveries/{number}/recipients/1/html")
        assert "Dear &lt;b&gt;Ana&lt;/b&gt;" in framed.text
        policy = framed.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "img-src data:" in policy
        assert policy.endswith("sandbox")
        assert "script-src" not in policy


async def test_what_is_not_there_is_said(stack: Stack) -> None:
    number = await stack.prepare(2)
    async with visiting(stack) as visitor:
        for path in (
            "/deliveries/999",
            "/deliveries/0",
            f"/deliveries/{'9' * 6_000}",
            "/deliveries/9223372036854775808",
            "/deliveries/x",
            f"/deliveries/{number}/nothing",
            f"/deliveries/{number}/recipients/3",
            f"/deliveries/{number}/recipients/{'9' * 100}",
            "/kept-out/others",
        ):
            assert "There is no" in (page := await visitor.get(path, 404)) or "has no recipient" in page
        assert "Nobody fits" in await visitor.get(
            f"/deliveries/{number}/log?q=%00&after=99999999999999&status=x&q=zz"
        )
        await visitor.get(f"/deliveries/{number}?command=%00'--")
        await visitor.get(f"/deliveries/{number}/tracking?after=x-%00&kind=y&human=z")
        await visitor.get("/?before=-1&show=__class__&q=%25")
        assert "Not Found" in await visitor.get("/nowhere", 404)


async def test_the_dead_queue_shows_reasons_and_no_bodies(stack: Stack) -> None:
    async with stack.running("results"):
        await stack.publish(routing.RESULTS, routing.SENT, b'{"secret": "ana@example.org"}')
        await until(lambda: stack.depth(routing.DEAD_QUEUE))
    async with visiting(stack) as visitor:
        page = await visitor.get("/dead")
        assert "1 messages could not be handled" in shown(page)
        assert "delivery_id" in page
        assert "ana@example.org" not in page
        assert await until(lambda: stack.depth(routing.DEAD_QUEUE)) == 1


async def test_nobody_sees_anything_before_they_sign_in(stack: Stack) -> None:
    number = await stack.prepare(1)
    async with visiting(stack, None) as visitor:
        for path, _ in _READS:
            address = path.format(delivery=number, recipient=1, list="quarantine", panel="curve")
            page = await visitor.get(address, 401)
            assert "Open the link that the console printed last" in page
            assert "Test" not in page
        assert "This link was used" in await visitor.get("/sign-in/nothing", 403)
        assert "ana" in await visitor.get(visitor.service.link)


async def test_who_may_only_look_sees_no_person_unless_a_setting_lets_them(stack: Stack) -> None:
    number = await lived_through(stack)
    base = f"/deliveries/{number}"
    async with visiting(stack, None) as visitor:
        await visitor.sign_in("ana", look="on")
        for name in ("", "/log", "/tracking", "/exclusions", "/recipients/8", "/history", "/domains"):
            page = await visitor.get(f"{base}{name}")
            assert "user8@" not in page
            assert "p99" not in page
        for path in (
            f"{base}/log.csv",
            f"{base}/recipients/8/html",
            "/profiles?id=p8",
            f"{base}/log?q=user8",
        ):
            assert "You may not see the recipients" in await visitor.get(path, 403)
    async with visiting(stack, None, console_hide_personal_data=False) as visitor:
        await visitor.sign_in("ana", look="on")
        assert "user8@" in await visitor.get(f"{base}/log")


async def test_the_next_link_works_after_one_was_used(stack: Stack) -> None:
    async with visiting(stack) as visitor:
        async with httpx2.AsyncClient(base_url=visitor.client.base_url) as other:
            assert (await other.get("/")).status_code == 401
            used = await other.post(visitor.service.link, data={"operator": "ana"})
            assert used.status_code == 303
            assert (await other.get("/")).status_code == 200
            assert "__Host-" not in used.headers["set-cookie"]
        assert "You are signed out." in await visitor.post("/sign-out")
        await visitor.get("/", 401)


async def test_a_page_follows_a_delivery_and_a_stop_ends_the_stream(stack: Stack) -> None:
    number = await stack.prepare(20)
    async with visiting(stack) as visitor, stack.running():
        address = f"/deliveries/{number}/live?state=ready"
        async with visitor.client.stream("GET", address) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            lines = stream.aiter_lines()
            await line(lines, "Waits for its confirmation")
            await stack.confirm(number)
            await line(lines, "data: finished")
            await line(lines, "event: beat")
        await until(lambda: _nobody(visitor))
        async with visitor.client.stream("GET", address) as stream:
            lines = stream.aiter_lines()
            await line(lines, "Finished: all")
            visitor.stop.set()
            async with asyncio.timeout(4):  # less than the time after which a server cuts requests off
                async for _ in lines:
                    pass


async def _nobody(visitor: Visitor) -> bool:
    return visitor.service.live.viewers == 0
