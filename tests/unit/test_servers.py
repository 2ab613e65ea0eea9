"""The addresses of servers: where they are, and what is no address."""

from __future__ import annotations

import pytest

from worker.domain.servers import must_verify, passwords, postgres_hosts, unprotected


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
        ("postgresql://db/x?sslmode=on", "sslmode is one of disable, allow,"),
    ],
)
def test_what_is_no_address_of_a_database_is_refused_with_a_sentence(url: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        postgres_hosts(url)


def test_every_spelling_of_a_password_is_found() -> None:
    assert passwords("postgresql://u:a%40b@db/x") == ["a%40b", "a@b"]
    assert passwords("postgresql://u@db/x?password=secret") == ["secret"]
    assert passwords("postgresql://127.0.0.1:5432/x") == []


@pytest.mark.parametrize(
    ("host", "verified"),
    [
        ("127.0.0.1:5432", False),
        ("127.1.2.3", False),
        ("localhost", False),
        ("[::1]:5432", False),
        ("", False),
        ("%2Frun%2Fpostgresql", False),
        ("db.example.org", True),
        ("10.0.0.1", True),
        ("localhost.example.org", True),
        ("localhost,db.example.org", True),
    ],
)
def test_a_database_on_another_machine_is_verified_unless_the_address_says_otherwise(
    host: str,
    verified: bool,  # noqa: FBT001 - an example
) -> None:
    assert must_verify(f"postgresql://u:p@{host}/x") is verified
    assert must_verify(f"postgresql://u:p@{host}/x?sslmode=verify-full") is False
    assert must_verify(f"postgresql://u:p@{host}/x?sslmode=disable") is False


HERE = "postgresql://127.0.0.1/x", "amqp://127.0.0.1/"


@pytest.mark.parametrize(
    ("database", "broker", "said"),
    [
        (*HERE, {}),
        ("postgresql:///x?host=/run&sslmode=disable", "amqps://127.0.0.1/?no_verify_ssl=1", {}),
        ("postgresql://db/x", "amqps://mq/", {}),
        ("postgresql://db/x?sslmode=verify-ca", "amqps://mq/?cafile=/ca.pem", {}),
        ("postgresql://db/x?sslmode=disable", "amqps://mq/", {"database": "sslmode=disable (no TLS)"}),
        (
            "postgresql://db/x?sslmode=require",
            "amqps://mq/",
            {"database": "sslmode=require (TLS, unverified)"},
        ),
        ("postgresql://db/x", "amqp://mq/", {"broker": "has no TLS"}),
        ("postgresql://db/x", "amqps://mq/?no_verify_ssl=1", {"broker": "has no_verify_ssl"}),
    ],
)
def test_where_the_way_to_a_server_is_not_protected_is_said(
    database: str, broker: str, said: dict[str, str]
) -> None:
    found = unprotected(database, broker)
    assert set(found) == set(said)
    assert all(said[server] in found[server] for server in said)
