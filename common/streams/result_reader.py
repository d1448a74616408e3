"""Reader of the results of streams that an ingress has missed.

Pub/sub is the fast path, the stream `px:{k}:<sid>:r` the truth (common/streams/result_writer.py). An ingress
keeps (epoch, seq) of each stream. At a gap, after every (re)subscription, and after a while without a line,
it reads the missed results.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from common.entries import Line, StreamId, decode_result_entry
from common.errors import EntryError, RedisUnavailable
from common.redis.clients import (
    REDIS_ERROR,
    AsyncRedis,
    error_of_stream,
)
from common.redis.connect import pack
from common.redis.keys import StreamKeys, result_entry_id
from common.redis.scripts import streams as scripts

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Position:
    """The last line of a stream that an ingress has."""

    keys: StreamKeys
    epoch: int
    seq: int


@dataclass(frozen=True, slots=True)
class KeptResults:
    """The range of a stream's kept results, by their numbers, and the position to go on reading from.

    first, last: numbers of the first kept result and of the last one that was written; `first` is above
    `last` if none is kept.   position: where reading goes on.
    """

    first: int
    last: int
    position: Position


async def kept_results(redis: AsyncRedis, keys: StreamKeys, last_seq: int | None) -> KeptResults | None:
    """Find the position in a stream's results after number `last_seq`; None: before the last result.

    Returns None if the stream never had a result or an owner. A script reads only a few entries inside Redis,
    because a log can be megabytes. Raises RedisUnavailable, EntryError.
    """
    server = redis.servers.server_of_shard(keys.shard)
    try:
        found = await redis.execute(server, *scripts.kept_results(keys, last_seq=last_seq))
    except (REDIS_ERROR, OSError) as error:
        raise error_of_stream(error) from error
    if not found:
        return None
    first, last, epoch = map(int, found)
    return KeptResults(first, last, Position(keys, epoch, max(0, last - 1) if last_seq is None else last_seq))


# Results of each stream in one read of many streams: bounds the reply.
_MOST_AT_ONCE: Final = 64


@dataclass(frozen=True, slots=True)
class Missed:
    """The missed lines of one stream, in order, whether there may be more, and the error, if any."""

    lines: Sequence[Line] = ()
    more: bool = False
    error: EntryError | None = None


async def catch_up(redis: AsyncRedis, positions: Sequence[Position]) -> list[Missed]:
    """Read the lines behind each position, in order, results and owner notices.

    One pipeline a server. Raises RedisUnavailable. A stream that is gone has no lines.
    """
    by_server: dict[int, list[int]] = {}
    for index, position in enumerate(positions):
        by_server.setdefault(redis.servers.server_of_shard(position.keys.shard), []).append(index)
    found = [Missed()] * len(positions)
    for server, indices in by_server.items():
        commands = []
        for index in indices:
            position = positions[index]
            after = b"(" + result_entry_id(position.epoch, position.seq)
            commands.append(pack(b"XRANGE", position.keys.results, after, b"+", b"COUNT", _MOST_AT_ONCE))
        try:
            replies = await redis.pipelined(server).send(commands)
        except (REDIS_ERROR, OSError) as error:
            raise RedisUnavailable from error
        for index, entries in zip(indices, replies, strict=True):
            found[index] = _missed(positions[index].keys.stream, entries)
    return found


def _missed(stream: StreamId, entries: Any) -> Missed:
    """Parse the reply of Redis for one stream. Raises RedisUnavailable."""
    try:
        if isinstance(entries, Exception):
            raise error_of_stream(entries)
        lines = [decode_result_entry(stream, entry_id, fields) for entry_id, fields in entries]
    except EntryError as error:
        return Missed(error=error)
    return Missed(lines, len(lines) == _MOST_AT_ONCE)
