"""The only place that makes connections to Redis.

`RedisServers` says where the shards live; from it come the connections of an ingress, the clients of a
worker's threads, those for blocking reads, and one for pub/sub. All speak RESP2, so that every server version
returns the same replies, and every call of them ends within a time-out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from logging import Logger
from threading import Event
from typing import Any, Final

import redis.exceptions

from common.entries import StreamId
from common.errors import EntryError, RedisUnavailable, SettingsError
from common.redis.address import RedisAddress, TlsOptions, parse_address, password_in
from common.redis.connect import Argument
from common.redis.outages import OUTAGES
from common.redis.pipelined import (
    PipelinedConnection,
    Subscription,
    SyncClient,
    SyncPipelinedConnection,
)
from common.settings.schema import RedisSettings

_RETRY_S: Final = 0.25

# Errors of a call when the server is away, as opposed to a refusal.
CONNECTION_ERRORS: Final = (
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
    TimeoutError,
    OSError,
)
RESPONSE_ERROR: Final = redis.exceptions.ResponseError
REDIS_ERROR: Final = redis.exceptions.RedisError

# Beginnings of refusals that end by themselves: full, loading, a replica after a failover, and the like.
_PASSING: Final = (
    "OOM",
    "LOADING",
    "READONLY",
    "MASTERDOWN",
    "MISCONF",
    "NOREPLICAS",
    "BUSY ",
)


def is_passing(error: BaseException) -> bool:
    """Return whether trying again may help: the server is away or full, and the command was not wrong."""
    return isinstance(error, CONNECTION_ERRORS) or str(error).startswith(_PASSING)


def until_redis_answers(step: Callable[[], None], log: Logger, stop: Event) -> bool:
    """Take a step of a start, again while no answer comes; return False if `stop` is set before that.

    Raises the errors that no wait mends.
    """
    while True:
        try:
            step()
            return True
        except (REDIS_ERROR, OSError) as error:
            if not is_passing(error):
                raise
            OUTAGES.log_retry(log, "the start waits for Redis: %s", error)
            if stop.wait(_RETRY_S):
                return False


def error_of_stream(error: BaseException) -> RedisUnavailable | EntryError:
    """Return the error for a failed command about one stream: the stream's own where no wait helps."""
    if isinstance(error, RESPONSE_ERROR) and not is_passing(error):
        return EntryError(f"Redis refuses a key of the stream: {error}")
    return RedisUnavailable(str(error))


# Commands of one round trip: bounds the replies that wait in Redis for one client, and the time of the last.
_PIPELINED: Final = 256


@dataclass(frozen=True, slots=True)
class RedisServers:
    """The servers of the cluster's shards: shard k is on address k modulo the number of addresses.

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

    @staticmethod
    def of(settings: RedisSettings) -> RedisServers:
        """Return the servers of a process's settings; flags complete the addresses.

        Raises SettingsError, also where the file of the password cannot be read.
        """
        servers = RedisServers.parse(settings.redis_url, settings.redis_shards, settings.redis_timeout_ms)
        file = settings.redis_password_file
        password = password_in(file) if file else None
        tls = TlsOptions(
            settings.redis_tls_ca,
            settings.redis_tls_cert,
            settings.redis_tls_key,
            settings.redis_tls_server_name,
        )
        completed = (
            replace(
                address,
                password=password if address.password is None else address.password,
                password_file=file if address.password is None else "",
                tls_options=address.tls_options.completed(tls) if address.tls else address.tls_options,
            )
            for address in servers.addresses
        )
        return replace(servers, addresses=tuple(completed))

    @property
    def num_servers(self) -> int:
        """Number of servers."""
        return len(self.addresses)

    def server_of_shard(self, shard: int) -> int:
        """Return the index of the server that holds a shard."""
        return shard % len(self.addresses)

    def shards_of_server(self, server: int) -> tuple[int, ...]:
        """Return the shards that a server holds."""
        return tuple(range(server, self.shards, len(self.addresses)))


class PipelinedCommands:
    """Single commands to one server over its pipelined connection."""

    def __init__(self, redis: AsyncRedis, server: int) -> None:
        self._redis = redis
        self._server = server

    async def execute_command(self, *arguments: Any) -> Any:
        """Send one command, which may be repeated."""
        return await self._redis.execute(self._server, *arguments)


class AsyncRedis:
    """The connections of an event loop, one a server. Made and closed on the loop that uses them."""

    def __init__(self, servers: RedisServers) -> None:
        self.servers = servers
        self._pipelined: dict[int, PipelinedConnection] = {}

    def pipelined(self, server: int) -> PipelinedConnection:
        """Return the connection of a server for commands that are sent thousands of times a second."""
        if server not in self._pipelined:
            address, timeout_s = self.servers.addresses[server], self.servers.timeout_ms / 1000
            self._pipelined[server] = PipelinedConnection(address, timeout_s)
        return self._pipelined[server]

    async def execute(self, server: int, *command: Argument) -> Any:
        """Run one command over the pipelined connection, which any number of callers share at once.

        It is tried once more after a lost connection, so use it only for commands that may be repeated. The
        reply is unchanged. Raises redis.exceptions.ConnectionError or TimeoutError, and errors that Redis
        replies.
        """
        connection = self.pipelined(server)
        try:
            return await connection.execute(*command)
        except CONNECTION_ERRORS:
            return await connection.execute(*command)

    @property
    def cluster(self) -> PipelinedCommands:
        """The client for commands about the whole cluster, which go to shard 0."""
        return PipelinedCommands(self, 0)

    @property
    def num_losses(self) -> int:
        """Number of losses of an open connection; for any thread."""
        return sum(connection.num_losses for connection in list(self._pipelined.values()))

    async def close(self) -> None:
        """Close all connections."""
        for connection in self._pipelined.values():
            await connection.close()


class SyncRedis:
    """One sync client a server. The clients may be used by several threads at once."""

    def __init__(self, servers: RedisServers) -> None:
        self.servers = servers
        timeout_s = servers.timeout_ms / 1000
        self._clients = tuple(SyncClient(address, timeout_s) for address in servers.addresses)
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
        """Return the client of a shard."""
        return self._clients[shard % len(self._clients)]

    def stream(self, stream: StreamId) -> SyncClient:
        """Return the client of a stream's shard."""
        return self._clients[stream % self.servers.shards % len(self._clients)]

    def of_streams(self, commands: Sequence[tuple[StreamId, tuple[Any, ...]]]) -> list[Any]:
        """Send a command about each of these streams; return the replies in the same order.

        One round trip has many commands to one server. A reply is an exception where Redis refused that
        command. Raises the client's first error where a server did not answer; all others have run theirs.
        """
        by_server: dict[int, list[int]] = {}
        for index, (stream, _) in enumerate(commands):
            by_server.setdefault(self.servers.server_of_shard(stream % self.servers.shards), []).append(index)
        replies: list[Any] = [None] * len(commands)
        failures: list[Exception] = []
        for server, indices in by_server.items():
            try:
                for at in range(0, len(indices), _PIPELINED):
                    part = indices[at : at + _PIPELINED]
                    found = self._clients[server].run([commands[index][1] for index in part])
                    for index, reply in zip(part, found, strict=True):
                        replies[index] = reply
            except (REDIS_ERROR, OSError) as error:
                failures.append(error)
        if failures:
            raise failures[0]
        return replies

    def pipelined(self, server: int) -> SyncPipelinedConnection:
        """Open a connection for commands that are sent hundreds of times a second; for one thread."""
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
    """Return a client for reads that block for up to `block_ms`; for one thread.

    Its socket time-out exceeds the block by the time of an ordinary call.
    """
    return SyncClient(servers.addresses[server], (block_ms + servers.timeout_ms) / 1000)


def blocking_connection(servers: RedisServers, server: int, block_ms: int) -> SyncPipelinedConnection:
    """Return a pipelined connection for reads that block for up to `block_ms`; for one thread."""
    address = servers.addresses[server]
    timeout_s = (block_ms + servers.timeout_ms) / 1000
    return SyncPipelinedConnection(address, timeout_s)


def subscription(
    servers: RedisServers, server: int, channel: bytes, take: Callable[[bytes | None], None]
) -> Subscription:
    """Return one channel of one server, with connections of its own; `take` receives the messages."""
    return Subscription(servers.addresses[server], servers.timeout_ms / 1000, channel, take)
