"""A pub/sub connection whose messages are parsed in C and handed over in whole batches.

redis-py sets a time-out and wakes its reader for every single message; an ingress gets one or more
from every step of every worker. Made by common/redis/clients.py alone.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import hiredis
import redis.exceptions

from common.redis.pipelined import Argument, Endpoint, pack

# Messages that wait for their reader before the socket is left alone.
_MAX_WAITING: Final = 4096
_LOST: Final = "the subscription's connection was lost"


class Subscriber(asyncio.Protocol):
    """One connection, opened once; it is not opened again after a loss.

    find: gives the endpoint.   timeout_s: bound of the opening.
    """

    def __init__(self, find: Callable[[], Awaitable[Endpoint]], timeout_s: float) -> None:
        self._find = find
        self._timeout_s = timeout_s
        self._reader = hiredis.Reader(replyError=redis.exceptions.ResponseError)
        self._transport: asyncio.Transport | None = None
        self._waiting: list[Any] = []
        self._news = asyncio.Event()
        self._error: Exception | None = None
        self._paused = False

    async def open(self) -> None:
        """Connect. Raises redis.exceptions.ConnectionError, TimeoutError or OSError."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._timeout_s):
            endpoint = await self._find()
            if endpoint.path:
                await loop.create_unix_connection(lambda: self, endpoint.path)
            else:
                tls = ssl.create_default_context() if endpoint.tls else None
                await loop.create_connection(lambda: self, endpoint.host, endpoint.port, ssl=tls)
            for command in endpoint.opening:
                self.send(*command)
                while not (replies := await self.receive(self._timeout_s)):
                    pass
                if isinstance(replies[0], Exception):
                    raise redis.exceptions.ConnectionError(str(replies[0]))

    def send(self, *command: Argument) -> None:
        """Send a command; what Redis answers comes among the messages."""
        if self._transport is not None:
            self._transport.write(pack(*command))

    async def receive(self, timeout_s: float) -> list[Any]:
        """All that has come since the last call, as Redis sends it; empty after `timeout_s` of silence.

        Raises redis.exceptions.ConnectionError when the connection is lost.
        """
        if not self._waiting and self._error is None:
            self._news.clear()  # set again by the next whole message, or by a loss
            try:
                async with asyncio.timeout(timeout_s):
                    await self._news.wait()
            except TimeoutError:
                return []
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            if self._paused and self._transport is not None:
                self._paused = False
                self._transport.resume_reading()
            return waiting
        assert self._error is not None
        raise self._error

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the interface of asyncio's, but are no subclass of it.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                self._waiting.append(reply)
        except hiredis.ProtocolError as error:
            self._fail(redis.exceptions.ConnectionError(str(error)))
        if self._waiting:
            self._news.set()
        if len(self._waiting) > _MAX_WAITING and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(redis.exceptions.ConnectionError(_LOST))

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        self._news.set()
        self.close()
