"""The named queries and the migrations: how they are read, and that code and SQL know the same names."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sql
import worker

if TYPE_CHECKING:
    from collections.abc import Iterator

CALLS = {"fetch", "fetchrow", "fetchval", "execute"}

WORDS = st.from_regex(r"[a-z_][a-z0-9_]{0,4}", fullmatch=True)
APART = [
    "::text",
    "-- :a, it's\n",
    "/* :a */",
    "':a'",
    "'it''s :a'",
    '":a"',
    "$$ :a $$",
    "x[1:2]",
    "a.b",
    " ",
]
"""Where a colon, or what looks like a parameter, is none."""


@pytest.fixture
def sql_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("migrations", "queries"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(sql, "files", lambda _: tmp_path)
    return tmp_path


def test_a_query_is_what_stands_below_its_name(sql_folder: Path) -> None:
    (sql_folder / "queries" / "a.sql").write_text(
        "-- A topic.\n\n-- name: one\n-- Because.\nSELECT 1;\n\n-- name: two\nSELECT 2;\n"
    )
    found = {name: query.text for name, query in sql.queries().items()}
    assert found == {"one": "-- Because.\nSELECT 1;", "two": "SELECT 2;"}


@given(st.lists(st.one_of(WORDS.map(":{}".format), st.sampled_from(APART))))
def test_parameters_are_numbered_by_their_first_place_and_all_else_stays(parts: list[str]) -> None:
    query = sql.Query(" ".join(parts))
    names = [part[1:] for part in parts if re.fullmatch(r":\w+", part)]
    assert query.parameters == tuple(dict.fromkeys(names))
    numbers = {f":{name}": f"${query.parameters.index(name) + 1}" for name in names}
    assert query.text == " ".join(numbers.get(part, part) for part in parts)
    values = {name: object() for name in reversed(query.parameters)}
    assert query.arguments(values) == tuple(values[name] for name in query.parameters)


@pytest.mark.parametrize("values", [{}, {"b": 1}, {"a": 1}, {"a": 1, "c": 1}, {"a": 1, "b": 1, "c": 1}])
def test_a_parameter_without_a_value_and_a_value_without_a_parameter_are_refused(
    values: dict[str, int],
) -> None:
    with pytest.raises(TypeError, match=r"takes \(a, b\) and was given"):
        sql.Query("SELECT :a::int + :b").arguments(values)


def test_a_name_that_is_there_twice_is_refused(sql_folder: Path) -> None:
    for file in ("a.sql", "b.sql"):
        (sql_folder / "queries" / file).write_text("-- name: one\nSELECT 1;\n")
    with pytest.raises(ValueError, match=r"b\.sql: the query “one” is there twice"):
        sql.queries()


def test_sql_without_a_name_is_refused(sql_folder: Path) -> None:
    (sql_folder / "queries" / "a.sql").write_text("SELECT 1;\n-- name: one\nSELECT 1;\n")
    with pytest.raises(ValueError, match="before the first"):
        sql.queries()


def test_migrations_come_in_order(sql_folder: Path) -> None:
    (sql_folder / "migrations" / "0002_b.sql").write_text("-- works with code from: 1\nSELECT 2;")
    (sql_folder / "migrations" / "0001_a.sql").write_text("SELECT 1;")
    (sql_folder / "migrations" / "0003_c.sql").write_text("SELECT 3;")
    assert [(m.number, m.name, m.sql.splitlines()[-1], m.works_from) for m in sql.migrations()] == [
        (1, "a", "SELECT 1;", 1),
        (2, "b", "SELECT 2;", 1),
        (3, "c", "SELECT 3;", 3),
    ]


@pytest.mark.parametrize("oldest", [0, 2])
def test_a_migration_works_with_code_that_there_is(sql_folder: Path, oldest: int) -> None:
    (sql_folder / "migrations" / "0001_a.sql").write_text(f"-- works with code from: {oldest}\nSELECT 1;")
    with pytest.raises(ValueError, match=f"from 1 to 1, not {oldest}"):
        sql.migrations()


@pytest.mark.parametrize("names", [["0002_a.sql"], ["0001_a.sql", "0001_b.sql"], ["1_a.sql"], ["0001-a.sql"]])
def test_migrations_without_order_are_refused(sql_folder: Path, names: list[str]) -> None:
    for name in names:
        (sql_folder / "migrations" / name).write_text("SELECT 1;")
    with pytest.raises(ValueError, match="sql/migrations"):
        sql.migrations()


def _trees() -> Iterator[ast.AST]:
    for folder in worker.__path__:
        for file in sorted(Path(folder).rglob("*.py")):
            yield from ast.walk(ast.parse(file.read_text("utf-8"), str(file)))


def _strings(node: ast.AST) -> set[str]:
    return {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def _calls() -> Iterator[tuple[str, ast.Call]]:
    """Every name in the first argument of a call that takes the name of a query; SQL is no name."""
    for node in _trees():
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in CALLS
            and node.args
        ):
            for name in _strings(node.args[0]):
                if re.fullmatch(r"\w+", name):
                    yield name, node


def test_every_query_that_the_code_calls_is_there() -> None:
    called = {name for name, _ in _calls()}
    assert called
    assert called - sql.queries().keys() == set()


def test_every_call_gives_the_parameters_of_its_query() -> None:
    known, wrong = sql.queries(), []
    for name, call in _calls():
        given = {keyword.arg for keyword in call.keywords}
        wanted = set(known[name].parameters)
        # What comes as **values is checked when the call is made.
        fits = given - {None} <= wanted if None in given else given == wanted
        if not fits or len(call.args) != 1:
            wrong.append((name, call.lineno, given ^ wanted))
    assert wrong == []


def test_every_query_that_is_there_is_used() -> None:
    mentioned = {name for node in _trees() if isinstance(node, ast.Constant) for name in _strings(node)}
    assert sql.queries().keys() - mentioned == set()


def test_no_query_moves_a_counter_by_itself() -> None:
    """What moves them is sendoff.count_moves, and what sums them is the view deployment."""
    assert [name for name, query in sql.queries().items() if "delivery_counter" in query.text] == []
