"""Listens on all addresses of a host, of both families, accepts connections, and opens them in turn.

An event loop's own server opens one connection in each of its rounds. A client that connects and leaves
faster than that fills the kernel's queue, where all other clients wait behind it or are refused. This module
empties the queue at once: taking a connection out of it costs little, and most connections whose clients have
left are closed without further work.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import Final

from common.addresses import host_and_port
from ingress.clients.connection import StartTask
from ingress.sockets.turns import HANDSHAKE_S, OPENING_S, Turns

logger = logging.getLogger(__name__)

MAX_WAITING: Final = 256
"""Accepted sockets that wait for their turn; more stay in the kernel's queue."""

OPENED_A_TURN: Final = 4
"""Connections that are opened before live streams are served again."""

_BACKLOG: Final = 1024
_ACCEPTED_A_TURN: Final = 64
# Errors of one connection, which Linux reports where it is accepted (accept(2)): the next one may be good.
_OF_ONE_CONNECTION: Final = frozenset(
    getattr(errno, name)
    for name in (
        *("ECONNABORTED", "EPERM", "EPROTO", "ENOPROTOOPT", "EOPNOTSUPP"),
        *("ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH", "ENONET"),
    )
    if hasattr(errno, name)
)
# The pause after any other error: most likely the machine or this process has run out of files or memory.
_PAUSE_S: Final = 1.0
# Options that every accepted socket inherits. By them the kernel detects that a client's machine is gone: it
# probes a silent connection after a minute, and resets a connection that acknowledges nothing for two
# minutes. The last option is for results under way, which the kernel would otherwise send again for a quarter
# of an hour. Silence alone ends no connection.
_KEEPALIVE: Final = (
    ("TCP_KEEPIDLE", 60),
    ("TCP_KEEPINTVL", 15),
    ("TCP_KEEPCNT", 4),
    ("TCP_USER_TIMEOUT", 120_000),  # ms
)
_NOT_ON_THIS_MACHINE: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


async def listening_sockets(host: str, port: int) -> list[socket.socket]:
    """Return sockets bound to every address of a host.

    `::` takes IPv4 too. Several processes may have the same port; the kernel spreads connections over them.

    host: a name or an address, an IPv6 address also in brackets.
    Raises OSError, which names host and port.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host.removeprefix("[").removesuffix("]"),
            port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )
    except (OSError, UnicodeError) as error:
        raise OSError(f"there is no host {host!r} to listen on: {error}") from error
    bound: list[socket.socket] = []
    absent: OSError | None = None
    try:
        for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
            try:
                bound.append(_bound(family, address))
            except OSError as error:
                problem = OSError(error.errno, f"cannot listen on {host_and_port(host, port)}: {error}")
                if error.errno not in _NOT_ON_THIS_MACHINE:
                    raise problem from error
                absent = problem
        if not bound and absent is not None:
            raise absent
    except OSError:
        for listener in bound:
            listener.close()
        raise
    if absent is not None:
        logger.warning("%s", absent)
    return bound


def _bound(
    family: int, address: tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]
) -> socket.socket:
    # The protocol is named so that asyncio sets TCP_NODELAY: answers shall not wait for more data.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE:
            option = getattr(socket, name, None)  # not on every system
            if option is not None:
                listener.setsockopt(socket.IPPROTO_TCP, option, value)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != "::")
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


class Acceptor:
    """The connections of one listening socket. Made on the event loop; begins at once.

    listener: a bound socket, closed with this object.   open_protocol: makes the protocol of a connection.
    turns: the turns in which connections are opened.   start_task: starts a named task.
    has_file: returns whether a connection may keep its file, given the file's number; else it is closed.
    tls: context for connections with TLS.   tls_timeout_s: longest time of its handshake.
    """

    def __init__(
        self,
        listener: socket.socket,
        open_protocol: Callable[[], asyncio.Protocol],
        turns: Turns,
        start_task: StartTask,
        has_file: Callable[[int], bool] = lambda number: True,
        *,
        tls: ssl.SSLContext | None = None,
        tls_timeout_s: float | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._open_protocol = open_protocol
        self._turns = turns
        self._start_task = start_task
        self._has_file = has_file
        self._tls = tls
        self._tls_timeout_s = None if tls is None else tls_timeout_s
        self._accepted: deque[socket.socket] = deque()
        self._is_reading = False
        self._is_closed = False
        self._is_paused = False  # for a while, after an error
        listener.setblocking(False)
        listener.listen(_BACKLOG)
        self._read()

    @property
    def port(self) -> int:
        """The port on which it listens."""
        port: int = self._listener.getsockname()[1]
        return port

    def stop(self) -> None:
        """Accept nothing more, and open all accepted connections at once, so that they learn of the drain."""
        self._stop_listening()
        while self._accepted:
            self._open(self._accepted.popleft())

    def close(self) -> None:
        """Accept nothing more, and open nothing more."""
        self._stop_listening()
        while self._accepted:
            self._accepted.popleft().close()

    def _stop_listening(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._stop_reading()
            self._listener.close()

    def _read(self) -> None:
        if not (self._is_reading or self._is_closed):
            self._is_reading = True
            self._loop.add_reader(self._listener, self._readable)

    def _stop_reading(self) -> None:
        if self._is_reading:
            self._is_reading = False
            self._loop.remove_reader(self._listener)

    def _readable(self) -> None:
        """Ask for a turn: a wake-up costs more than taking one more connection at the next one."""
        if not self._turns.at_once(self._take_turn):
            self._stop_reading()
            self._turns.ask(self._take_turn)

    def _take_turn(self) -> None:
        """Empty the kernel's queue, and open some of its connections."""
        if self._is_closed:
            return
        is_more = self._accept(min(_ACCEPTED_A_TURN, MAX_WAITING - len(self._accepted)))
        num_opened = 0
        while self._accepted and num_opened < OPENED_A_TURN:
            client = self._accepted.popleft()
            if _is_gone(client):
                client.close()
            else:
                self._open(client)
                num_opened += 1
        if is_more or self._accepted:
            self._stop_reading()
            self._turns.ask(self._take_turn)
        elif not self._is_paused:
            self._read()

    def _go_on(self) -> None:
        self._is_paused = False
        self._read()

    def _accept(self, most: int) -> bool:
        """Take at most `most` connections out of the kernel's queue; return whether there may be more."""
        for _ in range(0 if self._is_paused else most):
            try:
                client, _address = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return False
            except OSError as error:
                if error.errno in _OF_ONE_CONNECTION:
                    continue
                # Not raised: nothing would read from the listener any more.
                logger.error("no connection can be accepted for now: %s", error)
                self._stop_reading()
                self._is_paused = True
                self._loop.call_later(_PAUSE_S, self._go_on)
                return False
            if not self._has_file(client.fileno()):
                client.close()
                continue
            client.setblocking(False)
            self._accepted.append(client)
        return not self._is_paused

    def _open(self, client: socket.socket) -> None:
        self._turns.charge(OPENING_S if self._tls is None else OPENING_S + HANDSHAKE_S)
        self._start_task(self._opened(client), "open-connection")

    async def _opened(self, client: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._open_protocol, client, ssl=self._tls, ssl_handshake_timeout=self._tls_timeout_s
            )
        except OSError as error:  # a fault of the client, or of its handshake
            client.close()
            logger.debug("a connection was not opened: %s", error)
        except Exception:  # a defect ends this connection only
            client.close()
            logger.exception("a connection was not opened")


def _is_gone(client: socket.socket) -> bool:
    """Return whether the client has reset its connection; a closed sending side does not count."""
    try:
        client.recv(1, socket.MSG_PEEK)
    except (BlockingIOError, InterruptedError):
        return False
    except OSError:
        return True
    return False
