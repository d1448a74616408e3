"""Results of streams in Redis: written and published by workers, received and caught up by ingresses.

The stream `px:{k}:<sid>:r` is the truth, pub/sub the fast path. A worker sends what one step gave in
one pipeline a server: XADD of every result, XACK of the audio that it covers, one PUBLISH for each
ingress. An ingress keeps (epoch, seq) of each stream; at a gap, after every (re)subscription, and
when it heard nothing for a while, it reads what it missed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from common.audio_reader import pack_ack
from common.entries import (
    IngressId,
    Line,
    LineKind,
    decode_lines,
    decode_result_entry,
    encode_line,
    join_lines,
)
from common.errors import EntryError, RedisUnavailable
from common.keys import RESULTS_MAX_LENGTH, Keys, StreamKeys, result_entry_id
from common.pipelined import pack
from common.redis import (
    CONNECTION_ERRORS,
    REDIS_ERROR,
    RESPONSE_ERROR,
    AsyncRedis,
    RedisServers,
    SyncRedis,
    subscriber_connection,
)

logger = logging.getLogger(__name__)

_LOGGED: Final = frozenset((LineKind.PARTIAL, LineKind.TURN, LineKind.FINAL, LineKind.ERROR))
_SUBSCRIBE_PAUSE_S: Final = 0.2
_RECEIVE_TIMEOUT_S: Final = 1.0
_PING_AFTER: Final = 5  # silent receives before the connection is probed
# Replies that say that a command did not do what it should, to look into.
_REFUSALS: Final = frozenset((RESPONSE_ERROR, type(None)))

_MESSAGE: Final = (b"message", b"smessage")
_SUBSCRIBED: Final = (b"subscribe", b"ssubscribe")


def channel_of(
    servers: RedisServers, keys: Keys, server: int, ingress: IngressId
) -> tuple[bytes, bytes, bytes]:
    """How results reach an ingress on one server: command to publish, command to subscribe, channel."""
    if servers.clustered:  # a server is a shard
        return b"SPUBLISH", b"SSUBSCRIBE", keys.shard_channel(ingress, server)
    return b"PUBLISH", b"SUBSCRIBE", keys.channel(ingress)


# XADD key NOMKSTREAM MAXLEN ~ n id k kind j json, in RESP: written for every result, at half the cost
# of packing its eleven words one by one.
_XADD_RESULT: Final = b"".join(
    (
        b"*11\r\n$4\r\nXADD\r\n$%d\r\n%b\r\n$10\r\nNOMKSTREAM\r\n$6\r\nMAXLEN\r\n$1\r\n~\r\n",
        b"$%d\r\n%d\r\n" % (len(str(RESULTS_MAX_LENGTH)), RESULTS_MAX_LENGTH),
        b"$%d\r\n%b\r\n$1\r\nk\r\n$1\r\n%b\r\n$1\r\nj\r\n$%d\r\n%b\r\n",
    )
)


def _pack_result(key: bytes, line: Line) -> bytes:
    entry_id = result_entry_id(line.epoch, line.seq)
    json = line.json
    return _XADD_RESULT % (len(key), key, len(entry_id), entry_id, line.kind, len(json), json)


# The worker's side ---------------------------------------------------------------------------------


@dataclass(slots=True)
class StreamWrite:
    """What one step has to say about one stream.

    acked: ids of audio entries that are decoded by now.
    extra: further commands, run behind the results and acks (checkpoint, end of the stream, wake-up).
    """

    keys: StreamKeys
    epoch: int
    ingress: IngressId
    lines: list[Line] = field(default_factory=list)
    acked: list[bytes] = field(default_factory=list)
    extra: list[tuple[Any, ...]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class WriteOutcome:
    """What became of a `StreamWrite`.

    fenced: a newer owner has the stream; nothing of the write counts.
    gone: the stream's results have left Redis.
    """

    fenced: bool = False
    gone: bool = False


_WRITTEN: Final = WriteOutcome()


class ResultWriter:
    """Writes the results of steps; for one thread."""

    def __init__(self, redis: SyncRedis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._connections = [redis.pipelined(server) for server in range(redis.servers.num_servers)]

    def write(self, writes: Sequence[StreamWrite]) -> list[WriteOutcome]:
        """Write, acknowledge and publish, in one pipeline a server; an outcome for each write.

        May be repeated with the same writes after it raised (CONNECTION_ERRORS or a RedisError):
        results that are in already are not written twice.
        """
        if self._redis.servers.num_servers == 1:
            return self._write_server(0, writes)
        by_server: dict[int, list[int]] = {}
        for index, write in enumerate(writes):
            by_server.setdefault(self._redis.servers.server_of_shard(write.keys.shard), []).append(index)
        outcomes: dict[int, WriteOutcome] = {}
        for server, indices in by_server.items():
            replies = self._write_server(server, [writes[index] for index in indices])
            outcomes.update(zip(indices, replies, strict=True))
        return [outcomes[index] for index in range(len(writes))]

    def _write_server(self, server: int, writes: Sequence[StreamWrite]) -> list[WriteOutcome]:
        commands: list[bytes] = []
        by_ingress: dict[IngressId, list[bytes]] = {}
        for write in writes:
            published = by_ingress.setdefault(write.ingress, [])
            for line in write.lines:
                if line.kind in _LOGGED:
                    commands.append(_pack_result(write.keys.results, line))
                published.append(encode_line(line))
            if write.acked:
                commands.append(pack_ack(write.keys, write.epoch, write.acked))
        for ingress, lines in by_ingress.items():
            if lines:
                publish, _, channel = channel_of(self._redis.servers, self._keys, server, ingress)
                commands.append(pack(publish, channel, join_lines(lines)))
        commands += [pack(*command) for write in writes for command in write.extra]
        replies = self._connections[server].call(commands) if commands else []
        # Nearly always every command did what it should; else find out which did not.
        if _REFUSALS.isdisjoint(map(type, replies)):
            return [_WRITTEN] * len(writes)
        return self._outcomes(self._redis.clients[server], writes, replies)

    def _outcomes(
        self, client: Any, writes: Sequence[StreamWrite], replies: Sequence[Any]
    ) -> list[WriteOutcome]:
        at = 0
        outcomes: list[WriteOutcome] = []
        for write in writes:
            fenced = gone = False
            for line in write.lines:
                if line.kind not in _LOGGED:
                    continue
                reply = replies[at]
                at += 1
                if reply is None:
                    gone = True
                elif isinstance(reply, RESPONSE_ERROR) and "equal or smaller" in str(reply):
                    fenced = fenced or self._is_fenced(client, write)
                elif isinstance(reply, Exception):
                    raise reply
            if write.acked:
                at += 1  # an unknown group or entry gives 0: the stream is another's, or this a repeat
            outcomes.append(WriteOutcome(fenced, gone))
        num_extra = sum(len(write.extra) for write in writes)
        for reply in replies[len(replies) - num_extra :]:
            if isinstance(reply, Exception):
                raise reply
        return outcomes

    @staticmethod
    def _is_fenced(client: Any, write: StreamWrite) -> bool:
        """Tell a result that is in already (this was a repeat) from one that a newer owner refused."""
        last = client.execute_command(
            "EVAL", "return redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)", 1, write.keys.results
        )
        return bool(last) and int(last[0][0].split(b"-")[0]) > write.epoch


def ack_json(audio_ack_samples: int) -> bytes:
    """JSON of an ACK line."""
    return orjson.dumps({"audio_ack_samples": audio_ack_samples})


# The ingress's side --------------------------------------------------------------------------------


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
        _, self._subscribe, self._channel = channel_of(servers, keys, server, ingress)

    async def events(self) -> AsyncIterator[Subscribed | Published]:
        """Messages for ever; `Subscribed` before the first one of every connection.

        A connection that is silent is probed, so that a dead one is noticed in bounded time.
        """
        while True:
            subscriber = subscriber_connection(self._servers, self._server)
            try:
                await subscriber.open()
                subscriber.send(self._subscribe, self._channel)
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
                        if message[0] in _MESSAGE:
                            try:
                                yield Published(decode_lines(message[2]))
                            except EntryError as error:
                                logger.error("unreadable results", extra={"reason": str(error)})
                        elif message[0] in _SUBSCRIBED:
                            yield Subscribed(self._server)
                        elif message[0] == b"sunsubscribe":
                            raise ConnectionError("the shard has moved to another node")
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
        pipe = redis.clients[server].pipeline(transaction=False)
        for index in indices:
            position = positions[index]
            after = b"(" + result_entry_id(position.epoch, position.seq)
            pipe.xrange(position.keys.results, min=after.decode())
        try:
            replies = await pipe.execute()
        except (REDIS_ERROR, OSError) as error:
            raise RedisUnavailable from error
        for index, entries in zip(indices, replies, strict=True):
            stream = positions[index].keys.stream
            found[index] = [
                decode_result_entry(stream, entry_id, [part for pair in fields.items() for part in pair])
                for entry_id, fields in entries
            ]
    return found
