"""Settings that do not fit to each other."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from worker.domain.mail_options import resolver_address
from worker.links import open_links
from worker.settings import Settings, SettingsError, read_settings

if TYPE_CHECKING:
    from pathlib import Path


def test_the_defaults_fit_together() -> None:
    assert Settings(_env_file=None).conflicts == []  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"result_lease": 899}, "SENDOFF_RESULT_LEASE (899 s)"),
        ({"smtp_dot_timeout": 601}, "SENDOFF_RESULT_LEASE (900 s)"),
        ({"claim_lease": 60}, "SENDOFF_CLAIM_LEASE (60 s)"),
        ({"command_timeout": 120}, "SENDOFF_PAGE_LEASE (120 s)"),
        (
            {"channels": ("webhook",), "result_lease": 59},
            "SENDOFF_RESULT_LEASE (59 s) is shorter than SENDOFF_WEB",
        ),
    ],
)
def test_a_lease_that_is_shorter_than_what_it_must_outlast_is_told(
    changes: dict[str, Any], named: str
) -> None:
    (because,) = Settings(_env_file=None, **changes).conflicts
    assert because.startswith(named)


def test_nothing_is_said_of_mail_where_none_is_sent() -> None:
    assert Settings(_env_file=None, channels=("null",), result_lease=1).conflicts == []  # type: ignore[call-arg]


def test_headers_of_every_email_are_an_object_of_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENDOFF_EMAIL_HEADERS", '{"Feedback-ID": "{{ delivery_id }}:news:mail:shop"}')
    monkeypatch.setenv("SENDOFF_DSN_NOTIFY", "failure,delay")
    settings = read_settings()
    assert settings.email_headers == {"Feedback-ID": "{{ delivery_id }}:news:mail:shop"}
    assert settings.dsn_notify == ("failure", "delay")
    monkeypatch.setenv("SENDOFF_EMAIL_HEADERS", "")
    assert read_settings().email_headers == {}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("EMAIL_HEADERS", "{", "SENDOFF_EMAIL_HEADERS: it is not a JSON object such as"),
        ("EMAIL_HEADERS", "[]", "SENDOFF_EMAIL_HEADERS: “[]” is not a JSON object of texts"),
        (
            "EMAIL_HEADERS",
            '{"X-A": 1}',
            "SENDOFF_EMAIL_HEADERS: it must be a JSON object of texts; “1” is not one",
        ),
        ("EMAIL_HEADERS", '{"Bcc": "a"}', "SENDOFF_EMAIL_HEADERS: headers: Value error, the header Bcc is"),
        ("EMAIL_HEADERS", '{"X-A": "{{ city }}"}', "headers.X-A, line 1: unknown variable “city”"),
        ("EMAIL_HEADERS", '{"X-A": "{{"}', "SENDOFF_EMAIL_HEADERS: headers.X-A, line 1: "),
        ("EMAIL_HEADERS", '{"List-Help": "help"}', "headers.List-Help: “help” is not a whole address"),
        ("DSN_NOTIFY", "failure,never", "SENDOFF_DSN_NOTIFY: never cannot be joined with others"),
        ("DNS_RESOLVER", "dns.example.org", "SENDOFF_DNS_RESOLVER: give `system`, or an IP address such as"),
        ("PREFLIGHT_BLOCKS", "no_text,spam", "SENDOFF_PREFLIGHT_BLOCKS: it must be a list of `no_opt_out`, "),
        ("DSN_NOTIFY", "bounce", "SENDOFF_DSN_NOTIFY: it must be a list of `success`, `failure`, `delay` or"),
    ],
)
def test_a_wrong_setting_of_emails_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(f"SENDOFF_{name}", value)
    with pytest.raises(SettingsError) as refused:
        read_settings()
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1", ("192.0.2.1", 53)),
        ("192.0.2.1:5353", ("192.0.2.1", 5353)),
        ("2001:db8::1", ("2001:db8::1", 53)),
        ("[2001:db8::1]", ("2001:db8::1", 53)),
        ("[2001:db8::1]:5353", ("2001:db8::1", 5353)),
    ],
)
def test_a_resolver_has_an_address_with_or_without_a_port(text: str, address: tuple[str, int]) -> None:
    assert resolver_address(text) == address


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"TRACKER_URL": "news.example.org"}, "SENDOFF_TRACKER_URL: it must begin with https://"),
        ({"TRACKER_URL": "https://a.org"}, "SENDOFF_TRACKER_URL needs keys"),
        ({"TRACKER_KEYS": "1:short"}, "SENDOFF_TRACKER_KEYS: the secret of key 1 is too short"),
        (
            {"TRACKER_KEYS": f"1:{'x' * 32}", "TRACKER_KEYS_FILE": "/etc/keys"},
            "SENDOFF_TRACKER_KEYS and SENDOFF_TRACKER_KEYS_FILE are both set",
        ),
    ],
)
def test_a_tracker_that_cannot_sign_its_links_is_told(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], sentence: str
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(f"SENDOFF_{name}", value)
    with pytest.raises(SettingsError) as refused:
        read_settings()
    assert sentence in str(refused.value)
    assert "xxx" not in str(refused.value)


def test_the_keys_may_stand_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"2:{'n' * 32}\n1:{'o' * 32}\n")
    links = open_links(Settings(tracker_url="https://a.org/", tracker_keys_file=file))
    assert links is not None
    assert links.optout(1, 2).startswith("https://a.org/u/")
    file.write_text("rubbish")
    with pytest.raises(SettingsError, match="holds no keys: key 1 is not written as number:secret"):
        open_links(Settings(tracker_url="https://a.org", tracker_keys_file=file))
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        open_links(Settings(tracker_url="https://a.org", tracker_keys_file=tmp_path / "none"))
    assert open_links(Settings()) is None


def test_a_url_may_stand_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret = tmp_path / "database"
    secret.write_text("postgresql://sendoff:p%40ss@db/sendoff\n")
    monkeypatch.delenv("SENDOFF_DATABASE_URL", raising=False)
    monkeypatch.setenv("SENDOFF_DATABASE_URL_FILE", str(secret))
    assert read_settings().database_url == "postgresql://sendoff:p%40ss@db/sendoff"
    secret.write_text("mysql://db/x")
    with pytest.raises(SettingsError, match="SENDOFF_DATABASE_URL: it must begin with postgresql://"):
        read_settings()
    secret.write_text(" \n")
    with pytest.raises(SettingsError, match=r"SENDOFF_DATABASE_URL_FILE: .* is empty"):
        read_settings()
    secret.write_bytes(b"\xff")
    with pytest.raises(SettingsError, match=r"SENDOFF_DATABASE_URL_FILE: .* it is not UTF-8"):
        read_settings()
    secret.unlink()
    with pytest.raises(SettingsError, match=r"_FILE: .* cannot be read: No such file or directory"):
        read_settings()
    monkeypatch.setenv("SENDOFF_DATABASE_URL", "postgresql://db/x")
    with pytest.raises(SettingsError, match="DATABASE_URL and SENDOFF_DATABASE_URL_FILE are both set"):
        read_settings()
    monkeypatch.setenv("SENDOFF_DATABASE_URL_FILE", "")
    assert read_settings().database_url == "postgresql://db/x"


def test_a_variable_that_is_no_setting_is_told_and_what_it_resembles(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in os.environ if name.startswith("SENDOFF_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SENDOFF_DEV_SINK", "/x")
    monkeypatch.setenv("sendoff_tick", "2")
    assert read_settings().misspelt == []
    monkeypatch.setenv("SENDOFF_DATABSE_URL", "postgresql://db/x")
    (tmp_path / ".env").write_text("SENDOFF_MOOD=good\nOTHER=1\n")
    assert read_settings().misspelt == [
        "there is no setting SENDOFF_DATABSE_URL; do you mean SENDOFF_DATABASE_URL?",
        "there is no setting SENDOFF_MOOD",
    ]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"SECRET": "short"}, "SENDOFF_WEBHOOK_SECRET: secret 1 is too short: it needs 24 bytes or more"),
        ({"SECRET": "whsec_short"}, "SENDOFF_WEBHOOK_SECRET: secret 1 is no base64 behind whsec_"),
        ({"URL": "ftp://gateway.example.org"}, "SENDOFF_WEBHOOK_URL: it must be https:// or http://"),
        (
            {"URL": "https://x.example", "URL_FILE": "x"},
            "SENDOFF_WEBHOOK_URL and SENDOFF_WEBHOOK_URL_FILE are both",
        ),
        ({"SECRET_FILE": "/nowhere"}, "SENDOFF_WEBHOOK_SECRET_FILE: /nowhere cannot be read: No such file"),
        ({"CONNECTIONS": "0"}, "SENDOFF_WEBHOOK_CONNECTIONS: "),
    ],
)
def test_a_wrong_setting_of_the_channel_webhook_is_named(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], words: str
) -> None:
    for name, value in values.items():
        monkeypatch.setenv(f"SENDOFF_WEBHOOK_{name}", value)
    with pytest.raises(SettingsError) as refused:
        read_settings()
    assert words in str(refused.value)


def test_what_is_empty_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "WEBHOOK_URL",
        "WEBHOOK_URL_FILE",
        "WEBHOOK_SECRET",
        "WEBHOOK_SECRET_FILE",
        "AUTH_KEY",
        "DKIM_FILE",
    ):
        monkeypatch.setenv(f"SENDOFF_{name}", "")
    settings = read_settings()
    assert (settings.webhook_url, settings.webhook_secret, settings.auth_key) == ("", None, None)
    assert (settings.dkim_file, settings.misspelt) == (None, [])
