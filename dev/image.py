"""Runs the steps of the Dockerfile in bare Debian roots, where no container engine is to be had.

    sudo python3 dev/image.py FOLDER -- COMMAND…

builds FOLDER/final, and runs COMMAND in it as the image would; “health” runs the health check. Each stage
begins with a copy of the Debian that its base image is made of (debootstrap, with Debian's own Python); RUN,
COPY, ENV, WORKDIR and USER do what an engine does. The command runs as the image's user, in a root that is
mounted read-only, with an empty /tmp. This does not show the base image itself, and what an engine adds.
FOLDER/base is kept, so that the next run needs no debootstrap.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 1800
SEARCHED = "/usr/local/python/bin:/usr/local/bin:/usr/bin:/bin"
PASSED_ON = ("PIP_", "SSL_CERT_", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")
"""How this machine reaches a package index."""


@dataclass
class Stage:
    """What the steps of a stage have come to."""

    root: Path
    environment: dict[str, str]
    folder: str = "/"
    user: str = "0:0"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Yields the instructions of a Dockerfile, each with its arguments on one line."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    for line in filter(None, map(str.strip, joined.splitlines())):
        name, _, rest = line.partition(" ")
        yield name, rest.strip()


def run(*command: object, **more: object) -> None:
    """Runs a program; ends this one if it fails."""
    done = subprocess.run([str(word) for word in command], check=False, timeout=SECONDS, **more)  # type: ignore[call-overload]
    if done.returncode:
        sys.exit(f"image: {shlex.join(map(str, command))} failed with {done.returncode}.")


def bootstrap(base: Path, suite: str) -> None:
    """Makes a bare Debian with Python in a folder, unless it is there."""
    if (base / "ready").exists():
        return
    shutil.rmtree(base, ignore_errors=True)
    packages = "python3,python3-venv,ca-certificates"
    run("debootstrap", "--variant=minbase", f"--include={packages}", suite, base)
    # As in the image: it is called python, and has a pip that takes packages.
    run("chroot", base, "python3", "-m", "venv", "/usr/local/python")
    (base / "ready").touch()


def in_root(stage: Stage, command: list[str], *, read_only: bool = False, **more: str) -> int:
    """Runs a command in a root, as the stage's user, and returns its status."""
    mounts = [
        f"mount --bind {stage.root} {stage.root}",
        f"mount -t proc proc {stage.root}/proc",
        f"mount --bind /dev {stage.root}/dev",
    ]
    # What pip needs of this machine, where its index is a folder: SENDOFF_DEV_IMAGE_FOLDERS=/one:/other.
    for folder in filter(None, os.environ.get("SENDOFF_DEV_IMAGE_FOLDERS", "").split(":")):
        if not read_only and Path(folder).is_dir():
            (stage.root / folder[1:]).mkdir(parents=True, exist_ok=True)
            mounts.append(f"mount --bind {folder} {stage.root}{folder}")
    if read_only:
        mounts.append(f"mount -o remount,bind,ro {stage.root}")
        mounts.append(f"mount -t tmpfs tmpfs {stage.root / 'tmp'}")
    user = f"--userspec={stage.user}"
    environment = {"PATH": SEARCHED, **stage.environment, **more}
    variables = [f"{name}={value}" for name, value in environment.items()]
    words = ["chroot", user, str(stage.root), "/usr/bin/env", "-i", "-C", stage.folder, *variables, *command]
    script = " && ".join([*mounts, f"exec {shlex.join(words)}"])
    return subprocess.run(["unshare", "--mount", "sh", "-c", script], check=False, timeout=SECONDS).returncode


def copy(stage: Stage, arguments: str, stages: dict[str, Stage]) -> None:
    """Copies files of the checkout, or of another stage."""
    words = shlex.split(arguments)
    source = ROOT
    if words[0].startswith("--from="):
        source = stages[words.pop(0).removeprefix("--from=")].root
    *files, target = words
    place = stage.root / str(Path(stage.folder, target)).lstrip("/")
    for name in files:
        found = source / name.lstrip("/")
        if found.is_dir():
            shutil.copytree(
                found, place, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            folder = place if target.endswith("/") else place.parent
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(found, folder / found.name if target.endswith("/") else place)


class Builder:
    """Does the steps of a Dockerfile, each by the method of its name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stages: dict[str, Stage] = {}
        self.stage = Stage(folder, {})

    def build(self) -> Stage:
        """Does every step; returns the last stage."""
        for name, arguments in instructions((ROOT / "Dockerfile").read_text()):
            if name in {"EXPOSE", "STOPSIGNAL"}:
                continue
            step = getattr(self, f"do_{name.lower()}", None)
            if step is None:
                sys.exit(f"image: No step {name} is known here.")
            step(arguments)
        return self.stage

    def do_arg(self, arguments: str) -> None:
        """Makes the Debian that the base image names."""
        suite = re.search(r"slim-([a-z]+)@sha256:[0-9a-f]{64}$", arguments)
        if suite is None:
            sys.exit("image: The base image is not pinned to a Debian and a digest.")
        bootstrap(self.folder / "base", suite[1])

    def do_from(self, arguments: str) -> None:
        """Begins a stage with a copy of it."""
        called = arguments.partition(" AS ")[2] or "final"
        self.stage = self.stages[called] = Stage(self.folder / called, {})
        shutil.rmtree(self.stage.root, ignore_errors=True)
        run("cp", "-a", self.folder / "base", self.stage.root)

    def do_workdir(self, arguments: str) -> None:
        """Makes a folder, and goes there."""
        self.stage.folder = arguments
        (self.stage.root / arguments.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def do_env(self, arguments: str) -> None:
        """Sets variables."""
        said = dict(word.split("=", 1) for word in shlex.split(arguments))
        path = self.stage.environment.get("PATH", SEARCHED)
        self.stage.environment |= {key: value.replace("$PATH", path) for key, value in said.items()}

    def do_copy(self, arguments: str) -> None:
        """Copies files."""
        copy(self.stage, arguments, self.stages)

    def do_run(self, arguments: str) -> None:
        """Runs a command."""
        here = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
        if in_root(self.stage, ["sh", "-c", arguments], **here):
            sys.exit(f"image: RUN {arguments} failed.")

    def do_user(self, arguments: str) -> None:
        """Says who runs what follows."""
        self.stage.user = arguments

    def do_entrypoint(self, arguments: str) -> None:
        """Says what the image runs."""
        self.stage.entrypoint = json.loads(arguments)

    def do_cmd(self, arguments: str) -> None:
        """Says with which arguments."""
        self.stage.command = json.loads(arguments)

    def do_healthcheck(self, arguments: str) -> None:
        """Says how it is asked."""
        self.stage.health = json.loads(arguments.partition("CMD ")[2])


def main() -> int:
    """Builds, and runs what is asked for; 2 with the usage where that is not understood."""
    match sys.argv[1:]:
        case [folder, "--", *command] if os.geteuid() == 0:
            stage = Builder(Path(folder).resolve()).build()
            given = {n: v for n, v in os.environ.items() if n.startswith("SENDOFF_")}
            if command == ["health"]:
                return in_root(stage, stage.health, read_only=True, **given)
            return in_root(stage, [*stage.entrypoint, *(command or stage.command)], read_only=True, **given)
        case _:
            print(__doc__, file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main())
