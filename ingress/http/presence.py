"""Work for a waiting client, which is cancelled when the client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

_T = TypeVar("_T")


async def unless_left(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """Do some work for a complete request, and return the work's result.

    Raises ClientDisconnect where the client leaves meanwhile; the work is cancelled, and has ended by then.
    """
    working = asyncio.create_task(work, name="answer")
    leaving = asyncio.create_task(_left(request), name="client-leaves")
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
