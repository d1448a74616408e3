"""The page at `/` (ingress/page/): microphone or recording in, transcript out."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from http import HTTPStatus
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ingress.http.endpoints import endpoint
from ingress.request import Request as StreamRequest

_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HOST: Final = re.compile(r"[A-Za-z0-9.\-:\[\]]{1,255}")
# Browsers from before 2022 do not apply 'self' to WebSockets, so the host is named too.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'{sockets};"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    content_type: str
    tag: str


def _load(folder: Traversable, prefix: str = "") -> dict[str, _File]:
    loaded: dict[str, _File] = {}
    for entry in folder.iterdir():
        suffix = "." + entry.name.rpartition(".")[2]
        if entry.is_dir():
            loaded |= _load(entry, f"{prefix}{entry.name}/")
        elif suffix in _TYPES:
            content = entry.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
            loaded[prefix + entry.name] = _File(content, _TYPES[suffix], tag)
    return loaded


_FILES: Final = _load(files("ingress").joinpath("page"))


def _answer(request: Request, name: str) -> Response:
    file = _FILES.get(name)
    if file is None:
        raise HTTPException(HTTPStatus.NOT_FOUND)
    host = request.headers.get("host", "")
    sockets = f" ws://{host} wss://{host}" if _HOST.fullmatch(host) else ""
    headers = {
        "Content-Type": file.content_type,
        "Content-Security-Policy": _POLICY.format(sockets=sockets),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
        "Cache-Control": "no-cache",
        "ETag": file.tag,
    }
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers)


async def page(request: Request) -> Response:
    """Return the page itself."""
    return _answer(request, "index.html")


async def asset(request: Request) -> Response:
    """Return one of the files that the page loads."""
    return _answer(request, request.path_params["name"])


PAGE: Final[tuple[Route, ...]] = (endpoint("/", page, "GET"), endpoint("/assets/{name:path}", asset, "GET"))
"""Rows of the table of endpoints. A client without a key gets these alone from a server with keys."""


def is_open(request: StreamRequest) -> bool:
    """Return whether a client without a key may make this request: the page and its files are open."""
    if request.method not in ("GET", "HEAD") or "websocket" in request.tokens("upgrade"):
        return False
    return request.path == "/" or request.path.removeprefix("/assets/") in _FILES
