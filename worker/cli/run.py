"""`sendoff run`."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Coroutine, Sequence
from typing import Annotated, Any, Final

import typer

from worker.bootstrap import ON_REQUEST, SERVICES
from worker.bootstrap_intake import INTAKES
from worker.cli.common import explained_outages
from worker.running import run as run_worker
from worker.running import run_intake, run_tracker
from worker.settings import Settings, read_settings
from worker.telemetry import logs

_COLLECT_AFTER: Final = 50_000
"""New objects after which Python looks for cycles among them. A batch makes thousands of objects without
cycles. With the default, 700, the search takes a tenth of a busy process's time."""

_APART: Final = (("tracker",), INTAKES)
"""The services that share no process with others: strangers talk to them."""


def run(
    services: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SERVICE]...",
            help=f"Which to run: {', '.join(SERVICES)}. None means all these. And {', '.join(ON_REQUEST)}."
            f" In a process of its own: {', or '.join(' and '.join(group) for group in _APART)}.",
        ),
    ] = None,
) -> None:
    """Run services in one process, until SIGTERM or Ctrl-C."""
    chosen = list(dict.fromkeys(services or SERVICES))
    known = (*SERVICES, *ON_REQUEST, *(name for group in _APART for name in group))
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise typer.BadParameter(
            f"There is no service {', '.join(unknown)}. The services are {', '.join(known)}."
        )
    for group in _APART:
        apart = [name for name in chosen if name in group]
        if apart and len(apart) < len(chosen):
            raise typer.BadParameter(
                f"The service {' and '.join(apart)} runs in a process of its own: name no others beside it."
            )
    settings = read_settings()
    logs.configure(settings.log_format, settings.log_level)
    gc.freeze()  # imported objects stay
    gc.set_threshold(_COLLECT_AFTER)
    with explained_outages():
        running = _running(settings, chosen)
        if sys.platform == "win32":
            asyncio.run(running)
        else:
            import uvloop  # noqa: PLC0415 - not on every platform

            uvloop.run(running)


def _running(settings: Settings, services: Sequence[str]) -> Coroutine[Any, Any, None]:
    if "tracker" in services:
        return run_tracker(settings)
    return run_intake(settings, services) if services[0] in INTAKES else run_worker(settings, services)
