"""`GET /v1/capabilities`: what this server speaks."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ingress.capabilities import CAPABILITIES, PROTOCOLS
from ingress.http.endpoints import endpoint


async def _capabilities(request: Request) -> Response:
    return JSONResponse({"capabilities": CAPABILITIES, "protocols": PROTOCOLS})


CAPABILITIES_ENDPOINT: Final[tuple[Route, ...]] = (endpoint("/v1/capabilities", _capabilities, "GET"),)
