"""Settings that do not fit to each other."""

from __future__ import annotations

from typing import Any

import pytest

from worker.settings import Settings


def test_the_defaults_fit_together() -> None:
    assert Settings(_env_file=None).conflicts == []  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"result_lease": 899}, "SENDOFF_RESULT_LEASE (899 s)"),
        ({"smtp_dot_timeout": 601}, "SENDOFF_RESULT_LEASE (900 s)"),
        ({"claim_lease": 60}, "SENDOFF_CLAIM_LEASE (60 s)"),
        ({"command_timeout": 120}, "SENDOFF_PAGE_LEASE (120 s)"),
    ],
)
def test_a_lease_that_is_shorter_than_what_it_must_outlast_is_told(
    changes: dict[str, Any], named: str
) -> None:
    (because,) = Settings(_env_file=None, **changes).conflicts
    assert because.startswith(named)


def test_nothing_is_said_of_mail_where_none_is_sent() -> None:
    assert Settings(_env_file=None, channels=("null",), result_lease=1).conflicts == []  # type: ignore[call-arg]
