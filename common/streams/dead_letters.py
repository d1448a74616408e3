"""What is kept of a stream that was poison: its record, and the audio at which its owners died.

Both keys go by themselves after DEAD_LETTER_TTL_MS; `docs/operations.md` says what to type.
"""

from __future__ import annotations

from typing import Any, Final

from common.redis.keys import DEAD_LETTER_TTL_MS
from common.streams.claims import OwnedStream

# Entries of audio that are kept, at most 64 KiB each: what the owners died of is in the first ones.
_MAX_ENTRIES: Final = 16

# KEYS m a dead dead-audio; ARGV sid, epoch, ttl, max entries. Gives 1, or 0 where the epoch is another's.
_KEEP: Final = """
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[2] then return 0 end
redis.call('DEL', KEYS[3], KEYS[4])
local time = redis.call('TIME')
redis.call('HSET', KEYS[3], 'stream', ARGV[1], 'ended_ms', time[1] * 1000 + math.floor(time[2] / 1000))
local names = {'died_at', 'deaths', 'alone', 'options', 'sample_rate', 'created_ms', 'ck_samples', 'ck_seq'}
local values = redis.call('HMGET', KEYS[1], unpack(names))
for i, name in ipairs(names) do if values[i] then redis.call('HSET', KEYS[3], name, values[i]) end end
redis.call('PEXPIRE', KEYS[3], ARGV[3])
local entries = redis.call('XRANGE', KEYS[2], values[1] or '-', '+', 'COUNT', ARGV[4])
for _, entry in ipairs(entries) do redis.call('XADD', KEYS[4], entry[1], unpack(entry[2])) end
redis.call('PEXPIRE', KEYS[4], ARGV[3])
return 1
"""


def dead_letter_command(owned: OwnedStream) -> tuple[Any, ...]:
    """The command that keeps a poison stream; put before the one that ends it."""
    keys = owned.keys
    return (
        *("EVAL", _KEEP, 4, keys.meta, keys.audio, keys.dead, keys.dead_audio),
        *(keys.stream, owned.epoch, DEAD_LETTER_TTL_MS, _MAX_ENTRIES),
    )
