"""The tracker on real servers: what it answers, and what of it moves the KPIs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from contracts import routing
from tests.support.stack import until
from tests.support.tracker import BASE, MAIL, prepare_tracked, tracked, tracking
from tests.support.tracking import recorded
from worker.domain.links import MOST_LINKS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.stack import Stack
    from worker.settings import Settings

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
ONE_CLICK = b"List-Unsubscribe=One-Click"
ANA, ZOE, KIM = 1, 2, 3
FIXED, OWN, SITE = 1, 2, 3


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return tracked(settings, tmp_path / "spool")


@pytest.fixture
async def number(stack: Stack) -> int:
    """A confirmed delivery with tracked links."""
    prepared = await prepare_tracked(stack)
    async with stack.running("confirm"):
        assert (await stack.confirm(prepared))["status"] == "accepted"
    return prepared


async def kpis(stack: Stack, number: int) -> dict[str, Any]:
    row = await stack.deployment(number)
    return {name: row[name] for name in ("opened", "clicked", "mirror", "optout", "human_clicked")}


async def events(stack: Stack) -> int:
    """Counts the events that wait for the recorder."""
    return await stack.depth(routing.TRACKING_QUEUE)


async def test_what_readers_do_moves_the_kpis(stack: Stack, number: int) -> None:
    async with tracking(stack.settings) as site, stack.running("tracking"):
        opened = await site.ask(site.links.pixel(number, ANA), user_agent=FIREFOX)
        assert (opened.status, opened.headers["content-type"]) == (200, "image/gif")
        assert opened.body.startswith(b"GIF89a")
        fixed = await site.click(number, ANA, FIXED, user_agent=FIREFOX)
        assert (fixed.status, fixed.headers["location"]) == (302, "https://example.org/fixed?a=1&b=2")
        own = await site.click(number, ZOE, OWN, user_agent="curl/8.0")
        assert own.headers["location"] == f"https://example.org/Zo%C3%AB%20&%20co?to={ZOE}"
        whole = await site.click(number, ANA, SITE, user_agent=FIREFOX)
        assert whole.headers["location"] == "https://ana.example.org/"
        assert (await site.ask(site.links.mirror(number, KIM))).status == 200
        assert (await site.ask(site.links.optout(number, KIM), "POST", ONE_CLICK)).status == 200
        await recorded(stack, 6)
    assert await kpis(stack, number) == {
        "opened": 3, "clicked": 2, "mirror": 1, "optout": 1, "human_clicked": 1,
    }  # fmt: skip
    urls = await stack.rows("SELECT url, clickers FROM sendoff.tracked_url WHERE delivery_id = $1", number)
    assert {row["url"]: row["clickers"] for row in urls} == {
        "https://example.org/fixed?a=1&b=2": 1,
        f"https://example.org/Zo%C3%AB%20&%20co?to={ZOE}": 1,
        "https://ana.example.org/": 1,
    }
    (denied,) = await stack.rows("SELECT profile_id, cause FROM sendoff.denylisted_profile")
    assert denied == {"profile_id": "P3", "cause": "optout"}


async def test_an_opt_out_asks_first_and_only_a_post_opts_out(stack: Stack, number: int) -> None:
    async with tracking(stack.settings) as site:
        url = site.links.optout(number, ANA)
        asked = await site.ask(url, accept_language="fr")
        assert asked.status == 200
        assert b'<html lang="de">' in asked.body  # the message's language wins
        assert b'<form method="post">' in asked.body
        assert await events(stack) == 0
        done = await site.ask(url, "POST", b"confirm=yes", content_type="application/x-www-form-urlencoded")
        assert done.status == 200
        assert "abgemeldet" in done.body.decode()
        clicked = await site.ask(url, "POST", ONE_CLICK)
        assert (clicked.status, clicked.body, "location" in clicked.headers) == (200, b"", False)
        assert await events(stack) == 2
        assert (await site.ask(url, "POST", b"x" * 10_000)).status == 413


async def test_a_message_without_a_language_is_answered_in_the_browsers(stack: Stack) -> None:
    number = await prepare_tracked(stack, MAIL.replace(' lang="de"', ""))
    async with tracking(stack.settings) as site:
        url = site.links.optout(number, ANA)
        for header, language in (
            ("fr-CA, en;q=0.5", "fr"),
            ("xx", "en"),
            ("en;q=0.1, pl;q=0.9", "pl"),
            ("", "en"),
        ):
            page = (await site.ask(url, accept_language=header)).body.decode()
            assert f'<html lang="{language}">' in page


async def test_what_no_person_asked_for_does_not_count(stack: Stack, number: int) -> None:
    async with tracking(stack.settings) as site:
        for url in (
            site.links.pixel(number, ANA),
            site.links.clicks(number, ANA, [FIXED])[0],
            site.links.mirror(number, ANA),
        ):
            shown = await site.ask(url)
            head = await site.ask(url, "HEAD")
            assert (head.status, head.body) == (shown.status, b"")
            assert head.headers.get("location") == shown.headers.get("location")
            for early in (
                {"purpose": "prefetch"},
                {"sec_purpose": "prefetch;prerender"},
                {"x_moz": "prefetch"},
            ):
                assert (await site.ask(url, **early)).status == shown.status
        assert await events(stack) == 3


@pytest.mark.parametrize("path", ["", "/", "/x", "/c", "/c/", "/x/y", "/c/a/b", "/c/%00", "/o/.gif", "//c/x"])
async def test_a_path_that_is_none_of_ours_gets_a_plain_page(stack: Stack, path: str) -> None:
    async with tracking(stack.settings) as site:
        answer = await site.ask(f"{BASE}{path}")
        assert answer.status == 404
        assert b"leads nowhere" in answer.body


async def test_tokens_that_were_not_signed_for_it_lead_nowhere(stack: Stack, number: int) -> None:
    async with tracking(stack.settings) as site:
        click, pixel = site.links.clicks(number, ANA, [FIXED])[0], site.links.pixel(number, ANA)
        token = click.rpartition("/")[2]
        flipped = "B" if token[5] == "A" else "A"
        for wrong in (
            click[:-1],
            click + token,
            click.replace("/c/", "/m/"),
            click.replace("/c/", "/u/"),
            pixel.replace("/o/", "/c/").removesuffix(".gif"),
            click.replace(token, token[:5] + flipped + token[6:]),
            site.links.clicks(number, ANA, [MOST_LINKS])[0],  # signed, and no link of this delivery
            site.links.clicks(number + 1, ANA, [FIXED])[0],
            site.links.clicks(number, 99, [OWN])[0],
            site.links.mirror(number, 99),
        ):
            assert (await site.ask(wrong)).status == 404, wrong
            assert (await site.ask(wrong, "POST", ONE_CLICK)).status in {404, 405}, wrong
        assert await events(stack) == 0


async def test_a_value_cannot_make_a_link_lead_to_what_is_no_web_site(stack: Stack, number: int) -> None:
    async with tracking(stack.settings) as site:
        for recipient in (ZOE, KIM):  # javascript:, and nothing at all
            answer = await site.click(number, recipient, SITE)
            assert (answer.status, answer.headers.get("location")) == (404, None)
        assert await events(stack) == 0


async def test_the_headers_keep_robots_caches_and_scripts_away(stack: Stack, number: int) -> None:
    async with tracking(stack.settings) as site:
        answers = [
            await site.ask(site.links.pixel(number, ANA)),
            await site.click(number, ANA, FIXED),
            await site.ask(site.links.mirror(number, ANA)),
            await site.ask(site.links.optout(number, ANA)),
            await site.ask(f"{BASE}/c/none"),
        ]
        for answer in answers:
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["x-robots-tag"] == "noindex, nofollow"
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert "set-cookie" not in answer.headers
            assert "server" not in answer.headers
            assert int(answer.headers["content-length"]) == len(answer.body)
        assert answers[2].headers["content-security-policy"].startswith("sandbox ")
        assert "allow-scripts" not in answers[2].headers["content-security-policy"]
        for page in answers[3:]:
            assert page.headers["content-security-policy"].startswith("default-src 'none'")
        robots = await site.ask(f"{BASE}/robots.txt")
        assert robots.body == b"User-agent: *\nDisallow: /\n"
        refused = await site.ask(site.links.pixel(number, ANA), "POST")
        assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD")


async def test_the_mirror_page_is_the_recipients_message_without_the_pixel(stack: Stack, number: int) -> None:
    async with tracking(stack.settings) as site:
        page = (await site.ask(site.links.mirror(number, ZOE))).body.decode()
        assert "Hallo Zoë &amp; co" in page
        assert site.links.clicks(number, ZOE, [OWN])[0] in page
        assert site.links.optout(number, ZOE) in page
        assert "/o/" not in page


async def test_a_text_alone_is_shown_as_text(stack: Stack) -> None:
    mail = '[email]\nfrom = "a@example.org"\nsubject = "s"\ntext = "<b>{{ name }}</b> {{ mirror_url }}"\n'
    number = await prepare_tracked(stack, mail)
    async with tracking(stack.settings) as site:
        page = (await site.ask(site.links.mirror(number, ZOE))).body.decode()
        assert "&lt;b&gt;Zoë &amp; co&lt;/b&gt;" in page


async def test_links_work_before_the_confirm_and_do_not_count(stack: Stack) -> None:
    number = await prepare_tracked(stack)
    async with tracking(stack.settings) as site:
        assert (await site.click(number, ANA, FIXED)).status == 302
        assert (await site.ask(site.links.pixel(number, ANA))).status == 200
        assert (await site.ask(site.links.optout(number, ANA), "POST", ONE_CLICK)).status == 200
        assert await events(stack) == 0


async def test_the_links_of_a_proof_work_and_do_not_count(stack: Stack, number: int) -> None:
    async with tracking(stack.settings) as site:
        links = site.links.of_proofs()
        assert (await site.ask(links.clicks(number, ANA, [FIXED])[0])).status == 302
        assert (await site.ask(links.pixel(number, ANA))).status == 200
        assert (await site.ask(links.optout(number, ANA), "POST", ONE_CLICK)).status == 200
        page = (await site.ask(links.mirror(number, ANA))).body.decode()
        assert links.clicks(number, ANA, [FIXED])[0] in page
        assert await events(stack) == 0


async def test_an_erased_recipients_own_links_lead_nowhere(stack: Stack, number: int) -> None:
    async with stack.db.session() as session:
        await session.connection.execute(
            "UPDATE sendoff.recipient SET address = '', variables = '{}'"
            " WHERE delivery_id = $1 AND recipient = $2",
            number,
            ANA,
        )
    async with tracking(stack.settings) as site:
        assert (await site.click(number, ANA, OWN)).status == 404
        assert (await site.click(number, ANA, FIXED)).status == 302
        assert (await site.ask(site.links.mirror(number, ANA))).status == 404


async def test_a_proxy_may_cut_the_path_or_not(stack: Stack, number: int) -> None:
    async with tracking(stack.settings) as site:
        url = site.links.clicks(number, ANA, [FIXED])[0]
        assert (await site.ask(url)).status == 302
        assert (await site.ask(url.removeprefix(BASE))).status == 302


async def test_the_events_say_who_did_what_with_which_program(stack: Stack, number: int) -> None:
    async with tracking(stack.settings) as site:
        await site.click(number, ANA, FIXED, user_agent="a" * 600)
        queue = await stack.channel.get_queue(stack.names.queue(routing.TRACKING_QUEUE), ensure=False)
        message = await until(lambda: queue.get(fail=False, no_ack=True))
        (event,) = json.loads(message.body)
    assert (message.routing_key, message.type) == ("click", "click")
    assert (event["delivery_id"], event["recipient"], event["kind"]) == (number, ANA, "click")
    assert (event["url"], event["user_agent"]) == ("https://example.org/fixed?a=1&b=2", "a" * 500)


async def test_the_metrics_tell_requests_and_events(stack: Stack, number: int) -> None:
    async with tracking(stack.settings) as site:
        await site.click(number, ANA, FIXED)
        await site.ask(f"{BASE}/c/none")

        def value(name: str, **labels: str) -> float:
            return site.tracker.registry.get_sample_value(f"sendoff_tracker_{name}", labels) or 0.0

        assert value("requests_total", link="c", answer="302") == 1
        assert value("requests_total", link="c", answer="404") == 1
        assert value("events_total", kept="broker") == 1
        assert value("spool_bytes") == 0
