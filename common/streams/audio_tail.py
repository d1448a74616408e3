"""The end of a stream's audio in Redis, as an ingress reads it: for a resume, or if reports may be lost."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import Final

from common.entries import AudioEntry, decode_audio_entry
from common.errors import RedisUnavailable
from common.redis.clients import REDIS_ERROR, RESPONSE_ERROR, AsyncRedis, error_of_stream
from common.redis.keys import StreamKeys

# Entries that are read at the end, until one of them has audio. Nearly always the last one has.
_COUNTS: Final = (1, 8, 128)


@dataclass(frozen=True, slots=True)
class AudioTail:
    """The end of what is kept of a stream's audio. last: its last entry, None where nothing is kept.

    num_marks: number of entries without samples behind the audio, such as `phrases`; at most 128.
    """

    last: AudioEntry | None
    num_marks: int


async def audio_tail(redis: AsyncRedis, keys: StreamKeys) -> AudioTail:
    """Read the end of a stream's audio. Raises RedisUnavailable, EntryError."""
    server = redis.servers.server_of_shard(keys.shard)
    entries: list[AudioEntry] = []
    num_marks = 0
    for count in _COUNTS:
        try:
            reply = await redis.execute(server, "XREVRANGE", keys.audio, "+", "-", "COUNT", count)
        except (REDIS_ERROR, OSError) as error:
            raise error_of_stream(error) from error
        entries = [decode_audio_entry(entry_id, fields) for entry_id, fields in reply]
        num_marks = sum(1 for _ in takewhile(lambda entry: not entry.payload, entries))
        if num_marks < count:
            break
    return AudioTail(entries[0] if entries else None, num_marks)


async def decoded_samples(redis: AsyncRedis, keys: StreamKeys) -> int:
    """Return the samples of a stream that its worker has acknowledged, in whole entries; 0 if unknown.

    Published acknowledgements may be lost; this number is not. Raises RedisUnavailable, EntryError.
    """
    server = redis.servers.server_of_shard(keys.shard)
    try:
        groups = await redis.execute(server, "XINFO", "GROUPS", keys.audio)
        if not groups:
            return 0  # no worker has it yet
        # Each owner destroys the group of the previous owner.
        group = dict(zip(groups[-1][::2], groups[-1][1::2], strict=True))
        pending = await redis.execute(server, "XPENDING", keys.audio, group[b"name"], "-", "+", 1)
        # The first entry that is read and not acknowledged, or else the first unread entry.
        first = pending[0][0] if pending else b"(" + group[b"last-delivered-id"]
        undecoded = await redis.execute(server, "XRANGE", keys.audio, first, "+", "COUNT", 1)
    except RESPONSE_ERROR:
        return 0  # the stream, or its owner, has just gone
    except (REDIS_ERROR, OSError) as error:
        raise RedisUnavailable from error
    if undecoded:
        return decode_audio_entry(*undecoded[0]).first_sample
    last = (await audio_tail(redis, keys)).last
    return last.first_sample + last.num_samples if last is not None else 0
