"""The playground at `/`: a page of static files that speaks to this server alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fader.server.errors import Refused

FOLDER = Path(__file__).parent / "static"
KINDS = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # text can never become markup or code: the browser itself refuses it
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""Nothing is loaded from elsewhere, no script stands in the page."""


@cache
def files() -> dict[str, tuple[bytes, str]]:
    """The page's files by their addresses, each with its content and its kind. They are read once,
    so that no address that is asked for is ever taken for a file."""
    found = {
        f"/page/{file.relative_to(FOLDER).as_posix()}": (file.read_bytes(), KINDS[file.suffix])
        for file in sorted(FOLDER.rglob("*"))
        if file.suffix in KINDS
    }
    return {"/": found.pop("/page/index.html"), **found}


async def _page(request: Request) -> Response:
    if (found := files().get(request.url.path)) is None:
        raise Refused(404, f"there is nothing at {request.url.path[:200]}", code="not_found")
    content, kind = found
    headers = {"Content-Security-Policy": POLICY, "Cross-Origin-Opener-Policy": "same-origin"}
    return Response(content, media_type=kind, headers=headers)


ROUTES: Sequence[Route] = (Route("/", _page), Route("/page/{file:path}", _page))
"""Where the page is served."""
