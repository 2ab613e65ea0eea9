"""Puts passwords into definitions.json, as salted hashes; needs nothing but Python.

    python3 deploy/rabbitmq/set_passwords.py FOLDER > definitions.json

FOLDER holds a file for each broker user, named after them, with the password in its first line: as Docker and
Kubernetes mount secrets. A user without a file stays as committed: without a password, and so locked out.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import sys
from pathlib import Path

DEFINITIONS = Path(__file__).with_name("definitions.json")
SHORTEST = 16


def hashed(password: str) -> str:
    """Returns a password as RabbitMQ keeps it: a salt of four bytes, then SHA-256 of salt and password."""
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def filled(definitions: Path, folder: Path) -> str:
    """Returns the definitions with the passwords of a folder.

    Raises:
        ValueError: a file is for nobody, or its password is too short.
    """
    read = json.loads(definitions.read_text(encoding="utf-8"))
    users = {user["name"]: user for user in read["users"]}
    for file in sorted(folder.iterdir()):
        if file.name.startswith("."):
            continue  # Kubernetes keeps the mounted files there
        if file.name not in users:
            raise ValueError(f"{file}: {definitions.name} has no user of this name.")
        password = file.read_text(encoding="utf-8").partition("\n")[0].strip()
        if len(password) < SHORTEST:
            raise ValueError(f"{file}: the password is shorter than {SHORTEST} characters.")
        users[file.name]["password_hash"] = hashed(password)
    return json.dumps(read, indent=2) + "\n"


def main() -> int:
    """Prints the definitions; 1 with a sentence where that cannot be done."""
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():  # noqa: PLR2004 - the program and its argument
        sys.stderr.write("Usage: set_passwords.py FOLDER, with a file for each broker user.\n")
        return 2
    try:
        sys.stdout.write(filled(DEFINITIONS, Path(sys.argv[1])))
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
