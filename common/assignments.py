"""A stream's record, and its way from the ingress that creates it to the worker that owns it.

An assignment is one entry in `px:{k}:new`. The worker whose consumer has it pending owns the stream;
the entry leaves at the stream's end. The record (`px:{k}:<sid>:m`) carries the epoch: it counts the
owners, and every write of an owner that must not outlive its ownership checks it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from common.entries import (
    LAYOUT_VERSION,
    AssignmentEntry,
    IngressId,
    StreamId,
    WorkerId,
    decode_assignment,
    next_entry_id,
)
from common.errors import EntryError, RedisUnavailable
from common.keys import (
    ASSIGNMENT_GROUP,
    FINISHED_STREAM_TTL_MS,
    READY_TTL_MS,
    REGISTER_TTL_MS,
    RESULTS_MAX_LENGTH,
    Keys,
    StreamKeys,
)
from common.options import StreamOptions, decode_options, encode_options
from common.redis import REDIS_ERROR, RESPONSE_ERROR, AsyncRedis, SyncClient, SyncRedis

logger = logging.getLogger(__name__)

# KEYS m a new; ARGV ttl, register ttl, sid, version, then the record's fields. A repeat does nothing.
_CREATE: Final = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 5))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
redis.call('XGROUP', 'CREATE', KEYS[2], 'asr-0', '0', 'MKSTREAM')
redis.call('PEXPIRE', KEYS[2], ARGV[1])
redis.call('XADD', KEYS[3], '*', 'sid', ARGV[3], 'v', ARGV[4])
redis.call('PEXPIRE', KEYS[3], ARGV[2])
return 1
"""

# KEYS new m a r ready; ARGV group wid entry sid ready-ttl. Gives {'gone'}, {'lost'} or
# {'owned', epoch, last seq, record}. The audio group of the new epoch begins at the checkpoint. The
# entry with seq 0 fences: after it, an earlier owner can add no result.
_OPEN: Final = f"""
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1)
if pending.err or not pending[1] or pending[1][2] ~= ARGV[2] then return {{'lost'}} end
if redis.call('EXISTS', KEYS[2]) == 0 or redis.call('HGET', KEYS[2], 'finished') then
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
  redis.call('XDEL', KEYS[1], ARGV[3])
  return {{'gone'}}
end
local epoch = redis.call('HINCRBY', KEYS[2], 'epoch', 1)
redis.call('HSET', KEYS[2], 'owner', ARGV[2])
local ttl = redis.call('HGET', KEYS[2], 'ttl_ms')
local start = redis.call('HGET', KEYS[2], 'ck_entry') or '0'
redis.call('XGROUP', 'CREATE', KEYS[3], 'asr-' .. epoch, start, 'MKSTREAM')
redis.call('XGROUP', 'DESTROY', KEYS[3], 'asr-' .. (epoch - 1))
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
return {{'owned', epoch, seq, notice, redis.call('HGETALL', KEYS[2])}}
"""

# KEYS new m a r s ready; ARGV group, entry, sid, epoch, ttl. Gives 1, 0 where the epoch is another's,
# -1 where the stream had left Redis.
_FINISH: Final = """
local epoch = redis.call('HGET', KEYS[2], 'epoch')
if epoch and epoch ~= ARGV[4] then return 0 end
redis.pcall('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
redis.call('DEL', KEYS[3], KEYS[5])
redis.call('ZREM', KEYS[6], ARGV[3])
redis.call('PEXPIRE', KEYS[4], ARGV[5])
if not epoch then return -1 end
redis.call('HSET', KEYS[2], 'finished', '1')
redis.call('PEXPIRE', KEYS[2], ARGV[5])
return 1
"""

# KEYS m a s; ARGV epoch, first id kept, snapshot, then the checkpoint's fields. Gives 1, or 0 where
# the epoch is another's.
_CHECKPOINT: Final = """
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 4))
redis.call('SET', KEYS[3], ARGV[3], 'PX', redis.call('HGET', KEYS[1], 'ttl_ms'))
redis.call('XTRIM', KEYS[2], 'MINID', ARGV[2])
return 1
"""


@dataclass(frozen=True, slots=True)
class NewStream:
    """What an ingress knows of a stream that begins.

    token_hash: of the secret that `resume` has to show, empty for none.
    ttl_ms: life of the stream's keys without a renewal.
    grace_ms: how long the stream waits for a resume after its ingress died or its client left.
    """

    stream: StreamId
    ingress: IngressId
    options: StreamOptions
    sample_rate: int
    token_hash: str
    created_ms: int
    ttl_ms: int
    grace_ms: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a new owner begins.

    entry_id: last audio entry that a replay does not need; None from the beginning.
    samples_decoded: 16 kHz samples that the snapshot covers. seq: last result before it.
    """

    entry_id: bytes | None = None
    samples_decoded: int = 0
    seq: int = 0


@dataclass(frozen=True, slots=True)
class StreamRecord:
    """The record of a stream as Redis has it; `owner` is None and `epoch` 0 before the first claim."""

    stream: StreamId
    ingress: IngressId
    options: StreamOptions
    sample_rate: int
    token_hash: str
    created_ms: int
    ttl_ms: int
    grace_ms: int
    owner: WorkerId | None
    epoch: int
    checkpoint: Checkpoint
    finished: bool


def decode_record(stream: StreamId, flat: Sequence[bytes]) -> StreamRecord:
    """Read the hash of a stream from names and values, flat. Raises EntryError."""
    fields = dict(zip(flat[::2], flat[1::2], strict=False))
    try:
        owner = fields.get(b"owner")
        return StreamRecord(
            stream,
            IngressId(fields[b"ingress"].decode()),
            decode_options(fields[b"options"]),
            int(fields[b"sample_rate"]),
            fields[b"token"].decode(),
            int(fields[b"created_ms"]),
            int(fields[b"ttl_ms"]),
            int(fields[b"grace_ms"]),
            None if owner is None else WorkerId(owner.decode()),
            int(fields[b"epoch"]),
            Checkpoint(
                fields.get(b"ck_entry"), int(fields.get(b"ck_samples", 0)), int(fields.get(b"ck_seq", 0))
            ),
            b"finished" in fields,
        )
    except (KeyError, ValueError) as error:
        raise EntryError(f"The record of stream {stream} cannot be read: {error!r}") from error


class StreamDirectory:
    """Streams as an ingress creates, keeps and removes them.

    Calls raise RedisUnavailable when a server does not answer in time or refuses.
    """

    def __init__(self, redis: AsyncRedis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def create(self, new: NewStream) -> StreamKeys:
        """Write the record, make the stream's audio, and offer the stream to the workers.

        One call; a repeat changes nothing.
        """
        keys = self._keys.stream(new.stream)
        record: list[bytes | str | int] = [
            *("ingress", new.ingress, "options", encode_options(new.options)),
            *("sample_rate", new.sample_rate, "token", new.token_hash, "created_ms", new.created_ms),
            *("ttl_ms", new.ttl_ms, "grace_ms", new.grace_ms, "epoch", 0),
        ]
        await self._execute(
            new.stream,
            *("EVAL", _CREATE, 3, keys.meta, keys.audio, self._keys.assignments(keys.shard)),
            *(new.ttl_ms, REGISTER_TTL_MS, new.stream, LAYOUT_VERSION, *record),
        )
        return keys

    async def read(self, stream: StreamId) -> StreamRecord | None:
        """The record of a stream, or None when it is gone."""
        flat = await self._execute(stream, "EVAL", _READ, 1, self._keys.stream(stream).meta)
        return decode_record(stream, flat) if flat else None

    async def attach(self, stream: StreamId, ingress: IngressId) -> int:
        """Move a stream to another ingress; gives the number of the new connection.

        The ingress then appends an audio entry with that connection number and its own id, which
        tells the worker, and closes the log to the connection before. Gives 0 for a stream that is gone.
        """
        return int(await self._execute(stream, "EVAL", _ATTACH, 1, self._keys.stream(stream).meta, ingress))

    async def renew(self, streams: Iterable[StreamKeys], ttl_ms: int) -> list[StreamId]:
        """Put the expiry of all keys of these streams forward; gives those whose record is gone."""
        by_server: dict[int, list[StreamKeys]] = {}
        for keys in streams:
            by_server.setdefault(self._redis.servers.server_of_shard(keys.shard), []).append(keys)
        gone: list[StreamId] = []
        for server, group in by_server.items():
            for at in range(0, len(group), _RENEW_BATCH):
                part = group[at : at + _RENEW_BATCH]
                pipe = self._redis.clients[server].pipeline(transaction=False)
                for keys in part:
                    for key in (keys.meta, keys.audio, keys.results, keys.snapshot):
                        pipe.pexpire(key, ttl_ms)
                try:
                    replies = await pipe.execute()
                except (REDIS_ERROR, OSError) as error:
                    raise RedisUnavailable from error
                gone += [keys.stream for keys, kept in zip(part, replies[::4], strict=True) if not kept]
        return gone

    async def withdraw(self, keys: StreamKeys) -> bool:
        """Take a stream back that no worker has claimed; False when one has, and will end it."""
        return bool(
            await self._execute(keys.stream, "EVAL", _WITHDRAW, 3, keys.meta, keys.audio, keys.results)
        )

    async def remove(self, keys: StreamKeys) -> None:
        """Delete what a finished stream has left, after its last result was delivered."""
        await self._execute(keys.stream, "DEL", keys.results, keys.meta)

    async def _execute(self, stream: StreamId, *command: bytes | str | int) -> Any:
        try:
            server = self._redis.servers.server_of_shard(self._keys.shard_of(stream))
            return await self._redis.execute(server, *command)
        except (REDIS_ERROR, OSError) as error:
            raise RedisUnavailable from error


_RENEW_BATCH: Final = 500
# As a script, so that a RESP2 reply comes flat.
_READ: Final = "return redis.call('HGETALL', KEYS[1])"
# KEYS m a r. A worker that claims the stream later finds it gone, and removes its assignment.
_WITHDRAW: Final = """
if redis.call('HGET', KEYS[1], 'owner') then return 0 end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
return 1
"""
_ATTACH: Final = """
if redis.call('EXISTS', KEYS[1]) == 0 or redis.call('HGET', KEYS[1], 'finished') then return 0 end
redis.call('HSET', KEYS[1], 'ingress', ARGV[1])
redis.call('HSETNX', KEYS[1], 'connection', 1)
return redis.call('HINCRBY', KEYS[1], 'connection', 1)
"""


@dataclass(frozen=True, slots=True)
class OwnedStream:
    """A stream that this worker owns, as it was when the worker opened it.

    entry_id: its assignment. last_seq: last result that an earlier owner may have published; results
    of a replay up to it are not sent again. notice: JSON of the owner notice, to be published.
    """

    keys: StreamKeys
    entry_id: bytes
    record: StreamRecord
    last_seq: int
    notice: bytes

    @property
    def stream(self) -> StreamId:
        """The stream."""
        return self.keys.stream

    @property
    def epoch(self) -> int:
        """The epoch of this ownership."""
        return self.record.epoch


class Claims:
    """Assignments as a worker takes, opens and ends them. May be used by several threads."""

    def __init__(self, redis: SyncRedis, keys: Keys, worker: WorkerId) -> None:
        self._redis = redis
        self._keys = keys
        self._worker = worker

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

    def own_pending(self, count: int) -> list[AssignmentEntry]:
        """Streams that a process with this worker's id owned before."""
        return self.pending_of(self._worker, count)

    def pending_of(self, worker: WorkerId, count: int) -> list[AssignmentEntry]:
        """Take over up to `count` streams of a worker whose lease has lapsed.

        Of two workers that do this at once, each gets different streams.
        """
        taken: list[AssignmentEntry] = []
        for shard in range(self._keys.shards):
            if len(taken) >= count:
                break
            reply = self._redis.shard(shard).execute_command(
                *("EVAL", _TAKE_OVER, 1, self._keys.assignments(shard)),
                *(ASSIGNMENT_GROUP, worker, self._worker, count - len(taken)),
            )
            taken += _readable(reply)
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

    def open(self, entry: AssignmentEntry) -> OwnedStream | None:
        """Become the owner of a stream, with the next epoch.

        Gives None for a stream that has ended or that another worker has taken by now.
        """
        keys = self._keys.stream(entry.stream)
        reply = self._redis.stream(entry.stream).execute_command(
            *("EVAL", _OPEN, 5, self._keys.assignments(keys.shard), keys.meta, keys.audio, keys.results),
            *(self._keys.ready(keys.shard, self._worker), ASSIGNMENT_GROUP, self._worker, entry.entry_id),
            *(entry.stream, READY_TTL_MS),
        )
        if reply[0] != b"owned":
            return None
        return OwnedStream(
            keys, entry.entry_id, decode_record(entry.stream, reply[4]), int(reply[2]), reply[3]
        )

    def snapshot(self, owned: OwnedStream) -> bytes | None:
        """The engine state of the stream's checkpoint; None to begin at the beginning."""
        if owned.record.checkpoint.samples_decoded == 0:
            return None
        data: bytes | None = self._redis.stream(owned.stream).execute_command("GET", owned.keys.snapshot)
        return data

    def still_owned(self, streams: Sequence[OwnedStream]) -> list[bool]:
        """For each stream whether its record still names this worker and epoch."""
        answers: list[bool] = []
        for owned in streams:
            owner, epoch = self._redis.stream(owned.stream).execute_command(
                "HMGET", owned.keys.meta, "owner", "epoch"
            )
            answers.append(
                owner is not None
                and epoch is not None
                and owner.decode() == self._worker
                and int(epoch) == owned.epoch
            )
        return answers

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

    def checkpoint_command(
        self, owned: OwnedStream, checkpoint: Checkpoint, snapshot: bytes
    ) -> tuple[Any, ...]:
        """The command that stores a checkpoint and trims the audio before it; its reply is 1 or 0."""
        keys = owned.keys
        entry_id = checkpoint.entry_id
        fields: tuple[bytes | str | int, ...] = (
            *("ck_samples", checkpoint.samples_decoded, "ck_seq", checkpoint.seq),
            *(() if entry_id is None else ("ck_entry", entry_id)),
        )
        first_kept = b"0-1" if entry_id is None else next_entry_id(entry_id)
        return (
            *("EVAL", _CHECKPOINT, 3, keys.meta, keys.audio, keys.snapshot),
            *(owned.epoch, first_kept, snapshot, *fields),
        )


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


# KEYS new; ARGV group, from, to, count.
_TAKE_OVER: Final = """
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], '-', '+', ARGV[4], ARGV[2])
if pending.err or not pending[1] then return {} end
local ids = {}
for i, entry in ipairs(pending) do ids[i] = entry[1] end
local taken = redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[3], 0, unpack(ids))
local found = {}
for _, entry in ipairs(taken) do if entry then found[#found + 1] = entry end end
return found
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
