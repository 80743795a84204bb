"""The page at ``/`` and its two files. It calls the API like any other caller, so it needs no token
itself.
"""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
HEADERS = {
    # Nothing but this server, whatever a file name or a class name holds.
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:;"
    " object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    # A new version of the server must not meet an old page.
    "cache-control": "no-cache",
}


def routes() -> list[Route]:
    """The routes of the page."""
    folder = Path(__file__).parent / "page"
    return [
        _route(path, (folder / name).read_bytes(), kind) for path, (name, kind) in FILES.items()
    ]


def _route(path: str, data: bytes, kind: str) -> Route:
    async def answer(request: Request) -> Response:
        return Response(data, headers=HEADERS, media_type=kind)

    return Route(path, answer)
