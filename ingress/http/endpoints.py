"""Plain HTTP on the WebSocket port: a Starlette application made from the table of endpoints."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from http import HTTPStatus
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

Answer = Callable[[Request], Awaitable[Response]]

_SENTENCES: Final = {
    HTTPStatus.NOT_FOUND: "There is nothing at this path.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This path does not take that method.",
}
_UPGRADE: Final = "This path takes WebSocket connections only."
_LEFT: Final = "The client has left."


def endpoint(path: str, answer: Answer, *methods: str) -> Route:
    """Return one row of the table: a path, its handler, and its methods; GET includes HEAD.

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
            return _refused(request, _LEFT, HTTPStatus.BAD_REQUEST)

    return Route(path, dispatch, methods=sorted(allowed))


def application(endpoints: Iterable[Route], streams: Collection[str]) -> Starlette:
    """Return the application.

    streams: paths at which a WebSocket can be opened; a path without an endpoint answers with a hint to that.
    """
    routes = list(endpoints)
    taken = {route.path for route in routes}
    routes += [endpoint(path, _upgrade_required, "GET") for path in streams if path not in taken]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _failed})
    app.router.redirect_slashes = False
    return app


async def _upgrade_required(request: Request) -> Response:
    headers = {"Upgrade": "websocket", "Connection": "Upgrade"}
    return _refused(request, _UPGRADE, HTTPStatus.UPGRADE_REQUIRED, headers)


async def _failed(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise AssertionError("this handler is for HTTPException")
    sentence = _SENTENCES.get(HTTPStatus(error.status_code), error.detail)
    return _refused(request, sentence, error.status_code, error.headers)


def _refused(
    request: Request, sentence: str, status: int, headers: Mapping[str, str] | None = None
) -> Response:
    request.state.refused = sentence  # the log says what the client reads
    return PlainTextResponse(f"{sentence}\n", status, headers)
