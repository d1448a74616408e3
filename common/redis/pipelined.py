"""Redis connections that write commands together: those of one turn of the event loop, or of one call.

redis-py packs in Python, takes a connection from a pool, and awaits a write and a read for every call; at
thousands of appends a second that takes most of an ingress's time. Here a call only packs its commands and
makes one future. All commands of one turn of the loop go out in one write (group commit), and replies, which
Redis sends in the order of the commands, are handed out as they come. A call needs no task, no lock and no
timer, and neither does a message of a subscription: an ingress gets one or more from every step of every
worker.

The counterparts for threads, which wait for their replies, need one write for all commands of a call, and as
few reads as the socket allows: about a tenth of what redis-py's pipeline costs a command.

Made by common/redis/clients.py alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import hiredis
import redis.exceptions

from common.redis.address import RedisAddress
from common.redis.connect import (
    Argument,
    RefusedConnection,
    check_greeting,
    exchange,
    greeting,
    lost,
    new_reader,
    open_socket,
    open_transport,
    pack,
    refusal,
)
from common.redis.outages import OUTAGES

logger = logging.getLogger(__name__)

Part = bytes | bytearray | memoryview

# Most bytes that wait while Redis is away: the appends of 1,000 streams over several seconds.
MAX_WAITING_BYTES: Final = 128 * 1024 * 1024
_CHECKS_PER_TIMEOUT: Final = 4
_CLOSED: Final = "the connection to Redis was closed"
_FULL: Final = "too much waits for Redis"
# A subscription that is silent for this long is probed; one that was lost waits before it subscribes again.
_PROBE_AFTER_S: Final = 3.0
_SUBSCRIBE_PAUSE_S: Final = 0.2


@dataclass(slots=True)
class _Call:
    """Commands that were queued together; `replies` fills up to `count`."""

    future: asyncio.Future[list[Any]] | None
    count: int
    since: float
    replies: list[Any] = field(default_factory=list)


class PipelinedConnection:
    """A connection that opens itself, and opens again after a loss; used on one event loop.

    timeout_s: bound between a command and its reply, opening included; when it passes, the connection is
        dropped and all waiting calls fail, since it is unknown which commands Redis has executed.
    on_loss: called after a connection was dropped, whether a call waited on it or not.
    on_message: called with the payload of each message of a channel, in the read that brought it, once the
        connection has subscribed to one (`Subscription`).
    num_losses: how often an open connection was dropped.

    A failed command may have been executed: callers repeat only commands that may be repeated.
    """

    def __init__(self, address: RedisAddress, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._reader = new_reader()
        self._transport: asyncio.Transport | None = None
        self._opening: asyncio.Task[None] | None = None
        self._outgoing: list[Part] = []
        self._outgoing_bytes = 0
        self._waiting: deque[_Call] = deque()
        self._flush_due = False
        self._watch: asyncio.TimerHandle | None = None
        self._closed = False
        self.on_loss: Callable[[], None] | None = None
        self.on_message: Callable[[bytes], None] | None = None
        self.num_losses = 0

    # Commands

    def send(self, parts: Sequence[Part], count: int | None = None) -> asyncio.Future[list[Any]]:
        """Queue packed commands; the future has their replies in order, at least one of them.

        parts: the bytes of the commands, cut wherever the caller likes; kept until they are written.
        count: number of commands in them, for None one a part.

        An error reply is in the list as redis.exceptions.ResponseError. The future raises
        redis.exceptions.ConnectionError or TimeoutError when the connection was lost, or was silent for too
        long, before the last reply.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Any]] = loop.create_future()
        if self._closed or self._outgoing_bytes > MAX_WAITING_BYTES:
            future.set_exception(redis.exceptions.ConnectionError(_CLOSED if self._closed else _FULL))
            return future
        self._outgoing.extend(parts)
        self._outgoing_bytes += sum(map(len, parts))
        self._waiting.append(_Call(future, len(parts) if count is None else count, loop.time()))
        if not self._flush_due:
            self._flush_due = True
            loop.call_soon(self._flush)
        return future

    async def execute(self, *command: Argument) -> Any:
        """Run one command. Raises the errors of `send`, and errors that Redis replies."""
        reply = (await self.send((pack(*command),)))[0]
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def close(self) -> None:
        """Drop the connection; waiting calls fail."""
        self._closed = True
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        self._drop(redis.exceptions.ConnectionError(_CLOSED))

    # Writing

    def _flush(self) -> None:
        self._flush_due = False
        if not self._outgoing:
            return
        if self._transport is None:
            if self._opening is None and not self._closed:
                self._opening = asyncio.get_running_loop().create_task(
                    self._open(), name="redis-pipelined-open"
                )
            return
        outgoing = self._outgoing
        self._outgoing = []
        self._outgoing_bytes = 0
        if self._address.tls or self._transport.is_closing():
            # Over TLS each part would be a record of its own; and asyncio's own `writelines` would
            # register a socket again that it is about to close.
            self._transport.write(b"".join(outgoing))
        else:
            # Not joined: a copy of hundreds of kilobytes is memory that the kernel hands out page by page.
            self._transport.writelines(outgoing)
        if self._watch is None:
            self._watch_again()

    async def _open(self) -> None:
        try:
            transport = await open_transport(self._address, lambda: _Link(self), self._timeout_s)
        except redis.exceptions.RedisError as error:
            self._opening = None
            self._drop(error)
            return
        self._opening = None
        self._transport = transport
        if transport.is_closing():
            self.lost()
            return
        now = asyncio.get_running_loop().time()
        for command in reversed(greeting(self._address)):
            self._outgoing.insert(0, command)
            self._waiting.appendleft(_Call(None, 1, now))
        self._flush()

    # Reading

    def serves(self, transport: asyncio.BaseTransport | None) -> bool:
        """Whether this is the socket in use."""
        return transport is self._transport

    def received(self, data: bytes) -> None:
        """Take bytes from the socket and hand the replies in them out."""
        waiting = self._waiting
        on_message = self.on_message
        self._reader.feed(data)
        next_reply = self._reader.gets
        try:
            while (reply := next_reply()) is not False:
                if on_message is not None and type(reply) is list and reply[0] == b"message":
                    on_message(reply[2])
                    continue
                if not waiting:
                    raise hiredis.ProtocolError("a reply that nothing waits for")
                if type(reply) is redis.exceptions.ResponseError:
                    refused = refusal(self._address, reply)
                    if refused is not None:
                        self._drop(refused)
                        return
                call = waiting[0]
                replies = call.replies
                replies.append(reply)
                if len(replies) < call.count:
                    continue
                waiting.popleft()
                if call.future is None:
                    check_greeting(self._address, reply)
                elif not call.future.done():
                    call.future.set_result(replies)
            if OUTAGES.any:
                OUTAGES.answered(self._address)
        except (hiredis.ProtocolError, redis.exceptions.ConnectionError) as error:
            self._drop(lost(self._address, error))

    def lost(self) -> None:
        """Note that the socket is gone."""
        self._drop(lost(self._address))

    def _watch_again(self) -> None:
        loop = asyncio.get_running_loop()
        self._watch = loop.call_later(self._timeout_s / _CHECKS_PER_TIMEOUT, self._check)

    def _check(self) -> None:
        self._watch = None
        if not self._waiting:
            return
        if asyncio.get_running_loop().time() - self._waiting[0].since > self._timeout_s:
            failure = lost(self._address, TimeoutError())
            OUTAGES.failed(self._address, failure)
            self._drop(failure)
        else:
            self._watch_again()

    def _drop(self, error: Exception) -> None:
        """Drop the connection and all calls on it."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
            self.num_losses += not self._closed
        self._reader = new_reader()
        self._outgoing.clear()
        self._outgoing_bytes = 0
        waiting = list(self._waiting)
        self._waiting.clear()
        for call in waiting:
            if call.future is not None and not call.future.done():
                call.future.set_exception(error)
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self.on_loss is not None and not self._closed:
            self.on_loss()


class _Link(asyncio.Protocol):
    """Ties one socket to the connection; a dropped socket has no effect any more."""

    __slots__ = ("_connection", "_transport")

    def __init__(self, connection: PipelinedConnection) -> None:
        self._connection = connection
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._connection.serves(self._transport):
            self._connection.received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._connection.serves(self._transport):
            self._connection.lost()


class Subscription:
    """An endless subscription to one channel of one server: it subscribes again after each loss.

    timeout_s: bound of each opening, and of the answer to each probe.
    take: called with each message, and with None after each time that it has subscribed: messages may have
        been missed before.
    """

    def __init__(
        self, address: RedisAddress, timeout_s: float, channel: bytes, take: Callable[[bytes | None], None]
    ) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._channel = channel
        self._take = take
        self._lost = asyncio.Event()
        self._silent = True  # since it was last looked at

    async def run(self) -> None:
        """Listen until cancelled.

        A connection that is silent is probed, so that a dead one is noticed in bounded time.
        """
        connection = PipelinedConnection(self._address, self._timeout_s)
        connection.on_message = self._received
        connection.on_loss = self._lost.set
        try:
            while True:
                self._lost.clear()
                try:
                    await connection.execute(b"SUBSCRIBE", self._channel)
                    self._take(None)
                    await self._stay(connection)
                except redis.exceptions.RedisError as error:
                    OUTAGES.log_retry(logger, "subscription lost, trying again: %s", error)
                await asyncio.sleep(_SUBSCRIBE_PAUSE_S)
        finally:
            await connection.close()

    async def _stay(self, connection: PipelinedConnection) -> None:
        """Stay as long as the connection lives. Raises redis.exceptions.ConnectionError or TimeoutError."""
        while True:
            self._silent = True
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._lost.wait(), _PROBE_AFTER_S)
            if self._lost.is_set():
                raise lost(self._address)
            if self._silent:
                await connection.execute(b"PING")

    def _received(self, payload: bytes) -> None:
        self._silent = False
        self._take(payload)


class SyncPipelinedConnection:
    """A connection that opens itself, and opens again after a loss; for one thread.

    timeout_s: bound of a call, opening included.
    """

    def __init__(self, address: RedisAddress, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None
        self._reader = new_reader()

    def call(self, commands: Sequence[bytes], *, repeat: bool = True) -> list[Any]:
        """Send packed commands (common.redis.connect.pack) and wait for their replies, in order.

        A reply that is an error stands in the list as redis.exceptions.ResponseError. With `repeat`, a
        connection that broke is opened anew once and the commands are sent again; without it, the
        caller finds out what became of them. Raises redis.exceptions.ConnectionError or TimeoutError.
        """
        deadline = time.monotonic() + self._timeout_s
        try:
            return self._exchange(commands, deadline)
        except redis.exceptions.ConnectionError as error:
            if not repeat or isinstance(error, RefusedConnection):
                raise
            return self._exchange(commands, deadline)

    def close(self) -> None:
        """Close the socket; a later call opens another."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
            self._socket = None
        self._reader = new_reader()

    def _exchange(self, commands: Sequence[bytes], deadline: float) -> list[Any]:
        opened = self._socket is not None
        try:
            if not opened:
                self._open(deadline)
            replies = self._run(commands, deadline)
        except (OSError, UnicodeError, hiredis.ProtocolError, redis.exceptions.ConnectionError) as error:
            self.close()
            failure = lost(self._address, error)
            if not opened or isinstance(error, TimeoutError):  # else it is opened anew
                OUTAGES.failed(self._address, failure)
            raise failure from error
        if OUTAGES.any:
            OUTAGES.answered(self._address)
        return replies

    def _open(self, deadline: float) -> None:
        self._socket = open_socket(self._address, deadline)
        if commands := greeting(self._address):
            for reply in self._run(commands, deadline):
                check_greeting(self._address, reply)

    def _run(self, commands: Sequence[bytes], deadline: float) -> list[Any]:
        assert self._socket is not None
        replies = exchange(self._socket, self._reader, commands, deadline)
        for reply in replies:
            if type(reply) is redis.exceptions.ResponseError:
                refused = refusal(self._address, reply)
                if refused is not None:
                    raise refused
        return replies


class SyncClient:
    """Commands to one server from any number of threads: as many connections as are in use at once.

    Replies are unchanged (RESP2). A broken connection is opened anew once, so use this for commands that may
    be repeated. Calls raise redis.exceptions.ConnectionError or TimeoutError.
    """

    def __init__(self, address: RedisAddress, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._idle: list[SyncPipelinedConnection] = []

    def execute_command(self, *command: Argument) -> Any:
        """Run one command. Raises also what Redis replies as an error."""
        (reply,) = self.run((command,))
        if isinstance(reply, Exception):
            raise reply
        return reply

    def run(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """Run commands in one round trip; their replies in order, errors among them."""
        if not commands:
            return []
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = SyncPipelinedConnection(self._address, self._timeout_s)
        try:
            return connection.call([pack(*command) for command in commands])
        finally:
            with self._lock:
                self._idle.append(connection)

    def close(self) -> None:
        """Close the connections; a later command opens another."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
