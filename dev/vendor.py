"""Brings the browser's libraries of the console into the repository, from their npm packages.

`python dev/vendor.py` downloads each package with `npm pack`, checks its sha512 against the one below, and
copies the files that are named and the licence. The manifest beside them has the sha512 of every file, and a
test compares. Nothing is built, and nobody but who runs this needs npm.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "worker" / "web" / "console" / "static" / "vendor"
TESTED = ROOT / "tests" / "data" / "vendor"
MANIFEST = "manifest.json"
SECONDS = 120


@dataclass(frozen=True)
class Package:
    """A package of the npm registry, and what of it is copied where."""

    name: str
    version: str
    integrity: str
    """The sha512 of the whole package, as the registry prints it (`npm view NAME@VERSION dist.integrity`)."""
    files: dict[str, str]
    """The name here of each path in the package."""
    folder: Path


PACKAGES = (
    Package(
        "htmx.org",
        "4.0.1",
        "sha512-oF7JgXhDW9UXCy/k1ZYFUQgzu/rm19ORWPSPNL91vPluB2PB9+MV55tyQdH/w7o2EAbTYUG5SDW1R60mdkdqGg==",
        {"dist/htmx.min.js": "htmx.js", "dist/ext/hx-sse.min.js": "hx-sse.js", "LICENSE": "htmx.LICENSE"},
        SHIPPED,
    ),
    Package(
        "axe-core",
        "4.14.1",
        "sha512-FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
        {"axe.min.js": "axe.js", "LICENSE": "axe.LICENSE"},
        TESTED,
    ),
)


def digest(data: bytes) -> str:
    """Returns a sha512 as npm writes it."""
    return "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()


def unpack(package: Package, archive: bytes) -> dict[str, bytes]:
    """Returns the files of a package's archive that are wanted, by their names here.

    Raises:
        SystemExit: The archive is not the one that was looked at, or lacks a file.
    """
    if digest(archive) != package.integrity:
        sys.exit(
            f"{package.name} {package.version}: its sha512 is {digest(archive)}, not {package.integrity}."
        )
    found = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as held:
        for path, name in package.files.items():
            try:
                file = held.extractfile(f"package/{path}")
            except KeyError:
                file = None
            if file is None:
                sys.exit(f"{package.name} {package.version} has no file {path}.")
            # The map of a minified file is not copied, and a browser's tools would ask for it in vain.
            lines = [ln for ln in file.read().splitlines() if not ln.startswith(b"//# sourceMappingURL=")]
            found[name] = b"\n".join(lines) + b"\n"
    return found


def fetch(package: Package) -> bytes:
    """Returns the archive of a package."""
    with tempfile.TemporaryDirectory() as folder:
        pack = ["npm", "pack", "--silent", "--pack-destination", folder, f"{package.name}@{package.version}"]
        subprocess.run(pack, check=True, timeout=SECONDS, cwd=folder, stdout=subprocess.DEVNULL)
        (archive,) = Path(folder).iterdir()
        return archive.read_bytes()


def manifest(folder: Path) -> str:
    """Returns what the manifest of a folder says: its packages, and the sha512 of every file."""
    told = {
        package.name: {
            "version": package.version,
            "integrity": package.integrity,
            "files": {name: digest((folder / name).read_bytes()) for name in package.files.values()},
        }
        for package in PACKAGES
        if package.folder == folder
    }
    return json.dumps(told, indent=2) + "\n"


def main() -> None:
    """Writes every file and the manifests."""
    for package in PACKAGES:
        package.folder.mkdir(parents=True, exist_ok=True)
        for name, data in unpack(package, fetch(package)).items():
            (package.folder / name).write_bytes(data)
    for folder in (SHIPPED, TESTED):
        (folder / MANIFEST).write_text(manifest(folder))


if __name__ == "__main__":
    main()
