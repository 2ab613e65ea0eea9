"""`sendoff check`."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, Final

import typer

from worker.amqp.permissions import needs
from worker.cli import check_intake
from worker.cli.asking import JsonOption
from worker.cli.show import to_json
from worker.domain.text import plain
from worker.operations import check_broker, check_database, check_machine
from worker.operations.findings import Finding, PartStatus, skipped, wrong
from worker.settings import Settings, SettingsError, read_settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Look = Callable[[], Awaitable[list[Finding]]]

PARTS: Final = (
    *("configuration", "tls", "disk", *check_broker.PARTS, *check_database.PARTS),
    *(probe.part for probe in check_machine.PROBES.values()),
    *check_intake.PARTS,
)
"""The parts in their order."""


def check(
    services: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SERVICE]...",
            help="What the broker user of these settings is to run. None means: whichever it may.",
        ),
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Say what is wrong with settings, broker, database, their users and the SMTP relay; change nothing."""
    known = needs(())
    if unknown := [name for name in services or () if name not in known]:
        raise typer.BadParameter(
            f"There is no service {', '.join(unknown)}. The services are {', '.join(known)}."
        )
    try:
        settings = read_settings()
        check_machine.open_files(settings)
    except SettingsError as error:
        findings = [wrong("configuration", str(error))]
        findings += skipped(PARTS[1:], "Not looked at, as long as the settings are wrong.")
    else:
        findings = asyncio.run(_look(settings, services or []))
    if as_json:
        typer.echo(to_json([asdict(f) for f in findings]))
    else:
        for f in findings:
            typer.echo(f"{f.part:14} {f.standing.value:12} {plain(f.message)}")
    statuses = {f.standing for f in findings}
    raise typer.Exit(3 if PartStatus.UNREACHABLE in statuses else 1 if PartStatus.WRONG in statuses else 0)


async def _look(settings: Settings, services: list[str]) -> list[Finding]:
    looks: dict[tuple[str, ...], Look] = {
        ("configuration",): _at(check_machine.configuration, settings),
        ("tls",): _at(check_machine.tls, settings),
        ("disk",): _at(check_machine.disk, settings),
        check_broker.PARTS: partial(check_broker.look, settings, services),
        check_database.PARTS: partial(check_database.look, settings),
    }
    for name, probe in check_machine.PROBES.items():
        looks[(probe.part,)] = partial(_one, check_machine.channel, settings, name, probe)
    for part, intake in check_intake.PARTS.items():
        looks[(part,)] = partial(intake, settings)
    found = await asyncio.gather(*(_look_or_report(parts, look) for parts, look in looks.items()))
    return [finding for findings in found for finding in findings]


def _at(look: Callable[[Settings], Finding], settings: Settings) -> Look:
    async def act() -> list[Finding]:
        return [await asyncio.to_thread(look, settings)]

    return act


async def _one(look: Callable[..., Awaitable[Finding]], *args: object) -> list[Finding]:
    return [await look(*args)]


async def _look_or_report(parts: tuple[str, ...], look: Look) -> list[Finding]:
    """Turns an unexpected error into a line too, since this command is for broken systems."""
    try:
        return await look()
    except Exception as error:  # noqa: BLE001 - see above
        return [wrong(part, f"It could not be looked at: {error!r}.") for part in parts]
