"""Pub/sub: connections whose messages are parsed in C and delivered as they come, and endless subscriptions.

redis-py sets a time-out and wakes its reader for every message. An ingress gets one or more messages from
every step of every worker, and here they need no task and no timer. Made by common/redis/clients.py alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
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

_SUBSCRIBE_PAUSE_S: Final = 0.2
_LOOK_EVERY_S: Final = 1.0
_PING_AFTER: Final = 5  # silent checks before the connection is probed


class Subscriber(asyncio.Protocol):
    """One connection, opened once; it is not opened again after a loss.

    timeout_s: bound of the opening.
    take: called with every message, as Redis sends it, in the read that brought it. May raise
        redis.exceptions.RedisError, for a message after which the connection is of no use.
    num_reads: reads that brought something.
    """

    def __init__(self, address: RedisAddress, timeout_s: float, take: Callable[[Any], None]) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._take = take
        self._reader = new_reader()
        self._transport: asyncio.Transport | None = None
        self._greeted: asyncio.Future[Any] | None = None  # what the opening waits for
        self._gone = asyncio.Event()
        self._error: Exception | None = None
        self.num_reads = 0

    async def open(self) -> None:
        """Connect. Raises redis.exceptions.ConnectionError or TimeoutError."""
        await open_transport(self._address, lambda: self, self._timeout_s)
        for command in greeting(self._address):
            self._greeted = asyncio.get_running_loop().create_future()
            self._write(command)
            try:
                reply = await asyncio.wait_for(self._greeted, self._timeout_s)
            except TimeoutError as error:
                raise lost(self._address, error) from error
            self._greeted = None
            check_greeting(self._address, reply)

    def send(self, *command: Argument) -> None:
        """Send a command; the reply comes among the messages."""
        self._write(pack(*command))

    async def stay(self, seconds: float) -> None:
        """Wait so many seconds. Raises redis.exceptions.ConnectionError as soon as the connection is lost."""
        if self._error is None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), seconds)
        if self._error is not None:
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
        self.num_reads += 1
        self._reader.feed(data)
        try:
            while self._error is None and (message := self._reader.gets()) is not False:
                refused = refusal(self._address, message)
                if refused is not None:
                    raise refused
                if self._greeted is None:
                    self._take(message)
                elif not self._greeted.done():
                    self._greeted.set_result(message)
        except (hiredis.ProtocolError, redis.exceptions.RedisError) as error:
            self._fail(lost(self._address, error))

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(lost(self._address))

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        self._gone.set()
        if self._greeted is not None and not self._greeted.done():
            self._greeted.set_exception(error)
        self.close()


class Subscription:
    """An endless subscription to one channel of one server: it subscribes again after each loss.

    timeout_s: bound of each opening.
    take: called with each message, and first with None after each connection: messages may have been missed.
    """

    def __init__(
        self, address: RedisAddress, timeout_s: float, channel: bytes, take: Callable[[bytes | None], None]
    ) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._channel = channel
        self._take = take

    async def run(self) -> None:
        """Listen until cancelled.

        A connection that is silent is probed, so that a dead one is noticed in bounded time.
        """
        while True:
            subscriber = Subscriber(self._address, self._timeout_s, self._received)
            try:
                await subscriber.open()
                subscriber.send(b"SUBSCRIBE", self._channel)
                num_reads = silent = 0
                while True:
                    await subscriber.stay(_LOOK_EVERY_S)
                    silent = silent + 1 if subscriber.num_reads == num_reads else 0
                    num_reads = subscriber.num_reads
                    if silent > 2 * _PING_AFTER:
                        raise TimeoutError("the subscription does not answer")
                    if silent == _PING_AFTER:
                        subscriber.send(b"PING")
            except (OSError, TimeoutError, redis.exceptions.RedisError) as error:
                OUTAGES.log_retry(logger, "subscription lost, trying again: %s", error)
            finally:
                subscriber.close()
            await asyncio.sleep(_SUBSCRIBE_PAUSE_S)

    def _received(self, message: Any) -> None:
        if isinstance(message, Exception):
            raise message
        if message[0] == b"message":
            self._take(message[2])
        elif message[0] == b"subscribe":
            OUTAGES.answered(self._address)
            self._take(None)
