"""The views that dashboards read: commented, documented, right, and by index within one set of partitions."""

from __future__ import annotations

import io
import json
import re
import secrets
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from rich.console import Console

import sql
from dev import draw_tables
from tests.bench.examples import blocks, examples, views
from tests.bench.filling import Shape, fill
from tests.bench.tables import Tables, show
from worker.db.stats import Statistics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.stack import Stack
    from worker.db.pool import Database

SHAPES = [
    Shape(4_000),
    Shape(700, "in_progress"),
    Shape(700, "stopped"),
    *[Shape(3)] * 10,
    Shape(1_500),
    *[Shape(3)] * 10,
]
PROFILE = "p100"


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[Any]:
    """A client that knows nothing of Sendoff's pool."""
    client = await asyncpg.connect(database_url, timeout=20)
    try:
        yield client
    finally:
        await client.close()


@pytest.fixture
async def deliveries(connection: Any) -> list[int]:
    """Deliveries in two sets of partitions."""
    return await fill(connection, SHAPES, profiles=4_000, sets=2)


async def test_every_view_and_every_column_of_it_says_what_it_is(connection: Any) -> None:
    views = await draw_tables.columns(connection)
    silent = [f"{view}.{c['name']}" for view, found in views.items() for c in found if not c["text"]]
    assert silent == [], "COMMENT ON COLUMN is missing"
    rows = await connection.fetch(
        "SELECT viewname FROM pg_views WHERE schemaname = 'sendoff'"
        " AND obj_description(('sendoff.' || viewname)::regclass) IS NULL"
    )
    assert rows == [], "COMMENT ON VIEW is missing"


async def test_the_page_has_every_view_with_every_column_as_the_database_says(connection: Any) -> None:
    text, found = draw_tables.PAGE.read_text("utf-8"), await draw_tables.columns(connection)
    assert draw_tables.page(text, found) == text, "run make tables"
    changed = text.replace("| `sent` | bigint |", "| `sent` | text |").replace("| `channel` |", "| `way` |")
    assert draw_tables.page(changed, found) == text
    with pytest.raises(ValueError, match="'new'"):
        draw_tables.page(text, found | {"new": []})
    assert [view for view in views() if not blocks(f"`{view}`")] == [], "an example is missing"


async def test_every_example_of_the_page_finds_something(connection: Any, deliveries: list[int]) -> None:
    for example in examples():
        assert await connection.fetch(example.filled(deliveries[0], PROFILE)), example.sql


def scans(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """The nodes of a plan that read a table, but for those that turned out not to be needed."""
    reads = plan["Actual Loops"] and ("Relation Name" in plan or plan["Node Type"] == "Bitmap Index Scan")
    own = [plan] if reads else []
    return own + [node for part in plan.get("Plans", []) for node in scans(part)]


async def read_wholly(connection: Any, question: str) -> list[str]:
    """What a question reads from end to end, or in several sets of partitions, though it names a delivery."""
    await connection.execute("SET enable_seqscan = off")
    (plan,) = json.loads(await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {question}"))
    found, sets = [], set()
    for node in scans(plan["Plan"]):
        relation = node.get("Relation Name", node.get("Index Name"))
        if part := re.search(r"_(\d+)$", node.get("Relation Name", "")):
            sets.add(part[1])
        by_key = "Index Cond" in node or "Recheck Cond" in node or "TID Cond" in node
        if not by_key:
            found.append(f"{node['Node Type']} on {relation}")
    of_a_profile = "WHERE profile_id = " in question
    return found + ([f"the sets {sorted(sets)}"] if len(sets) > 1 and not of_a_profile else [])


async def test_no_view_reads_a_whole_table_for_one_delivery(connection: Any, deliveries: list[int]) -> None:
    await connection.execute("ANALYZE")
    questions = [e.filled(deliveries[0], PROFILE) for e in examples() if e.asks]
    questions += [
        f"SELECT * FROM sendoff.{view} WHERE delivery_id = {deliveries[0]}"  # noqa: S608 - our own names
        for view, found in (await draw_tables.columns(connection)).items()
        if "delivery_id" in {column["name"] for column in found}
    ]
    assert {q: found for q in questions if (found := await read_wholly(connection, q))} == {}


@pytest.mark.parametrize(
    ("view", "found"),
    [
        ("SELECT delivery_id, row_number() OVER () FROM sendoff.outcome", ["Scan on outcome", "the sets"]),
        ("SELECT delivery_id + 0 AS delivery_id FROM sendoff.exclusion", ["Scan on exclusion", "the sets"]),
        (
            "SELECT max(delivery_id) AS delivery_id FROM sendoff.command GROUP BY operator",
            ["Scan on command"],
        ),
    ],
)
@pytest.mark.usefixtures("deliveries")
async def test_the_check_finds_a_view_that_reads_a_whole_table(
    connection: Any, view: str, found: list[str]
) -> None:
    await connection.execute(f"CREATE VIEW sendoff.bad AS {view}")
    said = " ".join(await read_wholly(connection, "SELECT * FROM sendoff.bad WHERE delivery_id = 1"))
    assert all(part in said for part in found), said


@pytest.mark.usefixtures("deliveries")
async def test_the_services_look_outcomes_up_by_the_key(connection: Any, db: Database) -> None:
    await connection.execute("ANALYZE")
    by_place = set()
    async with db.session() as session:
        for name, query in sql.queries().items():
            statement = re.sub(r"--.*", "", query.text).strip().rstrip(";")
            if not re.search(r"\bsendoff\.(outcome|sending_log|recount)\b", statement):
                continue
            await session.connection.execute(f"PREPARE planned AS {statement}")
            nulls = f"({', '.join(['NULL'] * len(query.parameters))})"
            plan = await session.connection.fetch(f"EXPLAIN EXECUTE planned{nulls.replace('()', '')}")
            await session.connection.execute("DEALLOCATE planned")
            if any(re.search(r"Bitmap Index Scan on outcome_\d+_delivery_id_idx", line[0]) for line in plan):
                by_place.add(name)
    assert by_place <= {"recount"}


async def test_a_plan_made_for_empty_tables_looks_recipients_up_by_the_whole_key(db: Database) -> None:
    """It is kept until the tables are analysed: a first delivery of a million may be half sent by then."""
    whole = {
        "cancel_remaining",
        "drop_audience",
        "forgive",  # planned for the table as it is, as recount
        "end_retries",  # of those that wait for a retry alone, which have an index
        "insert_domains",
        "read_bounce_reasons",  # as seven more of the console, which plans each for the tables as they are
        "read_causes",
        "read_curve",
        "read_domains",
        "read_exceptions_page",
        "read_log_page",
        "read_opens",
        "read_urls",
        "read_progress",  # of the refusals that blame the sender alone, which have an index
        "read_refusing_domains",  # as read_progress
        "spare_refused",  # as read_progress
        "read_excluded_by_cause",
        "recount",
        "recount_tracking",
        "read_sending_log",  # of a command, which plans it for the table as it is
        "retries_ended",  # as end_retries
    }
    half = re.compile(
        r"(Scan using|Index Scan on) \w+_1_.*\n *Index Cond: \(delivery_id = \S+\)$", re.MULTILINE
    )
    by_half = set()
    async with db.session() as session:
        await session.connection.execute(sql.queries()["create_staged_target"].text)
        for name, query in sql.queries().items():
            statement = re.sub(r"--.*", "", query.text).strip().rstrip(";")
            if not re.match(r"SELECT|INSERT|UPDATE|DELETE|WITH", statement):
                continue
            await session.connection.execute(f"PREPARE planned AS {statement}")
            nulls = f"({', '.join(['NULL'] * len(query.parameters))})".replace("()", "")
            plan = "\n".join(
                r[0] for r in await session.connection.fetch(f"EXPLAIN (COSTS OFF) EXECUTE planned{nulls}")
            )
            await session.connection.execute("DEALLOCATE planned")
            if half.search(plan):
                by_half.add(name)
    assert by_half <= whole


async def test_the_domains_add_up_to_what_the_recipients_say(connection: Any, deliveries: list[int]) -> None:
    naive = """
        SELECT r.delivery_id, lower(split_part(r.address, '@', 2)) AS domain, count(*) AS to_deliver,
               count(*) FILTER (WHERE o.status = 'sent') AS sent,
               count(*) FILTER (WHERE o.status LIKE 'bounced%') AS bounced,
               count(*) FILTER (WHERE o.status = 'error') AS errors,
               count(*) FILTER (WHERE o.status = 'unknown') AS unknown
        FROM sendoff.recipient r
        LEFT JOIN sendoff.outcome o ON o.delivery_id = r.delivery_id AND o.recipient = r.recipient
        GROUP BY r.delivery_id, lower(split_part(r.address, '@', 2))
        ORDER BY 1, 2
    """
    expected = await connection.fetch(naive)
    assert len({row["delivery_id"] for row in expected}) == len(deliveries)
    assert await connection.fetch("SELECT * FROM sendoff.domain_breakdown ORDER BY 1, 2") == expected


async def test_the_domains_are_those_of_the_last_preparation(stack: Stack) -> None:
    number = await stack.prepare(["ann@one.example", "bob@TWO.example", "cid@one.example"])
    await stack.prepare(["eve@two.example", "dan@drei.example", "fay@two.example"], delivery=number)
    asked = "SELECT domain, to_deliver, sent FROM sendoff.domain_breakdown WHERE delivery_id = $1 ORDER BY 1"
    assert [tuple(row.values()) for row in await stack.rows(asked, number)] == [
        ("drei.example", 1, 0),
        ("two.example", 2, 0),
    ]
    async with stack.running():
        await stack.confirm(number, 2)
        await stack.finished(number)
    assert [row["sent"] for row in await stack.rows(asked, number)] == [1, 2]


async def test_the_bench_measures_every_example_and_shows_its_plan(
    connection: Any, db: Database, deliveries: list[int]
) -> None:
    printed = Console(file=io.StringIO(), width=200)
    tables = Tables(connection, db, printed, 1)
    asked = {"large": deliveries[0]}
    found = await tables.recounts(asked) + await tables.views(asked, PROFILE)
    show(printed, "Small", found)
    assert [m.what for m in found if not m.rows] == []
    assert len([m for m in found if "Scan" in m.plan]) == len(examples())
    assert all(m.what.partition(":")[0] in printed.file.getvalue() for m in found)  # type: ignore[attr-defined]


async def test_compute_stats_counts_what_was_filled_in(db: Database, deliveries: list[int]) -> None:
    for number in deliveries[:4]:
        found = await Statistics(db).recount(number, deadline=20)
        assert found is not None
        assert found.drift == {}
        assert found.deployment["sent"] > 0


async def test_a_dashboard_may_read_the_views_and_nothing_else(connection: Any, database_url: str) -> None:
    suffix = secrets.token_hex(4)
    names = {"sendoff_reader": f"reader_{suffix}", "dashboard": f"dashboard_{suffix}"}
    granting = ";\n".join(blocks("A role that may read"))
    for name, own in names.items():
        granting = re.sub(rf"\b{name}\b", own, granting)
    await connection.execute(granting)
    host = re.sub(r"//[^@]*@", f"//{names['dashboard']}:choose-another-one@", database_url)
    try:
        dashboard = await asyncpg.connect(host, timeout=20)
        try:
            for view in await draw_tables.columns(connection):
                await dashboard.fetch(f"TABLE sendoff.{view} LIMIT 1")
            tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'sendoff'")
            for table in tables:
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await dashboard.fetch(f"TABLE sendoff.{table['tablename']} LIMIT 1")
            with pytest.raises(asyncpg.PostgresError):
                await dashboard.execute("UPDATE sendoff.delivery SET label = 'x'")
            await dashboard.execute("SET default_transaction_read_only = off")
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await dashboard.execute("UPDATE sendoff.delivery SET label = 'x'")
            assert await dashboard.fetchval("SHOW timezone") == "UTC"
        finally:
            await dashboard.close()
    finally:
        for name in reversed(names.values()):
            await connection.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")
