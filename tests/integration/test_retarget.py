"""`sendoff prepare --from-delivery`: an audience out of outcomes, and who never comes along."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from contracts import routing
from tests.support.claims import claim, expire
from tests.support.deliveries import confirmed
from tests.support.results import AT
from tests.support.tracking import APPLE, event, publish, recorded

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.processes import Sendoff
    from tests.support.stack import Stack

ROWS = [
    "sent@example.org,p1,Anna",
    "opened@example.org,p2,Bo",
    "machine@example.org,p3,Cy",
    'clicked@example.org,p4,"Dora, the 4th"',
    "soft@example.org,p5,Eve",
    "hard@example.org,p6,Finn",
    "error@example.org,p7,Gus",
    "optout@example.org,p8,Hal",
    "complained@example.org,,Ida",
    "erased@example.org,p10,Jan",
    "doubt@example.org,p11,Kim",
]
SHOP = "https://example.org/shop?a=b"


def result(number: int, recipient: int, **more: Any) -> dict[str, Any]:
    return {"delivery_id": number, "recipient": recipient, "attempt": 1, "at": AT, **more}


@pytest.fixture
async def number(stack: Stack, sendoff: Sendoff) -> int:
    """A delivery that is over, with an outcome of each kind."""
    number = await confirmed(
        stack, ROWS, columns="address,profile_id,first_name", extra="[limits]\nmax_attempts = 1"
    )
    # Before the scheduler runs, which would give the claim the time that a result may take.
    assert await claim(stack.db, number, {11: (1, "doubt@example.org")}) == {11}
    await expire(stack.db, number)
    async with stack.running("results", "tracking", "schedule", tick=0.05):
        sent = [result(number, r) for r in (1, 2, 3, 4, 8, 9, 10)]
        bounce = {"status": "5.1.1", "fault": "recipient", "reply": "550"}
        bounces = [
            result(number, 5, kind="soft", reason="mailbox_full", **bounce),
            result(number, 6, kind="hard", reason="user_unknown", **bounce),
        ]
        await stack.publish(routing.RESULTS, "sent", json.dumps(sent).encode())
        await stack.publish(routing.RESULTS, "bounce", json.dumps(bounces).encode())
        failed = result(number, 7, reason="template", retryable=False)
        await stack.publish(routing.RESULTS, "error", json.dumps([failed]).encode())
        await stack.finished(number)
        await publish(
            stack,
            event(number, 2, "open", "e1"),
            event(number, 3, "click", "e2", url=SHOP, user_agent=APPLE),
            event(number, 4, "click", "e3", url=SHOP),
            event(number, 8, "optout", "e4"),
            event(number, 9, "complaint", "e5"),
            event(number, 10, "open", "e6"),
            event(number, 4, "click", "e7", url="https://example.org/profile?of=4"),
            event(number, 6, "click", "e8", url="https://example.org/profile?of=6"),
            event(number, 4, "click", "e9", url="https://xn--bcher-kva.example/%C3%A9"),
        )
        await recorded(stack, 9)
    await stack.operator("zoe", "administration")
    erased = await asyncio.to_thread(sendoff, "erase", "p10", "--operator", "zoe", "--yes")
    assert erased.returncode == 0, erased.stderr
    for kind, who in (("quarantine", ["hard@example.org", "complained@example.org"]), ("denylist", ["p8"])):
        # The outcomes themselves keep them away, whatever the lists say.
        done = await asyncio.to_thread(
            sendoff, kind, "remove", *who, "--operator", "zoe", "--channel", "null"
        )
        assert done.returncode == 0, done.stderr
    return number


@pytest.fixture
def prepare(stack: Stack, sendoff: Sendoff) -> Callable[..., Any]:
    file = stack.folder / "again.toml"
    file.write_text('label = "Again"\nchannel = "null"\n')

    async def run(*args: object) -> Any:
        return await asyncio.to_thread(sendoff, "prepare", file, "--operator", "ana", *args)

    return run


@pytest.mark.parametrize(
    ("who", "expected"),
    [
        (["failed"], ["soft", "error"]),
        (["soft"], ["soft"]),
        (["not-opened"], ["sent"]),
        (["not-opened", "--persons"], ["sent", "machine"]),
        (["not-clicked"], ["sent", "opened"]),
        (["not-clicked", "--persons"], ["sent", "opened", "machine"]),
        ([f"clicked={SHOP}"], ["machine", "clicked"]),
        ([f"clicked={SHOP}", "--persons"], ["clicked"]),
        (["clicked=https://example.org/profile?of={{ recipient }}"], ["clicked"]),
        (["clicked=https://bücher.example/é"], ["clicked"]),
        (["unknown"], ["doubt"]),
    ],
)
async def test_each_criterion_finds_its_own(
    stack: Stack, number: int, prepare: Any, who: list[str], expected: list[str]
) -> None:
    done = await prepare("--from-delivery", number, "--who", *who, "--json")
    assert done.returncode == 0, done.stderr
    new = json.loads(done.stdout)["delivery_id"]
    rows = await stack.rows(
        "SELECT address, profile_id, variables::text FROM sendoff.recipient WHERE delivery_id = $1"
        " ORDER BY recipient",
        new,
    )
    assert [row["address"].partition("@")[0] for row in rows] == expected
    (source,) = await stack.rows(
        "SELECT source_delivery_id, source_criterion FROM sendoff.delivery WHERE delivery_id = $1", new
    )
    assert source["source_delivery_id"] == number
    assert source["source_criterion"] == who[0] + (", persons" if len(who) > 1 else "")
    if who == [f"clicked={SHOP}", "--persons"]:
        assert rows[0]["profile_id"] == "p4"
        assert json.loads(rows[0]["variables"])["first_name"] == "Dora, the 4th"


async def test_what_has_no_audience_is_a_sentence(stack: Stack, number: int, prepare: Any) -> None:
    under_way = await confirmed(stack, 1)
    for args, status, sentence in (
        (["--from-delivery", 999, "--who", "failed"], 1, "There is no delivery 999."),
        (["--from-delivery", under_way, "--who", "failed"], 1, "its outcomes are known when it is over"),
        (
            ["--from-delivery", number, "--who", "clicked=https://e.org/{{ a }}"],
            1,
            f"Nobody of the delivery {number} fits “clicked=https://e.org/{{{{ a }}}}”.",
        ),
        (["--from-delivery", number, "--who", "clicked=https://e.org"], 1, "Nobody of the delivery"),
        (["--from-delivery", number, "--who", "opened"], 2, "“opened” is none of failed, soft,"),
        (["--from-delivery", number], 2, "--from-delivery and --who belong together."),
        ([], 2, "Name one audience"),
        (["--from-delivery", number, "--who", "soft", "--recipients", "x.csv"], 2, "Name one audience"),
    ):
        done = await prepare(*args)
        assert (done.returncode, sentence in done.stderr) == (status, True), done.stderr
    assert len(await stack.rows("SELECT FROM sendoff.delivery")) == 2


async def test_a_file_takes_the_source_away(stack: Stack, number: int, prepare: Any) -> None:
    new = json.loads((await prepare("--from-delivery", number, "--who", "soft", "--json")).stdout)[
        "delivery_id"
    ]
    csv = stack.folder / "others.csv"
    csv.write_text("address\nana@example.org\n")
    assert (await prepare("--recipients", csv, "--delivery", new)).returncode == 0
    (row,) = await stack.rows("SELECT source_delivery_id FROM sendoff.delivery WHERE delivery_id = $1", new)
    assert row["source_delivery_id"] is None
