"""`sendoff run`."""

from __future__ import annotations

import asyncio
import gc
import sys
from typing import Annotated, Final

import typer

from worker.bootstrap import ON_REQUEST, SERVICES
from worker.bootstrap_tracker import run_tracker
from worker.cli.common import explained_outages
from worker.running import run as run_worker
from worker.settings import read_settings
from worker.telemetry import logs

_COLLECT_AFTER: Final = 50_000
"""New objects after which Python looks for cycles among them. A batch makes thousands of objects without
cycles. With the default, 700, the search takes a tenth of a busy process's time."""

_APART: Final = {"tracker": run_tracker}
"""The services that run alone: strangers on the internet talk to them."""


def run(
    services: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SERVICE]...",
            help=f"Which to run: {', '.join(SERVICES)}. None means all these. And {', '.join(ON_REQUEST)}."
            f" In a process of its own: {', '.join(_APART)}.",
        ),
    ] = None,
) -> None:
    """Run services in one process, until SIGTERM or Ctrl-C."""
    chosen = list(dict.fromkeys(services or SERVICES))
    known = (*SERVICES, *ON_REQUEST, *_APART)
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise typer.BadParameter(
            f"There is no service {', '.join(unknown)}. The services are {', '.join(known)}."
        )
    apart = [name for name in chosen if name in _APART]
    if apart and len(chosen) > 1:
        raise typer.BadParameter(f"The service {apart[0]} runs in a process of its own: name it alone.")
    settings = read_settings()
    logs.configure(settings.log_format, settings.log_level)
    gc.freeze()  # imported objects stay
    gc.set_threshold(_COLLECT_AFTER)
    with explained_outages():
        running = _APART[apart[0]](settings) if apart else run_worker(settings, chosen)
        if sys.platform == "win32":
            asyncio.run(running)
        else:
            import uvloop  # noqa: PLC0415 - not on every platform

            uvloop.run(running)
