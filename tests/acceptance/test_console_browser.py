"""The console in a browser: Debian's Chromium, driven as an operator would, and looked at by axe."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from playwright.async_api import async_playwright, expect

from tests.support.channels import Counting
from tests.support.console import visiting
from tests.support.deliveries import SOON, sent
from tests.support.proxy import CutProxy
from tests.support.stack import until
from worker.operations.prepare import PreparationRequest, prepare
from worker.web.console import deliveries

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from playwright.async_api import Page

    from tests.support.console import Visitor
    from tests.support.stack import Stack
    from worker.web.console.live import Live

AXE = (Path(__file__).parents[1] / "data" / "vendor" / "axe.js").read_text()
CHROMIUM = shutil.which("chromium")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
BROWSER: dict[str, str] = {}
"""Where the browser of this file listens."""
QUICK = SOON | {"page_look_after": 0.05, "claim_lease": 0.3, "result_lease": 0.3}
ARABIC = "رسالة الشتاء"
LONG = "Ένα πολύ μεγάλο όνομα " * 6 + "עם שם מימין לשמאל"

expect.set_options(timeout=15_000)  # a busy machine draws slowly
pytestmark = [
    pytest.mark.skipif(
        CHROMIUM is None and "CI" not in os.environ,
        reason="There is no Chromium here: make test installs it.",
    ),
    # The loop of a closed browser may leave a transport to the collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


class Unclean(AssertionError):
    """The page said something in the browser's console."""


@pytest.fixture(scope="module", autouse=True)
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One browser for all tests of this file: it takes longer to start than most of them. See `browsing`."""
    profile = tmp_path_factory.mktemp("chromium")
    command = [str(CHROMIUM), *FLAGS, "--remote-debugging-port=0", f"--user-data-dir={profile}"]
    listening = profile / "DevToolsActivePort"

    async def port() -> str:
        return listening.read_text().partition("\n")[0] if listening.exists() else ""

    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            BROWSER["address"] = f"http://127.0.0.1:{asyncio.run(until(port))}"
            yield
        finally:
            process.terminate()


@asynccontextmanager
async def browsing(visitor: Visitor, *, cut: bool = False, **options: Any) -> AsyncIterator[Page]:
    """Opens a window that shares nothing with others; what the page complains about fails the test, unless
    its connection is cut.
    """
    said: list[str] = []
    settings = {"locale": "de-DE", "timezone_id": "Europe/Berlin", "viewport": {"width": 1200, "height": 900}}
    async with async_playwright() as playwright:
        browser = await playwright.chromium.connect_over_cdp(BROWSER["address"])
        context = await browser.new_context(**{**settings, **options}, base_url=visitor.service.address)
        context.set_default_timeout(15_000)
        page = await context.new_page()
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        try:
            yield page
        finally:
            await context.close()
            await browser.close()
    if said and not cut:
        raise Unclean(said)


async def sign_in(page: Page, visitor: Visitor) -> None:
    await page.goto(visitor.service.link)
    await page.get_by_label("Who are you?").select_option("ana")
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("heading", name="Deliveries")).to_be_visible()


async def faults(page: Page) -> list[str]:
    """What would keep somebody out: what axe finds, light and dark, and a page wider than the screen."""
    await page.evaluate(AXE)
    found = await serious(page)
    await page.emulate_media(color_scheme="dark")
    found += await serious(page, "color-contrast")
    await page.emulate_media(color_scheme="light")
    wide = await page.evaluate("document.documentElement.scrollWidth")
    return found + ([f"It is {wide} wide."] if wide > page.viewport_size["width"] else [])


async def serious(page: Page, *rules: str) -> list[str]:
    only = {"runOnly": {"type": "rule", "values": rules}} if rules else {}
    found = await page.evaluate("(only) => axe.run({resultTypes: ['violations'], ...only})", only)
    return [
        f"{one['id']} {node['html'][:200]}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


async def test_an_operator_signs_in_confirms_by_the_keyboard_and_watches_it_finish(stack: Stack) -> None:
    await stack.prepare([f"user{i}@example.org" for i in range(1, 1_235)])
    async with visiting(stack, None) as visitor, stack.running(), browsing(visitor) as page:
        await sign_in(page, visitor)
        await page.get_by_label("Search").fill("test")
        await page.get_by_role("button", name="Show").click()
        await page.get_by_role("link", name="Test").click()
        await expect(page.locator("#live")).to_contain_text("Waits for its confirmation")
        assert await page.locator(".tiles dd").first.inner_text() == "1.234", "in the viewer's language"
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="To the page")).to_be_focused()
        await press(page, "Confirm send")
        await expect(page.get_by_role("dialog")).to_contain_text("Send “Test” to 1.234 recipients?")
        await press(page, "OK, send it")
        await expect(page.locator(".answer")).to_contain_text("Confirmed: sending has begun.")
        await expect(page.locator("#live")).to_contain_text("Finished: all 1.234 recipients", timeout=30_000)
        await expect(page.get_by_role("button", name="Stop")).to_have_count(0)
        await expect(page.locator("#story")).to_contain_text("finished")
        await expect(page.locator("svg.curve")).to_be_visible()
        begun = page.locator("#story time").first
        assert (await begun.get_attribute("title") or "").endswith(" UTC")
        assert "UTC" not in await begun.inner_text()
        await expect(page.locator("#zone")).to_contain_text("Europe/Berlin")
        await page.get_by_role("link", name="Sending log").click()
        await page.get_by_label("Search").fill("user77@")
        await page.keyboard.press("Enter")
        await expect(page.locator("tbody tr")).to_have_count(1)
        await expect(page.locator("tbody")).to_contain_text("user77@example.org")
        await page.get_by_role("button", name="Sign out").click()
        await expect(page.locator("main")).to_contain_text("You are signed out.")


async def test_an_operator_pauses_resumes_stops_and_settles(stack: Stack) -> None:
    number = await stack.prepare(8)
    async with stack.running(channel=Counting(frozenset({2, 5})), **QUICK):
        await stack.confirm(number)
        await stack.finished(number)
    going = await stack.prepare(5)
    async with visiting(stack, None) as visitor, browsing(visitor) as page, stack.running("confirm"):
        await stack.confirm(going)
        await sign_in(page, visitor)
        await page.goto(f"deliveries/{going}")
        for press, why, then in (
            ("Pause", "a typo", "Paused: a typo."),
            ("Resume", "corrected", "Being sent: 0 of 5"),
            ("Stop", "wrong list", "Stopped: wrong list. 5 recipients were not tried."),
        ):
            await page.locator("summary", has_text=press).click()
            await page.locator(f"form[action$={press.lower()}]").get_by_role("textbox").fill(why)
            await page.get_by_role("button", name=press, exact=True).click()
            await expect(page.locator("#live")).to_contain_text(then)
        await page.goto(f"deliveries/{number}")
        await page.get_by_role("link", name="Settle 2 unknown").click()
        await page.get_by_label("They become").select_option("error")
        await page.get_by_role("button", name="Settle").dblclick()
        # Which of the two clicks the browser shows the answer to is its own affair.
        await expect(page.locator("main")).to_contain_text(
            re.compile(r"2 outcomes were settled: error\.|done before: 2 unknown outcomes: error\.")
        )
    assert (await stack.deployment(number))["errors"] == 2
    settled = "SELECT FROM sendoff.command_log WHERE command = 'delivery.settle-unknown'"
    assert len(await stack.rows(settled)) == 1


async def press(page: Page, name: str) -> None:
    """Goes to a button by the tabulator, and presses it."""
    for _ in range(40):
        await page.keyboard.press("Tab")
        if await page.evaluate("document.activeElement.textContent.trim()") == name:
            await page.keyboard.press("Enter")
            return
    raise AssertionError(f"The keyboard does not reach {name}.")


async def test_axe_finds_nothing_serious_and_nothing_is_wider_than_a_phone(stack: Stack) -> None:
    number = await stack.prepare(["ana@example.org,p1", "none,p2"], columns="address,profile_id")
    async with stack.running():
        await stack.confirm(number)
        await stack.finished(number)
    ready = await stack.prepare(2)
    await stack.rows("UPDATE sendoff.delivery_record SET label = $1 WHERE delivery_id = $2", LONG, ready)
    phone = {"viewport": {"width": 360, "height": 700}}
    async with visiting(stack, None) as visitor, browsing(visitor, **phone) as page, stack.running("confirm"):
        await page.goto(visitor.service.link)
        assert await faults(page) == []
        await sign_in(page, visitor)
        base = f"deliveries/{number}"
        tabs = ("log", "tracking", "bounces", "domains", "exclusions", "history", "recipients/1")
        pages = [
            "/",
            base,
            f"deliveries/{ready}",
            *(f"{base}/{tab}" for tab in tabs),
            "profiles?id=p1",
            "dead",
        ]
        for path in pages:
            await page.goto(path)
            assert await faults(page) == [], path
        await page.goto(f"deliveries/{ready}")
        await page.get_by_role("button", name="Confirm send").click()
        await expect(page.get_by_role("dialog")).to_be_visible()
        assert await faults(page) == []


async def test_what_takes_long_comes_after_its_page(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "_LARGE", 2)
    number = await sent(stack, 3)
    go, read = asyncio.Event(), deliveries._panel  # noqa: SLF001 - it is held up here

    async def held_up(*asked: Any) -> dict[str, Any]:
        await go.wait()
        return await read(*asked)

    monkeypatch.setattr(deliveries, "_panel", held_up)
    async with visiting(stack, None) as visitor, browsing(visitor) as page:
        await sign_in(page, visitor)
        await page.goto(f"deliveries/{number}")
        await expect(page.locator("#live")).to_contain_text("Finished: all 3 recipients")
        await expect(page.locator(".reading")).to_have_count(2)
        go.set()
        await expect(page.locator("svg.curve")).to_be_visible()
        await expect(page.locator(".reading")).to_have_count(0)
        await page.goto(f"deliveries/{number}/domains")
        await expect(page.locator("tbody")).to_contain_text("example.org")


async def test_without_scripts_all_works_but_what_is_live(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "_LARGE", 2)
    number = await stack.prepare(3)
    off = {"java_script_enabled": False}
    async with visiting(stack, None) as visitor, browsing(visitor, **off) as page, stack.running():
        await sign_in(page, visitor)
        await page.goto(f"deliveries/{number}")
        await page.get_by_role("button", name="Confirm send").click()
        await page.get_by_role("button", name="OK, send it").click()
        await stack.finished(number)
        await page.goto(f"deliveries/{number}")
        await expect(page.locator("#live")).to_contain_text("Finished: all 3 recipients")
        await expect(page.locator("footer")).to_contain_text("Times are in UTC.")
        await page.get_by_role("link", name="Show it").first.click()
        await expect(page.locator("svg.curve")).to_be_visible()


async def test_a_dead_stream_is_said_and_comes_back_and_a_hidden_tab_asks_for_nothing(stack: Stack) -> None:
    number = await stack.prepare(3)
    async with visiting(stack, None) as visitor:
        live = visitor.service.live
        proxy = CutProxy(visitor.service.address.replace("//", "//x:x@"))
        async with proxy.running(), browsing(visitor, cut=True) as page:
            await sign_in(page, visitor)
            await page.goto(proxy.url.replace("x:x@", "") + f"deliveries/{number}")
            await until(lambda: viewers(live, 1))
            await page.evaluate(HIDDEN, arg=True)
            await until(lambda: viewers(live, 0))
            await page.evaluate(HIDDEN, arg=False)
            await until(lambda: viewers(live, 1))
            proxy.cut()
            await expect(page.locator("#live-note")).to_contain_text("Not live since", timeout=20_000)
            proxy.mend()
            await expect(page.locator("#live-note")).to_be_hidden(timeout=20_000)


async def test_a_list_in_a_hidden_tab_asks_for_nothing(stack: Stack) -> None:
    await stack.prepare(3)
    asked: list[str] = []
    async with visiting(stack, None) as visitor, browsing(visitor) as page:
        page.on("request", lambda request: asked.append(request.url))
        await page.clock.install()
        await sign_in(page, visitor)
        await page.evaluate(HIDDEN, True)
        asked.clear()
        await page.clock.run_for(30_000)
        assert asked == []
        await page.evaluate(HIDDEN, False)
        async with page.expect_request("**/rows*"):
            await page.clock.run_for(4_000)


async def test_a_message_is_seen_in_its_frame_and_loads_nothing(stack: Stack) -> None:
    number = await a_letter(stack)
    loaded, failed = [], []
    async with visiting(stack, None) as visitor, browsing(visitor, cut=True) as page:
        page.on("response", lambda response: loaded.append(response.url))
        page.on("requestfailed", lambda request: failed.append((request.url, request.failure)))
        await sign_in(page, visitor)
        await page.goto(f"deliveries/{number}/recipients/2")
        framed = page.frame_locator("iframe.message").locator("p")
        await expect(framed).to_contain_text("Dear ليلى")
        await expect(framed).to_have_css("color", "rgb(255, 0, 0)")
        names = page.locator("dd bdi", has_text="Hello ليلى")
        await expect(names).to_have_css("direction", "ltr")
        assert not [url for url in loaded if "spy.example" in url]
        assert failed == [("https://spy.example/p.gif", "csp")]


async def test_names_from_right_to_left_leave_the_page_as_it_is_and_print_shows_what_matters(
    stack: Stack,
) -> None:
    number = await stack.prepare(2)
    await stack.rows("UPDATE sendoff.delivery_record SET label = $1 WHERE delivery_id = $2", ARABIC, number)
    async with visiting(stack, None) as visitor, browsing(visitor) as page:
        await sign_in(page, visitor)
        await expect(page.get_by_role("link", name=ARABIC).locator("bdi")).to_have_css("direction", "rtl")
        await page.goto(f"deliveries/{number}")
        await expect(page.locator("h1 bdi")).to_have_css("direction", "rtl")
        await expect(page.locator("h1")).to_have_css("direction", "ltr")
        await page.emulate_media(media="print")
        for gone in (".top nav", ".acts", ".tabs", "footer"):
            await expect(page.locator(gone).first).to_be_hidden()
        for kept in ("h1", ".headline", ".tiles", "#story"):
            await expect(page.locator(kept)).to_be_visible()


HIDDEN = """(hidden) => {
    Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
    document.dispatchEvent(new Event("visibilitychange"));
}"""


LETTER = """
label = "A letter"
channel = "email"
[email]
from = "News <news@example.org>"
subject = "Hello {{ first_name }}"
text = "Dear {{ first_name }}"
html = "<style>p { color: red }</style><p>Dear {{ first_name }}<img src='https://spy.example/p.gif'></p>"
"""


async def a_letter(stack: Stack) -> int:
    file, people = stack.folder / "letter.toml", stack.folder / "people.csv"
    file.write_text(LETTER)
    people.write_text("address,first_name\nana@example.org,Ana\nlayla@example.org,ليلى\n")
    request = PreparationRequest(file, people, "ana", None, stack.settings.channels)
    return (await prepare(stack.db, request)).delivery_id


async def viewers(live: Live, wanted: int) -> bool:
    return live.viewers == wanted
