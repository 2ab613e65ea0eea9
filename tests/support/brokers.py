"""A broker of a test's own, for what would disturb the others: alarms, policies, plugins."""

from __future__ import annotations

import importlib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


def _backends() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "dev")
        return importlib.import_module("backends")


def program(name: str) -> Path:
    """Where a program of RabbitMQ is; without RabbitMQ the test is skipped."""
    folder: Path | None = _backends().find(_backends().RABBITMQ)
    if folder is None:
        pytest.skip("the programs of RabbitMQ are not on this machine")
    return folder / name


@contextmanager
def own_broker(folder: Path, management: str = "") -> Iterator[Any]:
    """Runs a broker in a folder; `management` holds lines of its configuration, for {port}, that it adds."""
    program("rabbitmq-server")
    servers = _backends().Servers(folder)
    try:
        servers.start_rabbitmq(management.format(port=servers.metrics + 1))
        servers.wait_rabbitmq()
        yield servers
    finally:
        servers.end()
