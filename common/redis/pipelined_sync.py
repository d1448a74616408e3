"""The counterpart of common/redis/pipelined.py for a thread that waits for its replies.

One write for all commands of a call, packed by hiredis, and as few reads as the socket allows: about a
tenth of what redis-py's pipeline costs a command. Made by common/redis/clients.py alone.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Sequence
from typing import Any

import hiredis
import redis.exceptions

from common.redis.address import RedisAddress
from common.redis.connect import (
    RefusedConnection,
    check_greeting,
    exchange,
    greeting,
    lost,
    new_reader,
    open_socket,
    refusal,
)


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
        try:
            if self._socket is None:
                self._open(deadline)
            return self._run(commands, deadline)
        except (OSError, UnicodeError, hiredis.ProtocolError, redis.exceptions.ConnectionError) as error:
            self.close()
            raise lost(self._address, error) from error

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
