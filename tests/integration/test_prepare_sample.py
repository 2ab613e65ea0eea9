"""Prepare tries the templates out with recipients of the file, before anybody can confirm them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from contracts.states import State
from worker.db import operators
from worker.domain.operators import Role
from worker.operations.prepare import PreparationRequest, prepare

if TYPE_CHECKING:
    from pathlib import Path

    from worker.db.pool import Database

ROWS = 30_000
LONGEST = 23_456
"""The line of the one recipient with a long list."""
DELIVERY = """
label = "November newsletter"
channel = "email"
[email]
from = "News <news@example.org>"
subject = "Hello {{ name }}"
text = """


@pytest.fixture
async def request_(db: Database, tmp_path: Path) -> PreparationRequest:
    await operators.add_operator(db, "ana", [Role.START_DELIVERIES])
    recipients = tmp_path / "recipients.csv"
    with recipients.open("w") as file:
        file.write("address,name,orders\n")
        for line in range(2, ROWS + 2):
            orders = ";".join("abc" for _ in range(5_000 if line == LONGEST else 2))
            file.write(f"p{line}@example.org,Ana,{orders}\n")
    return PreparationRequest(tmp_path / "delivery.toml", recipients, "ana", None, ("email", "null"))


async def failure(db: Database, request: PreparationRequest, text: str) -> str:
    request.file.write_text(f"{DELIVERY}'''{text}'''\n")
    prepared = await prepare(db, request)
    if not prepared.problems:
        assert prepared.state is State.READY
        return ""
    assert prepared.state is State.PREPARATION_FAILED
    async with db.session() as session:
        reason = await session.connection.fetchval(
            "SELECT state_reason FROM sendoff.delivery WHERE delivery_id = $1", prepared.delivery_id
        )
    assert reason == " ".join(prepared.problems)
    return str(reason)


LOOP = """{% for one in orders.split(";") %}
{% for other in orders.split(";") %}{{ one }}{% endfor %}{% endfor %}"""


async def test_a_limit_that_one_recipient_reaches_fails_the_preparation(
    db: Database, request_: PreparationRequest
) -> None:
    assert await failure(db, request_, LOOP) == (
        "text, line 2: the message takes more than 100,000 steps; "
        f"so with the recipient in line {LONGEST} of the recipients file."
    )
    assert await failure(db, request_, "{{ orders.split(';')|join(', ') }}") == ""


async def test_a_template_that_fails_with_the_first_recipient_does(
    db: Database, request_: PreparationRequest
) -> None:
    said = await failure(db, request_, "{{ 1 // orders.split(';')[2]|default('0')|int }}")
    assert said == (
        "text, line 1: integer division or modulo by zero; "
        "so with the recipient in line 2 of the recipients file."
    )


async def test_what_is_not_allowed_is_refused_before_the_file_is_read(
    db: Database, request_: PreparationRequest
) -> None:
    request_.recipients.write_text("address,name,orders\nana@example.org,Ana\n")
    for text, words in (
        ("{{ 'x'|center(2000000000) }}", "text, line 1: No filter named 'center'."),
        ("{{ " + "(" * 300 + "1" + ")" * 300 + " }}", "text, line 1: brackets stand more than 20 deep"),
        ("{% macro m() %}{% endmacro %}", "text, line 1: “macro” cannot be used"),
    ):
        assert words in await failure(db, request_, text)
