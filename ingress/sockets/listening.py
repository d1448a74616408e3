"""The addresses on which an ingress listens: all of a host's, of both families."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from typing import Final

from common.addresses import host_and_port

logger = logging.getLogger(__name__)

# What every accepted socket inherits. The kernel finds out whether a client's machine is there: it probes
# a silent connection after a minute, and gives up one that acknowledges nothing for two minutes. The last
# option is for results on their way, which it would otherwise send again for a quarter of an hour. Silence
# alone means nothing.
_KEEPALIVE: Final = (
    ("TCP_KEEPIDLE", 60),
    ("TCP_KEEPINTVL", 15),
    ("TCP_KEEPCNT", 4),
    ("TCP_USER_TIMEOUT", 120_000),  # ms
)
_NOT_ON_THIS_MACHINE: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


async def listening_sockets(host: str, port: int) -> list[socket.socket]:
    """Sockets bound to every address of a host.

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
    # With its protocol, by which asyncio knows that answers shall not wait for more (TCP_NODELAY).
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
