"""Who may speak, through the broker: publishers by a list, operators by signed tokens."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aio_pika
import pytest

from contracts import routing
from tests.support.stack import until
from tests.support.tokens import SECRET, TOKENS, bearing, token

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.processes import Sendoff
    from tests.support.stack import Stack


def us(stack: Stack) -> str:
    return urlsplit(stack.settings.amqp_url).username or "guest"


def confirm(number: int, operator: str = "ana", **changes: Any) -> dict[str, Any]:
    return {"delivery_id": number, "operator": operator, "preparation": 1, "definitive": True, **changes}


async def logged(stack: Stack) -> list[tuple[str, str, str | None]]:
    rows = await stack.rows("SELECT * FROM sendoff.command_log ORDER BY received_at")
    return [(row["status"], row["reason"], row["publisher"]) for row in rows]


async def test_a_broker_user_who_is_not_listed_changes_nothing(stack: Stack) -> None:
    number = await stack.prepare(3)
    async with stack.running("confirm", "stats", publishers=("shop", "crm")):
        refused = await stack.confirm(number, user_id=us(stack))
        assert (refused["status"], refused["reason"]) == ("refused", "publisher_not_allowed")
        assert f"“{us(stack)}”" in refused["message"]
        assert (refused["delivery_id"], refused["state"], refused["summary"]) == (number, None, None)
        unnamed = await stack.confirm(number)
        assert (unnamed["status"], unnamed["reason"]) == ("refused", "publisher_not_allowed")
        assert "user_id" in unnamed["message"]
        unreadable = await stack.request(routing.PAUSE, b"{", user_id=us(stack))
        assert unreadable["reason"] == "publisher_not_allowed"
        stats = await stack.request(routing.COMPUTE_STATS, {"delivery_id": number})
        assert stats["to_deliver"] == 3
    assert (await stack.deployment(number))["state"] == "ready"
    assert await logged(stack) == [
        ("refused", "publisher_not_allowed", us(stack)),
        ("refused", "publisher_not_allowed", None),
        ("refused", "publisher_not_allowed", us(stack)),
    ]


async def test_a_broker_user_who_is_listed_is_heard_and_nobody_can_say_they_are_another(stack: Stack) -> None:
    number = await stack.prepare(3)
    async with stack.running("confirm", publishers=("shop", us(stack))):
        with pytest.raises(aio_pika.exceptions.AMQPChannelError, match="PRECONDITION_FAILED"):
            await stack.confirm(number, user_id="shop")
        stack.channel = await stack.connection.channel(on_return_raises=True)
        assert (await stack.confirm(number, user_id=us(stack)))["status"] == "accepted"
    assert await logged(stack) == [("accepted", None, us(stack))]


async def test_an_answer_is_told_again_to_the_same_broker_user_alone(stack: Stack) -> None:
    number = await stack.prepare(3)
    asked = confirm(number, definitive=False, preparation=None)
    async with stack.running("confirm", publishers=(us(stack),)):
        first = await stack.request(routing.CONFIRM, asked, message_id="c-1", user_id=us(stack))
        again = await stack.request(routing.CONFIRM, asked, message_id="c-1", user_id=us(stack))
        other = await stack.request(routing.CONFIRM, asked, message_id="c-1")
    assert first == again
    assert first["status"] == "finalize"
    assert (other["status"], other["reason"], other["summary"]) == ("invalid", "malformed", None)
    assert len(await logged(stack)) == 1


async def test_what_comes_by_another_way_than_the_exchange_is_no_command(stack: Stack) -> None:
    number = await stack.prepare(3)
    answers = await stack.channel.declare_queue(exclusive=True, auto_delete=True)
    body = json.dumps({"delivery_id": number, "operator": "ana", "reason": "an event reads like this"})
    message = aio_pika.Message(body.encode(), message_id="c-1", reply_to=answers.name)
    async with stack.running("confirm"):
        queue = stack.names.queue(routing.COMMANDS_QUEUE)
        await stack.channel.default_exchange.publish(message, queue)
        answered = await until(lambda: answers.get(fail=False, no_ack=True))
    answer = json.loads(answered.body)
    assert (answer["status"], answer["reason"]) == ("invalid", "malformed")
    assert queue in answer["message"]
    assert (await stack.deployment(number))["state"] == "ready"


@pytest.mark.parametrize(
    ("properties", "operator", "reason", "sentence"),
    [
        ({}, "ana", "publisher_not_allowed", "carries no token"),
        ({"headers": {"Authorization": "x"}}, "ana", "publisher_not_allowed", "carries no token"),
        ({"headers": {"authorization": ["x"]}}, "ana", "publisher_not_allowed", "carries no token"),
        (bearing("x.y.z"), "ana", "publisher_not_allowed", "not a signed JSON Web Token"),
        (bearing(token(key=SECRET + "!")), "ana", "publisher_not_allowed", "signature is wrong"),
        (bearing(token(exp=1)), "ana", "publisher_not_allowed", "has expired"),
        (bearing(token(aud="shop")), "ana", "publisher_not_allowed", "another audience"),
        (bearing(token(iss="https://evil.example")), "ana", "publisher_not_allowed", "another issuer"),
        (bearing(token("paul")), "ana", "publisher_not_allowed", "is for “paul”"),
        (bearing(token(roles=["administration"])), "ana", "role_missing", "Start deliveries role"),
        (bearing(token(roles=None)), "ana", "role_missing", "Start deliveries role"),
        (bearing(token("gone")), "gone", "operator_unknown", "has been deactivated"),
    ],
)
async def test_without_a_good_token_of_ones_own_nothing_changes(
    stack: Stack, properties: dict[str, Any], operator: str, reason: str, sentence: str
) -> None:
    await stack.operator("gone", "start_deliveries")
    await stack.db.fetchval("set_operator_active", name="gone", active=False)
    number = await stack.prepare(3)
    async with stack.running("confirm", **TOKENS):
        for key, body in (
            (routing.CONFIRM, confirm(number, operator)),
            (routing.STOP, {"delivery_id": number, "operator": operator, "reason": "a test"}),
        ):
            answer = await stack.request(key, body, **properties)
            assert (answer["status"], answer["reason"]) == ("refused", reason)
            assert sentence in answer["message"]
    assert (await stack.deployment(number))["state"] == "ready"
    assert [status for status, _, _ in await logged(stack)] == ["refused", "refused"]


async def test_the_roles_of_the_token_count_and_the_directory_is_not_needed(stack: Stack) -> None:
    await stack.operator("paul")
    one, other = await stack.prepare(3), await stack.prepare(3)
    async with stack.running("confirm", **TOKENS):
        for number, operator in ((one, "new in the house"), (other, "paul")):
            answer = await stack.request(
                routing.CONFIRM, confirm(number, operator), **bearing(token(operator))
            )
            assert (answer["status"], answer["state"]) == ("accepted", "in_progress")
    rows = await stack.rows("SELECT operator FROM sendoff.command_log ORDER BY operator")
    assert [row["operator"] for row in rows] == ["new in the house", "paul"]


async def test_an_answer_outlives_the_token_and_the_token_is_kept_nowhere(
    stack: Stack, capfd: pytest.CaptureFixture[str]
) -> None:
    number = await stack.prepare(3)
    fresh, stale = token(), token(exp=1)
    async with stack.running("confirm", **TOKENS):
        first = await stack.confirm(number, message_id="once", **bearing(fresh))
        again = await stack.confirm(number, message_id="once", **bearing(stale))
        anew = await stack.confirm(number, **bearing(stale))
    assert first["status"] == "accepted"
    assert again == first
    assert anew["reason"] == "publisher_not_allowed"
    kept = json.dumps(
        [
            row["row"]
            for table in ("command", "delivery_transition", "delivery_record")
            for row in await stack.rows(f"SELECT to_jsonb(t)::text AS row FROM sendoff.{table} t")  # noqa: S608
        ]
    )
    said = kept + "".join(capfd.readouterr())
    assert "once" in said
    assert not any(part in said for one in (fresh, stale) for part in one.split("."))


async def test_the_command_line_speaks_as_its_broker_user_and_shows_its_token(
    stack: Stack, sendoff: Sendoff, tmp_path: Path
) -> None:
    number = await stack.prepare(3)
    (tmp_path / "token").write_text(token() + "\n")
    (tmp_path / "stale").write_text(token(exp=1))
    (tmp_path / "empty").write_text("\n")

    async def said(*arguments: object, env: dict[str, str] | None = None) -> tuple[int, str]:
        done = await asyncio.to_thread(sendoff, *arguments, env=env)
        return done.returncode, done.stdout + done.stderr

    paused = ("pause", number, "--operator", "ana", "--reason", "a test")
    async with stack.running("confirm", "stats", publishers=(us(stack),), **TOKENS):
        status, sentence = await said("confirm", number, "--operator", "ana", "--yes")
        assert (status, "carries no token" in sentence) == (1, True)
        ok = ("confirm", number, "--operator", "ana", "--yes", "--token-file", tmp_path / "token")
        assert (await said(*ok))[0] == 0
        status, sentence = await said(*paused, "--token-file", tmp_path / "stale")
        assert (status, "has expired" in sentence) == (1, True)
        assert (await said(*paused, env={"SENDOFF_TOKEN": token()}))[0] == 0
        assert (await said("stats", number))[0] == 0
    for name, sentence in (("empty", "is empty"), ("none", "cannot be read")):
        status, told = await said(*paused, "--token-file", tmp_path / name)
        assert (status, sentence in told.replace("\n", " ")) == (2, True)


def test_a_start_with_settings_that_do_not_fit_is_a_sentence(sendoff: Sendoff, tmp_path: Path) -> None:
    wrong = sendoff("run", "confirm", env={"SENDOFF_AUTH": "token"})
    assert wrong.returncode == 2
    assert "SENDOFF_AUTH=token needs a key" in wrong.stderr
    shared = {"SENDOFF_AUTH": "token", "SENDOFF_AUTH_ISSUER": "x", "SENDOFF_AUTH_AUDIENCE": "y"}
    nowhere = shared | {"SENDOFF_AUTH_JWKS_FILE": str(tmp_path / "none.json")}
    checked = sendoff("check", "--json", env=nowhere)
    assert checked.returncode == 1
    assert "cannot be read" in json.loads(checked.stdout)[0]["message"]


async def test_a_dead_command_is_shown_without_its_token(stack: Stack, sendoff: Sendoff) -> None:
    bearer = token()
    await stack.publish(routing.DEAD, routing.STOP, b"{}", **bearing(bearer))
    for form in ((), ("--json",)):
        shown = await asyncio.to_thread(sendoff, "dead", "show", 1, *form)
        assert shown.returncode == 0
        assert "authorization" in shown.stdout
        assert bearer[:20] not in shown.stdout
