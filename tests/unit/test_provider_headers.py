"""The header that carries a reference through a provider: one that each reads, in short lines."""

from __future__ import annotations

import json
from email import message_from_string
from typing import get_args

import pytest

from worker.domain.keys import Key
from worker.domain.provider_headers import PROVIDERS, reference_line
from worker.domain.return_path import Reference, ReturnPath
from worker.settings import Settings

LONGEST = ReturnPath([Key(2**16 - 1, b"k" * 32)]).token(Reference(2**63 - 1, 2**31 - 1, 2**15 - 1))


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_longest_reference_fits_into_lines_and_is_read_again(provider: str) -> None:
    line = reference_line(provider, LONGEST)
    assert all(len(part) <= 80 for part in line.split("\r\n"))
    ((name, value),) = message_from_string(f"{line}\r\n\r\n").items()
    found = {
        "sendgrid": lambda: json.loads(value)["unique_args"]["sendoff"],
        "mailgun": lambda: json.loads(value)["sendoff"],
        "ses": lambda: value.removeprefix("sendoff="),
    }.get(provider, lambda: value)()
    assert found == LONGEST
    # Postmark takes 80 characters, SES 256 of letters, digits, `_` and `-`.
    assert len(LONGEST) <= 80
    assert LONGEST.isalnum()
    assert name.startswith("X-")


def test_the_setting_knows_the_same_providers() -> None:
    assert set(get_args(Settings.model_fields["relay_provider"].annotation)) == {"", *PROVIDERS}
