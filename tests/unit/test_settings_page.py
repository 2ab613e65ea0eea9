"""docs/settings.md is as the model has it, and what it says of a value is what the model takes."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from worker.settings import Settings, SettingsError, read_settings
from worker.settings_words import takes

if TYPE_CHECKING:
    from collections.abc import Iterator

DEV = Path(__file__).parents[2] / "dev"
SECRET = "p4ssw0rd"  # noqa: S105 - an example


@pytest.fixture(scope="module")
def draw_settings() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DEV)
        yield importlib.import_module("draw_settings")


def test_the_page_is_up_to_date(draw_settings: Any) -> None:
    assert draw_settings.PAGE.read_text() == draw_settings.page()


def test_every_setting_stands_there_once_under_a_heading(draw_settings: Any) -> None:
    page = draw_settings.page()
    for name, field in Settings.model_fields.items():
        assert page.count(f"\n| `SENDOFF_{name.upper()}` |") == 1
        assert field.description
        assert takes(field)
    assert draw_settings.SECTIONS.keys() <= Settings.model_fields.keys()
    assert next(iter(draw_settings.SECTIONS)) == next(iter(Settings.model_fields))


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("PAGE_SIZE", "many", "SENDOFF_PAGE_SIZE: “many” is not a whole number from 1 to 100000"),
        ("PAGE_SIZE", "0", "SENDOFF_PAGE_SIZE: “0” is not a whole number from 1 to 100000"),
        ("TICK", "nan", "SENDOFF_TICK: “nan” is not a number above 0 and up to 60"),
        ("PAGE_LEASE", "inf", "SENDOFF_PAGE_LEASE: “inf” is not a number above 0"),
        ("SEND_BATCH_AGE", "2", "SENDOFF_SEND_BATCH_AGE: “2” is not a number from 0 to 1"),
        ("LOG_LEVEL", "loud", "SENDOFF_LOG_LEVEL: “loud” is not `debug`, `info`, `warning` or `error`"),
        ("CONSOLE_HIDE_PERSONAL_DATA", "maybe", "“maybe” is not `true` or `false`"),
        ("QUEUE_PREFIX", "a b", "SENDOFF_QUEUE_PREFIX: “a b” is not text like `^[A-Za-z0-9_-]{0,40}$`"),
        ("RETRY_DELAYS", "1,x", "a list of numbers above 0 and up to 2592000, not empty; “x” is not one"),
        ("CHANNELS", "Email", "a list of texts like `^[a-z][a-z0-9_-]{0,31}$`; “Email” is not one of them"),
        ("RELAY_PROVIDER", "x", "is not empty, `ses`, `sendgrid`, `mailgun`, `postmark` or `generic`"),
        ("TRACKER_SPOOL", "", "SENDOFF_TRACKER_SPOOL: it must be text, not empty"),
        ("AMQP_URL", "http://mq", "SENDOFF_AMQP_URL: it must begin with amqp:// or amqps://"),
        ("AMQP_URL", "amqp://mq:99999/", "SENDOFF_AMQP_URL: “99999” is no port"),
        ("AMQP_URL", "amqp://mq/?heartbeat=no", "SENDOFF_AMQP_URL: heartbeat is a number of seconds"),
        (
            "AMQP_URL",
            "amqps://mq/?cafile=/none/ca.pem",
            "/none/ca.pem, the file of cafile, cannot be read: No",
        ),
        (
            "DATABASE_URL",
            "postgresql://db/x?sslrootcert=/none/ca.pem",
            "/none/ca.pem, the file of sslrootcert",
        ),
        ("DATABASE_URL", "postgresql://db/x?connect_timeout=3", "set SENDOFF_CONNECT_TIMEOUT"),
        ("DATABASE_URL", "postgresql://db/x?keepalives=1", "leave keepalives out: it is an option of libpq"),
    ],
)
def test_a_wrong_value_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, sentence: str
) -> None:
    monkeypatch.setenv(f"SENDOFF_{name}", value)
    with pytest.raises(SettingsError) as refused:
        read_settings()
    assert sentence in str(refused.value)


@pytest.mark.parametrize("name", ["AMQP_URL", "DATABASE_URL", "SMTP_URL"])
@pytest.mark.parametrize(("raw", "written"), [("@", "%40"), ("#", "%23"), ("/", "%2F"), ("?", "%3F")])
@pytest.mark.parametrize("before", ["", "12"])
def test_a_password_that_is_not_encoded_is_told_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, raw: str, written: str, before: str
) -> None:
    scheme = {"AMQP_URL": "amqps", "DATABASE_URL": "postgresql", "SMTP_URL": "smtps"}[name]
    rest = "/x" if name == "DATABASE_URL" else ""
    monkeypatch.setenv(f"SENDOFF_{name}", f"{scheme}://u:{before}{raw}{SECRET}@host{rest}")
    with pytest.raises(SettingsError) as refused:
        read_settings()
    assert f"SENDOFF_{name}: its user or password has a raw “{raw}”, which must be written {written}" in str(
        refused.value
    )
    assert SECRET not in str(refused.value)
    monkeypatch.setenv(f"SENDOFF_{name}", f"{scheme}://u:{before}{written}{SECRET}@host{rest}")
    read_settings()


def test_a_sign_in_an_option_is_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("postgresql://db/x?user=ana@example.org", "postgresql:///x?host=@socket"):
        monkeypatch.setenv("SENDOFF_DATABASE_URL", url)
        assert read_settings().database_url == url


def test_a_wrong_secret_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENDOFF_TRACKER_KEYS", f"1:{SECRET}")
    with pytest.raises(SettingsError) as refused:
        read_settings()
    assert SECRET not in str(refused.value)
