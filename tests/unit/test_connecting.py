"""Which server of an address is meant."""

from __future__ import annotations

import pytest

from worker.db.connecting import session_attributes


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("postgresql://db1/sendoff", None),
        ("postgresql://ana:a,b@db1/sendoff", None),
        ("postgresql://db1,db2:5433/sendoff", "read-write"),
        ("postgresql:///sendoff?host=db1,db2", "read-write"),
        ("postgresql:///sendoff?host=/run/postgresql", None),
        ("postgresql://db1,db2/sendoff?target_session_attrs=primary", None),
    ],
)
def test_of_several_hosts_the_one_that_takes_writes_is_meant_unless_the_address_says(
    url: str, meant: str | None
) -> None:
    assert session_attributes(url) == meant
