"""The counterpart of common/redis/pipelined.py for a thread that waits for its replies.

One write for all commands of a call, packed by hiredis, and as few reads as the socket allows: about a
tenth of what redis-py's pipeline costs a command. Made by common/redis/clients.py alone.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any

import hiredis
import redis.exceptions

from common.redis.pipelined import Endpoint, is_elsewhere, pack

_READ_BYTES = 256 * 1024


class SyncPipelinedConnection:
    """A connection that opens itself, and again after a loss; for one thread.

    find: gives the endpoint before each attempt.   timeout_s: bound of a call, opening included.
    """

    def __init__(self, find: Callable[[], Endpoint], timeout_s: float) -> None:
        self._find = find
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None
        self._reader = hiredis.Reader(replyError=redis.exceptions.ResponseError)

    def call(self, commands: Sequence[bytes], *, repeat: bool = True) -> list[Any]:
        """Send packed commands (common.redis.pipelined.pack) and wait for their replies, in order.

        A reply that is an error stands in the list as redis.exceptions.ResponseError. With `repeat`, a
        connection that broke is opened anew once and the commands are sent again; without it, the
        caller finds out what became of them. Raises redis.exceptions.ConnectionError or TimeoutError.
        """
        deadline = time.monotonic() + self._timeout_s
        try:
            return self._exchange(commands, deadline)
        except redis.exceptions.ConnectionError:
            if not repeat:
                raise
            return self._exchange(commands, deadline)

    def close(self) -> None:
        """Close the socket; a later call opens another."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
            self._socket = None
        self._reader = hiredis.Reader(replyError=redis.exceptions.ResponseError)

    def _exchange(self, commands: Sequence[bytes], deadline: float) -> list[Any]:
        try:
            if self._socket is None:
                self._open(deadline)
            return self._run(commands, deadline)
        except TimeoutError as error:
            self.close()
            raise redis.exceptions.TimeoutError("Redis did not answer in time") from error
        except (OSError, hiredis.ProtocolError) as error:
            self.close()
            raise redis.exceptions.ConnectionError(f"the connection to Redis was lost: {error}") from error

    def _open(self, deadline: float) -> None:
        endpoint = self._find()
        left = _left(deadline)
        if endpoint.path:
            opened = socket.socket(socket.AF_UNIX)
            opened.settimeout(left)
            try:
                opened.connect(endpoint.path)
            except OSError:
                opened.close()
                raise
        else:
            opened = socket.create_connection((endpoint.host, endpoint.port), left)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if endpoint.tls:
            opened = ssl.create_default_context().wrap_socket(opened, server_hostname=endpoint.host)
        self._socket = opened
        if endpoint.opening:
            for reply in self._run([pack(*command) for command in endpoint.opening], deadline):
                if isinstance(reply, Exception):
                    raise OSError(str(reply))

    def _run(self, commands: Sequence[bytes], deadline: float) -> list[Any]:
        opened, reader = self._socket, self._reader
        assert opened is not None
        opened.settimeout(_left(deadline))
        opened.sendall(commands[0] if len(commands) == 1 else b"".join(commands))
        replies: list[Any] = []
        wanted = len(commands)
        while True:
            while len(replies) < wanted and (reply := reader.gets()) is not False:
                if type(reply) is redis.exceptions.ResponseError and is_elsewhere(reply):
                    raise OSError(str(reply))
                replies.append(reply)
            if len(replies) == wanted:
                return replies
            opened.settimeout(_left(deadline))
            data = opened.recv(_READ_BYTES)
            if not data:
                raise OSError("closed by the server")
            reader.feed(data)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
