"""The only place that makes Redis clients.

`RedisServers` says where the shards live; from it come the async clients of an ingress, the sync
clients of a worker's threads, a client for blocking reads, and one for pub/sub. All speak RESP2, so
that every server version gives the same replies, and every call of them ends within a time-out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

import redis
import redis.asyncio
import redis.asyncio.retry
import redis.asyncio.sentinel
import redis.exceptions
import redis.retry
import redis.sentinel
from redis.backoff import ExponentialBackoff

from common.entries import StreamId
from common.errors import EntryError, RedisUnavailable, SettingsError
from common.redis.address import RedisAddress, parse_address
from common.redis.connect import Argument
from common.redis.pipelined import PipelinedConnection
from common.redis.pipelined_sync import SyncPipelinedConnection
from common.redis.subscriber import Subscriber


class SyncClient(Protocol):
    """What the project uses of redis-py's client, whose own annotations mix sync and async."""

    def execute_command(self, *arguments: Any) -> Any:
        """Send one command; its reply, parsed by redis-py where it knows the command."""

    def pipeline(self, transaction: bool) -> Any:
        """Commands sent together."""

    def ping(self) -> Any:
        """Ask whether the server answers."""

    def time(self) -> Any:
        """The server's clock: seconds and microseconds."""

    def zscore(self, name: bytes, value: str) -> Any:
        """Score of a member of a sorted set."""

    def hgetall(self, name: bytes) -> Any:
        """All fields of a hash."""

    def close(self) -> None:
        """Close all connections."""


class AsyncCommands(Protocol):
    """Where single commands go."""

    async def execute_command(self, *arguments: Any) -> Any:
        """Send one command; its reply as the server sent it, but for what redis-py converts."""


class AsyncClient(Protocol):
    """The same on an event loop."""

    async def execute_command(self, *arguments: Any) -> Any:
        """Send one command; its reply, parsed by redis-py where it knows the command."""

    def pipeline(self, transaction: bool) -> Any:
        """Commands sent together."""

    async def aclose(self) -> None:
        """Close all connections."""


# What a call raises when the server is away, as opposed to when it refuses.
CONNECTION_ERRORS: Final = (
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
    TimeoutError,
    OSError,
)
RESPONSE_ERROR: Final = redis.exceptions.ResponseError
REDIS_ERROR: Final = redis.exceptions.RedisError

# How refusals begin that end by themselves: full, loading, a replica after a failover, and the like.
_PASSING: Final = (
    "OOM",
    "command not allowed when used memory",
    "LOADING",
    "READONLY",
    "You can't write against a read only replica",
    "MASTERDOWN",
    "MISCONF",
    "NOREPLICAS",
    "BUSY ",
)


def is_passing(error: BaseException) -> bool:
    """Whether trying again may help: the server is away or full, and did not call the command wrong."""
    return isinstance(error, CONNECTION_ERRORS) or str(error).startswith(_PASSING)


def error_of_stream(error: BaseException) -> RedisUnavailable | EntryError:
    """What to raise for a failed command about one stream: a fault of its own where no wait helps."""
    if isinstance(error, RESPONSE_ERROR) and not is_passing(error):
        return EntryError(f"Redis refuses a key of the stream: {error}")
    return RedisUnavailable(str(error))


# Every write of ours may be repeated: ids are explicit and scripts check what is there. One repeat
# covers a connection that the server closed while it was idle; longer outages are the callers' loops.
_RETRIES: Final = 1
_BACKOFF: Final = ExponentialBackoff(cap=0.1, base=0.02)
_MAX_CONNECTIONS: Final = 64
# Commands of one round trip: bounds what waits in Redis for one client, and the time until its last reply.
_PIPELINED: Final = 256


@dataclass(frozen=True, slots=True)
class RedisServers:
    """Where the shards of the cluster live: shard k on address k modulo their number.

    shards: number of shards, at least that of the addresses.
    timeout_ms: bound of one call that does not block on purpose.
    """

    addresses: tuple[RedisAddress, ...]
    shards: int
    timeout_ms: int = 5000

    @staticmethod
    def parse(urls: tuple[str, ...], shards: int = 1, timeout_ms: int = 5000) -> RedisServers:
        """Read the addresses; several of them mean at least as many shards. Raises SettingsError."""
        if not urls:
            raise SettingsError("There is no Redis address.")
        addresses = tuple(parse_address(url) for url in urls)
        return RedisServers(addresses, max(shards, len(addresses)), timeout_ms)

    @property
    def num_servers(self) -> int:
        """Number of servers."""
        return len(self.addresses)

    def server_of_shard(self, shard: int) -> int:
        """Index of the server that holds a shard."""
        return shard % len(self.addresses)

    def shards_of_server(self, server: int) -> tuple[int, ...]:
        """Shards that a server holds."""
        return tuple(range(server, self.shards, len(self.addresses)))


class PipelinedCommands:
    """Single commands to one server over its pipelined connection (`AsyncCommands`)."""

    def __init__(self, redis: AsyncRedis, server: int) -> None:
        self._redis = redis
        self._server = server

    async def execute_command(self, *arguments: Any) -> Any:
        """Send one command, which may be repeated."""
        return await self._redis.execute(self._server, *arguments)


class AsyncRedis:
    """One async client a server, each with its pool. Made and closed on the event loop that uses it."""

    def __init__(self, servers: RedisServers) -> None:
        self.servers = servers
        self._clients = tuple(_async_client(address, servers.timeout_ms) for address in servers.addresses)
        self._pipelined: dict[int, PipelinedConnection] = {}

    @property
    def clients(self) -> tuple[AsyncClient, ...]:
        """The clients, by index of the server."""
        return self._clients

    def pipelined(self, server: int) -> PipelinedConnection:
        """The connection of a server for what is called thousands of times a second."""
        if server not in self._pipelined:
            address, timeout_s = self.servers.addresses[server], self.servers.timeout_ms / 1000
            self._pipelined[server] = PipelinedConnection(address, timeout_s)
        return self._pipelined[server]

    async def execute(self, server: int, *command: Argument) -> Any:
        """One command over the pipelined connection, which any number of callers share at once.

        Tried once more after a lost connection, so only for what may be repeated. The reply is as the
        server sent it. Raises what a client's `execute_command` raises.
        """
        connection = self.pipelined(server)
        try:
            return await connection.execute(*command)
        except CONNECTION_ERRORS:
            return await connection.execute(*command)

    @property
    def cluster(self) -> AsyncClient:
        """The client of shard 0."""
        return self._clients[0]

    def shard(self, shard: int) -> AsyncClient:
        """The client of a shard."""
        return self._clients[shard % len(self._clients)]

    async def close(self) -> None:
        """Close all connections."""
        for connection in self._pipelined.values():
            await connection.close()
        for client in self._clients:
            await client.aclose()


class SyncRedis:
    """One sync client a server. The clients may be used by several threads at once."""

    def __init__(self, servers: RedisServers) -> None:
        self.servers = servers
        self._clients = tuple(
            _sync_client(address, servers.timeout_ms / 1000) for address in servers.addresses
        )
        self._pipelined: list[SyncPipelinedConnection] = []

    @property
    def clients(self) -> tuple[SyncClient, ...]:
        """The clients, by index of the server."""
        return self._clients

    @property
    def cluster(self) -> SyncClient:
        """The client of shard 0."""
        return self._clients[0]

    def shard(self, shard: int) -> SyncClient:
        """The client of a shard."""
        return self._clients[shard % len(self._clients)]

    def stream(self, stream: StreamId) -> SyncClient:
        """The client of a stream's shard."""
        return self._clients[stream % self.servers.shards % len(self._clients)]

    def of_streams(self, commands: Sequence[tuple[StreamId, tuple[Any, ...]]]) -> list[Any]:
        """Send a command about each of these streams; returns the replies in the same order.

        One round trip for many commands to one server. A reply is an exception where Redis refused that
        command; what raises is the client's error where a server did not answer.
        """
        by_server: dict[int, list[int]] = {}
        for index, (stream, _) in enumerate(commands):
            by_server.setdefault(self.servers.server_of_shard(stream % self.servers.shards), []).append(index)
        replies: list[Any] = [None] * len(commands)
        for server, indices in by_server.items():
            for at in range(0, len(indices), _PIPELINED):
                part = indices[at : at + _PIPELINED]
                pipe = self._clients[server].pipeline(transaction=False)
                for index in part:
                    pipe.execute_command(*commands[index][1])
                for index, reply in zip(part, pipe.execute(raise_on_error=False), strict=True):
                    replies[index] = reply
        return replies

    def pipelined(self, server: int) -> SyncPipelinedConnection:
        """A new connection to a server for what is called hundreds of times a second; for one thread."""
        address = self.servers.addresses[server]
        timeout_s = self.servers.timeout_ms / 1000
        connection = SyncPipelinedConnection(address, timeout_s)
        self._pipelined.append(connection)
        return connection

    def close(self) -> None:
        """Close all connections."""
        for connection in self._pipelined:
            connection.close()
        for client in self._clients:
            client.close()


def blocking_client(servers: RedisServers, server: int, block_ms: int) -> SyncClient:
    """A client for reads that block for up to `block_ms`; for one thread.

    Its socket time-out exceeds the block by the time of an ordinary call. Replies of XREADGROUP and
    BZMPOP come as the server sends them (lists, flat fields), since those are the hot path.
    """
    client = _sync_client(servers.addresses[server], (block_ms + servers.timeout_ms) / 1000)
    for command in ("XREADGROUP", "BZMPOP"):
        cast("Any", client).set_response_callback(command, _as_sent)
    return client


def blocking_connection(servers: RedisServers, server: int, block_ms: int) -> SyncPipelinedConnection:
    """A pipelined connection for reads that block for up to `block_ms`; for one thread."""
    address = servers.addresses[server]
    timeout_s = (block_ms + servers.timeout_ms) / 1000
    return SyncPipelinedConnection(address, timeout_s)


def subscriber_connection(servers: RedisServers, server: int) -> Subscriber:
    """A connection for one subscriber, which brings its own loop of reconnects."""
    address = servers.addresses[server]
    timeout_s = servers.timeout_ms / 1000
    return Subscriber(address, timeout_s)


def _as_sent(reply: Any, **_options: Any) -> Any:
    return reply


def _common(address: RedisAddress, timeout_s: float) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "db": address.db,
        "username": address.username,
        "password": address.password,
        "protocol": 2,
        "socket_timeout": timeout_s,
        "max_connections": _MAX_CONNECTIONS,
    }
    if address.path:
        arguments["unix_socket_path"] = address.path
    else:
        arguments |= {
            "socket_connect_timeout": min(timeout_s, 5.0),
            "socket_keepalive": True,
        }
        arguments |= _tls_arguments(address)
        if not address.sentinels:
            arguments |= {"host": address.host, "port": address.port}
    return arguments


def _tls_arguments(address: RedisAddress) -> dict[str, Any]:
    if not address.tls:
        return {}
    files = address.tls_files
    given = {"ssl_ca_certs": files.ca, "ssl_certfile": files.cert, "ssl_keyfile": files.key}
    return {"ssl": True} | {name: file for name, file in given.items() if file}


def _sentinel_arguments(address: RedisAddress, timeout_s: float) -> Mapping[str, Any]:
    return {
        **_tls_arguments(address),
        "socket_timeout": min(timeout_s, 1.0),
        "socket_connect_timeout": min(timeout_s, 1.0),
        "password": address.password,
        "username": address.username,
        "protocol": 2,
    }


def _sync_client(address: RedisAddress, timeout_s: float) -> SyncClient:
    arguments = _common(address, timeout_s)
    arguments["retry"] = redis.retry.Retry(_BACKOFF, _RETRIES)
    if address.sentinels:
        sentinel: Any = redis.sentinel.Sentinel(  # type: ignore[no-untyped-call]
            address.sentinels, sentinel_kwargs=_sentinel_arguments(address, timeout_s)
        )
        return cast("SyncClient", sentinel.master_for(address.master, **arguments))
    return cast("SyncClient", redis.Redis(**arguments))


def _async_client(address: RedisAddress, timeout_ms: int) -> AsyncClient:
    timeout_s = timeout_ms / 1000
    arguments = _common(address, timeout_s)
    arguments["retry"] = redis.asyncio.retry.Retry(_BACKOFF, _RETRIES)
    if address.sentinels:
        sentinel: Any = redis.asyncio.sentinel.Sentinel(  # type: ignore[no-untyped-call]
            address.sentinels, sentinel_kwargs=_sentinel_arguments(address, timeout_s)
        )
        return cast("AsyncClient", sentinel.master_for(address.master, **arguments))
    return cast("AsyncClient", redis.asyncio.Redis(**arguments))
