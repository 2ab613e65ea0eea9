"""What operators do at the console: the commands that it publishes, and the answers that it shows."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr

from tests.support.channels import Counting
from tests.support.console import forms, line, shown, visiting
from tests.support.deliveries import SOON, states
from tests.support.processes import received, sink
from tests.support.proxy import CutProxy
from tests.support.tokens import SECRET, TOKENS, token
from worker.db.pool import open_database
from worker.settings import Settings, SettingsError
from worker.web.console import acts
from worker.web.console.service import ConsoleService

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.stack import Stack

QUICK = SOON | {"page_look_after": 0.05, "claim_lease": 0.3, "result_lease": 0.3}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take longer to answer than a person waits for."""
    monkeypatch.setattr(acts, "_SECONDS", 20)


async def commands(stack: Stack) -> list[tuple[str, str, str | None, str | None]]:
    rows = await stack.rows("SELECT * FROM sendoff.command_log ORDER BY received_at, command_id")
    return [(row["command"], row["status"], row["reason"], row["operator"]) for row in rows]


async def test_confirm_shows_what_would_be_sent_and_ok_sends_it(stack: Stack) -> None:
    number = await stack.prepare(["a@example.org", "b@example.org", "none", "a@example.org"])
    base = f"/deliveries/{number}"
    async with visiting(stack) as visitor, stack.running():
        dialog = await visitor.press(await visitor.get(base), f"{base}/confirm")
        assert 'role="dialog"' in dialog
        assert "Send “Test” to 2 recipients?" in shown(dialog)
        assert "1 duplicate, 1 invalid" in shown(dialog)
        assert (await stack.deployment(number))["state"] == "ready"
        done = await visitor.press(dialog, f"{base}/send")
        assert "Confirmed: sending has begun." in shown(done)
        await stack.finished(number)
        assert "Finished: all 2 recipients have an outcome." in shown(await visitor.get(base))
    assert await commands(stack) == [
        ("delivery.confirm", "finalize", None, "ana"),
        ("delivery.confirm", "accepted", None, "ana"),
    ]


async def test_a_large_delivery_needs_the_ok_of_two(stack: Stack) -> None:
    await stack.operator("bob", "start_deliveries")
    number = await stack.prepare(3)
    base = f"/deliveries/{number}"
    async with stack.running("confirm", second_approval_above=2):
        async with visiting(stack) as visitor:
            dialog = await visitor.press(await visitor.get(base), f"{base}/confirm")
            assert "it goes to more than 2 recipients: another operator must confirm it too" in shown(dialog)
            assert "Give the first OK" in dialog
            page = await visitor.press(dialog, f"{base}/send")
            assert "Your OK is recorded, and nothing is sent yet" in shown(page)
            assert 'class="answer bad"' not in page
            assert "ana gave the first of two OKs at" in shown(page)
        async with visiting(stack, "bob") as visitor:
            dialog = await visitor.press(await visitor.get(base), f"{base}/confirm")
            assert "ana gave the first at" in shown(dialog)
            done = shown(await visitor.press(dialog, f"{base}/send"))
            assert "Confirmed by “ana” and “bob”: sending has begun." in done


async def test_the_dialog_shows_what_the_preflight_found(stack: Stack) -> None:
    number = await stack.prepare(2, "email")
    base = f"/deliveries/{number}"
    async with visiting(stack) as visitor, stack.running("confirm"):
        asked = await stack.request(
            "delivery.confirm", {"delivery_id": number, "operator": "ana", "definitive": False}
        )
        dialog = shown(await visitor.press(await visitor.get(base), f"{base}/confirm"))
        assert asked["summary"]["findings"]
        for finding in asked["summary"]["findings"]:
            assert " ".join(finding["message"].split()) in dialog


async def test_a_proof_goes_to_a_tester_and_counts_nowhere(stack: Stack) -> None:
    await stack.operator("bob", "prepare_deliveries")
    number = await stack.prepare(2, "email")
    base = f"/deliveries/{number}/recipients/2"
    async with visiting(stack) as visitor:
        page = await visitor.press(await visitor.get(base), f"{base}/proof", to="tester@example.org")
        assert "Sent what recipient 2 would get, as a proof: 250 " in shown(page)
        await visitor.press(await visitor.get(base), f"{base}/proof", 400, to=" ")
        asked = {"command": str(uuid.uuid4()), "to": "tester@example.org"}
        absent = await visitor.post(f"/deliveries/{number}/recipients/3/proof", 409, **asked)
        assert "no recipient 3" in shown(absent)
    async with visiting(stack, "bob", console_hide_personal_data=False) as visitor:
        assert f"{base}/proof" not in await visitor.get(base)
        refused = await visitor.post(f"{base}/proof", 409, command=str(uuid.uuid4()), to="tester@example.org")
        assert "role can send a proof" in shown(refused)
    assert (await stack.deployment(number))["pending"] == 2


async def test_a_form_that_is_sent_twice_is_one_command(stack: Stack) -> None:
    number = await stack.prepare(2)
    base = f"/deliveries/{number}"
    async with visiting(stack) as visitor, stack.running("confirm"):
        dialog = await visitor.press(await visitor.get(base), f"{base}/confirm")
        for _ in range(2):
            done = shown(await visitor.press(dialog, f"{base}/send"))
            assert "Confirmed: sending has begun." in done
        held = await visitor.get(base)
        for _ in range(2):
            paused = await visitor.press(held, f"{base}/control/pause", reason="typo")
            assert "The delivery is paused." in shown(paused)
    accepted = [each for each in await commands(stack) if each[1] == "accepted"]
    assert accepted == [
        ("delivery.confirm", "accepted", None, "ana"),
        ("delivery.pause", "accepted", None, "ana"),
    ]


async def test_a_proof_that_is_asked_for_twice_is_sent_once(stack: Stack, tmp_path: Path) -> None:
    number = await stack.prepare(2, "email")
    base = f"/deliveries/{number}/recipients/1"
    with sink(tmp_path / "sink") as (url, index):
        async with visiting(stack, smtp_url=url) as visitor:
            page = await visitor.get(base)
            form = forms(page)[f"{base}/proof"] | {"to": "tester@example.org"}
            both = await asyncio.gather(*(visitor.client.post(f"{base}/proof", data=form) for _ in range(2)))
            assert {answer.status_code for answer in both} == {200}
            again = shown(await visitor.post(f"{base}/proof", **form))
            assert "Sent what recipient 1 would get, as a proof: 250 " in again
            other = await visitor.post(f"{base}/proof", 400, **{**form, "to": "another@example.org"})
            assert "Another command was sent with this message_id." in shown(other)
        assert received(index) == {"tester@example.org": 1}
    assert await commands(stack) == [("delivery.proof", "accepted", None, "ana")]
    (kept,) = await stack.rows("SELECT c::text AS whole FROM sendoff.command_log c")
    assert "tester@" not in kept["whole"]


async def test_a_proof_that_the_relay_refuses_is_recorded_with_the_reason(stack: Stack) -> None:
    number = await stack.prepare(1, "null")
    base = f"/deliveries/{number}/recipients/1/proof"
    asked = {"command": str(uuid.uuid4()), "to": "tester@example.org"}
    async with visiting(stack) as visitor:
        for _ in range(2):
            assert "sends no proofs" in shown(await visitor.post(base, 409, **asked))
    assert await commands(stack) == [("delivery.proof", "refused", None, "ana")]


async def test_a_settlement_that_is_asked_for_twice_settles_once(stack: Stack) -> None:
    number = await stack.prepare(6)
    base = f"/deliveries/{number}"
    async with stack.running(channel=Counting(frozenset({2, 3, 5})), **QUICK):
        await stack.confirm(number)
        await stack.finished(number)
    async with visiting(stack) as visitor:
        page = await visitor.get(f"{base}/log?status=unknown")
        form = forms(page)[f"{base}/settle"] | {"how": "sent", "recipients": "2"}
        both = await asyncio.gather(*(visitor.client.post(f"{base}/settle", data=form) for _ in range(2)))
        assert sorted(answer.status_code for answer in both) == [200, 303]
        again = shown(await visitor.post(f"{base}/settle", **form))
        assert "This was done before: 1 unknown outcome: sent." in again
        other = await visitor.post(f"{base}/settle", 409, **{**form, "recipients": ""})
        assert "Another command was sent with this message_id." in shown(other)
        nobody = {"command": str(uuid.uuid4()), "how": "error", "recipients": "1"}
        assert "0 outcomes were settled" in shown(await visitor.post(f"{base}/settle", **nobody))
        assert "This was done before: 0 unknown" in shown(await visitor.post(f"{base}/settle", **nobody))
    row = await stack.deployment(number)
    assert (row["sent"], row["unknown"]) == (4, 2)
    settled = [each for each in await commands(stack) if each[0] == "delivery.settle-unknown"]
    assert settled == [("delivery.settle-unknown", "accepted", None, "ana")] * 2


async def test_a_delivery_that_was_prepared_again_meanwhile_is_not_sent(stack: Stack) -> None:
    number = await stack.prepare(2)
    base = f"/deliveries/{number}"
    async with visiting(stack) as visitor, stack.running("confirm"):
        dialog = await visitor.press(await visitor.get(base), f"{base}/confirm")
        await stack.prepare(3, delivery=number)
        page = await visitor.press(dialog, f"{base}/send")
        assert "the delivery has since been prepared again (preparation 2)" in shown(page)
        assert 'class="answer bad"' in page
    assert (await stack.deployment(number))["state"] == "ready"


async def test_pause_resume_and_stop_say_who_and_why(stack: Stack) -> None:
    number = await stack.prepare(5)
    base = f"/deliveries/{number}"
    async with visiting(stack) as visitor, stack.running("confirm"):
        await stack.confirm(number)
        page = await visitor.press(await visitor.get(base), f"{base}/control/pause", reason="a <b>typo</b>")
        assert "Paused: a <b>typo</b>. Nothing is sent to the other 5 until it is resumed." in shown(page)
        assert "a &lt;b&gt;typo" in page
        assert f"{base}/control/pause" not in forms(page)
        page = await visitor.press(page, f"{base}/control/resume", reason="corrected")
        assert "Being sent: 0 of 5" in shown(page)
        page = await visitor.press(page, f"{base}/control/stop", reason="wrong list")
        assert "Stopped: wrong list. 5 recipients were not tried." in shown(page)
        assert not {f"{base}/control/{name}" for name in ("pause", "resume", "stop")} & forms(page).keys()
        history = shown(await visitor.get(f"{base}/history"))
        assert "in progress paused ana a <b>typo</b>" in history
        assert "in progress stopped ana wrong list" in history
    assert (await states(stack, number))[-3:] == ["paused", "in_progress", "stopped"]


async def test_without_a_reason_nothing_is_published(stack: Stack) -> None:
    number = await stack.prepare(5)
    async with visiting(stack) as visitor:
        for reason in ("", "  ", "x" * 2_001, "a\x00b"):
            page = await visitor.post(
                f"/deliveries/{number}/control/stop", 400, command=str(uuid.uuid4()), reason=reason
            )
            assert "reason:" in page
        assert "no number of its own" in await visitor.post(
            f"/deliveries/{number}/control/stop", 400, command="x", reason="y"
        )
        await visitor.post(f"/deliveries/{number}/control/erase", 404, command=str(uuid.uuid4()), reason="y")
        await visitor.post("/deliveries/999/control/stop", 404, command=str(uuid.uuid4()), reason="y")
    assert await commands(stack) == []


async def test_who_lacks_the_role_sees_why_and_is_refused_by_the_service_too(stack: Stack) -> None:
    await stack.operator("bob", "prepare_deliveries")
    number = await stack.prepare(2)
    base = f"/deliveries/{number}"
    sentence = "Only operators with the Start deliveries role can confirm a send"
    async with visiting(stack, "bob") as visitor, stack.running("confirm"):
        page = await visitor.get(base)
        assert sentence in shown(page)
        assert '<button class="main" disabled aria-describedby="cannot">Confirm send' in page
        answer = await visitor.press(page, f"{base}/confirm")
        assert 'class="answer bad"' in answer
        assert "“bob” lacks the role start_deliveries" in shown(answer)
    assert await commands(stack) == [("delivery.confirm", "refused", "role_missing", "bob")]


async def test_a_role_that_is_revoked_meanwhile_counts_at_once(stack: Stack) -> None:
    number = await stack.prepare(2)
    async with visiting(stack) as visitor:
        assert "disabled" not in await visitor.get(f"/deliveries/{number}")
        async with stack.db.transaction() as tx:
            await tx.execute("revoke_role", name="ana", role="start_deliveries")
        assert "disabled" in await visitor.get(f"/deliveries/{number}")


async def test_who_may_only_look_publishes_nothing(stack: Stack) -> None:
    number = await stack.prepare(2)
    base = f"/deliveries/{number}"
    async with visiting(stack, None) as visitor:
        await visitor.sign_in("ana", look="on")
        for path in ("confirm", "send", "settle", "stats", "control/stop"):
            page = await visitor.post(
                f"{base}/{path}", 403, command=str(uuid.uuid4()), reason="x", how="sent"
            )
            assert "You may look at everything here, and change nothing." in page
    assert await commands(stack) == []


async def test_another_site_can_publish_nothing(stack: Stack) -> None:
    number = await stack.prepare(2)
    async with visiting(stack) as visitor:
        for headers in ({"sec-fetch-site": "cross-site"}, {"origin": "https://evil.example"}):
            answer = await visitor.client.post(
                f"/deliveries/{number}/control/stop",
                data={"command": str(uuid.uuid4()), "reason": "x"},
                headers=headers,
            )
            assert (answer.status_code, "another site" in answer.text) == (403, True)
        foreign = await visitor.client.get("/", headers={"host": "evil.example"})
        assert foreign.status_code == 421
    assert await commands(stack) == []


async def test_a_command_that_nobody_answers_yet_is_shown_as_queued_and_its_answer_later(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acts, "_SECONDS", 0.5)
    number = await stack.prepare(2)
    base = f"/deliveries/{number}"
    async with visiting(stack) as visitor:
        page = await visitor.press(await visitor.get(base), f"{base}/control/stop", reason="wrong list")
        assert "The command is queued, and nobody has answered it yet." in shown(page)
        assert '<meta http-equiv="refresh"' in page
        dialog = await visitor.press(await visitor.get(base), f"{base}/confirm")
        assert "Nobody has answered yet what would be sent. Nothing is sent." in shown(dialog)
        async with stack.running("confirm"):
            (asked,) = {part for part in page.split('"') if "?command=" in part} or {""}
            await stack.finished(number, "stopped")
        assert "stopped" in shown(await visitor.get(f"{base}{asked}"))


async def test_a_broker_that_is_away_is_said_and_the_same_form_tries_again(stack: Stack) -> None:
    number = await stack.prepare(2)
    base = f"/deliveries/{number}"
    async with visiting(stack, amqp_url="amqp://guest:guest@127.0.0.1:1/") as visitor:
        page = await visitor.get(base)
        answer = await visitor.press(page, f"{base}/control/stop", 503, reason="wrong list")
        assert "Sent again, it is still one command." in shown(answer)
        again = forms(answer)[f"{base}/control/stop"]
        assert again == {"command": forms(page)[f"{base}/control/stop"]["command"], "reason": "wrong list"}
        assert "broker" in await visitor.get("/dead", 503)
        await visitor.press(page, f"{base}/stats", 503)


async def test_stats_are_recounted_and_their_drift_is_shown(stack: Stack) -> None:
    number = await stack.prepare(4)
    async with visiting(stack) as visitor, stack.running():
        await stack.confirm(number)
        await stack.finished(number)
        before, base = await visitor.get(f"/deliveries/{number}"), f"/deliveries/{number}/stats"
        page = shown(await visitor.press(before, base))
        assert "Recounted from the logs, as of" in page
        assert "no drift" in page
        await stack.rows(
            "UPDATE sendoff.delivery_counter SET opened = opened + 3 WHERE delivery_id = $1"
            " AND shard = (SELECT min(shard) FROM sendoff.delivery_counter WHERE delivery_id = $1)",
            number,
        )
        assert shown(await visitor.press(before, base)) == page, "the same form has the same answer"
        page = shown(await visitor.press(await visitor.get(f"/deliveries/{number}"), base))
        assert "had drifted, and were repaired: opened -3" in page


async def test_unknown_outcomes_are_settled_some_or_all(stack: Stack) -> None:
    number = await stack.prepare(6)
    base = f"/deliveries/{number}"
    async with stack.running(channel=Counting(frozenset({2, 3, 5})), **QUICK):
        await stack.confirm(number)
        await stack.finished(number)
    async with visiting(stack) as visitor:
        page = await visitor.get(f"{base}/log?status=unknown")
        assert "for all 3 or for some" in shown(page)
        await visitor.press(page, f"{base}/settle", 400, how="sent", recipients="2 x")
        await visitor.press(page, f"{base}/settle", 400, how="nothing")
        assert "no number of its own" in await visitor.post(f"{base}/settle", 400, how="sent")
        page = await visitor.press(page, f"{base}/settle", how="sent", recipients="2 1")
        assert "1 outcome was settled: sent" in shown(page)
        assert "for all 2 or for some" in shown(page)
        page = await visitor.press(page, f"{base}/settle", how="error", recipients="")
        assert "2 outcomes were settled: error" in shown(page)
    row = await stack.deployment(number)
    assert (row["sent"], row["errors"], row["unknown"]) == (4, 2, 0)
    asked = [each for each in await commands(stack) if each[0] == "delivery.settle-unknown"]
    assert asked == [("delivery.settle-unknown", "accepted", None, "ana")] * 2


async def test_a_settlement_that_is_refused_says_why(stack: Stack) -> None:
    await stack.operator("bob", "prepare_deliveries")
    number = await stack.prepare(2)
    async with visiting(stack, "bob") as visitor:
        asked = {"command": str(uuid.uuid4()), "how": "sent"}
        for _ in range(2):
            page = await visitor.post(f"/deliveries/{number}/settle", 409, **asked)
            assert "can settle unknown outcomes" in shown(page)
    assert len(await commands(stack)) == 1


async def test_behind_a_proxy_the_token_of_the_person_goes_with_the_command(stack: Stack) -> None:
    number = await stack.prepare(2)
    base = f"/deliveries/{number}"
    passed = {"authorization": f"Bearer {token('carla')}"}
    behind: dict[str, Any] = TOKENS | {"console_auth": "proxy"}
    async with visiting(stack, None, headers=passed, **behind) as visitor, stack.running("confirm", **TOKENS):
        page = await visitor.get(base)
        assert "carla" in page
        dialog = await visitor.press(page, f"{base}/confirm")
        assert "Confirmed: sending has begun." in shown(await visitor.press(dialog, f"{base}/send"))
    assert {each[3] for each in await commands(stack)} == {"carla"}
    async with visiting(stack, None, **behind) as visitor:
        assert "passed no token" in await visitor.get(base, 401)
        assert "Open the link" not in await visitor.get("/", 401)


def test_settings_that_would_let_strangers_in_stop_the_start(stack: Stack) -> None:
    def settings(**changes: Any) -> Settings:
        return Settings(_env_file=None, **changes)

    with pytest.raises(ValueError, match="SENDOFF_CONSOLE_HOST is not this machine's own address"):
        settings(console_host="0.0.0.0")  # noqa: S104 - it is refused
    with pytest.raises(ValueError, match="SENDOFF_CONSOLE_AUTH=proxy needs SENDOFF_AUTH=token"):
        settings(console_auth="proxy")
    with pytest.raises(SettingsError, match="the local console needs SENDOFF_TOKEN"):
        ConsoleService(settings(**TOKENS), stack.db, print)
    owned = settings(**TOKENS, token=SecretStr(token("carla", SECRET)))
    assert "sign-in" in ConsoleService(owned, stack.db, print).link


async def test_a_database_that_is_away_is_said_and_comes_back(stack: Stack) -> None:
    number = await stack.prepare(2)
    proxy = CutProxy(stack.settings.database_url)
    async with proxy.running():
        db = await open_database(proxy.url, size=2, connect_timeout=2, command_timeout=2, application="t")
        async with visiting(stack, db=db) as visitor:
            address = f"/deliveries/{number}/live?state=ready"
            async with visitor.client.stream("GET", address) as stream:
                lines = stream.aiter_lines()
                await line(lines, "event: beat")
                proxy.cut()
                page = await visitor.get("/", 503)
                assert "The database is out of reach. Deliveries are not affected by this page." in shown(
                    page
                )
                proxy.mend()
                await line(lines, "event: beat")
            await visitor.get("/")
        await db.close()
