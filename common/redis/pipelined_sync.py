"""The counterparts of common/redis/pipelined.py for threads that wait for their replies.

One write for all commands of a call, packed by hiredis, and as few reads as the socket allows: about a
tenth of what redis-py's pipeline costs a command. Made by common/redis/clients.py alone.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

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
    pack,
    refusal,
)
from common.redis.outages import OUTAGES


class SyncPipelinedConnection:
    """A connection that opens itself, and again after a loss; for one thread.

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

    Replies are as the server sends them (RESP2). A connection that broke is opened anew once, so this is for
    what may be repeated. Calls raise redis.exceptions.ConnectionError or TimeoutError.
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

    def transaction(self, *commands: Sequence[Argument]) -> list[Any]:
        """Run commands as one, in one round trip. Raises the first error."""
        *queued, replies = self.run((("MULTI",), *commands, ("EXEC",)))
        for reply in (*queued, replies, *(replies if isinstance(replies, list) else ())):
            if isinstance(reply, Exception):
                raise reply
        return list(replies)

    def close(self) -> None:
        """Close the connections; a later command opens another."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
