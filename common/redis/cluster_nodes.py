"""Which node of a Redis Cluster has a slot, and connections that follow the slot when it moves.

A shard's keys share a hash tag and so a slot: each shard needs one node only, and redis-py's cluster
client, which routes every command by its keys, is not needed on the way of the audio. The node is
looked up before a connection is made; an answer "MOVED" (the slot has another owner), "CLUSTERDOWN"
or "READONLY" (a failover) drops the connection, and the next one looks again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import redis
import redis.asyncio
import redis.exceptions

from common.redis.pipelined import Endpoint, is_elsewhere

_NO_NODE: Final = "no node of the Redis Cluster that was asked knows the slot"


@dataclass(frozen=True, slots=True)
class SlotAddress:
    """A slot, and some nodes to ask for its owner."""

    nodes: tuple[tuple[str, int], ...]
    slot: int
    username: str | None
    password: str | None
    tls: bool

    def client_arguments(self, host: str, port: int, timeout_s: float) -> dict[str, Any]:
        """Arguments of a short-lived client of one node."""
        return {
            "host": host,
            "port": port,
            "username": self.username,
            "password": self.password,
            "ssl": self.tls,
            "protocol": 2,
            "socket_timeout": min(timeout_s, 1.0),
            "socket_connect_timeout": min(timeout_s, 1.0),
        }


def _owner(slots: Sequence[Any], slot: int, asked_host: str) -> tuple[str, int] | None:
    """Find the master in a reply to CLUSTER SLOTS; a node that does not know its address says ''."""
    for first, last, master, *_ in slots:
        if first <= slot <= last:
            host = master[0].decode() if isinstance(master[0], bytes) else master[0]
            return (asked_host if host in (None, "", "?") else host, int(master[1]))
    return None


async def owner_of(address: SlotAddress, timeout_s: float) -> tuple[str, int]:
    """Host and port of the slot's master. Raises redis.exceptions.ConnectionError."""
    for host, port in address.nodes:
        client: Any = redis.asyncio.Redis(**address.client_arguments(host, port, timeout_s))
        client.set_response_callback("CLUSTER SLOTS", _as_sent)
        try:
            found = _owner(await client.execute_command("CLUSTER SLOTS"), address.slot, host)
        except (redis.exceptions.RedisError, OSError):
            continue
        finally:
            await client.aclose()
        if found is not None:
            return found
    raise redis.exceptions.ConnectionError(_NO_NODE)


def owner_of_sync(address: SlotAddress, timeout_s: float) -> tuple[str, int]:
    """The same for a thread."""
    for host, port in address.nodes:
        client: Any = redis.Redis(**address.client_arguments(host, port, timeout_s))
        client.set_response_callback("CLUSTER SLOTS", _as_sent)
        try:
            found = _owner(client.execute_command("CLUSTER SLOTS"), address.slot, host)
        except (redis.exceptions.RedisError, OSError):
            continue
        finally:
            client.close()
        if found is not None:
            return found
    raise redis.exceptions.ConnectionError(_NO_NODE)


def _as_sent(reply: Any, **_options: Any) -> Any:
    return reply


class _Follows:
    """What both kinds of connection do: find the node first, and leave it when it sends us away."""

    host: str
    port: int

    def _went_to(self, endpoint: Endpoint) -> None:
        self.host, self.port = endpoint.host, endpoint.port


class _NodeConnection(_Follows, redis.Connection):
    def __init__(self, find: Callable[[], Endpoint], **arguments: Any) -> None:
        self._find = find
        super().__init__(**arguments)  # type: ignore[no-untyped-call]

    def _connect(self) -> Any:
        self._went_to(self._find())
        return super()._connect()  # type: ignore[no-untyped-call]

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        try:
            return super().read_response(*arguments, **options)
        except redis.exceptions.ResponseError as error:
            if is_elsewhere(error):
                self.disconnect()  # type: ignore[no-untyped-call]
                raise redis.exceptions.ConnectionError(str(error)) from error
            raise


class _TlsNodeConnection(_NodeConnection, redis.SSLConnection):
    pass


class _AsyncNodeConnection(_Follows, redis.asyncio.Connection):
    def __init__(self, find: Callable[[], Awaitable[Endpoint]], **arguments: Any) -> None:
        self._find = find
        super().__init__(**arguments)

    async def _connect(self) -> None:
        self._went_to(await self._find())
        await super()._connect()  # type: ignore[no-untyped-call]

    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*arguments, **options)
        except redis.exceptions.ResponseError as error:
            if is_elsewhere(error):
                await self.disconnect()
                raise redis.exceptions.ConnectionError(str(error)) from error
            raise


class _TlsAsyncNodeConnection(_AsyncNodeConnection, redis.asyncio.SSLConnection):
    pass


def node_connection(tls: bool) -> type[redis.Connection]:
    """The connection class of a thread's pool; takes `find` beside redis-py's arguments."""
    return _TlsNodeConnection if tls else _NodeConnection


def async_node_connection(tls: bool) -> type[redis.asyncio.Connection]:
    """The same on an event loop."""
    return _TlsAsyncNodeConnection if tls else _AsyncNodeConnection
