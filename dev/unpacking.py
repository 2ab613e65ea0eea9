"""Programs out of Debian's packages for tests and measurements: unpacked, never installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).resolve().parents[1] / ".dev"
SECONDS: Final = 300


def program(package: str, path: str) -> Path:
    """Finds a program, unpacking Debian's package if this machine does not have it.

    Args:
        package: The package's name.
        path: Where the program lies in it, such as `usr/bin/prometheus`.

    Raises:
        SystemExit: There is none, and apt cannot get it.
    """
    name = Path(path).name
    if installed := shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"):
        return Path(installed)
    folder = FOLDER / package
    if not (folder / path).exists():
        sys.stderr.write(f"unpacking {name} out of Debian's package {package}; nothing is installed\n")
        fresh = FOLDER / f"{package}.{os.getpid()}"
        fresh.mkdir(parents=True)
        try:
            call = ["apt-get", "-q", "download", package]
            subprocess.run(call, cwd=fresh, check=True, stdout=sys.stderr, timeout=SECONDS)
            (archive,) = fresh.glob("*.deb")
            subprocess.run(["dpkg", "-x", archive.name, "."], cwd=fresh, check=True, timeout=SECONDS)
            archive.unlink()
            shutil.rmtree(folder, ignore_errors=True)
            fresh.replace(folder)  # whole or not at all
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            shutil.rmtree(fresh, ignore_errors=True)
            raise SystemExit(
                f"{name} is not on this machine and could not be unpacked ({error}); install {package} with"
                " this machine's package manager, and try again."
            ) from None
    return folder / path
