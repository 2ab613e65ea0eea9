"""Signing in at an issuer: the code flow with PKCE, and what the console believes of it."""

from __future__ import annotations

import json
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import httpx2
import pytest
from pydantic import SecretStr

from tests.support.console import Visitor, shown, visiting
from tests.support.issuer import CLIENT, SECRET, Issuer, issuing
from worker.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.stack import Stack

ADDRESS = "https://deliveries.example.org"
KEY = SecretStr("a key that signs sessions, of 32 bytes or more")


class Browser:
    """A visitor who comes over https, by a proxy that ends it: who keeps cookies that are for https alone."""

    def __init__(self, visitor: Visitor) -> None:
        self.visitor = visitor
        self.cookies: dict[str, str] = {}
        self.set: dict[str, str] = {}

    async def get(self, path: str) -> httpx2.Response:
        sent = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        answer = await self.visitor.client.get(path, headers={"cookie": sent})
        for line in answer.headers.get_list("set-cookie"):
            name, _, rest = line.partition("=")
            self.set[name] = rest.lower()
            self.cookies[name] = rest.partition(";")[0].strip('"')
            if "max-age=0" in rest.lower():
                del self.cookies[name]
        return answer

    async def sign_in(self, then: str = "/") -> httpx2.Response:
        """Goes to the issuer and back."""
        begun = await self.get(f"/oidc/begin?next={then}")
        assert begun.status_code == 303, begun.text
        async with httpx2.AsyncClient() as client:
            back = (await client.get(begun.headers["location"])).headers["location"]
        assert back.startswith(f"{ADDRESS}/oidc/end?")
        return await self.get(back.removeprefix(ADDRESS))


@asynccontextmanager
async def browsing(stack: Stack, **changes: Any) -> AsyncIterator[tuple[Browser, Issuer]]:
    async with issuing() as issuer:
        settings = {
            "console_auth": "oidc",
            "console_url": ADDRESS,
            "console_key": KEY,
            "console_secret": SecretStr(SECRET),
            "auth_issuer": issuer.address,
            "auth_audience": CLIENT,
        }
        async with visiting(stack, None, **{**settings, **changes}) as visitor:
            yield Browser(visitor), issuer


async def test_a_person_signs_in_and_comes_to_the_page_that_they_wanted(stack: Stack) -> None:
    number = await stack.prepare(1)
    async with browsing(stack) as (browser, _):
        page = await browser.get(f"/deliveries/{number}")
        assert page.status_code == 401
        assert f'href="/oidc/begin?next=%2Fdeliveries%2F{number}"' in page.text
        back = await browser.sign_in(f"/deliveries/{number}")
        assert (back.status_code, back.headers["location"]) == (303, f"/deliveries/{number}")
        page = await browser.get(f"/deliveries/{number}")
        assert "ana" in shown(page.text)
        assert "disabled" not in page.text
        assert set(browser.cookies) == {"__Host-sendoff"}
        for name in ("__Host-sendoff", "__Host-sendoff-signing-in"):
            assert {"secure", "httponly", "path=/", "samesite=lax"} <= set(browser.set[name].split("; "))
            assert "domain" not in browser.set[name]
        session = {"cookie": f"__Host-sendoff={browser.cookies['__Host-sendoff']}"}
        left = await browser.visitor.client.post("/sign-out", headers=session)
        assert "You are signed out here." in left.text
        assert "max-age=0" in left.headers["set-cookie"].lower()


async def test_the_directory_names_the_roles_where_commands_need_no_token(stack: Stack) -> None:
    await stack.operator("bob", "prepare_deliveries")
    number = await stack.prepare(1)
    async with browsing(stack) as (browser, issuer):
        issuer.claims = {"sub": "bob", "roles": ["start_deliveries"]}
        await browser.sign_in()
        assert "“bob” lacks the role" in shown((await browser.get(f"/deliveries/{number}")).text)
        issuer.claims = {"sub": "mallory", "roles": ["start_deliveries"]}
        await browser.sign_in()
        assert "(may only look)" in shown((await browser.get("/")).text)


async def test_where_commands_need_a_token_they_carry_the_issuers(stack: Stack, tmp_path: Path) -> None:
    number = await stack.prepare(1)
    jwks = tmp_path / "keys.json"
    async with browsing(stack, auth="token", auth_jwks_file=jwks) as (browser, issuer):
        async with httpx2.AsyncClient() as client:
            jwks.write_text(json.dumps((await client.get(f"{issuer.address}/keys")).json()))
        issuer.claims = {"sub": "carla", "roles": ["start_deliveries"]}
        settings = {"auth_issuer": issuer.address, "auth_audience": CLIENT}
        async with stack.running("confirm", auth="token", auth_jwks_file=jwks, **settings):
            await browser.sign_in()
            page = await browser.get(f"/deliveries/{number}")
            command = page.text.split('name="command" value="')[1].split('"')[0]
            answer = await browser.visitor.client.post(
                f"/deliveries/{number}/control/stop",
                data={"command": command, "reason": "wrong list"},
                headers={"cookie": f"__Host-sendoff={browser.cookies['__Host-sendoff']}"},
            )
            assert answer.status_code == 303
            await stack.finished(number, "stopped")


@pytest.mark.parametrize(
    ("claims", "because"),
    [
        ({"nonce": "another"}, "of another sign-in"),
        ({"aud": "others"}, "another audience"),
        ({"iss": "https://evil.example"}, "another issuer"),
        ({"exp": time.time() - 60}, "expired"),
        ({"sub": ""}, "no operator's name"),
        ({"sub": "ana", "more": "x" * 5_000}, None),
    ],
)
async def test_a_token_that_is_not_for_this_sign_in_signs_nobody_in(
    stack: Stack, claims: dict[str, Any], because: str | None
) -> None:
    async with browsing(stack) as (browser, issuer):
        issuer.claims |= claims
        answer = await browser.sign_in()
        if because is None:  # of a large token nothing is kept that is not needed
            assert answer.status_code == 303
            return
        assert answer.status_code == 403
        assert because in shown(answer.text)
        assert "__Host-sendoff" not in browser.cookies


async def test_an_answer_that_this_browser_did_not_ask_for_signs_nobody_in(stack: Stack) -> None:
    async with browsing(stack) as (browser, _), browsing(stack) as (other, _):
        begun = await other.get("/oidc/begin")
        async with httpx2.AsyncClient() as client:
            theirs = (await client.get(begun.headers["location"])).headers["location"].removeprefix(ADDRESS)
        await browser.get("/oidc/begin")
        for path in (theirs, "/oidc/end?code=x", "/oidc/end?code=x&state=y"):
            answer = await browser.get(path)
            assert (answer.status_code, "not begun in this browser" in answer.text) == (403, True)
        refused = dict(parse_qsl(urlsplit(begun.headers["location"]).query))
        answer = await other.get(f"/oidc/end?error=access_denied&state={refused['state']}")
        assert "did not sign you in: access_denied" in answer.text
        # A session is none for a sign-in, nor the other way round.
        browser.cookies = {"__Host-sendoff": browser.cookies["__Host-sendoff-signing-in"]}
        assert (await browser.get("/")).status_code == 401


async def test_a_code_is_good_once_and_an_issuer_that_is_another_is_not_believed(stack: Stack) -> None:
    async with browsing(stack) as (browser, issuer):
        begun = await browser.get("/oidc/begin")
        async with httpx2.AsyncClient() as client:
            back = (await client.get(begun.headers["location"])).headers["location"].removeprefix(ADDRESS)
        flow = dict(browser.cookies)
        assert (await browser.get(back)).status_code == 303
        browser.cookies = flow
        assert "does not know this sign-in any more" in (await browser.get(back)).text
        issuer.says = {"issuer": "https://evil.example"}
    async with browsing(stack) as (browser, issuer):
        issuer.says = {"issuer": "https://evil.example"}
        answer = await browser.get("/oidc/begin")
        assert (answer.status_code, "cannot be asked now" in answer.text) == (401, True)


async def test_nobody_is_led_to_another_site(stack: Stack) -> None:
    async with browsing(stack) as (browser, _):
        for then in ("https://evil.example/", "//evil.example", "/%5Cevil.example", "/%0d%0ax:y", "x"):
            assert (await browser.sign_in(then)).headers["location"] == "/"


async def test_without_an_issuer_there_is_no_such_page(stack: Stack) -> None:
    async with visiting(stack) as visitor:
        assert (await visitor.client.get("/oidc/begin")).status_code == 404
        assert (await visitor.client.get("/oidc/end")).status_code == 404


def test_settings_without_which_nobody_could_sign_in_stop_the_start() -> None:
    for left_out in ("console_url", "console_key", "auth_issuer", "auth_audience"):
        given = {
            "console_url": ADDRESS,
            "console_key": KEY,
            "auth_issuer": "https://id.example.org",
            "auth_audience": CLIENT,
        }
        del given[left_out]
        with pytest.raises(ValueError, match=f"SENDOFF_{left_out.upper()}"):
            Settings(_env_file=None, console_auth="oidc", **given)
