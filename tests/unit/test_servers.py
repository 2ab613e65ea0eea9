"""The addresses of servers: where they are, and what is no address."""

from __future__ import annotations

import pytest

from worker.domain.servers import passwords, postgres_hosts


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("postgresql://127.0.0.1:5432/sendoff", ["127.0.0.1"]),
        ("postgres://u:p@db.example.org/sendoff", ["db.example.org"]),
        ("postgresql:///sendoff?host=/var/run/postgresql", ["/var/run/postgresql"]),
        ("postgresql:///sendoff", [""]),
        ("postgresql://%2Frun%2Fpostgresql/sendoff", ["/run/postgresql"]),
        ("postgresql://u:p%40@a:1,b:2,[::1]:3/x?target_session_attrs=primary", ["a", "b", "::1"]),
        ("postgresql://u@/x?host=a,b&port=1,2", ["a", "b"]),
    ],
)
def test_an_address_of_the_database_is_read_as_libpq_reads_it(url: str, hosts: list[str]) -> None:
    assert postgres_hosts(url) == hosts


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("nonsense", "it must begin with postgresql://"),
        ("mysql://db/x", "it must begin with postgresql://"),
        ("postgresql://db:99999/x", "“99999” is no port"),
        ("postgresql://a:1,b:x/y", "“x” is no port"),
        ("postgresql:///x?port=0", "“0” is no port"),
    ],
)
def test_what_is_no_address_of_a_database_is_refused_with_a_sentence(url: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        postgres_hosts(url)


def test_every_spelling_of_a_password_is_found() -> None:
    assert passwords("postgresql://u:a%40b@db/x") == ["a%40b", "a@b"]
    assert passwords("postgresql://u@db/x?password=secret") == ["secret"]
    assert passwords("postgresql://127.0.0.1:5432/x") == []
