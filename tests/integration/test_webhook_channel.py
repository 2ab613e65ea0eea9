"""The channel `webhook` in a whole installation: from a file over a gateway to the accounts."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr
from starlette.responses import JSONResponse, Response

from contracts import routing
from tests.support import gateway as given
from tests.support.console import shown, visiting
from tests.support.deliveries import SOON, agrees, counts, log, states
from tests.support.gateway import SECRET, Sms
from tests.support.processes import worker as process
from tests.support.stack import until
from worker.domain.settlement import Settlement
from worker.operations import prepare as preparing
from worker.operations import settle
from worker.operations.settle import SettlementRequest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.processes import Sendoff
    from tests.support.stack import Stack
    from worker.settings import Settings

TABLE = """[webhook]
body = '''
{"to": "{{ address }}", "text": "Hello {{ name }}, {{ delivery_id }}/{{ recipient }}", "parts": 1}
'''
"""
NUMBERS = [f"+4179{i:07},Zoë {i}" for i in range(1, 61)]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    changes = {"channels": ("webhook", "null"), "webhook_secret": SecretStr(SECRET)}
    return settings.model_copy(update={**changes, "webhook_allow_private": True, "webhook_connections": 4})


async def prepare(stack: Stack, rows: list[str] | None = None, table: str = TABLE) -> int:
    await stack.operator("ana", "prepare_deliveries")
    return await stack.prepare(rows or NUMBERS, channel="webhook", extra=table, columns="address,name")


def environment(url: str) -> dict[str, str]:
    return {
        "SENDOFF_CHANNELS": "webhook,null",
        "SENDOFF_WEBHOOK_URL": url,
        "SENDOFF_WEBHOOK_SECRET": SECRET,
        "SENDOFF_WEBHOOK_ALLOW_PRIVATE": "true",
    }


async def test_everybody_gets_one_signed_message_of_their_own(stack: Stack) -> None:
    number = await prepare(stack, [*NUMBERS, "+41 79 0000001,double", "+41 79 word,x", "a token,x"])
    async with Sms().running() as sms, stack.running(webhook_url=sms.url):
        await stack.confirm(number)
        row = await stack.finished(number)
        assert (row["to_deliver"], row["sent"], row["excluded"]) == (60, 60, 3)
        assert await agrees(stack, number)
    assert all(call.signed for call in sms.calls)
    assert sms.to() == {line.partition(",")[0]: 1 for line in NUMBERS}
    (first,) = [call for call in sms.calls if call.json["to"] == "+41790000001"]
    assert first.json == {"to": "+41790000001", "text": f"Hello Zoë 1, {number}/1", "parts": 1}
    assert first.headers["content-type"] == "application/json"
    assert re.fullmatch(rf"{number}-1-[0-9a-f]{{12}}", first.headers["webhook-id"])
    found = (await log(stack, number))[1]
    assert (found["reply"], found["provider_id"]) == ('200 OK: {"id":"sms-1"}', "sms-1")


async def test_what_answers_mean_to_the_accounts(stack: Stack) -> None:
    """One each: taken, gone, refused, tried again and taken, too large, tried to the end."""
    seen: dict[str, int] = {}

    def answers(call: given.Call) -> Response:
        to = call.json["to"]
        seen[to] = seen.get(to, 0) + 1
        status = {"gone": 410, "refused": 422, "large": 413, "never": 500}.get(to, 200)
        return JSONResponse({}, 500 if to == "later" and seen[to] == 1 else status)

    number = await prepare(
        stack, [f"{name},x" for name in ("taken", "gone", "refused", "later", "large", "never")]
    )
    async with (
        Sms(answers).running() as sms,
        stack.running(webhook_url=sms.url, max_attempts=3, breaker_minimum=0, **SOON),
    ):
        await stack.confirm(number)
        row = await stack.finished(number)
        assert (row["sent"], row["bounced_hard"], row["bounced_soft"], row["errors"]) == (2, 1, 3, 0)
        assert await agrees(stack, number)
    assert seen == {"taken": 1, "gone": 1, "refused": 1, "later": 2, "large": 1, "never": 3}
    ids = {c.headers["webhook-id"] for c in sms.calls if c.json["to"] == "never"}
    assert len(ids) == 1, "each attempt has the same id"
    rows = await log(stack, number)
    assert (rows[2]["reason"], rows[2]["fault"]) == ("user_unknown", "recipient")
    assert (rows[5]["reason"], rows[5]["code"]) == ("too_large", "5.3.4")


async def test_a_gateway_that_wants_a_pause_costs_nobody_an_attempt(stack: Stack) -> None:
    """It takes three of each burst, as a limit of messages a second would."""
    room = [3]

    def answers(_: given.Call) -> Response:
        if room[0] <= 0:
            room[0] = 3
            return JSONResponse({}, 429, {"retry-after": "1"})
        room[0] -= 1
        return JSONResponse({})

    number = await prepare(stack, NUMBERS[:12])
    async with Sms(answers).running() as sms, stack.running(webhook_url=sms.url, tick=0.05):
        await stack.confirm(number)
        row = await stack.finished(number, seconds=60)
    assert row["sent"] == 12
    assert {one["attempt"] for one in (await log(stack, number)).values()} == {1}
    assert set(sms.to().values()) == {1}


async def test_while_the_gateway_does_not_know_us_nobody_is_lost_and_the_reason_is_said(stack: Stack) -> None:
    answers: list[int] = [401]
    number = await prepare(stack, NUMBERS[:8])
    async with (
        Sms(lambda _: JSONResponse({}, answers[0])).running() as sms,
        stack.running(webhook_url=sms.url, webhook_connect_timeout=0.2, tick=0.05) as worker,
    ):
        await stack.confirm(number)
        (sender,) = [one for one in worker.senders if one.name == "send webhook"]

        async def said() -> bool:
            return "takes no messages now" in sender.unreachable and "401" in sender.unreachable

        await until(said)
        row = await stack.deployment(number)
        assert (row["sent"], row["bounced"], row["errors"]) == (0, 0, 0)
        answers[0] = 200
        row = await stack.finished(number, seconds=60)
    assert row["sent"] == 8
    assert {one["attempt"] for one in (await log(stack, number)).values()} == {1}


async def test_a_url_that_refuses_everybody_pauses_the_delivery_and_is_not_held_against_anybody(
    stack: Stack,
) -> None:
    answers: list[int] = [404]
    number = await prepare(stack)
    async with (
        Sms(lambda _: JSONResponse({}, answers[0])).running() as sms,
        stack.running(webhook_url=sms.url, breaker_minimum=20, **SOON),
    ):
        await stack.confirm(number)
        await stack.finished(number, "paused")

        async def at_rest() -> bool:
            return not (await stack.deployment(number))["sending"]

        await until(at_rest)
        answers[0] = 200
        assert (await stack.control(routing.RESUME, number))["status"] == "accepted"
        row = await stack.finished(number)
        assert (row["sent"], row["bounced"]) == (60, 0)
    assert "paused" in await states(stack, number)


async def test_a_pause_and_a_stop_act_at_once(stack: Stack) -> None:
    gate = asyncio.Event()
    server = given.Server(given.HOLD)
    server.release = gate
    number = await prepare(stack)
    async with server.running(), stack.running(webhook_url=f"http://127.0.0.1:{server.port}/send", **SOON):
        await stack.confirm(number)

        async def four() -> bool:
            return len(server.calls) == 4

        await until(four)
        assert (await stack.control(routing.PAUSE, number))["status"] == "accepted"
        gate.set()
        await counts(stack, number, sent=4, sending=0, state="paused")
        assert len(server.calls) == 4, "nobody else after the answer"
        assert (await stack.control(routing.RESUME, number))["status"] == "accepted"
        await stack.finished(number)
    assert len(server.calls) == 60


async def test_what_is_in_doubt_is_unknown_and_may_be_sent_again_under_its_id(stack: Stack) -> None:
    server = given.Server(given.DROP_BODY, given.answer(200))
    number = await prepare(stack, NUMBERS[:5])
    quick = SOON | {"page_look_after": 0.05, "claim_lease": 2, "result_lease": 1}
    async with server.running(), stack.running(webhook_url=f"http://127.0.0.1:{server.port}/send", **quick):
        await stack.confirm(number)
        row = await stack.finished(number)
        assert (row["sent"], row["unknown"]) == (4, 1)
        done = await settle.settle(stack.db, SettlementRequest(number, Settlement.RESEND, "ana"))
        assert (done.refused, done.settled) == (None, 1)
        await counts(stack, number, sent=5, unknown=0, state="finished")
    ids = [call.headers["webhook-id"] for call in server.calls]
    assert (len(ids), len(set(ids))) == (6, 5)


async def test_a_sender_that_is_killed_leaves_in_doubt_no_more_than_it_has_connections(stack: Stack) -> None:
    server = given.Server(given.HOLD)
    number = await prepare(stack)
    quick = {"claim_lease": 1.0, "result_lease": 1.0, "page_look_after": 0.05, **SOON}
    env = {name.removeprefix("SENDOFF_"): value for name, value in environment("").items()}
    async with server.running(), stack.running("confirm", "fanout", "results", "schedule", **quick):
        url = f"http://127.0.0.1:{server.port}/send"
        env |= {"WEBHOOK_URL": url, "WEBHOOK_CONNECTIONS": "4", "CLAIM_LEASE": "1", "RESULT_LEASE": "1"}
        with process(stack.settings, "send", **env) as sender:
            await stack.confirm(number)

            async def four() -> bool:
                return len(server.calls) == 4

            await until(four)
            sender.kill()
            await asyncio.to_thread(sender.wait, 20)
        server.release.set()
        async with stack.running("send", webhook_url=url, **quick):
            row = await stack.finished(number)
    assert (row["sent"], row["unknown"]) == (56, 4)
    assert len({call.headers["webhook-id"] for call in server.calls}) == len(server.calls) == 60


async def test_links_to_the_tracker_are_put_in_and_a_proof_counts_nothing(
    stack: Stack, sendoff: Sendoff
) -> None:
    table = '[webhook]\nbody = \'{"to": "{{ address }}", "text": "Stop: {{ unsubscribe_url }}"}\'\n'
    tracker = {"tracker_url": "https://t.example.org", "tracker_keys": SecretStr(f"1:{'k' * 32}")}
    stack.settings = stack.settings.model_copy(update=tracker)
    number = await prepare(stack, NUMBERS[:2], table)
    keys = {"SENDOFF_TRACKER_URL": "https://t.example.org", "SENDOFF_TRACKER_KEYS": f"1:{'k' * 32}"}
    async with Sms().running() as sms:
        env = environment(sms.url) | keys
        ran = await asyncio.to_thread(sendoff, "proof", number, "--to", "+49 30 1234567", "--as", 2, env=env)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert ran.stdout == 'Sent to +49 30 1234567 what recipient 2 would get: 200 OK: {"id":"sms-1"}\n'
        (proof,) = sms.calls
        async with stack.running(webhook_url=sms.url):
            await stack.confirm(number)
            row = await stack.finished(number)
    assert (row["to_deliver"], row["sent"]) == (2, 2)
    assert proof.json["to"] == "+49301234567"
    assert proof.headers["webhook-id"].startswith("proof-")
    assert proof.headers["sendoff-proof"] == f"{number}-2"
    texts = {call.json["text"] for call in sms.calls}
    assert len(texts) == 3
    assert all(text.startswith("Stop: https://t.example.org/u/") for text in texts)


@pytest.mark.parametrize(
    ("to", "status", "words"),
    [
        ("a b", 200, "a token is printable ASCII without blanks"),
        ("+41791234567", 410, "It was refused: 410 Gone"),
        ("+41791234567", 503, "takes no messages now: 503 Service Unavailable"),
    ],
)
async def test_a_proof_that_is_not_taken_is_a_sentence(
    stack: Stack, sendoff: Sendoff, to: str, status: int, words: str
) -> None:
    number = await prepare(stack, NUMBERS[:1])
    async with Sms(lambda _: Response(status_code=status)).running() as sms:
        ran = await asyncio.to_thread(sendoff, "proof", number, "--to", to, env=environment(sms.url))
    assert (ran.returncode, ran.stdout) == (1, "")
    assert words in ran.stderr


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("[webhook]\nbody = '{'\n", "webhook: body: it is not JSON"),
        ('[webhook]\nbody = \'{"to": "{{ name }}"}\'\n', "it does not say who gets it"),
        (TABLE.replace("name", "nme"), "body.text, line 1: unknown variable “nme”"),
        ("[tracking]\nopens = true\n" + TABLE, "opens and clicks of such messages are not counted"),
        (TABLE, "ready"),
    ],
)
async def test_a_content_that_cannot_be_sent_says_why_at_the_preparation(
    stack: Stack, tmp_path: Path, table: str, words: str
) -> None:
    await stack.operator("ana", "prepare_deliveries")
    file, people = tmp_path / "sms.toml", tmp_path / "people.csv"
    people.write_text("address,name\n+41791234567,Zoë\n")
    file.write_text(f'label = "SMS"\nchannel = "webhook"\n{table}')
    request = preparing.PreparationRequest(file, people, "ana", None, ("webhook",), tracker=True)
    try:
        done = await preparing.prepare(stack.db, request)
        said = " ".join([done.state, *done.problems])
    except preparing.PreparationRefused as refused:
        said = str(refused)
    assert words in said


async def test_the_preflight_and_the_console_show_the_message(stack: Stack, sendoff: Sendoff) -> None:
    table = '[webhook]\nbody = \'{"to": "{{ address }}", "text": "http://localhost/{{ name }}"}\'\n'
    number = await prepare(stack, NUMBERS[:2], table)
    ran = await asyncio.to_thread(
        sendoff, "preflight", number, "--json", env=environment("https://x.example")
    )
    assert [one["check"] for one in json.loads(ran.stdout)] == ["insecure_link", "local_link"]
    async with Sms().running() as sms, visiting(stack, webhook_url=sms.url) as visitor:
        base = f"/deliveries/{number}/recipients/2"
        page = await visitor.get(base)
        assert '"to": "+41790000002", "text": "http://localhost/Zoë 2"' in shown(page)
        assert "Subject" not in shown(page)
        assert 'type="email"' not in page
        sent = shown(await visitor.press(page, f"{base}/proof", to="device-17"))
        assert "Sent what recipient 2 would get, as a proof: " in sent
        assert "The message has no HTML." in await visitor.get(f"{base}/html", 404)
    assert [call.json["to"] for call in sms.calls] == ["device-17"]


CHECKS: list[tuple[dict[str, str], int, str, str]] = [
    ({}, 0, "ok", "It answers and lets us in."),
    ({"SENDOFF_WEBHOOK_URL": ""}, 1, "wrong", "needs a gateway: set SENDOFF_WEBHOOK_URL"),
    ({"SENDOFF_WEBHOOK_SECRET": ""}, 1, "wrong", "signs its calls: set SENDOFF_WEBHOOK_SECRET"),
    ({"SENDOFF_WEBHOOK_ALLOW_PRIVATE": "false"}, 1, "wrong", "is not https: everybody on the way could read"),
    ({"SENDOFF_WEBHOOK_URL": "http://127.0.0.1:1/"}, 3, "unreachable", "cannot be used: Connection refused"),
    (
        {"SENDOFF_WEBHOOK_URL": "https://127.0.0.1:1/", "SENDOFF_WEBHOOK_ALLOW_PRIVATE": "false"},
        3,
        "unreachable",
        "is at 127.0.0.1, which is no address of the internet",
    ),
]


@pytest.mark.usefixtures("stack")
@pytest.mark.parametrize(("env", "status", "standing", "words"), CHECKS)
async def test_the_check_of_an_installation_looks_at_the_gateway(
    sendoff: Sendoff, env: dict[str, str], status: int, standing: str, words: str
) -> None:
    async with Sms().running() as sms:
        ran = await asyncio.to_thread(sendoff, "check", "--json", env=environment(sms.url) | env)
    found = {one["part"]: one for one in json.loads(ran.stdout)}
    assert (ran.returncode, found["gateway"]["standing"]) == (status, standing), ran.stdout
    assert words in found["gateway"]["message"]
    assert found["relay"]["standing"] == "ok"
    assert SECRET not in ran.stdout
    assert sms.calls == []


def test_url_and_secrets_are_read_from_files_and_not_shown(sendoff: Sendoff, tmp_path: Path) -> None:
    url, secret = tmp_path / "url", tmp_path / "secret"
    url.write_text("https://127.0.0.1:1/path-with-a-secret\n")
    secret.write_text(f"{'a' * 24}\n{'b' * 24}\n")
    env = {"SENDOFF_CHANNELS": "webhook", "SENDOFF_WEBHOOK_URL_FILE": str(url)}
    ran = sendoff("check", "--json", env=env | {"SENDOFF_WEBHOOK_SECRET_FILE": str(secret)})
    (found,) = [one for one in json.loads(ran.stdout) if one["part"] == "gateway"]
    assert found["standing"] == "unreachable"
    assert "path-with-a-secret" not in ran.stdout


async def test_a_sender_without_its_settings_does_not_start(sendoff: Sendoff, stack: Stack) -> None:  # noqa: ARG001
    ran = await asyncio.to_thread(sendoff, "run", "send", env={"SENDOFF_CHANNELS": "webhook"})
    assert ran.returncode == 2
    assert "The channel “webhook” signs its calls" in ran.stderr or "needs a gateway" in ran.stderr
