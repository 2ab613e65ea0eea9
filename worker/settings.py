"""Settings: one frozen object, read from `SENDOFF_…` environment variables and a `.env` file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AmqpDsn, Field, PostgresDsn, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class SettingsError(Exception):
    """A setting is wrong; the message names it."""


class Settings(BaseSettings):
    """Every setting with its default, which fits the local servers of `make up`.

    Durations are in seconds, sizes in messages or recipients.
    """

    model_config = SettingsConfigDict(
        env_prefix="SENDOFF_", env_file=".env", extra="ignore", frozen=True, use_attribute_docstrings=True
    )

    amqp_url: str = "amqp://guest:guest@127.0.0.1:5672/"
    """The broker."""
    database_url: str = "postgresql://127.0.0.1:5432/sendoff"
    """The database."""
    smtp_url: str = "smtp://127.0.0.1:25"
    """The relay that mail is handed to."""
    queue_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{0,40}$")] = ""
    """Put before every exchange and queue, so that several installations share a broker."""
    channels: tuple[str, ...] = ("email", "null")
    """The channels that this installation sends over, as a JSON list."""

    log_format: Literal["auto", "console", "json"] = "auto"
    """`console` for people, `json` for machines; `auto` picks by whether the output is a terminal."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least level that is logged."""

    http_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Where `sendoff run` serves `/metrics`, `/health/live` and `/health/ready`; 0 for nowhere."""
    http_host: str = "127.0.0.1"
    """The address that they are served on; `0.0.0.0` for every one of the machine's."""

    connect_timeout: Annotated[float, Field(gt=0, le=300)] = 10
    """How long a connection to the broker or the database may take."""
    command_timeout: Annotated[float, Field(gt=0, le=3600)] = 60
    """How long one statement or one publisher confirm may take."""
    shutdown_grace: Annotated[float, Field(gt=0, le=3600)] = 30
    """How long what is in flight may take to finish after SIGTERM."""
    database_pool: Annotated[int, Field(ge=2, le=100)] = 8
    """Connections to the database per process."""

    page_size: Annotated[int, Field(ge=1, le=100_000)] = 1_000
    """Recipients in a page."""
    page_lease: Annotated[float, Field(gt=0)] = 120
    """How long a fan-out may take to publish a page before another takes it over."""
    publish_window: Annotated[int, Field(ge=1, le=100_000)] = 2_000
    """Publishes that may wait for their confirm at once, per process."""
    send_queue_high_water: Annotated[int, Field(ge=1)] = 20_000
    """The fan-out waits while a send queue holds more messages."""
    send_batch: Annotated[int, Field(ge=1, le=1_000)] = 500
    """Send messages that are claimed together at most."""
    claim_lease: Annotated[float, Field(gt=0)] = 300
    """How long a claim may be without a result before the recipient becomes unknown."""
    page_look_after: Annotated[float, Field(gt=0)] = 30
    """How often a published page is looked at, until all its recipients have an outcome."""
    redelivery_after: Annotated[float, Field(gt=0)] = 900
    """When a published page whose recipients nobody claimed is published again, however full the queue."""
    smtp_connections: Annotated[int, Field(ge=1, le=500)] = 10
    """Connections to the relay per process."""
    smtp_timeout: Annotated[float, Field(gt=0, le=600)] = 60
    """How long one SMTP command may take."""
    result_batch: Annotated[int, Field(ge=1, le=5_000)] = 1_000
    """Result messages that are recorded together at most."""
    result_batch_age: Annotated[float, Field(ge=0, le=1)] = 0.005
    """How long the recorder waits for a batch to fill once its first result is there."""
    tick: Annotated[float, Field(gt=0, le=60)] = 1
    """How often the scheduler looks at what is due."""

    @field_validator("amqp_url")
    @classmethod
    def _is_amqp(cls, value: str) -> str:
        AmqpDsn(value)
        return value

    @field_validator("database_url")
    @classmethod
    def _is_postgres(cls, value: str) -> str:
        PostgresDsn(value)
        return value

    @field_validator("smtp_url")
    @classmethod
    def _is_smtp(cls, value: str) -> str:
        if not value.startswith(("smtp://", "smtps://", "smtp+starttls://")):
            raise ValueError("it must begin with smtp://, smtp+starttls:// or smtps://")
        return value


def read_settings() -> Settings:
    """Reads the settings.

    Raises:
        SettingsError: one or more are wrong; the message names each by its variable.
    """
    try:
        return Settings()
    except ValidationError as error:
        faults = [
            f"SENDOFF_{str(e['loc'][0]).upper()}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors()
        ]
        raise SettingsError("Wrong settings: " + "; ".join(faults)) from None
