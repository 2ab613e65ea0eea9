"""Finds the RabbitMQ and Postgres programs of this machine, and installs them where apt can."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
INSTALL_SECONDS = 1800


class UnavailableError(Exception):
    """What is needed is not on this machine and cannot be put there; the message says what to do."""


@dataclass(frozen=True)
class Programs:
    """Where the native programs are.

    Attributes:
        postgres: the folder that holds `initdb`, `postgres` and `psql`.
        rabbitmq: the `sbin` folder of the RabbitMQ release itself. Debian's `/usr/sbin/rabbitmq-server` is a
            wrapper that changes to the user `rabbitmq` and to the system's own node, so it is passed by.
    """

    postgres: Path
    rabbitmq: Path


def find() -> Programs | None:
    """Looks for both servers; none if one of them is missing."""
    postgres = _folder_with("initdb", "usr/lib/postgresql/*/bin", "usr/pgsql-*/bin")
    rabbitmq = _folder_with(
        "rabbitmq-env", "usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin", "opt/rabbitmq/sbin"
    )
    return Programs(postgres, rabbitmq) if postgres and rabbitmq and shutil.which("epmd") else None


def _folder_with(program: str, *patterns: str) -> Path | None:
    folders = [folder for pattern in patterns for folder in Path("/").glob(pattern)]
    on_path = shutil.which(program)
    if on_path:
        folders.append(Path(on_path).resolve().parent)
    usable = [folder for folder in folders if (folder / program).exists()]
    return max(usable, key=_version, default=None)


def _version(folder: Path) -> tuple[int, ...]:
    """The numbers in a path, so that the newest release wins: `/usr/lib/postgresql/15/bin` gives (15,)."""
    digits = "".join(letter if letter.isdigit() else " " for letter in str(folder))
    return tuple(int(number) for number in digits.split())


def has_compose() -> bool:
    """Says whether `docker compose` can be called and its daemon answers."""
    if not shutil.which("docker"):
        return False
    calls = (["docker", "compose", "version"], ["docker", "version"])
    return all(
        subprocess.run(call, capture_output=True, timeout=30, check=False).returncode == 0 for call in calls
    )


def install(*, servers: bool) -> None:
    """Installs with apt what is missing, without a prompt except sudo's own.

    Args:
        servers: RabbitMQ and Postgres are wanted; otherwise only what building `.venv` needs.

    Raises:
        UnavailableError: this machine has no apt, or the installation failed.
    """
    missing = []
    if importlib.util.find_spec("ensurepip") is None:
        missing.append("python3-venv")
    if servers and find() is None:
        missing += ["rabbitmq-server", "postgresql"]
    if not missing:
        return
    names = " ".join(missing)
    if not shutil.which("apt-get"):
        raise UnavailableError(
            f"Sendoff's local servers need {names}, and there is no apt to install them. Use this machine's "
            "own package manager, or install Docker with its compose plugin, and try again.",
        )
    sudo = [] if os.geteuid() == 0 else ["sudo"]
    if sudo and not shutil.which("sudo"):
        raise UnavailableError(
            f"Installing {names} needs root and there is no sudo: as root, run apt-get install {names}"
        )
    print(f"installing {names} (their system services stay off)", file=sys.stderr, flush=True)
    installer = subprocess.Popen([*sudo, "sh", str(HERE / "install.sh"), *missing], stdout=sys.stderr)
    try:
        status = installer.wait(INSTALL_SECONDS)
    except subprocess.TimeoutExpired:
        installer.terminate()
        raise UnavailableError(f"apt did not finish within {INSTALL_SECONDS // 60} minutes.") from None
    except BaseException:
        installer.wait(INSTALL_SECONDS)  # dpkg must not be left half-way; Ctrl-C reached it as well
        raise
    if status != 0:
        raise UnavailableError(f"Installing {names} failed (status {status}); its reason stands above.")
