"""`sendoff run`."""

from __future__ import annotations

import asyncio
import gc
import sys
from typing import Annotated, Final

import typer

from worker.bootstrap import ON_REQUEST, SERVICES
from worker.cli.common import explained_outages
from worker.running import run as run_worker
from worker.settings import read_settings
from worker.telemetry import logs

_COLLECT_AFTER: Final = 50_000
"""New objects after which Python looks for cycles among them. A batch makes thousands of objects without
cycles. With the default, 700, the search takes a tenth of a busy process's time."""


def run(
    services: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SERVICE]...",
            help=f"Which to run: {', '.join(SERVICES)}. None means all these. And {', '.join(ON_REQUEST)}.",
        ),
    ] = None,
) -> None:
    """Run services in one process, until SIGTERM or Ctrl-C."""
    chosen = list(dict.fromkeys(services or SERVICES))
    known = (*SERVICES, *ON_REQUEST)
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise typer.BadParameter(
            f"There is no service {', '.join(unknown)}. The services are {', '.join(known)}."
        )
    settings = read_settings()
    logs.configure(settings.log_format, settings.log_level)
    gc.freeze()  # imported objects stay
    gc.set_threshold(_COLLECT_AFTER)
    with explained_outages():
        if sys.platform == "win32":
            asyncio.run(run_worker(settings, chosen))
        else:
            import uvloop  # noqa: PLC0415 - not on every platform

            uvloop.run(run_worker(settings, chosen))
