"""Every command of the command line, found by walking it, with arguments that fit."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from worker.cli import app

if TYPE_CHECKING:
    from collections.abc import Iterator

MORE = {
    "watch": ["--until", "ready"],
    "pause": ["1"],
    "dead replay": ["--all"],
    "dead drop": ["--all"],
    "alert set": ["--on"],
    "retention": ["--older-than", "400d"],
}
"""What takes a command further than its required arguments do."""


def walk(group: Any, *path: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from walk(command, *path, name)
        else:
            yield " ".join((*path, name)), command


COMMANDS = dict(walk(typer.main.get_command(app)))


def arguments(name: str, folder: Path) -> list[str]:
    """The command with what it requires, made up from the names and types of its parameters."""
    if name == "prepare":  # one of two audiences is required
        return [name, str(folder / "d.toml"), "--recipients", str(folder / "r.csv"), "--operator", "ana"]
    by_name = {"profile_id": "crm-1", "recipients": str(folder / "r.csv")}
    by_name |= {"addresses": "zoe@example.org", "profiles": "crm-1", "to": "ana@example.org"}
    if name.endswith("import"):
        by_name["file"] = str(folder / "import.csv")
    by_type = {int: "1", float: "1", str: "ana", Path: str(folder / "d.toml")}
    found = name.split()
    for parameter in COMMANDS[name].params:
        if parameter.name == "yes":
            found.append("--yes")
        elif parameter.required or parameter.name == "timeout":
            kind = parameter.type_descriptor.annotation
            option = [o for o in parameter.opts if o.startswith("--")]
            if parameter.name in by_name:
                found += [*option, by_name[parameter.name]]
            else:
                found += [*option, next(iter(kind)).value if issubclass(kind, Enum) else by_type[kind]]
    return [*found, *MORE.get(name, [])]
