"""Ownership of streams: a worker claims, takes over, opens and ends them.

The worker whose consumer has an assignment pending owns the stream; the assignment leaves at the
stream's end. Opening a stream raises its epoch, which fences the owner before.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from common.entries import (
    LAYOUT_VERSION,
    AssignmentEntry,
    StreamId,
    WorkerId,
    decode_assignment,
    next_entry_id,
)
from common.errors import EntryError
from common.redis.clients import RESPONSE_ERROR, SyncClient, SyncRedis
from common.redis.keys import (
    ASSIGNMENT_GROUP,
    FINISHED_STREAM_TTL_MS,
    READY_TTL_MS,
    REGISTER_TTL_MS,
    RESULTS_MAX_LENGTH,
    STAGED_SNAPSHOT_TTL_MS,
    Keys,
    StreamKeys,
)
from common.redis.server_run import FORGOTTEN_NUMBERS, SERVER_RUN
from common.streams.assignments import Checkpoint, StreamRecord, decode_record

logger = logging.getLogger(__name__)

# Deaths of owners over the same audio after which a stream is a suspect, and runs in quarantine...
SUSPICIOUS_DEATHS: Final = 2
# ... and how many processes that ran it alone it may end before it is poison.
POISONOUS_DEATHS: Final = 2
# Suspects that run together in quarantine at first; where they end their process, an eighth of them
# next, and so on down to one. A division by more would cost fewer deaths, each with the time that a model
# takes to load, and more groups, each with the time of a replay.
MAX_SUSPECTS: Final = 64
# Assignments that one script takes over: Lua passes no more than some 8,000 arguments, and Redis serves
# nobody else meanwhile.
_MAX_TAKEN: Final = 1000
SUSPECTS_DIVISOR: Final = 8

# KEYS new m a r ready; ARGV group wid entry sid ready-ttl together chunk-ms. Gives {'gone'}, {'lost'},
# {'suspect'} or {'owned', epoch, last seq, notice, record, poison}. The audio group of the new epoch
# begins at the checkpoint. The entry with seq 0 fences: after it, an earlier owner can add no result.
#
# An owner that neither finished the stream nor let it go has died, maybe of it: where it had enough
# audio for a step, that went from `died_at` to `died_to`. `deaths` counts how often that happened before
# the stream was past it, `alone` how often of these in a process that had nothing else to die of.
# `together` is how many suspects the present owner runs, 0 for an ordinary worker; `within` how many may
# run with this one from now on.
#
# In another run of the server than that of the record, owners may have been forgotten who still write, and
# ingresses that still append: the new epoch, and the next connection, are beyond theirs.
_OPEN: Final = f"""
local function behind(a, b)
  local a1, a2 = string.match(a, '(%d+)-(%d+)')
  local b1, b2 = string.match(b, '(%d+)-(%d+)')
  a1, a2, b1, b2 = tonumber(a1), tonumber(a2), tonumber(b1), tonumber(b2)
  return a1 > b1 or (a1 == b1 and a2 > b2)
end
local function reach(id)
  local entry = redis.call('XRANGE', KEYS[3], id, id)[1]
  if not entry then return 0, 0, false end
  local from, size, final = 0, 0, false
  for i = 1, #entry[2], 2 do
    local name, value = entry[2][i], entry[2][i + 1]
    if name == 'o' then from = tonumber(value) end
    if name == 'p' then size = #value / 2 end
    if name == 'f' then size = #value / 4 end
    if name == 'x' then final = true end
  end
  return from, from + size, final
end
local function fills_a_step(first, last)
  local from = reach(first)
  local _, to, final = reach(last)
  return final or to - from >= redis.call('HGET', KEYS[2], 'sample_rate') * ARGV[7] / 1000
end
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1)
if pending.err or not pending[1] or pending[1][2] ~= ARGV[2] then return {{'lost'}} end
if redis.call('EXISTS', KEYS[2]) == 0 or redis.call('HGET', KEYS[2], 'finished') then
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
  redis.call('XDEL', KEYS[1], ARGV[3])
  return {{'gone'}}
end
local before = redis.call('HGET', KEYS[2], 'epoch')
local past = redis.call('HMGET', KEYS[2], 'let_go', 'counted', 'died_to', 'deaths', 'alone', 'together')
local deaths, alone = tonumber(past[4] or '0'), tonumber(past[5] or '0')
if before ~= '0' and past[1] ~= before and past[2] ~= before then
  redis.call('HSET', KEYS[2], 'counted', before)
  local flight = redis.pcall('XPENDING', KEYS[3], 'asr-' .. before)
  if not flight.err and flight[1] > 0 and fills_a_step(flight[2], flight[3]) then
    if not past[3] or behind(flight[2], past[3]) then
      deaths, alone = 0, 0
      redis.call('HSET', KEYS[2], 'died_at', flight[2])
      redis.call('HDEL', KEYS[2], 'within')
    end
    deaths = deaths + 1
    local together = tonumber(past[6] or '0')
    if together == 1 then alone = alone + 1 end
    if together > 1 then
      redis.call('HSET', KEYS[2], 'within', math.max(1, math.floor(together / {SUSPECTS_DIVISOR})))
    end
    redis.call('HSET', KEYS[2], 'died_to', flight[3], 'deaths', deaths, 'alone', alone)
  end
end
local poison = alone >= {POISONOUS_DEATHS}
if deaths >= {SUSPICIOUS_DEATHS} and not poison and ARGV[6] == '0' then return {{'suspect'}} end
local run = {SERVER_RUN}
local step = redis.call('HGET', KEYS[2], 'run') == run and 1 or {FORGOTTEN_NUMBERS}
local epoch = redis.call('HINCRBY', KEYS[2], 'epoch', step)
redis.call('HSET', KEYS[2], 'run', run, 'owner', ARGV[2], 'together', ARGV[6])
if step > 1 then
  redis.call('HSETNX', KEYS[2], 'connection', 1)
  redis.call('HINCRBY', KEYS[2], 'connection', step)
end
local ttl = redis.call('HGET', KEYS[2], 'ttl_ms')
local start = redis.call('HGET', KEYS[2], 'ck_entry') or '0'
redis.call('XGROUP', 'CREATE', KEYS[3], 'asr-' .. epoch, start, 'MKSTREAM')
redis.call('XGROUP', 'DESTROY', KEYS[3], 'asr-' .. before)
redis.call('PEXPIRE', KEYS[3], ttl)
local seq = 0
local last = redis.call('XREVRANGE', KEYS[4], '+', '-', 'COUNT', 1)[1]
if last then
  seq = tonumber(string.match(last[1], '-(%d+)$'))
  if seq == 0 then seq = tonumber(string.match(last[2][4], '"seq":(%d+)')) end
end
local notice = '{{"worker":"' .. ARGV[2] .. '","seq":' .. seq .. '}}'
redis.call('XADD', KEYS[4], 'MAXLEN', '~', {RESULTS_MAX_LENGTH}, epoch .. '-0', 'k', 'o', 'j', notice)
redis.call('PEXPIRE', KEYS[4], ttl)
redis.call('ZADD', KEYS[5], 'NX', 0, ARGV[4])
redis.call('PEXPIRE', KEYS[5], ARGV[5])
return {{'owned', epoch, seq, notice, redis.call('HGETALL', KEYS[2]), poison and 1 or 0}}
"""

# KEYS new m a r s ready; ARGV group, entry, sid, epoch, least ttl. Gives 1, 0 where the epoch is another's,
# -1 where the stream had left Redis. A client that was lost may come back for the end: so long it is kept.
_FINISH: Final = """
local epoch, grace = unpack(redis.call('HMGET', KEYS[2], 'epoch', 'grace_ms'))
if epoch and epoch ~= ARGV[4] then return 0 end
local ttl = math.max(ARGV[5], grace or 0)
redis.pcall('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
redis.call('DEL', KEYS[3], KEYS[5])
redis.call('ZREM', KEYS[6], ARGV[3])
redis.call('PEXPIRE', KEYS[4], ttl)
if not epoch then return -1 end
redis.call('HSET', KEYS[2], 'finished', '1')
redis.call('PEXPIRE', KEYS[2], ttl)
return 1
"""

# KEYS m a s staged; ARGV epoch, first id kept, number of pieces, samples, then the checkpoint's other fields.
# Gives 1, or 0 where the epoch is another's, the stream has ended, pieces are missing, or there is a later
# checkpoint: an owner that hands a stream over may have an older one on its way.
_CHECKPOINT: Final = """
local record = redis.call('HMGET', KEYS[1], 'epoch', 'finished', 'ck_samples')
if record[1] ~= ARGV[1] or record[2] or tonumber(record[3] or '0') > tonumber(ARGV[4])
    or redis.call('LLEN', KEYS[4]) ~= tonumber(ARGV[3]) then
  redis.call('UNLINK', KEYS[4])
  return 0
end
redis.call('HSET', KEYS[1], 'ck_samples', ARGV[4], unpack(ARGV, 5))
redis.call('UNLINK', KEYS[3])
redis.call('RENAME', KEYS[4], KEYS[3])
redis.call('PEXPIRE', KEYS[3], redis.call('HGET', KEYS[1], 'ttl_ms'))
redis.call('XTRIM', KEYS[2], 'MINID', ARGV[2])
return 1
"""
# A snapshot is megabytes. Redis serves nobody else while it takes one command in, and what it has of a value
# that grows it may have to move: so pieces, each of a fraction of a millisecond.
_PIECE_BYTES: Final = 256 * 1024
# KEYS staged; ARGV the first piece, ttl. Those after it make no list of their own where this one is gone.
_STAGE: Final = """
redis.call('UNLINK', KEYS[1])
redis.call('RPUSH', KEYS[1], ARGV[1])
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""


@dataclass(frozen=True, slots=True)
class OwnedStream:
    """A stream that this worker owns, as it was when the worker opened it.

    entry_id: its assignment. last_seq: last result that an earlier owner may have published; results
    of a replay up to it are not sent again. notice: JSON of the owner notice, to be published.
    poison: the stream has ended processes that had nothing else to do; it is opened to be ended.
    """

    keys: StreamKeys
    entry_id: bytes
    record: StreamRecord
    last_seq: int
    notice: bytes
    poison: bool = False

    @property
    def stream(self) -> StreamId:
        """The stream."""
        return self.keys.stream

    @property
    def epoch(self) -> int:
        """The epoch of this ownership."""
        return self.record.epoch


@dataclass(frozen=True, slots=True)
class Suspect:
    """A stream whose owners died over the same audio: only a quarantined process may open it."""

    entry: AssignmentEntry


@dataclass(frozen=True, slots=True)
class Refused:
    """A stream that could not be opened: Redis refused it, or its record cannot be read."""

    entry: AssignmentEntry
    error: Exception


Opening = OwnedStream | Suspect | Refused | None
"""What became of an attempt to open a stream; None where it has ended or is another worker's by now."""


class Claims:
    """Assignments as a worker takes, opens and ends them. May be used by several threads.

    chunk_ms: least audio that a step takes.
    """

    def __init__(self, redis: SyncRedis, keys: Keys, worker: WorkerId, *, chunk_ms: int = 0) -> None:
        self._redis = redis
        self._chunk_ms = chunk_ms
        self._keys = keys
        self._worker = worker
        self._snapshots = itertools.count(1)

    def prepare(self) -> None:
        """Make the group of every shard that has none (at start, and when Redis lost it)."""
        for shard in range(self._keys.shards):
            key = self._keys.assignments(shard)
            client = self._redis.shard(shard)
            try:
                client.execute_command("XGROUP", "CREATE", key, ASSIGNMENT_GROUP, "0", "MKSTREAM")
            except RESPONSE_ERROR as error:
                if "BUSYGROUP" not in str(error):
                    raise
            client.execute_command("PEXPIRE", key, REGISTER_TTL_MS)

    def wait(
        self, client: SyncClient, shards: Sequence[int], count: int, block_ms: int | None
    ) -> list[AssignmentEntry]:
        """Wait for up to `count` new streams of shards that share a server, through a blocking client.

        block_ms: how long; None only looks.

        Makes the groups again when Redis has lost them.
        """
        streams = [self._keys.assignments(shard) for shard in shards]
        block = () if block_ms is None else ("BLOCK", block_ms)
        try:
            reply = client.execute_command(
                *("XREADGROUP", "GROUP", ASSIGNMENT_GROUP, self._worker, "COUNT", count, *block),
                *("STREAMS", *streams, *([b">"] * len(streams))),
            )
        except RESPONSE_ERROR as error:
            if "NOGROUP" not in str(error):
                raise
            self.prepare()
            return []
        return _readable(item for _, entries in reply or () for item in entries)

    def pending_of(self, worker: WorkerId, count: int) -> list[AssignmentEntry]:
        """Take over up to `count` streams of a worker whose lease has lapsed.

        Of two workers that do this at once, each gets different streams.
        """
        taken: list[AssignmentEntry] = []
        for shard in range(self._keys.shards):
            start = b"-"
            while start and len(taken) < count:
                some = min(_MAX_TAKEN, count - len(taken))
                last, found = self._redis.shard(shard).execute_command(
                    *("EVAL", _TAKE_OVER, 1, self._keys.assignments(shard)),
                    *(ASSIGNMENT_GROUP, worker, self._worker, some, start),
                )
                taken += _readable(found)
                start = b"(" + last if last else b""
        return taken

    def num_pending(self, worker: WorkerId) -> int:
        """Streams that a worker owns, over all shards."""
        total = 0
        for shard in range(self._keys.shards):
            reply = self._redis.shard(shard).execute_command(
                "EVAL", _COUNT_PENDING, 1, self._keys.assignments(shard), ASSIGNMENT_GROUP, worker
            )
            total += int(reply)
        return total

    def forget_consumer(self, worker: WorkerId) -> bool:
        """Remove a worker that owns nothing from the groups; False when it owns something after all."""
        gone = True
        for shard in range(self._keys.shards):
            gone &= bool(
                self._redis.shard(shard).execute_command(
                    *("EVAL", _FORGET, 2, self._keys.assignments(shard), self._keys.ready(shard, worker)),
                    *(ASSIGNMENT_GROUP, worker),
                )
            )
        return gone

    def open(self, entries: Sequence[AssignmentEntry], together: int = 0) -> list[Opening]:
        """Become the owner of each of these streams, with its next epoch; answers in the same order.

        together: suspects that run in this process at once, these among them; 0 for an ordinary worker.

        Raises the client's error where a server did not answer: then some may have been opened all the same,
        which opening them again repeats without harm.
        """
        replies = self._redis.of_streams(
            [(entry.stream, self._opening(entry, together)) for entry in entries]
        )
        return [self._opened(entry, reply) for entry, reply in zip(entries, replies, strict=True)]

    def _opening(self, entry: AssignmentEntry, together: int) -> tuple[Any, ...]:
        keys = self._keys.stream(entry.stream)
        return (
            *("EVAL", _OPEN, 5, self._keys.assignments(keys.shard), keys.meta, keys.audio, keys.results),
            *(self._keys.ready(keys.shard, self._worker), ASSIGNMENT_GROUP, self._worker, entry.entry_id),
            *(entry.stream, READY_TTL_MS, together, self._chunk_ms),
        )

    def _opened(self, entry: AssignmentEntry, reply: Any) -> Opening:
        if isinstance(reply, Exception):
            return Refused(entry, reply)
        if reply[0] == b"suspect":
            return Suspect(entry)
        if reply[0] != b"owned":
            return None
        try:
            record = decode_record(entry.stream, reply[4])
        except EntryError as error:
            return Refused(entry, error)
        keys = self._keys.stream(entry.stream)
        return OwnedStream(keys, entry.entry_id, record, int(reply[2]), reply[3], bool(reply[5]))

    def within(self, entries: Sequence[AssignmentEntry]) -> list[int]:
        """For each suspect how many may run together with it, it included. Raises the client's errors."""
        replies = self._redis.of_streams(
            [(entry.stream, ("HGET", self._keys.stream(entry.stream).meta, "within")) for entry in entries]
        )
        _raise_first(replies)
        return [MAX_SUSPECTS if most is None else int(most) for most in replies]

    def give(self, entries: Sequence[AssignmentEntry], heir: WorkerId) -> list[bool]:
        """Make pending assignments of this worker another one's; False for one that is not ours any more.

        Raises the client's errors.
        """
        replies = self._redis.of_streams(
            [
                (
                    entry.stream,
                    (
                        *("EVAL", _GIVE, 1, self._keys.assignments(self._keys.shard_of(entry.stream))),
                        *(ASSIGNMENT_GROUP, self._worker, heir, entry.entry_id),
                    ),
                )
                for entry in entries
            ]
        )
        _raise_first(replies)
        return [bool(reply) for reply in replies]

    def let_go(self, streams: Sequence[OwnedStream], *, cleared: bool) -> None:
        """Say that the next owner takes over from a worker that lives: nobody has died of these streams.

        cleared: the stream got past what it was suspected for. Raises the client's errors.
        """
        replies = self._redis.of_streams(
            [
                (owned.stream, ("EVAL", _LET_GO, 1, owned.keys.meta, owned.epoch, int(cleared)))
                for owned in streams
            ]
        )
        _raise_first(replies)

    def snapshots(self, streams: Sequence[OwnedStream]) -> list[bytes | None]:
        """The engine state of each stream's checkpoint; None for one that begins at the beginning.

        All of them are in memory at once: the caller asks for a few at a time. Raises the client's errors.
        """
        found: list[bytes | None] = [None] * len(streams)
        stored = [index for index, owned in enumerate(streams) if owned.record.checkpoint.samples_decoded]
        replies = self._redis.of_streams(
            [(streams[index].stream, ("LRANGE", streams[index].keys.snapshot, 0, -1)) for index in stored]
        )
        _raise_first(replies)
        for index, pieces in zip(stored, replies, strict=True):
            found[index] = b"".join(pieces) or None
        return found

    def still_owned(self, streams: Sequence[OwnedStream]) -> list[bool]:
        """For each stream whether its record still names this worker and epoch.

        Raises the client's errors.
        """
        replies = self._redis.of_streams(
            [(owned.stream, ("HMGET", owned.keys.meta, "owner", "epoch")) for owned in streams]
        )
        _raise_first(replies)
        ours = self._worker.encode()
        return [
            owner == ours and int(epoch or 0) == owned.epoch
            for owned, (owner, epoch) in zip(streams, replies, strict=True)
        ]

    def finish(self, streams: Sequence[OwnedStream]) -> None:
        """End streams without a word to their clients; one that another worker has is left to it.

        Raises the client's errors.
        """
        _raise_first(
            self._redis.of_streams([(owned.stream, self.finish_command(owned)) for owned in streams])
        )

    def finish_command(self, owned: OwnedStream) -> tuple[Any, ...]:
        """The command that ends a stream: put behind its last result, in the same pipeline.

        Its reply is 1, or 0 where another worker owns the stream by now, or -1 where it had left Redis.
        """
        keys = owned.keys
        return (
            *("EVAL", _FINISH, 6, self._keys.assignments(keys.shard), keys.meta, keys.audio, keys.results),
            *(keys.snapshot, self._keys.ready(keys.shard, self._worker), ASSIGNMENT_GROUP, owned.entry_id),
            *(keys.stream, owned.epoch, FINISHED_STREAM_TTL_MS),
        )

    def checkpoint_commands(
        self, owned: OwnedStream, checkpoint: Checkpoint, snapshot: bytes
    ) -> Iterator[tuple[Any, ...]]:
        """The commands that store a checkpoint and trim the audio before it, in order.

        The last one makes it valid; its reply is 1, or 0 where the stream has ended or is another's by now.
        All of them may be repeated from the first.
        """
        keys = owned.keys
        # Of one stream, one snapshot may be on its way while another is handed over.
        staged = keys.staged_snapshot(owned.epoch, next(self._snapshots))
        yield ("EVAL", _STAGE, 1, staged, snapshot[:_PIECE_BYTES], STAGED_SNAPSHOT_TTL_MS)
        for at in range(_PIECE_BYTES, len(snapshot), _PIECE_BYTES):
            yield ("RPUSHX", staged, snapshot[at : at + _PIECE_BYTES])
        entry_id = checkpoint.entry_id
        fields: tuple[bytes | str | int, ...] = (
            *("ck_seq", checkpoint.seq),
            *(() if entry_id is None else ("ck_entry", entry_id)),
        )
        first_kept = b"0-1" if entry_id is None else next_entry_id(entry_id)
        yield (
            *("EVAL", _CHECKPOINT, 4, keys.meta, keys.audio, keys.snapshot, staged),
            *(
                owned.epoch,
                first_kept,
                -(-len(snapshot) // _PIECE_BYTES),
                checkpoint.samples_decoded,
                *fields,
            ),
        )


def _raise_first(replies: Iterable[Any]) -> None:
    """Raise the first refusal among replies."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply


def _readable(entries: Iterable[Sequence[Any]]) -> list[AssignmentEntry]:
    """Assignments of our layout; others are logged and left to a worker of theirs."""
    found = []
    for entry_id, flat in entries:
        try:
            entry = decode_assignment(entry_id, flat)
        except EntryError as error:
            logger.error("unreadable assignment", extra={"entry_id": entry_id.decode(), "reason": str(error)})
            continue
        if entry.version == LAYOUT_VERSION:
            found.append(entry)
        else:
            logger.error("assignment of another layout", extra={"stream_id": entry.stream})
    return found


# KEYS new; ARGV group, from, to, count, first id; gives the last id looked at where there may be more, and
# the entries.
_TAKE_OVER: Final = """
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[5], '+', ARGV[4], ARGV[2])
if pending.err or not pending[1] then return {'', {}} end
local ids = {}
for i, entry in ipairs(pending) do ids[i] = entry[1] end
local taken = redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[3], 0, unpack(ids))
local found = {}
for _, entry in ipairs(taken) do if entry then found[#found + 1] = entry end end
local last = #ids == tonumber(ARGV[4]) and ids[#ids] or ''
return {last, found}
"""

# KEYS new; ARGV group, worker, heir, entry.
_GIVE: Final = """
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[4], ARGV[4], 1)
if pending.err or not pending[1] or pending[1][2] ~= ARGV[2] then return 0 end
redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[3], 0, ARGV[4])
return 1
"""

# KEYS m; ARGV epoch, cleared.
_LET_GO: Final = """
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'let_go', ARGV[1])
if ARGV[2] == '1' then
  redis.call('HDEL', KEYS[1], 'died_at', 'died_to', 'deaths', 'alone', 'within')
end
return 1
"""

# KEYS new; ARGV group, worker.
_COUNT_PENDING: Final = """
local consumers = redis.pcall('XPENDING', KEYS[1], ARGV[1])
if consumers.err or not consumers[4] then return 0 end
for _, consumer in ipairs(consumers[4]) do if consumer[1] == ARGV[2] then return tonumber(consumer[2]) end end
return 0
"""

# KEYS new ready; ARGV group, worker. A consumer with pending entries stays: deleting it would lose them.
_FORGET: Final = """
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2])
if not pending.err and pending[1] then return 0 end
redis.call('DEL', KEYS[2])
redis.pcall('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
return 1
"""
