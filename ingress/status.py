"""The status port: each connection gets one JSON line about the whole cluster and is closed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, cast

from common.errors import InternalFault, RedisUnavailable
from common.messages import ErrorMessage
from ingress.clients.connection import StartTask
from ingress.dialects.native import encode_server_message
from ingress.sockets.gate import Gate

logger = logging.getLogger(__name__)

# How long a client may take to read its line.
ABORT_AFTER_S: Final = 5.0

SHARED_FOR_S: Final = 0.1

ReadStatus = Callable[[], Awaitable[bytes]]


class SharedStatus:
    """Answers the requests of one moment with one query to Redis.

    read: returns the status line; raises RedisUnavailable.
    """

    def __init__(self, read: ReadStatus, start_task: StartTask) -> None:
        self._read = read
        self._start_task = start_task
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[bytes] | None = None
        self._asked_at = 0.0

    async def __call__(self) -> bytes:
        """Return the status line, at most `SHARED_FOR_S` old. Raises RedisUnavailable."""
        now = self._loop.time()
        if self._answer is None or (self._answer.done() and now - self._asked_at > SHARED_FOR_S):
            self._asked_at = now
            self._answer = self._loop.create_future()
            self._start_task(self._ask(self._answer), "status")
        return await asyncio.shield(self._answer)

    async def _ask(self, answer: asyncio.Future[bytes]) -> None:
        try:
            answer.set_result(await self._read())
        except Exception as error:  # raised in the requests that wait; there may be none left
            answer.set_exception(error)
            answer.exception()


class StatusShell(asyncio.Protocol):
    """One connection to the status port.

    gate: admits or refuses the socket.
    read_status: returns the status line without its newline; raises RedisUnavailable.
    """

    __slots__ = ("_gate", "_read_status", "_start_task", "_timer", "_transport")

    def __init__(self, gate: Gate, read_status: ReadStatus, start_task: StartTask) -> None:
        self._gate = gate
        self._read_status = read_status
        self._start_task = start_task
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Answer at once: the client need not send anything."""
        self._transport = cast(asyncio.Transport, transport)
        if not self._gate.has_file_for(transport):
            self._transport.abort()
            return
        self._start_task(self._answer(), "status-answer")

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the socket is closed."""
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()

    def eof_received(self) -> bool:
        """Keep the connection: a client may close its sending side and still want its answer."""
        return True

    async def _answer(self) -> None:
        try:
            line = await self._read_status()
        except RedisUnavailable as error:
            # The status port is for operators, so the answer may have the cause and the address.
            line = encode_server_message(ErrorMessage(error.code.value, str(error)))
        except Exception:  # a defect, after which the socket must not stay open without an answer
            logger.exception("the status cannot be told")
            fault = InternalFault()
            line = encode_server_message(ErrorMessage(fault.code.value, str(fault)))
        if self._transport is not None:
            self._timer = asyncio.get_running_loop().call_later(ABORT_AFTER_S, self._transport.abort)
            self._transport.write(line + b"\n")
            self._transport.close()
