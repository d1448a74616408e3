"""Who may stream: the cluster's limit of streams, and the settings that all its processes share.

Scripts run on shard 0 by the clock of its server, so that ingresses need no common clock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final
from uuid import uuid4

from common.entries import LAYOUT_VERSION, StreamId
from common.errors import NoFreeStream, NoWorker, RedisUnavailable, SettingsMismatch
from common.redis.clients import REDIS_ERROR, AsyncCommands, SyncClient
from common.redis.keys import ADMIT_ONCE_TTL_MS, COUNTER_TTL_MS, REGISTER_TTL_MS, Keys
from common.redis.server_run import SERVER_RUN

# Part of --redis-maxmemory-mb from which no new stream is admitted, so that those that run have room:
# at the limit itself Redis refuses their audio.
_MEMORY_LIMIT: Final = 0.9
# A worker that lives renews its lease within so long of a pause of Redis, in which all leases lapse...
_RENEWAL_S: Final = 2.0
_ASK_AGAIN_S: Final = 0.1
# ... and one whose lease lapsed longer ago is not waited for.
_MAY_COME_BACK_MS: Final = 30_000
# Streams that a server may have admitted in its last moments and forgotten, and many more.
_FORGOTTEN_STREAMS: Final = 100_000

# Gives {1, stream id}, or {0, 'full' or 'no_worker', number of workers whose lease lapsed just now}. What
# workers can take together bounds the cluster as --max-num-streams does; a worker that drains takes nothing
# new but keeps what it has. Memory is that of the server of shard 0, on which this runs.
#
# In each run of the server ids begin at its clock, in milliseconds: what an earlier run gave and this one has
# forgotten, its counter included, is less as long as fewer than a thousand streams a second are admitted. A
# server whose clock is behind goes on from the counter, beyond what it may have forgotten.
_ADMIT: Final = f"""
local given = redis.call('GET', KEYS[4])
if given then return {{1, tonumber(given)}} end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local limit = 0
local open = false
local lapsed = redis.call('ZCOUNT', KEYS[3], now - {_MAY_COME_BACK_MS}, now)
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '(' .. now, '+inf')) do
  local state = redis.call('HMGET', ARGV[3] .. worker, 'capacity', 'draining', 'owned')
  if state[1] and state[2] ~= '1' then
    open = true
    limit = limit + tonumber(state[1])
  else
    limit = limit + tonumber(state[3] or '0')
  end
end
if not open then return {{0, 'no_worker', lapsed}} end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
local admitted = redis.call('ZCARD', KEYS[2])
if admitted >= tonumber(ARGV[1]) then return {{0, 'full', 0}} end
if admitted >= limit then return {{0, 'full', lapsed}} end
local memory = redis.call('INFO', 'memory')
local most = tonumber(string.match(memory, '\\nmaxmemory:(%d+)'))
local used = tonumber(string.match(memory, '\\nused_memory:(%d+)'))
if most > 0 and used > most * {_MEMORY_LIMIT} then return {{0, 'full', 0}} end
local stream = tonumber(ARGV[7])
if stream == 0 then
  local run = {SERVER_RUN}
  if redis.call('GET', KEYS[5]) ~= run then
    local last = tonumber(redis.call('GET', KEYS[1]) or '0')
    redis.call('SET', KEYS[1], string.format('%d', math.max(now, last + {_FORGOTTEN_STREAMS})))
  end
  redis.call('SET', KEYS[5], run, 'PX', ARGV[5])
  stream = redis.call('INCR', KEYS[1])
  redis.call('PEXPIRE', KEYS[1], ARGV[5])
end
redis.call('ZADD', KEYS[2], now + ARGV[2], stream)
redis.call('PEXPIRE', KEYS[2], ARGV[6])
redis.call('SET', KEYS[4], stream, 'PX', ARGV[4])
return {{1, stream}}
"""

# Puts the expiry of every stream forward; one that had lapsed is admitted again, since it streams.
_RENEW: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i = 3, #ARGV do redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return #ARGV - 2
"""

# Gives the first setting that differs as {name, value of the cluster}, or {}.
_AGREE: Final = """
for i = 2, #ARGV, 2 do
  local have = redis.call('HGET', KEYS[1], ARGV[i])
  if have and have ~= ARGV[i + 1] then return {ARGV[i], have} end
end
for i = 2, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return {}
"""

# More arguments than this would overflow the stack on which the server unpacks a script's arguments.
_MAX_RENEWALS: Final = 2000


@dataclass(frozen=True, slots=True)
class SharedSettings:
    """Settings that must be the same in all processes of a cluster, kept while one of them lives."""

    max_num_streams: int
    sample_rate: int
    shards: int
    layout_version: int = LAYOUT_VERSION

    def flat(self) -> list[str | int]:
        """Names and values, flat."""
        return [item for pair in asdict(self).items() for item in pair]


class Admission:
    """Admissions of streams, as an ingress uses them.

    client: of shard 0. Calls raise RedisUnavailable when it does not answer in time or refuses.
    """

    def __init__(self, client: AsyncCommands, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    async def admit(self, max_num_streams: int, ttl_ms: int, stream: StreamId | None = None) -> StreamId:
        """Admit one more stream for `ttl_ms`, after which `renew` must have been called.

        stream: the id of one that was admitted and released before it began; a new id where it is None.

        Leases lapse while Redis pauses: where one has lapsed just now, this asks again for a moment, in which
        its worker can renew it.

        Raises NoFreeStream when the cluster is full, NoWorker when no worker takes streams.
        """
        deadline: float | None = None  # counted from the first answer, which comes when the pause is over
        while True:
            granted, answer, *lapsed = await self._ask(max_num_streams, ttl_ms, stream)
            if granted == 1:
                return StreamId(int(answer))
            now = time.monotonic()
            deadline = now + _RENEWAL_S if deadline is None else deadline
            if not any(lapsed) or now > deadline:
                raise NoFreeStream if answer == b"full" else NoWorker
            await asyncio.sleep(_ASK_AGAIN_S)

    async def _ask(self, max_num_streams: int, ttl_ms: int, stream: StreamId | None) -> Any:
        keys = self._keys
        return await self._script(
            _ADMIT,
            (
                keys.stream_counter,
                keys.admissions,
                keys.workers,
                keys.admit_once(uuid4().hex),
                keys.counter_run,
            ),
            (
                max_num_streams,
                ttl_ms,
                keys.worker_hash_stem,
                ADMIT_ONCE_TTL_MS,
                COUNTER_TTL_MS,
                REGISTER_TTL_MS,
                stream or 0,
            ),
        )

    async def renew(self, streams: Iterable[StreamId], ttl_ms: int) -> None:
        """Put the expiry of these admissions forward to `ttl_ms` from now."""
        ids = list(streams)
        for at in range(0, len(ids), _MAX_RENEWALS):
            await self._script(
                _RENEW, (self._keys.admissions,), (ttl_ms, REGISTER_TTL_MS, *ids[at : at + _MAX_RENEWALS])
            )

    async def release(self, stream: StreamId) -> None:
        """Give an admission back. Harmless when it is gone."""
        try:
            await self._client.execute_command("ZREM", self._keys.admissions, stream)
        except (REDIS_ERROR, OSError) as error:
            raise RedisUnavailable from error

    async def agree(self, settings: SharedSettings, ttl_ms: int) -> None:
        """State the settings of this process; called at start and renewed with every heartbeat.

        Raises SettingsMismatch when the cluster runs with another value.
        """
        differing = await self._script(_AGREE, (self._keys.settings,), (ttl_ms, *settings.flat()))
        if differing:
            name, value = (item.decode() for item in differing)
            raise _mismatch(name, getattr(settings, name), value)

    async def _script(
        self, script: str, keys: Sequence[bytes], arguments: Sequence[bytes | int | str]
    ) -> Any:
        try:
            return await self._client.execute_command("EVAL", script, len(keys), *keys, *arguments)
        except (REDIS_ERROR, OSError) as error:
            raise RedisUnavailable from error


_FLAGS: Final = {
    "max_num_streams": "--max-num-streams",
    "sample_rate": "--sample-rate",
    "shards": "--redis-shards (or the number of --redis-url)",
    "layout_version": "the layout version",
}


def _mismatch(name: str, ours: int, theirs: str | int) -> SettingsMismatch:
    flag = _FLAGS.get(name, name)
    return SettingsMismatch(
        f"{flag} is {ours} here, and the running cluster has {theirs}: all its processes share it."
    )


def check_cluster_agrees(client: SyncClient, keys: Keys, settings: SharedSettings) -> None:
    """Check what `Admission.agree` would, and write nothing: before any process is started.

    Raises SettingsMismatch. Nothing is checked while no ingress runs: the first one decides.
    """
    ours = asdict(settings)
    theirs = client.execute_command("HMGET", keys.settings, *ours)
    for (name, value), have in zip(ours.items(), theirs, strict=True):
        if have is not None and int(have) != value:
            raise _mismatch(name, value, int(have))


def check_worker_agrees(client: SyncClient, keys: Keys) -> None:
    """Check at a worker's start that it reads the layout that the running cluster writes.

    Raises SettingsMismatch. Nothing is checked while no ingress runs: the first one decides.
    """
    version, shards = client.execute_command("HMGET", keys.settings, "layout_version", "shards")
    if version is not None and int(version) != LAYOUT_VERSION:
        raise SettingsMismatch(
            f"This worker reads layout version {LAYOUT_VERSION}, the running cluster writes {int(version)}."
        )
    if shards is not None and int(shards) != keys.shards:
        raise _mismatch("shards", keys.shards, int(shards))
