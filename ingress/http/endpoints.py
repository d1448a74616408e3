"""What the WebSocket port answers to plain HTTP: a Starlette application out of the table of endpoints."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable
from http import HTTPStatus
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

Answer = Callable[[Request], Awaitable[Response]]

_SENTENCES: Final = {
    HTTPStatus.NOT_FOUND: "There is nothing at this path.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This path does not take that method.",
}
_UPGRADE: Final = "This path takes WebSocket connections only.\n"

_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Parakeet server</title>
<style>body { max-width: 40em; margin: 3em auto; padding: 0 1em; font: 1em/1.5 system-ui, sans-serif }</style>
</head>
<body>
<h1>Parakeet server</h1>
<p>This port turns speech into text while it is spoken. Programs connect to it by WebSocket, at the path
<code>/</code> or <code>/ws</code>, send audio, and get results; the server says <code>hello</code> first.</p>
<p>From a terminal of this machine: <code>parakeet-server transcribe FILE</code>.
The protocol is described in <code>docs/protocol.md</code> of the server's sources.</p>
</body>
</html>
"""
_PAGE_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}


def endpoint(path: str, answer: Answer, *methods: str) -> Route:
    """One row of the table: a path, who answers, and to which methods; HEAD comes with GET.

    OPTIONS is answered here.
    """
    allowed = {*methods, "OPTIONS"} | ({"HEAD"} if "GET" in methods else set())
    allow = ", ".join(sorted(allowed))

    async def dispatch(request: Request) -> Response:
        if request.method == "OPTIONS":
            return Response(status_code=HTTPStatus.NO_CONTENT, headers={"Allow": allow})
        try:
            return await answer(request)
        except ClientDisconnect:
            return Response(status_code=HTTPStatus.BAD_REQUEST)  # which nobody reads

    return Route(path, dispatch, methods=sorted(allowed))


async def page(request: Request) -> Response:
    """What this port is, for a person with a browser."""
    return HTMLResponse(_PAGE, headers=_PAGE_HEADERS)


ENDPOINTS: Final = (endpoint("/", page, "GET"),)
"""The table of endpoints."""


def application(endpoints: Iterable[Route], streams: Collection[str]) -> Starlette:
    """The application.

    streams: paths at which a WebSocket can be opened; those without an endpoint say so.
    """
    routes = list(endpoints)
    taken = {route.path for route in routes}
    routes += [endpoint(path, _upgrade_required, "GET") for path in streams if path not in taken]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _failed})
    app.router.redirect_slashes = False
    return app


async def _upgrade_required(request: Request) -> Response:
    headers = {"Upgrade": "websocket", "Connection": "Upgrade"}
    return PlainTextResponse(_UPGRADE, HTTPStatus.UPGRADE_REQUIRED, headers)


async def _failed(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise AssertionError("this handler is for HTTPException")
    sentence = _SENTENCES.get(HTTPStatus(error.status_code), error.detail)
    return PlainTextResponse(f"{sentence}\n", error.status_code, error.headers)
