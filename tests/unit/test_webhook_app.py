"""Calls of mail providers, from request to answer: what is safe, what is counted, what comes again."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from contracts import routing
from tests.support import webhooks as given_by
from tests.support.fakes import FakePublisher, SilentPublisher, counts, metrics
from tests.support.webhooks import DAY, OURS, RETURNS, SECRET, SENDGRID_PUBLIC, Request, recorded
from worker.amqp.prompt import PromptPublisher
from worker.domain.failures import Stopped
from worker.settings import SettingsError
from worker.web.server import WebServer, listen
from worker.web.webhooks.app import WebhookParts, webhook_app
from worker.web.webhooks.fetching import NotFetched, fetch
from worker.web.webhooks.generic import Generic
from worker.web.webhooks.mailgun import Mailgun
from worker.web.webhooks.notices import NotNow
from worker.web.webhooks.outlet import Outlet
from worker.web.webhooks.postmark import Postmark
from worker.web.webhooks.sendgrid import SendGrid
from worker.web.webhooks.service import read_providers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from worker.web.webhooks.notices import Call, Parsed


class AwaySns:
    """A provider whose certificates are out of reach."""

    name, challenge = "ses", "Signature"

    async def verify(self, _: Call) -> None:
        raise NotNow("The certificate of SNS cannot be fetched: it is away.")

    def parse(self, _: Call) -> Parsed:
        raise AssertionError("never verified")


class Site:
    """The application on fakes."""

    def __init__(self, publisher: FakePublisher | None = None) -> None:
        self.publisher = publisher or FakePublisher()
        self.metrics = metrics()
        self.outlet = Outlet(PromptPublisher(self.publisher, seconds=0.05), routing.Names("blue"))
        providers = [
            SendGrid([SENDGRID_PUBLIC], DAY),
            Mailgun([SECRET], DAY),
            Postmark([SECRET]),
            Generic([SECRET], DAY),
            AwaySns(),
        ]
        app = webhook_app(WebhookParts(providers, RETURNS, self.outlet, self.metrics))
        self.client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://hooks")

    @asynccontextmanager
    async def served(self) -> AsyncIterator[Site]:
        ended = asyncio.Event()
        async with asyncio.TaskGroup() as group, self.client:
            group.create_task(self.outlet.run(ended))
            yield self
            ended.set()

    async def post(self, provider: str, request: Request) -> httpx2.Response:
        return await self.client.post(f"/{provider}", content=request.body, headers=request.headers)

    def calls(self) -> dict[tuple[str, ...], float]:
        return counts(self.metrics.webhook_calls)

    def told(self) -> list[dict[str, Any]]:
        return [fact for one in self.publisher.published for fact in json.loads(one.message.body)]


def now() -> datetime:
    return datetime.now(UTC)


def event(**changes: Any) -> dict[str, Any]:
    own = {"event": "open", "event_id": "g-1", "reference": RETURNS.token(OURS), "at": now().isoformat()}
    return own | changes


def signed(*events: Any) -> Request:
    return given_by.generic(json.dumps(events), now())


async def test_a_call_is_answered_when_its_events_are_published_each_where_it_belongs() -> None:
    async with Site().served() as site:
        answer = await site.post("sendgrid", given_by.sendgrid(recorded("sendgrid"), now()))
    assert (answer.status_code, answer.text) == (200, "9 of 13 events are recorded.\n")
    where = {(one.exchange, one.routing_key) for one in site.publisher.published}
    assert where == {
        ("blue.sendoff.results", "bounce"),
        *(("blue.sendoff.tracking", kind) for kind in ("open", "click", "complaint", "optout")),
    }
    assert {(t["delivery_id"], t["recipient"]) for t in site.told()} == {(42, 17)}
    assert site.calls() == {("sendgrid", "taken"): 1}
    assert counts(site.metrics.webhook_events) == {
        ("sendgrid", "bounce"): 4,
        ("sendgrid", "open"): 1,
        ("sendgrid", "click"): 1,
        ("sendgrid", "complaint"): 1,
        ("sendgrid", "optout"): 2,
        ("sendgrid", "delayed"): 1,
        ("sendgrid", "other"): 3,
    }


async def test_a_complaint_has_the_name_that_one_by_mail_has() -> None:
    async with Site().served() as site:
        await site.post("generic", signed(event(event="complaint")))
        await site.post("mailgun", given_by.mailgun(recorded("mailgun-complained"), now()))
    assert [t["event_id"] for t in site.told()] == ["complaint-17-2"] * 2


async def test_nothing_happens_later_than_now_and_what_no_column_holds_is_left_out() -> None:
    tomorrow = (now() + DAY).isoformat()
    long = f"https://example.org/{'x' * 9_000}"
    agent = "a\x00b"
    async with Site().served() as site:
        answer = await site.post(
            "generic", signed(event(at=tomorrow, event="click", url=long, user_agent=agent))
        )
    assert answer.status_code == 200
    (told,) = site.told()
    assert datetime.fromisoformat(told["at"]) <= now()
    assert (told["kind"], told["url"], told["user_agent"]) == ("click", None, "a\ufffdb")


async def test_an_event_of_somebody_else_is_counted_and_nothing_more() -> None:
    foreign = given_by.recorded("sendgrid", OURS, given_by.ReturnPath([given_by.Key(1, b"x" * 32)]))
    async with Site().served() as site:
        answer = await site.post("sendgrid", given_by.sendgrid(foreign, now()))
    assert (answer.status_code, answer.text) == (200, "0 of 13 events are recorded.\n")
    assert site.publisher.published == []
    assert counts(site.metrics.webhook_events)["sendgrid", "unknown"] == 9


@pytest.mark.parametrize("provider", ["sendgrid", "mailgun", "postmark", "generic"])
async def test_a_wrong_signature_is_401_and_counted(provider: str) -> None:
    request = Request(given_by.mailgun(recorded("mailgun-opened"), now(), key="wrong").body, {})
    async with Site().served() as site:
        answer = await site.post(provider, request)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith(("Signature", "Basic realm="))
    assert SECRET not in answer.text
    assert (site.calls(), site.publisher.published) == ({(provider, "forged"): 1}, [])


async def test_an_old_call_is_401_and_counted_apart() -> None:
    async with Site().served() as site:
        answer = await site.post("sendgrid", given_by.sendgrid(recorded("sendgrid"), now() - 2 * DAY))
    assert answer.status_code == 401
    assert "more than 86400 s ago" in answer.text
    assert site.calls() == {("sendgrid", "stale"): 1}


async def test_what_cannot_be_read_is_400_and_what_could_be_read_is_safe() -> None:
    async with Site().served() as site:
        nothing = await site.post("generic", given_by.generic(b"{", now()))
        partly = await site.post("generic", signed(event(), event(at="soon"), event(event="sneeze"), 1, 2, 3))
    assert nothing.status_code == partly.status_code == 400
    assert nothing.text.startswith("The body is not JSON: EOF")
    assert partly.text.startswith("Event 2 of 6: at: Input should be a valid datetime")
    assert partly.text.endswith("And 2 more.\n")
    assert len(site.told()) == 1
    assert site.calls() == {("generic", "unreadable"): 2}


@pytest.mark.parametrize("state", ["silent", "away", "blocked"])
async def test_without_a_confirm_the_call_is_to_come_again(state: str) -> None:
    publisher = SilentPublisher() if state == "silent" else FakePublisher()
    publisher.connected, publisher.blocked = state != "away", state == "blocked"  # type: ignore[misc]
    async with Site(publisher).served() as site:
        answer = await site.post("generic", signed(event()))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert counts(site.metrics.webhook_events) == {}
        assert site.calls() == {("generic", "later"): 1}


async def test_a_call_that_cannot_be_verified_now_is_to_come_again() -> None:
    async with Site().served() as site:
        answer = await site.post("ses", Request(b"{}", {}))
    assert (answer.status_code, site.calls()) == (503, {("ses", "later"): 1})


async def test_other_methods_and_other_paths_are_nothing() -> None:
    async with Site().served() as site:
        assert (await site.client.get("/sendgrid")).status_code == 405
        assert (await site.client.post("/nobody", content=b"{}")).status_code == 404


class SlowPublisher(FakePublisher):
    """Confirms when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.batches = 0

    async def publish(self, *args: Any, **options: Any) -> None:
        self.batches += 1
        await self.go.wait()
        await super().publish(*args, **options)


async def test_a_burst_lands_in_few_batches_of_bounded_size() -> None:
    publisher = SlowPublisher()
    site = Site(publisher)
    site.outlet = Outlet(PromptPublisher(publisher, seconds=30), routing.Names())
    ended = asyncio.Event()
    facts = [event_of(n) for n in range(2_500)]
    async with asyncio.TaskGroup() as group:
        group.create_task(site.outlet.run(ended))
        puts = [group.create_task(site.outlet.put([fact])) for fact in facts]
        await asyncio.sleep(0)
        publisher.go.set()
        assert all(await asyncio.gather(*puts))
        ended.set()
    assert publisher.batches <= 2
    sizes = [len(json.loads(one.message.body)) for one in publisher.published]
    assert sum(sizes) == 2_500
    assert max(sizes) == 1_000


def event_of(number: int) -> Any:
    from contracts.tracking import TrackingEvent, TrackingKind  # noqa: PLC0415 - beside its only use

    return TrackingEvent(
        event_id=f"e-{number}", delivery_id=42, recipient=17, kind=TrackingKind.OPEN, at=now()
    )


async def test_more_than_can_wait_is_to_come_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.web.webhooks.outlet._MOST_WAITING", 3)
    outlet = Outlet(PromptPublisher(FakePublisher(), seconds=30), routing.Names())
    waiting = [asyncio.create_task(outlet.put([event_of(n)])) for n in range(3)]
    await asyncio.sleep(0)
    assert not await outlet.put([event_of(4)])
    ended = asyncio.Event()
    ended.set()
    await outlet.run(ended)
    assert await asyncio.gather(*waiting) == [True] * 3


class Stopping(FakePublisher):
    async def publish(self, *_: Any, **__: Any) -> None:
        raise Stopped("the broker is away")


async def test_at_the_stop_what_the_broker_did_not_take_is_to_come_again() -> None:
    async with Site(Stopping()).served() as site:
        assert (await site.post("generic", signed(event()))).status_code == 503


@asynccontextmanager
async def pages() -> AsyncIterator[str]:
    """A small site for what is fetched."""

    async def small(_: Any) -> Response:
        return PlainTextResponse("here")

    async def large(_: Any) -> Response:
        return PlainTextResponse("x" * 200_000)

    async def elsewhere(_: Any) -> Response:
        return RedirectResponse("/small")

    app = Starlette(routes=[Route("/small", small), Route("/large", large), Route("/elsewhere", elsewhere)])
    server = WebServer("pages", app, await listen("127.0.0.1", 0, named="PAGES"))
    async with asyncio.TaskGroup() as group:
        group.create_task(server.serve())
        try:
            yield f"http://127.0.0.1:{server.port}"
        finally:
            server.end()


async def test_what_is_fetched_is_small_and_where_it_was_asked_for() -> None:
    async with pages() as site:
        assert await fetch(f"{site}/small") == b"here"
        for path, why in (("large", "longer than 100000"), ("elsewhere", "307"), ("none", "404")):
            with pytest.raises(NotFetched, match=why):
                await fetch(f"{site}/{path}")
    for away in (f"{site}/small", "https://sns.invalid/", "http://[/"):
        with pytest.raises(NotFetched):
            await fetch(away)


def written(folder: Path, text: str) -> Path:
    path = folder / "webhooks.toml"
    path.write_text(text)
    return path


def test_the_file_says_who_may_call(tmp_path: Path) -> None:
    text = f"""
[ses]
topics = ["{given_by.TOPIC}"]
[sendgrid]
public_keys = ["{SENDGRID_PUBLIC}"]
[mailgun]
signing_keys = ["{SECRET}"]
[postmark]
secrets = ["{SECRET}"]
[generic]
secrets = ["whsec_{"aGVsbG8gd29ybGQhIQ=="}", "{SECRET}"]
"""
    providers = read_providers(written(tmp_path, text), timedelta(hours=1))
    assert [one.name for one in providers] == ["ses", "sendgrid", "mailgun", "postmark", "generic"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "names no provider"),
        ("[", "is not TOML"),
        ("[mailjet]\nkeys = []", "“mailjet” is none of ses, sendgrid, mailgun, postmark, generic"),
        ("mailgun = 1", r"\[mailgun\]: give `signing_keys`, a list of texts, and nothing else"),
        ("[mailgun]\nsigning_keys = []", "give `signing_keys`"),
        ('[mailgun]\nsigning_keys = ["short"]', "needs 16 characters"),
        ('[mailgun]\nsigning_keys = ["a secret of 16 characters"]\nmore = 1', "nothing else"),
        ('[ses]\ntopics = ["news"]', "its ARN"),
        ('[sendgrid]\npublic_keys = ["not base64 of a key"]', "public key 1 is not base64"),
        ('[generic]\nsecrets = ["whsec_not base64 at all"]', "secret 1 is no base64"),
    ],
)
def test_a_wrong_file_stops_the_start_with_a_sentence(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(SettingsError, match=why) as refused:
        read_providers(written(tmp_path, text), DAY)
    assert "SENDOFF_WEBHOOKS_FILE" in str(refused.value)


def test_without_the_file_nobody_may_call(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="set SENDOFF_WEBHOOKS_FILE"):
        read_providers(None, DAY)
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        read_providers(tmp_path / "none.toml", DAY)
