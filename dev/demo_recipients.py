"""The recipients of the demo: people who write in many scripts, and rows as real files have them.

Every row follows from its number, so that two files of the same length are the same. Some addresses make the
sink refuse the message (see `sink.py`); some rows are empty, invalid, doubled or malformed.
"""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HEADER = ("address", "profile_id", "first_name", "last_name", "greeting")

# First name, last name, greeting, local part and domain of the address.
PEOPLE = (
    ("Zoë", "Müller", "Grüezi", "zoe.mueller", "example.org"),
    ("Jiří", "Dvořák", "Dobrý den", "jiri.dvorak", "example.com"),
    ("Søren", "Ågård", "Hej", "soren.agard", "post.example.net"),
    ("Nguyễn", "Thị Hằng", "Xin chào", "hang.nguyen", "example.org"),
    ("Łucja", "Wójcik", "Dzień dobry", "lucja+news", "example.com"),
    ("Ирина", "Соколова", "Здравствуйте", "irina.sokolova", "почта.example.org"),
    ("Ђорђе", "Петровић", "Здраво", "ђорђе.петровић", "example.net"),
    ("Ελένη", "Παπαδοπούλου", "Καλημέρα", "eleni.papa", "δοκιμή.example.org"),
    ("ليلى", "حداد", "مرحبا", "layla.haddad", "example.com"),
    ("נועה", "לוי", "שלום", "noa.levi", "example.net"),
    ("小明", "王", "你好", "小明.王", "example.org"),
    ("さくら", "佐藤", "こんにちは", "sakura.sato", "例え.example.com"),
    ("지우", "김", "안녕하세요", "jiwoo.kim", "example.org"),
    ("अनन्या", "शर्मा", "नमस्ते", "ananya.sharma", "example.net"),
    ("Sam 🎈", "O'Neill", "Hi 👋", "sam.oneill", "bücher.example.org"),
    ("Ana", "da Silva", "Olá", "ana.dasilva", "example.com"),
)

# What the sink does with a message, by the beginning of the local part; every so many rows.
FATES = {97: "unknown-", 101: "full-", 211: "spam-"}
# Addresses that are none, every 61 rows in turn.
INVALID = ("ana.example.org", "ana@", "ana@@example.org", "a..b@example.org", "ana@exam ple.org")


def rows(count: int) -> Iterator[str]:
    """Yields the lines of a recipients file: its header and `count` rows."""
    yield _line(*HEADER)
    for number in range(1, count + 1):
        yield _row(number)


def write(path: Path, count: int) -> None:
    """Writes a recipients file of `count` rows, in constant memory."""
    with path.open("w", encoding="utf-8", newline="") as file:
        file.writelines(rows(count))


def _row(number: int) -> str:
    first, last, greeting, local, domain = PEOPLE[number % len(PEOPLE)]
    fate = next((prefix for every, prefix in FATES.items() if number % every == 0), "")
    address = f"{fate}{local}.{number}@{domain}"
    if number % 61 == 0:
        address = INVALID[number // 61 % len(INVALID)]
    elif number % 89 == 0:
        address = ""
    elif number % 113 == 0:  # row 1 again, with a space and in capitals
        address = f" {PEOPLE[1][3].upper()}.1@{PEOPLE[1][4]}"
    if number % 307 == 0:
        return f'"{first},a quote that is never closed\n'
    if number % 401 == 0:
        return _line(address, first)
    return _line(address, f"P{number:06}", first, last, greeting)


def _line(*fields: str) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(fields)
    return line.getvalue()
