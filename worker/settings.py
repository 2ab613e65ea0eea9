"""Settings: one frozen object, read from `SENDOFF_…` environment variables and a `.env` file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from contracts.base import ChannelName
from worker import settings_fit as fits
from worker import settings_words as words
from worker.domain.keys import read_keys
from worker.domain.links import base_url
from worker.domain.mail_options import BounceDomain, EmailHeaders, Notify, RelayAddress, Resolver
from worker.domain.preflight import Check
from worker.domain.retention import read_age
from worker.domain.servers import check_amqp, postgres_hosts
from worker.domain.webhook_options import GatewayAddress, SigningSecrets

Algorithm = Literal[
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512",
    "ES256", "ES384", "ES512", "EdDSA",
]  # fmt: skip
"""How a token may be signed (RFC 7518, RFC 8037); `none` is not among them."""

_Delay = Annotated[float, Field(gt=0, le=30 * 86_400)]


class SettingsError(Exception):
    """A setting is wrong; the message names it."""


class Settings(BaseSettings):
    """Every setting with its default, which fits the local servers of `make up`.

    Durations are in seconds, sizes in messages or recipients.
    """

    model_config = SettingsConfigDict(
        env_prefix="SENDOFF_",
        env_file=".env",
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    amqp_url: str = "amqp://guest:guest@127.0.0.1:5672/"
    """The broker."""
    amqp_url_file: Path | None = None
    """Or the file with the broker's URL, such as a mounted secret."""
    management_url: str = ""
    """The broker's management API, `http://user:password@host:15672`, where `migrate` sets its policy."""
    management_url_file: Path | None = None
    """Or the file with its URL."""
    database_url: str = "postgresql://127.0.0.1:5432/sendoff"
    """The database."""
    database_url_file: Path | None = None
    """Or the file with the database's URL."""
    smtp_url: RelayAddress = "smtp://127.0.0.1:25"
    """The SMTP relay."""
    smtp_url_file: Path | None = None
    """Or the file with the relay's URL."""
    queue_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{0,40}$")] = ""
    """The prefix of every exchange and queue, so that several installations can share a broker."""
    channels: Annotated[tuple[ChannelName, ...], NoDecode] = ("email", "null")
    """The channels that this installation sends over, as a JSON list or separated by commas."""
    publishers: Annotated[tuple[str, ...], NoDecode] = ()
    """The broker users that may publish commands, as a JSON list or separated by commas; empty for
    everybody."""
    auth: Literal["none", "token"] = "none"
    """`token`: every command carries the operator's signed token in its header `authorization`."""
    auth_key: SecretStr | None = None
    """The secret that the issuer of the tokens shares with Sendoff."""
    auth_key_file: Path | None = None
    """Or the file with the issuer's public key, in PEM."""
    auth_jwks_file: Path | None = None
    """Or the file with the issuer's public keys, a JSON Web Key Set; read again when it changes."""
    auth_issuer: str = ""
    """What a token's `iss` must be."""
    auth_audience: str = ""
    """What a token's `aud` must be or contain."""
    auth_algorithms: Annotated[tuple[Algorithm, ...], NoDecode] = ()
    """How tokens may be signed, written as `publishers`; empty for HS256 with a secret, else RS256."""
    auth_operator_claim: Annotated[str, Field(min_length=1)] = "sub"
    """The token claim with the operator's name."""
    auth_roles_claim: Annotated[str, Field(min_length=1)] = "roles"
    """The token claim with the list of the operator's roles, by Sendoff's names."""
    token: SecretStr | None = None
    """The token that `sendoff confirm`, `pause`, `resume`, `stop`, `unknown` and `erase` send."""

    second_approval_above: Annotated[int, Field(ge=0)] = 0
    """A delivery to more recipients starts only after two operators confirmed it; 0 for never."""
    second_approval_within: Annotated[float, Field(gt=0, le=366 * 86_400)] = 86_400
    """How long the first of the two OKs counts."""

    log_format: Literal["auto", "console", "json"] = "auto"
    """`console` for people, `json` for machines; `auto` picks by whether the output is a terminal."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least level that is logged."""

    http_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Where `sendoff run` serves `/metrics`, `/health/live` and `/health/ready`; 0 for nowhere."""
    http_host: str = "127.0.0.1"
    """The address that they are served on; `0.0.0.0` for all addresses of the machine."""

    console_auth: Literal["local", "proxy", "oidc"] = "local"
    """Who comes in. `local`: people at this machine, by a link that the console prints. `proxy`: people
    that a proxy has signed in and passes a token for. `oidc`: people that the issuer signs in."""
    console_host: str = "127.0.0.1"
    """The address that `sendoff run console` listens on; with `local` it must be this machine's own."""
    console_port: Annotated[int, Field(ge=0, le=65535)] = 8480
    """Its port; 0 for any free one."""
    console_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """The names by which browsers may call it, without a port, written as `publishers`; empty for any. With
    `local` they are always those of this machine."""
    console_header: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")] = "authorization"
    """The header in which the proxy passes the token."""
    console_url: str = ""
    """The address at which browsers see it, with https; needed by `oidc`."""
    console_key: SecretStr | None = None
    """The secret, of 32 bytes or more, that signs the sessions of `oidc`; the same for all consoles."""
    console_secret: SecretStr | None = None
    """The secret that the issuer gave the client, whose name is `SENDOFF_AUTH_AUDIENCE`."""
    console_hide_personal_data: bool = True
    """Whether people without the Start deliveries role see no addresses, profiles, replies or messages."""

    connect_timeout: Annotated[float, Field(gt=0, le=300)] = 10
    """How long a connection to the broker or the database may take."""
    command_timeout: Annotated[float, Field(gt=0, le=3600)] = 60
    """How long one statement or one publisher confirm may take."""
    shutdown_grace: Annotated[float, Field(gt=0, le=3600)] = 30
    """How long open work may take to finish after SIGTERM."""
    database_pool: Annotated[int, Field(ge=2, le=100)] = 8
    """Connections to the database per process."""
    after_failover: Literal["pause", "continue"] = "pause"
    """What deliveries do when a standby of the database took over: `continue` is for a synchronous one."""
    async_standby: Literal["warn", "refuse"] = "warn"
    """What a process does at its start where the database has a standby that may lack commits."""

    transport: Literal["bulk", "aio-pika"] = "bulk"
    """The client for sends, results and tracking events: our own bulk client, or aio-pika."""

    page_size: Annotated[int, Field(ge=1, le=100_000)] = 1_000
    """Recipients in a page; more where a delivery has more than 10,000 pages of them."""
    page_lease: Annotated[float, Field(gt=0)] = 120
    """How long a fan-out may take to publish a page before another takes it over."""
    event_lease: Annotated[float, Field(gt=0)] = 20
    """How long a process may take to publish events before another takes them over."""
    publish_window: Annotated[int, Field(ge=1, le=100_000)] = 2_000
    """Publishes without a confirm, per process."""
    send_queue_high_water: Annotated[int, Field(ge=1)] = 5_000
    """The fan-out waits while a send queue holds more messages."""
    send_queue_seconds: Annotated[float, Field(ge=0, le=60)] = 0.05
    """It waits too while one holds more than its senders take in this time; 0 for the number alone."""
    small_delivery: Annotated[int, Field(ge=0)] = 100
    """A delivery of at most so many recipients goes before larger ones; 0 for no such."""
    send_shards: Annotated[int, Field(ge=1, le=64)] = 1
    """In how many queues the send queue of a channel is split."""
    send_batch: Annotated[int, Field(ge=1, le=1_000)] = 1_000
    """Send messages that are claimed together at most."""
    send_batch_age: Annotated[float, Field(ge=0, le=1)] = 0.02
    """How long a busy sender waits for a batch to fill after its first message came."""
    claim_lease: Annotated[float, Field(gt=0)] = 300
    """How long a claim is held before its hand-over; then another sender takes it."""
    result_lease: Annotated[float, Field(gt=0)] = 900
    """How long the result of a message may take after its hand-over; then the recipient is unknown."""
    relay_patience: Annotated[float, Field(gt=0, le=600)] = 30
    """How long a sender waits for its relay before the messages that it holds go back to the queue."""
    page_look_after: Annotated[float, Field(gt=0)] = 30
    """How often a published page is inspected, until all its recipients have an outcome."""
    redelivery_after: Annotated[float, Field(gt=0)] = 900
    """When a published page with unclaimed recipients is published again, even if the queue is full."""
    smtp_connections: Annotated[int, Field(ge=1, le=500)] = 20
    """Connections to the relay per process; a process that is killed leaves at most so many in doubt."""
    smtp_messages_per_minute: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Messages a minute to the relay, of all processes together; 0 for no limit."""
    providers_file: Path | None = None
    """A TOML file with mailbox providers, their domains and limits; it wins over Sendoff's own list."""
    smtp_timeout: Annotated[float, Field(gt=0, le=600)] = 60
    """How long connecting to the relay may take, and how long a message waits for a free connection."""
    smtp_command_timeout: Annotated[float, Field(gt=0, le=3600)] = 300
    """How long the relay may take to answer MAIL or RCPT (RFC 5321, 4.5.3.2, as for the next three)."""
    smtp_data_timeout: Annotated[float, Field(gt=0, le=3600)] = 120
    """How long it may take to answer DATA."""
    smtp_block_timeout: Annotated[float, Field(gt=0, le=3600)] = 180
    """How long a body may take to leave for the network."""
    smtp_dot_timeout: Annotated[float, Field(gt=0, le=3600)] = 600
    """How long it may take to answer the final dot; after that the outcome is unknown."""
    bounce_domain: BounceDomain = ""
    """The domain of the envelope senders, to which mail is returned; empty for the address of `from`."""
    bounce_keys: SecretStr | None = None
    """The keys that sign them and the Message-IDs, as `number:secret`, separated by commas: the first signs,
    all are read."""
    bounce_keys_file: Path | None = None
    """Or the file with them, one a line."""
    email_headers: Annotated[EmailHeaders, NoDecode] = {}
    """Headers of every email, as a JSON object of templates; those of a delivery win."""
    dkim_file: Path | None = None
    """A TOML file with the keys that sign emails (DKIM), by domain; empty where the relay signs."""
    dns_resolver: Resolver = ""
    """The DNS that the preflight asks for SPF, DKIM, DMARC: `system`, or an IP address (and a port)."""
    preflight_blocks: Annotated[tuple[Check, ...], NoDecode] = ()
    """Checks of the preflight whose findings block a confirmation, written as `publishers`."""
    dsn_notify: Annotated[Notify, NoDecode] = ()
    """When relays are asked to report (RFC 3461), written as `publishers`; empty for their own rule."""
    dsn_return: Literal["headers", "full"] = "headers"
    """How much of the message such a report returns."""
    returned_host: str = "127.0.0.1"
    """The address that `sendoff run returned` listens on for returned mail, over LMTP or SMTP."""
    returned_port: Annotated[int, Field(ge=0, le=65535)] = 8024
    """The port that it listens on; 0 for none."""
    returned_maildir: Path | None = None
    """A Maildir that it reads, in addition."""
    returned_folder: Path = Path("returned-mail")
    """The folder where it keeps mails that only a person can read."""
    returned_size: Annotated[int, Field(ge=100_000)] = 25_000_000
    """Octets of a returned mail; a longer one is refused."""
    webhooks_file: Path | None = None
    """A TOML file that says which mail providers may call `sendoff run webhooks`, and how they sign."""
    webhooks_host: str = "127.0.0.1"
    """The address that it listens on."""
    webhooks_port: Annotated[int, Field(ge=0, le=65535)] = 8026
    """The port that it listens on."""
    webhooks_max_age: Annotated[float, Field(gt=0, le=30 * 86_400)] = 86_400
    """How long ago a call may have been signed; providers try again for up to a day."""
    webhook_url: GatewayAddress = ""
    """The gateway that the channel `webhook` posts messages to."""
    webhook_url_file: Path | None = None
    """Or the file with the gateway's URL."""
    webhook_secret: SigningSecrets = None
    """The secret that signs these calls; with several, separated by commas, each of them signs."""
    webhook_secret_file: Path | None = None
    """Or the file with them, one a line."""
    webhook_allow_private: bool = False
    """Whether the gateway may be at this machine or in a private network, and be called without https."""
    webhook_connections: Annotated[int, Field(ge=1, le=500)] = 20
    """Connections to the gateway per process; a process that is killed leaves at most so many in doubt."""
    webhook_connect_timeout: Annotated[float, Field(gt=0, le=600)] = 10
    """How long connecting to it may take, and how long a message waits for a free connection."""
    webhook_read_timeout: Annotated[float, Field(gt=0, le=3600)] = 30
    """How long it may send nothing; after that the outcome is unknown."""
    webhook_timeout: Annotated[float, Field(gt=0, le=3600)] = 60
    """How long a call may take from its body to the end of the answer; after that likewise."""
    relay_provider: Literal["", "ses", "sendgrid", "mailgun", "postmark", "generic"] = ""
    """The provider behind the relay, whose webhooks name a recipient by a header of the message."""
    result_batch: Annotated[int, Field(ge=1, le=5_000)] = 1_000
    """Result messages that are recorded together at most."""
    result_batch_age: Annotated[float, Field(ge=0, le=1)] = 0.02
    """How long a busy recorder waits for a batch to fill after its first result came."""
    tracking_batch: Annotated[int, Field(ge=1, le=5_000)] = 500
    """Messages with tracking events that are recorded together at most."""
    tracking_batch_age: Annotated[float, Field(ge=0, le=1)] = 0.05
    """How long a busy recorder waits for a batch to fill after its first tracking event came."""
    machine_rules_file: Path | None = None
    """A file of rules that tell machines from persons in tracking, instead of Sendoff's own."""
    stats_deadline: Annotated[float, Field(gt=0, le=3600)] = 20
    """How long a recount may take, at most the command timeout; then the live counters are the answer."""
    breaker_minimum: Annotated[int, Field(ge=0)] = 100
    """How many recipients of a delivery must have been attempted before it may pause itself; 0 for never."""
    breaker_hard_bounce_pct: Annotated[float, Field(ge=0, le=100)] = 10
    """A delivery pauses itself when more percent of the attempted are hard bounces; 0 for no limit."""
    breaker_error_pct: Annotated[float, Field(ge=0, le=100)] = 20
    """A delivery pauses itself when more percent of the attempted are errors; 0 for no limit."""
    breaker_refused_pct: Annotated[float, Field(ge=0, le=100)] = 10
    """It pauses itself when more percent of the attempted are refused for a sender's fault; 0: no limit."""
    breaker_domain_refused_pct: Annotated[float, Field(ge=0, le=100)] = 50
    """The same for the attempted at one domain of the recipients; 0 for no limit."""
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 4
    """Attempts for one recipient of a delivery that has no limit of its own; 1 for no retries."""
    retry_delays: Annotated[tuple[_Delay, ...], Field(min_length=1, max_length=100), NoDecode] = (
        60,
        300,
        1800,
        7200,
    )
    """How long until the 2nd, 3rd, … attempt, written as `publishers`; the last is used for all later
    ones."""
    tracker_url: str = ""
    """The tracker's public address, for the links in messages, such as `https://news.example.org/t`."""
    tracker_keys: SecretStr | None = None
    """The keys of the links, as `number:secret`, separated by commas: the first signs, all are read."""
    tracker_keys_file: Path | None = None
    """Or the file with them, one a line."""
    tracker_host: str = "127.0.0.1"
    """The address that `sendoff run tracker` listens on."""
    tracker_port: Annotated[int, Field(ge=0, le=65535)] = 8025
    """The port that it listens on."""
    tracker_spool: Annotated[str, Field(min_length=1)] = "tracker-spool"
    """The folder in which it keeps events while the broker is away."""
    tracker_spool_size: Annotated[int, Field(ge=1_000_000)] = 1_000_000_000
    """Bytes that one tracker keeps in it at most."""
    partition_period: Annotated[float, Field(ge=3_600)] = 2_592_000
    """How long new deliveries go into one set of partitions, the unit that retention drops: 30 days."""
    retention: str = ""
    """How long ago a delivery must have ended for `sendoff retention` to remove it, such as `400d`."""
    fingerprint_key: SecretStr | None = None
    """The secret, of 32 bytes or more, for the fingerprint of an erased profile in `command_log`."""
    alert_interval: Annotated[float, Field(gt=0, le=60)] = 10
    """How often the scheduler looks for alerts."""
    tick: Annotated[float, Field(gt=0, le=60)] = 1
    """How often the scheduler does its duties."""

    @model_validator(mode="before")
    @classmethod
    def _from_files(cls, given: dict[str, Any]) -> dict[str, Any]:
        unset = {name for name, field in cls.model_fields.items() if field.default is None}
        return fits.from_files({k: v for k, v in given.items() if not (k in unset and v == "")})

    @field_validator("amqp_url")
    @classmethod
    def _is_amqp(cls, value: str) -> str:
        check_amqp(value)
        return value

    @field_validator("database_url")
    @classmethod
    def _is_postgres(cls, value: str) -> str:
        postgres_hosts(value)
        return value

    @field_validator("tracker_url")
    @classmethod
    def _is_site(cls, value: str) -> str:
        return base_url(value) if value else value

    @field_validator("bounce_keys", "tracker_keys")
    @classmethod
    def _are_keys(cls, value: SecretStr | None) -> SecretStr | None:
        if value:
            read_keys(value.get_secret_value())
        return value

    @field_validator("retention")
    @classmethod
    def _is_age(cls, value: str) -> str:
        if value:
            read_age(value)
        return value

    @field_validator("second_approval_above", mode="before")
    @classmethod
    def _is_number(cls, value: object) -> object:
        return 0 if value == "" else value

    @field_validator(
        *("channels", "publishers", "auth_algorithms", "retry_delays", "dsn_notify", "preflight_blocks"),
        "console_hosts",
        mode="before",
    )
    @classmethod
    def _is_list(cls, value: object) -> object:
        return fits.read_list(value)

    @property
    def pinned_algorithms(self) -> tuple[Algorithm, ...]:
        """How tokens may be signed."""
        return self.auth_algorithms or (("HS256",) if self.auth_key else ("RS256",))

    @property
    def conflicts(self) -> list[str]:
        """Sentences about times that do not fit to each other. The process works, but worse than it could."""
        return list(fits.conflicts(self))

    @property
    def misspelt(self) -> list[str]:
        """Sentences about variables of the environment and of `.env` that look like settings and are none."""
        return list(fits.misspelt({*os.environ, *dotenv_values(".env")}, type(self).model_fields))

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if faults := list(fits.faults(self)):
            raise ValueError("; ".join(faults))
        return self


def read_settings() -> Settings:
    """Reads the settings.

    Raises:
        SettingsError: settings are wrong (the message names the variable of each), or `.env` cannot be read.
    """
    try:
        return Settings()
    except UnicodeDecodeError as error:
        raise SettingsError(f"The file .env is not UTF-8 ({error}).") from None
    except OSError as error:
        raise SettingsError(f"The file .env cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        faults = [
            (f"{fits.variable(str(e['loc'][0]))}: " if e["loc"] else "")
            + words.complaint(e, Settings.model_fields)
            for e in error.errors()
        ]
        raise SettingsError("Wrong settings: " + "; ".join(faults)) from None
