"""The files that browsers load: each under an address with its digest, so that it is loaded once."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from starlette.responses import PlainTextResponse, Response

if TYPE_CHECKING:
    from starlette.requests import Request

_KINDS: Final = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_FILES: Final = ("page.css", "page.js", "icon.svg", "vendor/htmx.js", "vendor/hx-sse.js")
_FOREVER: Final = "public, max-age=31536000, immutable"


class Assets:
    """The files, read once."""

    def __init__(self) -> None:
        """Reads them from the package."""
        folder = files(__package__) / "static"
        self._held = {name: folder.joinpath(*name.split("/")).read_bytes() for name in _FILES}
        self._digests = {n: hashlib.sha256(data).hexdigest()[:12] for n, data in self._held.items()}

    def address(self, name: str) -> str:
        """Returns the address of a file: another one for other content."""
        return f"/static/{self._digests[name]}/{name}"

    async def serve(self, request: Request) -> Response:
        """Answers a request for a file by its digest and its name."""
        name = request.path_params["name"]
        if self._digests.get(name) != request.path_params["digest"]:
            return PlainTextResponse("There is no such file.", 404)
        kind = _KINDS[name.rpartition(".")[2]]
        return Response(self._held[name], headers={"cache-control": _FOREVER, "content-type": kind})
