"""What the unit tests of the services share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import structlog.testing

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[Any]]:
    """What a service logs, kept and not drawn: a traceback takes half a second to draw."""
    with structlog.testing.capture_logs() as lines:
        yield lines
