"""Reads the audio of streams from Redis, for the worker that owns them.

A worker waits on its ready sets, reads all streams with new audio by one command an epoch, and acknowledges
decoded entries; the next owner reads entries that were not acknowledged again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from common.entries import RawEntry, StreamId, WorkerId
from common.redis.clients import RESPONSE_ERROR, SyncRedis, is_passing
from common.redis.connect import pack
from common.redis.keys import READY_TTL_MS, Keys, StreamKeys, audio_group
from common.redis.pipelined import SyncPipelinedConnection
from common.redis.scripts.ownership import look

logger = logging.getLogger(__name__)

# What was read of a stream: the key of its audio and entries for `decode_audio_entry`, in order; None for
# the entries where the audio group is gone (the stream was taken over, or left Redis), or where Redis refuses
# the key.
AudioRead = tuple[bytes, Sequence[RawEntry] | None]


class AudioReader:
    """Reads of a worker on one server; for one thread.

    connection: one for blocking reads (common/redis/clients.py).
    """

    def __init__(
        self, connection: SyncPipelinedConnection, keys: Keys, shards: Sequence[int], worker: WorkerId
    ) -> None:
        self._connection = connection
        self._worker = worker
        self._ready = [keys.ready(shard, worker) for shard in shards]

    def wait(
        self, block_ms: int | None, max_streams: int, on_wait: Callable[[float], None] | None = None
    ) -> list[StreamId]:
        """Ids of up to `max_streams` streams with new audio, or of none after `block_ms`; None only looks.

        The shards take turns at being asked first. on_wait: called with the seconds since the oldest audio of
        the read was announced, by the clock of its ingress.
        """
        ready = self._ready
        if block_ms:
            pop = pack(b"BZMPOP", block_ms / 1000, len(ready), *ready, b"MIN", b"COUNT", max_streams)
        else:  # a time of 0 waits for ever
            pop = pack(*look(ready, most=max_streams))
        reply = self._call(pop)
        if len(ready) > 1:
            ready.append(ready.pop(0))
        if not reply:
            return []
        # The first one has the smallest score: the time of its announcement in milliseconds, 0 for none.
        announced_ms = float(reply[1][0][1])
        if on_wait is not None and announced_ms:
            on_wait(max(0.0, time.time() - announced_ms / 1000))
        # A call of StreamId would do nothing, for every chunk.
        return [int(member) for member, _ in reply[1]]  # type: ignore[misc]

    def read(self, streams: Sequence[tuple[StreamKeys, int]], max_entries: int) -> list[AudioRead]:
        """Read the new entries of these streams, given with their epochs; one command an epoch.

        Streams without news are left out. Entries stay pending until `pack_ack`'s command. Never
        repeated by itself: when this raises, entries of any of the streams may have been delivered to
        nobody, and `reread` has to look.
        """
        by_epoch: dict[int, list[bytes]] = {}
        for keys, epoch in streams:
            by_epoch.setdefault(epoch, []).append(keys.audio)
        read: list[AudioRead] = []
        for epoch, group in by_epoch.items():
            read += self._read_group(epoch, group, max_entries)
        return read

    def reread(self, keys: StreamKeys, epoch: int, after: bytes, max_entries: int) -> list[AudioRead]:
        """Return entries after `after` that were delivered to this worker before and are not acknowledged."""
        return self._read_after(after, epoch, [keys.audio], max_entries)

    def _call(self, command: bytes, repeat: bool = True) -> Any:
        """Send a packed command; return its reply."""
        (reply,) = self._connection.call((command,), repeat=repeat)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def _read_group(self, epoch: int, group: list[bytes], max_entries: int) -> list[AudioRead]:
        read = self._read_after(b">", epoch, group, max_entries, repeat=False)
        if len(group) > 1 and read and read[0][1] is None:
            # One missing group, or one key that is no stream, fails the whole read with nothing consumed.
            return [one for key in group for one in self._read_group(epoch, [key], max_entries)]
        return read

    def _read_after(
        self, after: bytes, epoch: int, keys: Sequence[bytes], max_entries: int, *, repeat: bool = True
    ) -> list[AudioRead]:
        try:
            reply: list[AudioRead] | None = self._call(
                pack(
                    *(b"XREADGROUP", b"GROUP", audio_group(epoch), self._worker, b"COUNT", max_entries),
                    *(b"STREAMS", *keys, *([after] * len(keys))),
                ),
                repeat=repeat,
            )
        except RESPONSE_ERROR as error:
            if is_passing(error):
                raise
            if "NOGROUP" not in str(error) and len(keys) == 1:
                logger.error("Redis refuses a stream's audio: %s", error, extra={"key": keys[0].decode()})
            return [(key, None) for key in keys]
        return reply or []


# XACK key group id, in RESP: written for nearly every chunk.
_XACK_ONE: Final = b"*4\r\n$4\r\nXACK\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"


def pack_ack(keys: StreamKeys, epoch: int, entry_ids: Sequence[bytes]) -> bytes:
    """Pack the command that acknowledges decoded entries; its reply counts the acknowledged ones."""
    key, group = keys.audio, audio_group(epoch)
    if len(entry_ids) > 1:
        return pack(b"XACK", key, group, *entry_ids)
    (entry_id,) = entry_ids
    return _XACK_ONE % (len(key), key, len(group), group, len(entry_id), entry_id)


def ready_commands(keys: Keys, stream: StreamKeys, worker: WorkerId) -> tuple[tuple[Any, ...], ...]:
    """Return the commands with which a worker puts a stream into its own ready set."""
    ready = keys.ready(stream.shard, worker)
    # A set that was emptied has lost its expiry.
    return ("ZADD", ready, "NX", 0, stream.stream), ("PEXPIRE", ready, READY_TTL_MS)


def extend(redis: SyncRedis, streams: Sequence[tuple[StreamKeys, int]]) -> list[StreamKeys]:
    """Renew the expiry of streams, given with their time to live in ms; return the streams that are gone."""
    by_server: dict[int, list[tuple[StreamKeys, int]]] = {}
    for keys, ttl_ms in streams:
        by_server.setdefault(redis.servers.server_of_shard(keys.shard), []).append((keys, ttl_ms))
    gone: list[StreamKeys] = []
    for server, group in by_server.items():
        replies = redis.clients[server].run(
            [("PEXPIRE", key, ttl_ms) for keys, ttl_ms in group for key in keys.renewed]
        )
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        per_stream = len(group[0][0].renewed)
        gone += [keys for (keys, _), kept in zip(group, replies[::per_stream], strict=True) if not kept]
    return gone
