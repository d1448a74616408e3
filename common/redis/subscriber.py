"""Pub/sub: connections whose messages are parsed in C and handed over in whole batches, and one for ever.

redis-py sets a time-out and wakes its reader for every single message; an ingress gets one or more
from every step of every worker. Made by common/redis/clients.py alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, cast

import hiredis
import redis.exceptions

from common.redis.address import RedisAddress
from common.redis.connect import (
    Argument,
    check_greeting,
    greeting,
    lost,
    new_reader,
    open_transport,
    pack,
    refusal,
)
from common.redis.outages import OUTAGES

logger = logging.getLogger(__name__)

# Messages that wait for their reader before the socket is left alone.
_MAX_WAITING: Final = 4096
_SUBSCRIBE_PAUSE_S: Final = 0.2
_RECEIVE_TIMEOUT_S: Final = 1.0
_PING_AFTER: Final = 5  # silent receives before the connection is probed


class Subscriber(asyncio.Protocol):
    """One connection, opened once; it is not opened again after a loss.

    address: of its server.
    timeout_s: bound of the opening.
    """

    def __init__(self, address: RedisAddress, timeout_s: float) -> None:
        self.address: Final = address
        self._timeout_s = timeout_s
        self._reader = new_reader()
        self._transport: asyncio.Transport | None = None
        self._waiting: list[Any] = []
        self._news = asyncio.Event()
        self._error: Exception | None = None
        self._paused = False

    async def open(self) -> None:
        """Connect. Raises redis.exceptions.ConnectionError or TimeoutError."""
        await open_transport(self.address, lambda: self, self._timeout_s)
        for command in greeting(self.address):
            self._write(command)
            replies = await self.receive(self._timeout_s)
            if not replies:
                raise lost(self.address, TimeoutError())
            check_greeting(self.address, replies[0])

    def send(self, *command: Argument) -> None:
        """Send a command; what Redis answers comes among the messages."""
        self._write(pack(*command))

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

    def _write(self, packed: bytes) -> None:
        if self._transport is not None:
            self._transport.write(packed)

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
                refused = refusal(self.address, reply)
                if refused is not None:
                    raise refused
                self._waiting.append(reply)
        except (hiredis.ProtocolError, redis.exceptions.ConnectionError) as error:
            self._fail(lost(self.address, error))
        if self._waiting:
            self._news.set()
        if len(self._waiting) > _MAX_WAITING and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(lost(self.address))

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        self._news.set()
        self.close()


class Subscription:
    """One channel of one server, for ever: it is subscribed to again after each loss.

    connect: makes a connection that is not open yet.
    """

    def __init__(self, connect: Callable[[], Subscriber], channel: bytes) -> None:
        self._connect = connect
        self._channel = channel

    async def payloads(self) -> AsyncIterator[bytes | None]:
        """Yield what is published, and None first of every connection: anything may have been missed.

        A connection that is silent is probed, so that a dead one is noticed in bounded time.
        """
        while True:
            subscriber = self._connect()
            try:
                await subscriber.open()
                subscriber.send(b"SUBSCRIBE", self._channel)
                silent = 0
                while True:
                    messages = await subscriber.receive(_RECEIVE_TIMEOUT_S)
                    if not messages:
                        silent += 1
                        if silent > 2 * _PING_AFTER:
                            raise TimeoutError("the subscription does not answer")
                        if silent == _PING_AFTER:
                            subscriber.send(b"PING")
                        continue
                    silent = 0
                    for message in messages:
                        if isinstance(message, Exception):
                            raise message
                        if message[0] == b"message":
                            yield message[2]
                        elif message[0] == b"subscribe":
                            OUTAGES.answered(subscriber.address)
                            yield None
            except (OSError, TimeoutError, redis.exceptions.RedisError) as error:
                OUTAGES.log_retry(logger, "subscription lost, trying again: %s", error)
            finally:
                subscriber.close()
            await asyncio.sleep(_SUBSCRIBE_PAUSE_S)
