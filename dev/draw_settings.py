"""Writes docs/settings.md from the model of the settings; `make settings` runs it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from worker.settings import Settings
from worker.settings_fit import variable
from worker.settings_words import takes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

PAGE: Final = Path(__file__).parents[1] / "docs/settings.md"

HEAD: Final = """\
# Settings

Written by `make settings` from the model in `worker/settings.py`.

Sendoff reads a setting from the environment. If it is not there, Sendoff reads the file `.env` in the
working directory, and then takes the default below. Durations are in seconds, sizes in messages or
recipients. A list is written as a JSON list, or separated by commas. A wrong value ends every command with
status 2 and a sentence that names its variable; `sendoff check` says it too. A variable that begins with
`SENDOFF_` and is no setting is told at the start and by `sendoff check`.

User and password in URLs are percent-encoded: `@` is `%40`, `#` is `%23`, `/` is `%2F`. A URL with a
password may stand in a file, such as a mounted secret: `SENDOFF_DATABASE_URL_FILE` names it.
"""

SECTIONS: Final = {
    "amqp_url": "Servers and channels",
    "publishers": "Who may command",
    "log_format": "Logs, metrics and health",
    "console_auth": "The console",
    "connect_timeout": "Time limits and connections",
    "page_size": "Fan-out, claims and results",
    "smtp_connections": "The relay",
    "bounce_domain": "Emails",
    "returned_host": "Returned mail",
    "webhooks_file": "Webhooks",
    "result_batch": "Recording",
    "breaker_minimum": "Circuit breaker and retries",
    "tracker_url": "The tracker",
    "partition_period": "Data and schedule",
}
"""The heading above a setting and those that follow it."""


def row(name: str, field: FieldInfo) -> str:
    """Returns a setting's row of the table."""
    default = field.default if isinstance(field.default, str | Path) else json.dumps(field.default)
    shown = "empty" if default in ("", "null", "[]") else f"`{default}`"
    meaning = " ".join((field.description or "").split())
    return f"| `{variable(name)}` | {shown} | {meaning} | {takes(field)} |"


def lines() -> Iterator[str]:
    """Yields the lines of the page."""
    yield HEAD
    for name, field in Settings.model_fields.items():
        if name in SECTIONS:
            yield from (
                "",
                f"## {SECTIONS[name]}",
                "",
                "| variable | default | | takes |",
                "|---|---|---|---|",
            )
        yield row(name, field)


def page() -> str:
    """Returns the page."""
    return "\n".join(lines()).replace("\n\n\n", "\n\n") + "\n"


def main() -> int:
    """Writes the page; with --check says whether it is as the model has it."""
    if sys.argv[1:] != ["--check"]:
        PAGE.write_text(page(), "utf-8")
        return 0
    if PAGE.read_text("utf-8") == page():
        return 0
    print("docs/settings.md is not as the model has it: run make settings.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
