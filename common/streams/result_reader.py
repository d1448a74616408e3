"""Results of streams, received and caught up by ingresses.

Pub/sub is the fast path, the stream `px:{k}:<sid>:r` the truth (common/streams/result_writer.py). An ingress
keeps (epoch, seq) of each stream; at a gap, after every (re)subscription, and when it heard nothing for a
while, it reads what it missed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final

from common.entries import IngressId, Line, decode_lines, decode_result_entry
from common.errors import EntryError, RedisUnavailable
from common.redis.clients import (
    CONNECTION_ERRORS,
    REDIS_ERROR,
    AsyncRedis,
    RedisServers,
    subscriber_connection,
)
from common.redis.connect import pack
from common.redis.keys import Keys, StreamKeys, result_entry_id

logger = logging.getLogger(__name__)

_SUBSCRIBE_PAUSE_S: Final = 0.2
_RECEIVE_TIMEOUT_S: Final = 1.0
_PING_AFTER: Final = 5  # silent receives before the connection is probed


@dataclass(frozen=True, slots=True)
class Subscribed:
    """The subscription on a server was made, or made again: anything may have been missed before.

    server: index of the server. Only streams of its shards need a catch-up.
    """

    server: int


@dataclass(frozen=True, slots=True)
class Published:
    """One pub/sub message, decoded."""

    lines: list[Line]


class ResultSubscription:
    """The channel of one ingress on one server, with a reconnecting loop of its own."""

    def __init__(self, servers: RedisServers, keys: Keys, server: int, ingress: IngressId) -> None:
        self._servers = servers
        self._server = server
        self._channel = keys.channel(ingress)

    async def events(self) -> AsyncIterator[Subscribed | Published]:
        """Messages for ever; `Subscribed` before the first one of every connection.

        A connection that is silent is probed, so that a dead one is noticed in bounded time.
        """
        while True:
            subscriber = subscriber_connection(self._servers, self._server)
            try:
                await subscriber.open()
                subscriber.send(b"SUBSCRIBE", self._channel)
                silent = 0
                while True:
                    messages = await subscriber.receive(_RECEIVE_TIMEOUT_S)
                    if not messages:
                        silent += 1
                        if silent > 2 * _PING_AFTER:
                            raise TimeoutError("the subscription does not answer")
                        if silent == _PING_AFTER:
                            subscriber.send(b"PING")
                        continue
                    silent = 0
                    for message in messages:
                        if isinstance(message, Exception):
                            raise message
                        if message[0] == b"message":
                            try:
                                yield Published(decode_lines(message[2]))
                            except EntryError as error:
                                logger.error("unreadable results", extra={"reason": str(error)})
                        elif message[0] == b"subscribe":
                            yield Subscribed(self._server)
            except (*CONNECTION_ERRORS, REDIS_ERROR) as error:
                logger.warning(
                    "subscription lost, trying again", extra={"server": self._server, "reason": str(error)}
                )
            finally:
                subscriber.close()
            await asyncio.sleep(_SUBSCRIBE_PAUSE_S)


@dataclass(frozen=True, slots=True)
class Position:
    """The last line of a stream that an ingress has."""

    keys: StreamKeys
    epoch: int
    seq: int


async def catch_up(redis: AsyncRedis, positions: Sequence[Position]) -> list[list[Line]]:
    """Read the lines behind each position, in order, results and owner notices.

    One pipeline a server. Raises RedisUnavailable. A stream that is gone has no lines.
    """
    by_server: dict[int, list[int]] = {}
    for index, position in enumerate(positions):
        by_server.setdefault(redis.servers.server_of_shard(position.keys.shard), []).append(index)
    found: list[list[Line]] = [[] for _ in positions]
    for server, indices in by_server.items():
        commands = []
        for index in indices:
            position = positions[index]
            after = b"(" + result_entry_id(position.epoch, position.seq)
            commands.append(pack(b"XRANGE", position.keys.results, after, b"+"))
        try:
            replies = await redis.pipelined(server).send(commands)
        except (REDIS_ERROR, OSError) as error:
            raise RedisUnavailable from error
        for index, entries in zip(indices, replies, strict=True):
            if isinstance(entries, Exception):
                raise RedisUnavailable from entries
            stream = positions[index].keys.stream
            found[index] = [decode_result_entry(stream, entry_id, fields) for entry_id, fields in entries]
    return found
