"""The browser's libraries are the ones that were looked at, byte by byte."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from dev import vendor

if TYPE_CHECKING:
    from pathlib import Path


def archive(**files: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as held:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(data)
            held.addfile(entry, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize("folder", [vendor.SHIPPED, vendor.TESTED], ids=["shipped", "for tests"])
def test_every_file_is_as_the_manifest_says(folder: Path) -> None:
    assert (folder / vendor.MANIFEST).read_text() == vendor.manifest(folder)


@pytest.mark.parametrize("folder", [vendor.SHIPPED, vendor.TESTED], ids=["shipped", "for tests"])
def test_no_file_lies_there_that_no_package_brought(folder: Path) -> None:
    named = {name for p in vendor.PACKAGES if p.folder == folder for name in p.files.values()}
    assert {path.name for path in folder.iterdir()} == {*named, vendor.MANIFEST}


def test_a_package_with_another_sha512_is_refused() -> None:
    with pytest.raises(SystemExit, match="its sha512 is"):
        vendor.unpack(vendor.PACKAGES[0], archive(LICENSE=b"mine"))


def test_a_package_without_the_file_is_refused() -> None:
    held = archive(LICENSE=b"mine")
    package = replace(vendor.PACKAGES[0], integrity=vendor.digest(held))
    with pytest.raises(SystemExit, match=r"has no file dist/htmx\.min\.js"):
        vendor.unpack(package, held)


def test_the_map_of_a_file_is_not_asked_for() -> None:
    held = archive(a=b"x();\n//# sourceMappingURL=a.map\n")
    package = replace(vendor.PACKAGES[0], integrity=vendor.digest(held), files={"a": "b.js"})
    assert vendor.unpack(package, held) == {"b.js": b"x();\n"}
