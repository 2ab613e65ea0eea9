"""Prepare, against a real database: from two files to a delivery that can be confirmed, or a refusal."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from contracts.states import State
from worker.db import operators, preparation
from worker.domain.operators import Role
from worker.operations.prepare import PreparationRefused, PreparationRequest, Prepared, prepare

if TYPE_CHECKING:
    from pathlib import Path

    from asyncpg import Record

    from worker.db.pool import Database

DELIVERY = """
label = "November newsletter"
channel = "email"
valid_for = "12h"
[schedule]
contact_date = 2026-12-01T09:00:00
time_zone = "Europe/Paris"
[email]
from = "News <news@example.org>"
subject = "Hello {{ first_name }}"
text = "Dear {{ first_name }}"
"""

RECIPIENTS = """\ufeffaddress,profile_id,first_name
 Ana@Example.org ,p1,Ana
ana@example.ORG,p2,Ana again
,p3,Nobody
nope,p4,Nope
held@example.org,p5,Held
one,two,three,four
π@παράδειγμα.gr,,Πι
"zoe@example.org",p8,"Zoë
the second"
"""


@pytest.fixture
async def request_(db: Database, tmp_path: Path) -> PreparationRequest:
    await operators.add_operator(db, "ana", [Role.START_DELIVERIES])
    file, recipients = tmp_path / "delivery.toml", tmp_path / "recipients.csv"
    file.write_text(DELIVERY)
    recipients.write_text(RECIPIENTS)
    return PreparationRequest(file, recipients, "ana", None, ("email", "null"))


async def rows(db: Database, statement: str) -> list[Record]:
    async with db.session() as session:
        found: list[Record] = await session.connection.fetch(statement)
        return found


async def everything(db: Database) -> list[list[Record]]:
    """The content of every table that a preparation writes to."""
    names = ("delivery_record", "delivery_transition", "delivery_content", "recipient", "exclusion")
    return [await rows(db, f"SELECT * FROM sendoff.{name} t ORDER BY t::text") for name in names]  # noqa: S608


async def set_state(db: Database, prepared: Prepared, state: str) -> None:
    await rows(
        db,
        f"UPDATE sendoff.delivery_record SET state = '{state}',"  # noqa: S608
        f" paused_in = CASE '{state}' WHEN 'paused' THEN 'in_progress' END"
        f" WHERE delivery_id = {prepared.delivery_id}",
    )


async def test_a_delivery_is_ready_with_its_audience_and_content(
    db: Database, request_: PreparationRequest
) -> None:
    await rows(
        db,
        "INSERT INTO sendoff.quarantined_address (channel, address_key, address, cause)"
        " VALUES ('email', 'held@example.org', 'Held@example.org', 'hard bounces'),"
        " ('null', 'zoe@example.org', 'zoe@example.org', 'hard bounces')",
    )

    prepared = await prepare(db, request_)

    assert prepared.state is State.READY
    assert prepared.counts.preparation == 1
    assert prepared.counts.to_deliver == 3
    assert prepared.counts.excluded == dict.fromkeys(
        ("duplicate", "empty", "invalid", "malformed", "quarantined"), 1
    )
    (delivery,) = await rows(db, "SELECT * FROM sendoff.delivery")
    assert delivery["state"] == "ready"
    assert delivery["label"] == "November newsletter"
    assert (delivery["to_deliver"], delivery["excluded"]) == (3, 5)
    assert delivery["contact_date"] == datetime(2026, 12, 1, 8, tzinfo=UTC)
    assert delivery["time_zone"] == "Europe/Paris"
    assert delivery["valid_for"] == timedelta(hours=12)
    assert delivery["created_by"] == "ana"
    recipients = await rows(
        db, "SELECT recipient, profile_id, address, variables::text FROM sendoff.recipient ORDER BY 1"
    )
    assert [(r["recipient"], r["profile_id"], r["address"]) for r in recipients] == [
        (1, "p1", "Ana@example.org"),
        (2, None, "π@παράδειγμα.gr"),
        (3, "p8", "zoe@example.org"),
    ]
    assert json.loads(recipients[2]["variables"]) == {"profile_id": "p8", "first_name": "Zoë\nthe second"}
    exclusions = await rows(
        db, "SELECT line, address, profile_id, cause, detail FROM sendoff.exclusion_log ORDER BY 1"
    )
    assert [tuple(e) for e in exclusions] == [
        (3, "ana@example.org", "p2", "duplicate", "the same address as in line 2"),
        (4, "", "p3", "empty", None),
        (5, "nope", "p4", "invalid", "An email address must have an @-sign."),
        (6, "held@example.org", "p5", "quarantined", "hard bounces"),
        (7, None, None, "malformed", "it has 4 fields where the header has 3"),
    ]
    moves = await rows(
        db, "SELECT from_state, to_state, operator FROM sendoff.delivery_transition ORDER BY at"
    )
    assert [tuple(m) for m in moves] == [("editing", "preparing", "ana"), ("preparing", "ready", "ana")]


async def test_preparing_again_replaces_the_snapshot_and_raises_its_number(
    db: Database, request_: PreparationRequest
) -> None:
    first = await prepare(db, request_)
    request_.recipients.write_text("address;first_name\nzoe@example.org;Zoë\n")
    request_.file.write_text(DELIVERY.replace("November", "December"))

    again = await prepare(db, replace(request_, delivery_id=first.delivery_id))

    assert again.delivery_id == first.delivery_id
    assert (again.counts.preparation, again.counts.to_deliver, again.counts.excluded) == (2, 1, {})
    assert [tuple(r) for r in await rows(db, "SELECT recipient, address FROM sendoff.recipient")] == [
        (1, "zoe@example.org")
    ]
    assert await rows(db, "SELECT FROM sendoff.exclusion") == []
    (content,) = await rows(db, "SELECT preparation, content::text FROM sendoff.delivery_content")
    assert content["preparation"] == 2
    assert json.loads(content["content"])["from"] == "News <news@example.org>"
    (delivery,) = await rows(db, "SELECT label FROM sendoff.delivery")
    assert delivery["label"] == "December newsletter"


async def test_a_delivery_with_nobody_left_is_ready(db: Database, request_: PreparationRequest) -> None:
    request_.recipients.write_text("address,first_name\n,Nobody\n")
    prepared = await prepare(db, request_)
    assert (prepared.state, prepared.counts.to_deliver) == (State.READY, 0)


async def test_templates_that_ask_for_what_is_not_there_fail_the_preparation(
    db: Database, request_: PreparationRequest
) -> None:
    prepared = await prepare(db, request_)
    request_.file.write_text(DELIVERY.replace("Dear {{ first_name", "Dear\\n{{ firstname"))

    failed = await prepare(db, replace(request_, delivery_id=prepared.delivery_id))

    assert failed.state is State.PREPARATION_FAILED
    (problem,) = failed.problems
    assert "text, line 2" in problem
    assert "“firstname”" in problem
    (delivery,) = await rows(db, "SELECT state, state_reason, preparation FROM sendoff.delivery")
    assert tuple(delivery) == ("preparation_failed", problem, 1)
    request_.file.write_text(DELIVERY)
    mended = await prepare(db, replace(request_, delivery_id=prepared.delivery_id))
    assert (mended.state, mended.counts.preparation) == (State.READY, 2)


async def test_files_and_a_text_are_stored_with_the_content(
    db: Database, request_: PreparationRequest
) -> None:
    (request_.file.parent / "terms.pdf").write_bytes(b"%PDF")
    table = """html = "<p>Dear <b>{{ first_name }}</b></p>"
[[email.attachments]]
file = "terms.pdf"
"""
    request_.file.write_text(DELIVERY.replace('text = "Dear {{ first_name }}"\n', table))
    prepared = await prepare(db, request_)
    assert prepared.state is State.READY
    (row,) = await rows(db, "SELECT content FROM sendoff.delivery_content")
    stored = json.loads(row["content"])
    assert stored["text"] == "Dear {{ first_name }}\n"
    assert stored["attachments"] == [{"name": "terms.pdf", "type": "application/pdf", "data": "JVBERg=="}]


async def test_a_fault_of_the_html_is_told_once(db: Database, request_: PreparationRequest) -> None:
    table = 'html = "<p>{{ nobody }}</p>"\n'
    request_.file.write_text(DELIVERY.replace('text = "Dear {{ first_name }}"\n', table))
    prepared = await prepare(db, request_)
    assert len(prepared.problems) == 1
    assert prepared.problems[0].startswith("html, line 1: unknown variable “nobody”")


@pytest.mark.parametrize(
    ("name", "words"), [("none.pdf", "No such file or directory"), (".", "it is not a file")]
)
async def test_a_file_that_cannot_be_read_changes_nothing(
    db: Database, request_: PreparationRequest, name: str, words: str
) -> None:
    request_.file.write_text(f'{DELIVERY}[[email.attachments]]\nfile = "{name}"\n')
    with pytest.raises(PreparationRefused, match=f"the attachment {name} cannot be read: {words}"):
        await prepare(db, request_)
    assert await rows(db, "SELECT 1 FROM sendoff.delivery_record") == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"email,first_name\nana@example.org,Ana\n", "no column “address”"),
        (
            b"address,first_name\n" + b"ana@example.org,Ana\n" * 9_000 + b"b@example.org,Zo\xeb\n",
            "line 9002 .*0xeb",
        ),
        ("address,first_name\nana@example.org,Ana\n".encode("utf-16"), "line 1 .*0xff"),
        (None, "cannot be read: No such file"),
    ],
)
async def test_a_broken_recipients_file_changes_nothing(
    db: Database, request_: PreparationRequest, content: bytes | None, reason: str
) -> None:
    prepared = await prepare(db, request_)
    before = await everything(db)
    request_.recipients.unlink()
    if content is not None:
        request_.recipients.write_bytes(content)

    for delivery_id in (None, prepared.delivery_id):
        with pytest.raises(PreparationRefused, match=reason):
            await prepare(db, replace(request_, delivery_id=delivery_id))

    assert await everything(db) == before


async def test_a_broken_delivery_file_changes_nothing(db: Database, request_: PreparationRequest) -> None:
    request_.file.write_text(DELIVERY.replace("label", "lable"))
    with pytest.raises(PreparationRefused, match=r"delivery\.toml: the key “label” is missing"):
        await prepare(db, request_)
    with pytest.raises(PreparationRefused, match="cannot be read"):
        await prepare(db, replace(request_, file=request_.file.with_name("nowhere.toml")))
    assert await rows(db, "SELECT FROM sendoff.delivery_record") == []


async def test_an_operator_without_a_role_that_may_is_refused(
    db: Database, request_: PreparationRequest
) -> None:
    await operators.add_operator(db, "eve", [Role.ADMINISTRATION])
    for name in ("eve", "nobody"):
        with pytest.raises(PreparationRefused, match=name):
            await prepare(db, replace(request_, operator=name))
    assert await rows(db, "SELECT FROM sendoff.delivery_record") == []


async def test_the_role_is_looked_up_again_when_the_delivery_moves(
    db: Database, request_: PreparationRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = preparation.stage

    async def stage_and_revoke(*args: Any) -> None:
        await stage(*args)
        await operators.revoke_role(db, "ana", Role.START_DELIVERIES)

    monkeypatch.setattr(preparation, "stage", stage_and_revoke)
    with pytest.raises(PreparationRefused, match="needs the role"):
        await prepare(db, request_)
    assert await rows(db, "SELECT FROM sendoff.delivery_record") == []


@pytest.mark.parametrize("state", ["start_pending", "in_progress", "paused", "finished", "stopped"])
async def test_a_delivery_that_was_confirmed_is_not_prepared_again(
    db: Database, request_: PreparationRequest, state: str
) -> None:
    prepared = await prepare(db, request_)
    await set_state(db, prepared, state)
    before = await everything(db)
    with pytest.raises(
        PreparationRefused, match=f"is {state.replace('_', ' ')} and cannot be prepared again"
    ):
        await prepare(db, replace(request_, delivery_id=prepared.delivery_id))
    assert await everything(db) == before


async def test_an_unknown_delivery_is_refused(db: Database, request_: PreparationRequest) -> None:
    for delivery_id in (7, 2**63 - 1):
        with pytest.raises(PreparationRefused, match=f"There is no delivery {delivery_id}"):
            await prepare(db, replace(request_, delivery_id=delivery_id))


async def test_a_delivery_that_another_process_prepares_is_refused(
    db: Database, request_: PreparationRequest
) -> None:
    prepared = await prepare(db, request_)
    before = await everything(db)
    async with db.session() as other:
        assert await preparation.lock_preparation(other, prepared.delivery_id)
        with pytest.raises(PreparationRefused, match="is being prepared by another process"):
            await prepare(db, replace(request_, delivery_id=prepared.delivery_id))
    assert await everything(db) == before
    again = await prepare(db, replace(request_, delivery_id=prepared.delivery_id))
    assert again.counts.preparation == 2


async def test_of_two_at_once_one_prepares_and_neither_spoils_the_other(
    db: Database, request_: PreparationRequest
) -> None:
    prepared = await prepare(db, request_)
    again = replace(request_, delivery_id=prepared.delivery_id)
    results = await asyncio.gather(*(prepare(db, again) for _ in range(4)), return_exceptions=True)
    done = [r for r in results if isinstance(r, Prepared)]
    refused = [r for r in results if isinstance(r, PreparationRefused)]
    assert len(done) >= 1
    assert len(done) + len(refused) == 4
    (delivery,) = await rows(db, "SELECT state, preparation, to_deliver FROM sendoff.delivery")
    assert tuple(delivery) == ("ready", 1 + len(done), 4)


async def test_a_preparation_whose_process_died_is_taken_over(
    db: Database, request_: PreparationRequest
) -> None:
    prepared = await prepare(db, request_)
    await set_state(db, prepared, "preparing")
    again = await prepare(db, replace(request_, delivery_id=prepared.delivery_id))
    assert (again.state, again.counts.preparation) == (State.READY, 2)
    moves = await rows(
        db, "SELECT from_state, to_state, reason FROM sendoff.delivery_transition ORDER BY number OFFSET 2"
    )
    assert [tuple(m) for m in moves] == [
        ("preparing", "preparation_failed", "The process that prepared it ended before it was done."),
        ("preparation_failed", "preparing", None),
        ("preparing", "ready", None),
    ]


async def test_an_interruption_leaves_the_snapshot_before_and_says_so(
    db: Database, request_: PreparationRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = await prepare(db, request_)
    audience = (await everything(db))[2:]
    replaced = asyncio.Event()
    replace_audience = preparation.replace_audience

    async def replace_and_wait(*args: Any, **options: Any) -> None:
        await replace_audience(*args, **options)
        replaced.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(preparation, "replace_audience", replace_and_wait)
    task = asyncio.create_task(prepare(db, replace(request_, delivery_id=prepared.delivery_id)))
    async with asyncio.timeout(10):
        await replaced.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert (await everything(db))[2:] == audience
    (delivery,) = await rows(db, "SELECT state, state_reason, preparation FROM sendoff.delivery")
    assert tuple(delivery) == ("preparation_failed", "It broke off: it was interrupted.", 1)


async def test_many_rows_go_through_several_copies_in_order(
    db: Database, request_: PreparationRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "_COPY_ROWS", 100)
    with request_.recipients.open("w") as file:
        file.write("address,first_name\n")
        file.writelines(f"p{i}@example.org,Name {i}\n" for i in range(1_000))
    prepared = await prepare(db, request_)
    assert prepared.counts.to_deliver == 1_000
    wrong = await rows(
        db, "SELECT FROM sendoff.recipient WHERE address <> format('p%s@example.org', recipient - 1)"
    )
    assert wrong == []
