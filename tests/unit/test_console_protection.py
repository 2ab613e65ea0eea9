"""Which writes are taken for another site's, and what every answer carries."""

from __future__ import annotations

import re
from pathlib import Path

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from worker.web.console import protection
from worker.web.console.assets import Assets
from worker.web.console.protection import Protection, crosses_origins

CONSOLE = Path(protection.__file__).parent
HERE = {"host": "127.0.0.1:8480"}


@pytest.mark.parametrize(
    ("method", "headers", "crosses"),
    [
        ("POST", {"sec-fetch-site": "same-origin"}, False),
        ("POST", {"sec-fetch-site": "none"}, False),
        ("POST", {"sec-fetch-site": "cross-site"}, True),
        ("POST", {"sec-fetch-site": "same-site"}, True),
        ("POST", {"sec-fetch-site": "cross-site", "origin": "http://127.0.0.1:8480"}, True),
        ("POST", {"origin": "http://127.0.0.1:8480"}, False),
        ("POST", {"origin": "http://127.0.0.1:9999"}, True),
        ("POST", {"origin": "null"}, True),
        ("POST", {}, False),
        ("DELETE", {"sec-fetch-site": "cross-site"}, True),
        ("GET", {"sec-fetch-site": "cross-site"}, False),
    ],
)
def test_where_a_write_comes_from(method: str, headers: dict[str, str], *, crosses: bool) -> None:
    assert crosses_origins(method, HERE | headers) is crosses


async def answer(method: str = "GET", **headers: str) -> httpx2.Response:
    app = Protection(PlainTextResponse("inside"), frozenset({"127.0.0.1", "::1"}))
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8480") as client:
        return await client.request(method, "/", headers={k.replace("_", "-"): v for k, v in headers.items()})


async def test_every_answer_has_the_headers_also_a_refusal() -> None:
    for one in (
        await answer(),
        await answer("POST", sec_fetch_site="cross-site"),
        await answer(host="evil.example"),
    ):
        assert one.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
        assert "frame-ancestors 'none'" in one.headers["content-security-policy"]
        assert one.headers["x-content-type-options"] == "nosniff"
        assert one.headers["x-frame-options"] == "DENY"
        assert one.headers["cache-control"] == "no-store"


async def test_another_name_for_this_machine_is_refused() -> None:
    assert (await answer(host="evil.example:8480")).status_code == 421
    assert (await answer(host="[::1]:8480")).text == "inside"


async def test_a_write_of_another_site_does_not_come_in() -> None:
    refused = await answer("POST", sec_fetch_site="cross-site")
    assert (refused.status_code, "inside" in refused.text) == (403, False)


@pytest.mark.parametrize("page", sorted((CONSOLE / "templates").glob("*.html")), ids=lambda path: path.name)
def test_nothing_is_inline(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:|hx-on|hx-vals|\|safe(?! *}}>)", text)
    assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", text))


def test_the_style_is_small() -> None:
    assert len((CONSOLE / "static" / "page.css").read_bytes()) < 10_000


async def test_a_file_is_served_under_its_digest_alone_and_kept() -> None:
    assets = Assets()
    app = Starlette(routes=[Route("/static/{digest}/{name:path}", assets.serve)])
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://c") as client:
        for name in ("page.css", "page.js", "vendor/htmx.js", "icon.svg"):
            found = await client.get(assets.address(name))
            assert found.status_code == 200
            assert "immutable" in found.headers["cache-control"]
        for wrong in (
            "/static/000000000000/page.css",
            assets.address("page.css") + "x",
            "/static/x/..%2fapp.py",
        ):
            assert (await client.get(wrong)).status_code == 404
