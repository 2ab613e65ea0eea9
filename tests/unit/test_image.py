"""The Dockerfile: linted, pinned, in stages, and without what the image does not need."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def image() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "dev")
        yield importlib.import_module("image")


@pytest.fixture
def steps(image: Any) -> list[tuple[str, str]]:
    return list(image.instructions((ROOT / "Dockerfile").read_text()))


def test_the_linter_of_dockerfiles_has_nothing_to_say(tmp_path: Path) -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint is not to be had for this machine")
    said = subprocess.run(
        [hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False, timeout=60
    )
    assert (said.returncode, said.stdout) == (0, "")
    wrong = tmp_path / "Dockerfile"
    wrong.write_text("FROM python\nRUN cd /x && pip install sendoff\n")
    assert subprocess.run([hadolint, wrong], capture_output=True, check=False, timeout=60).returncode == 1


def test_every_stage_begins_with_the_one_image_that_is_pinned_by_its_digest(
    steps: list[tuple[str, str]],
) -> None:
    assert re.fullmatch(r"PYTHON=python:[\d.]+-slim-[a-z]+@sha256:[0-9a-f]{64}", dict(steps)["ARG"])
    bases = [arguments.split(" AS ")[0] for name, arguments in steps if name == "FROM"]
    assert bases == ["${PYTHON}"] * 3


def test_the_last_stage_installs_nothing_and_runs_as_nobody_in_particular(
    steps: list[tuple[str, str]],
) -> None:
    last = steps[max(n for n, (name, _) in enumerate(steps) if name == "FROM") + 1 :]
    assert [name for name, _ in last if name in {"COPY", "RUN"}] == ["COPY", "RUN"]
    assert "pip" not in dict(last)["RUN"]
    said = dict(last)
    assert said["USER"] == "10001:10001"
    assert "/health/live" in said["HEALTHCHECK"]
    assert json.loads(said["ENTRYPOINT"]) == ["sendoff"]


def test_whatever_is_installed_has_its_hash(steps: list[tuple[str, str]]) -> None:
    installs = [
        arguments
        for name, arguments in steps
        if name == "RUN" and "pip" in arguments and "install" in arguments
    ]
    assert installs
    for install in installs:
        assert "--require-hashes" in install or "--no-index" in install


def test_what_is_copied_is_let_through_to_the_builder(steps: list[tuple[str, str]]) -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        word
        for name, arguments in steps
        if name == "COPY" and not arguments.startswith("--from")
        for word in arguments.split()[:-1]
    }
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)
