"""Opens connections to Redis, in the same way for event loops and for threads.

`dial` makes the socket: it queries the Sentinels if there are any, resolves the name and connects, all of
which may block. A thread calls it directly. An event loop runs it in a daemon thread, since a resolver can
neither be interrupted nor bounded in time: the caller goes on in time, and the process can end whatever the
resolver does. TLS and the greeting (AUTH, SELECT) follow where the bytes are read.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar, cast

import hiredis
import redis.exceptions

from common.errors import SettingsError
from common.redis.address import RedisAddress, password_in
from common.redis.outages import OUTAGES

Argument = bytes | bytearray | memoryview | str | int | float

_T = TypeVar("_T")
_READ_BYTES: Final = 64 * 1024
# Longest wait for one of several Sentinels, which may be away.
_SENTINEL_TIMEOUT_S: Final = 1.0
# Beginnings of refusals that concern the connection and not a command: the connection cannot be used.
_DENIED: Final = ("DENIED ", "NOAUTH ", "WRONGPASS ")
_FULL: Final = "ERR max number of clients reached"
_READ_ONLY: Final = "READONLY "
# The answer of a Sentinel without a password to a password.
_NEEDS_NO_PASSWORD: Final = "without any password configured"  # noqa: S105 - a sentence


class RefusedConnection(redis.exceptions.ConnectionError):
    """The server is no Redis, or refuses our credentials: trying again hardly helps."""


def pack(*command: Argument) -> bytes:
    """Return a command in RESP."""
    try:
        packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub: a 1-tuple
    except TypeError:  # it takes no bytearray
        plain = tuple(bytes(part) if isinstance(part, bytearray) else part for part in command)
        packed = hiredis.pack_command(plain)  # type: ignore[arg-type]
    return packed


def new_reader() -> hiredis.Reader:
    """Return a parser of replies; error replies are returned as redis.exceptions.ResponseError."""
    return hiredis.Reader(replyError=redis.exceptions.ResponseError)


# Errors for a server that cannot be used. Each has its address, and none a password.


def lost(address: RedisAddress, error: BaseException | str = "the connection was closed") -> Exception:
    """Return the error for a connection that broke, or could not be made."""
    cause: str
    if isinstance(error, hiredis.ProtocolError):
        return RefusedConnection(f"What answers at {address} is no Redis server: {error}.")
    if isinstance(error, ssl.SSLError):
        return RefusedConnection(f"Redis at {address} cannot be spoken to over TLS: {error}.")
    if isinstance(error, redis.exceptions.ConnectionError):
        return error
    if isinstance(error, TimeoutError):
        return redis.exceptions.TimeoutError(f"Redis at {address} does not answer in time.")
    if isinstance(error, UnicodeError):
        cause = "its host is no name"
    elif isinstance(error, OSError):
        cause = error.strerror or str(error)
    else:
        cause = str(error)
    return redis.exceptions.ConnectionError(f"Redis at {address} does not answer: {cause}.")


def refusal(address: RedisAddress, reply: object) -> Exception | None:
    """Return the error for a reply after which the connection cannot be used; None for every other reply."""
    if type(reply) is not redis.exceptions.ResponseError:
        return None
    text = str(reply)
    if text.startswith(_DENIED):
        return RefusedConnection(f"Redis at {address} does not let us in: {first_sentence(text)}")
    if text.startswith((_READ_ONLY, _FULL)):  # after a failover another server is the master
        return redis.exceptions.ConnectionError(f"Redis at {address} cannot be used: {first_sentence(text)}")
    return None


def first_sentence(text: str) -> str:
    """Return the first sentence of Redis's message, without its advice, which can be a page long."""
    return text.strip().split(". ")[0].rstrip(".") + "."


def login(address: RedisAddress) -> list[bytes]:
    """Return the packed command by which we log in, if there is a password.

    A password's file is read again for each connection, since passwords are changed while processes run. The
    password of the start serves where the file cannot be read.
    """
    password = address.password
    if address.password_file:
        with contextlib.suppress(SettingsError):
            password = password_in(address.password_file)
    if password is None:
        return []
    return [pack("AUTH", *(() if address.username is None else (address.username,)), password)]


def greeting(address: RedisAddress) -> list[bytes]:
    """Return the packed commands that come before all others."""
    commands = login(address)
    if address.db:
        commands.append(pack("SELECT", address.db))
    return commands


def check_greeting(address: RedisAddress, reply: object) -> None:
    """Check the reply to a command of the greeting. Raises RefusedConnection."""
    if isinstance(reply, Exception):
        raise RefusedConnection(f"Redis at {address} does not let us in: {first_sentence(str(reply))}")


def tls_context(address: RedisAddress) -> ssl.SSLContext | None:
    """Return the TLS context; None without TLS. Raises RefusedConnection where its files cannot be read."""
    if not address.tls:
        return None
    options = address.tls_options
    try:
        context = ssl.create_default_context(cafile=options.ca or None)
        if options.cert:
            context.load_cert_chain(options.cert, options.key)
    except OSError as error:  # ssl.SSLError is a subclass
        named = ", ".join(file for file in (options.ca, options.cert, options.key) if file)
        raise RefusedConnection(f"The files for TLS cannot be read ({named}): {error}.") from error
    return context


# Opening


def dial(address: RedisAddress, deadline: float) -> tuple[socket.socket, str]:
    """Connect; return the socket, and the name that TLS checks.

    deadline: by time.monotonic(). Only the resolver may take longer.

    Raises OSError, UnicodeError or redis.exceptions.ConnectionError.
    """
    if address.path:
        opened = socket.socket(socket.AF_UNIX)
        try:
            opened.settimeout(_left(deadline))
            opened.connect(address.path)
        except BaseException:
            opened.close()
            raise
        return opened, ""
    host, port = _master(address, deadline) if address.sentinels else (address.host, address.port)
    return _connect(host, port, deadline), address.tls_options.name or host


def open_socket(address: RedisAddress, deadline: float) -> socket.socket:
    """Connect for a thread, with TLS and before the greeting. Raises the errors of `dial`."""
    opened, host = dial(address, deadline)
    context = tls_context(address)
    if context is None:
        return opened
    try:
        opened.settimeout(_left(deadline))
        return context.wrap_socket(opened, server_hostname=host)
    except BaseException:
        opened.close()
        raise


async def open_transport(
    address: RedisAddress, make_protocol: Callable[[], asyncio.Protocol], timeout_s: float
) -> asyncio.Transport:
    """Connect for an event loop, with TLS and before the greeting.

    Raises redis.exceptions.ConnectionError or TimeoutError, whatever went wrong.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_s):
            opened, host = await in_daemon_thread(
                lambda: dial(address, time.monotonic() + timeout_s), lambda late: late[0].close()
            )
            try:
                opened.setblocking(False)
                if address.path:
                    transport, _ = await loop.create_unix_connection(make_protocol, sock=opened)
                else:
                    transport, _ = await loop.create_connection(
                        make_protocol,
                        sock=opened,
                        ssl=tls_context(address),
                        server_hostname=host if address.tls else None,
                    )
            except BaseException:
                opened.close()
                raise
    except Exception as error:  # of the resolver, TLS or the loop: no other code would see it
        failure = lost(address, error)
        OUTAGES.failed(address, failure)
        raise failure from error
    return transport


async def in_daemon_thread(call: Callable[[], _T], on_late: Callable[[_T], None] | None = None) -> _T:
    """Make a blocking call in a daemon thread, for which the process does not wait at its end.

    on_late: takes the result if the caller does not wait for it any more.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_T] = loop.create_future()

    def deliver(result: _T | None, error: BaseException | None) -> None:
        if done.done():
            if error is None and on_late is not None:
                on_late(cast("_T", result))
        elif error is not None:
            done.set_exception(error)
        else:
            done.set_result(cast("_T", result))

    def run() -> None:
        result, error = None, None
        try:
            result = call()
        except Exception as raised:
            error = raised
        try:
            loop.call_soon_threadsafe(deliver, result, error)
        except RuntimeError:  # the loop has ended
            if error is None and on_late is not None:
                on_late(cast("_T", result))

    threading.Thread(target=run, name="redis-dial", daemon=True).start()
    return await done


def _connect(host: str, port: int, deadline: float) -> socket.socket:
    opened = socket.create_connection((host, port), _left(deadline))
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return opened


def _master(address: RedisAddress, deadline: float) -> tuple[str, int]:
    """Query the Sentinels, one after the other, for the master's address."""
    reasons = []
    for host, port in address.sentinels:
        try:
            found = _ask_sentinel(address, host, port, min(deadline, time.monotonic() + _SENTINEL_TIMEOUT_S))
        except (OSError, UnicodeError, hiredis.ProtocolError, redis.exceptions.RedisError) as error:
            reasons.append(
                f"{host}:{port}: {getattr(error, 'strerror', None) or error or 'no answer in time'}"
            )
            continue
        if found is not None:
            return found
        reasons.append(f"{host}:{port}: knows no such master")
    raise redis.exceptions.ConnectionError(f"Redis at {address} cannot be found: {'; '.join(reasons)}.")


def _ask_sentinel(address: RedisAddress, host: str, port: int, deadline: float) -> tuple[str, int] | None:
    question = pack("SENTINEL", "GET-MASTER-ADDR-BY-NAME", address.master)
    with contextlib.closing(_connect(host, port, deadline)) as plain:
        context = tls_context(address)
        name = address.tls_options.name or host
        opened = plain if context is None else context.wrap_socket(plain, server_hostname=name)
        with contextlib.closing(opened):
            commands = [*login(address), question]
            *logins, found = exchange(opened, new_reader(), commands, deadline)
            for reply in logins:
                if isinstance(reply, Exception) and _NEEDS_NO_PASSWORD not in str(reply):
                    raise reply
            if isinstance(found, Exception):
                raise found
            return None if found is None else (found[0].decode(), int(found[1]))


def exchange(
    opened: socket.socket, reader: hiredis.Reader, commands: Sequence[bytes], deadline: float
) -> list[Any]:
    """Send packed commands over a socket and return their replies, in order, errors included.

    Raises OSError, TimeoutError or hiredis.ProtocolError.
    """
    opened.settimeout(_left(deadline))
    opened.sendall(commands[0] if len(commands) == 1 else b"".join(commands))
    replies: list[Any] = []
    wanted = len(commands)
    while True:
        while len(replies) < wanted and (reply := reader.gets()) is not False:
            replies.append(reply)
        if len(replies) == wanted:
            return replies
        opened.settimeout(_left(deadline))
        data = opened.recv(_READ_BYTES)
        if not data:
            if replies and isinstance(replies[-1], Exception):
                return [*replies, *[replies[-1]] * (wanted - len(replies))]  # said, and hung up: DENIED, say
            raise ConnectionResetError("the connection was closed")
        reader.feed(data)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
