"""Who is alive: the leases of workers and the presence of ingresses.

A worker has one lease, and owns its streams while the lease holds. Times are those of shard 0's
server, so that nobody's clock matters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from common.entries import IngressId, WorkerId
from common.errors import RedisUnavailable
from common.redis.clients import REDIS_ERROR, AsyncCommands, SyncClient
from common.redis.keys import INGRESS_HASH_TTL_MS, REGISTER_TTL_MS, WORKER_HASH_TTL_MS, Keys

# KEYS register; ARGV member, ttl, register ttl. Gives 1 where the member was alive, 0 where its time
# had passed, -1 where it was unknown.
_RENEW: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local until_ms = redis.call('ZSCORE', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
if not until_ms then return -1 end
if tonumber(until_ms) <= now then return 0 end
return 1
"""

# KEYS register. Gives those whose time has passed.
_LAPSED: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)
"""

# KEYS register; ARGV members. Gives those that are unknown or whose time has passed.
_MISSING: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local missing = {}
for _, member in ipairs(ARGV) do
  local until_ms = redis.call('ZSCORE', KEYS[1], member)
  if not until_ms or tonumber(until_ms) <= now then missing[#missing + 1] = member end
end
return missing
"""

# An ingress counts as gone after so many heartbeats in a row that it missed, and no sooner than this.
_MISSED_BEATS: Final = 4
_LEAST_ALIVE_MS: Final = 2_000

# KEYS workers, hash; ARGV worker. Removes a worker whose time has passed; one that came back stays.
_FORGET: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local until_ms = redis.call('ZSCORE', KEYS[1], ARGV[1])
if until_ms and tonumber(until_ms) > now then return 0 end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2])
return 1
"""


class Renewal(Enum):
    """How a renewal found the lease."""

    HELD = 1
    LAPSED = 0  # it had run out: other workers may have taken streams
    NEW = -1


class WorkerLease:
    """The lease of one worker.

    client: of shard 0, not shared with a thread that may be slow. Calls raise the client's errors.
    """

    def __init__(self, client: SyncClient, keys: Keys, worker: WorkerId, lease_ms: int) -> None:
        self._client = client
        self._keys = keys
        self._worker = worker
        self._lease_ms = lease_ms

    def renew(self) -> Renewal:
        """Take or renew the lease for `lease_ms`."""
        reply = self._client.execute_command(
            "EVAL", _RENEW, 1, self._keys.workers, self._worker, self._lease_ms, REGISTER_TTL_MS
        )
        return Renewal(int(reply))

    def report(self, fields: Mapping[str, str | int | float]) -> None:
        """Write the worker's hash (common/streams/status.py says what is in it)."""
        key = self._keys.worker(self._worker)
        pipe = self._client.pipeline(transaction=True)
        pipe.hset(key, mapping=dict(fields))
        pipe.pexpire(key, WORKER_HASH_TTL_MS)
        pipe.execute()

    def release(self) -> None:
        """Let the lease lapse now: other workers take over at once what is still owned."""
        pipe = self._client.pipeline(transaction=True)
        pipe.zadd(self._keys.workers, {self._worker: 0}, xx=True)
        pipe.delete(self._keys.worker(self._worker))
        pipe.execute()

    def lapsed_workers(self) -> list[WorkerId]:
        """Workers other than this one whose lease has lapsed and that nobody has cleaned up after."""
        reply = self._client.execute_command("EVAL", _LAPSED, 1, self._keys.workers)
        return [worker for member in reply if (worker := WorkerId(member.decode())) != self._worker]

    def forget(self, worker: WorkerId) -> bool:
        """Remove what a worker without streams has left; False when its lease holds again."""
        return bool(
            self._client.execute_command(
                "EVAL", _FORGET, 2, self._keys.workers, self._keys.worker(worker), worker
            )
        )

    def missing_ingresses(self, ingresses: Iterable[IngressId]) -> set[IngressId]:
        """Those of the ingresses that count as gone."""
        names = list(ingresses)
        if not names:
            return set()
        reply = self._client.execute_command("EVAL", _MISSING, 1, self._keys.ingresses, *names)
        return {IngressId(name.decode()) for name in reply}


@dataclass(frozen=True, slots=True)
class IngressReport:
    """What an ingress says of itself in its hash.

    started_ms: Unix time. connections: open sockets, with or without a stream.
    """

    started_ms: int
    connections: int
    port: int = 0
    ws_port: int = 0
    status_port: int = 0
    draining: bool = False


class IngressPresence:
    """The heartbeat of one ingress. client: of shard 0. Calls raise RedisUnavailable.

    heartbeat_ms: time from one beat to the next.
    """

    def __init__(
        self, client: AsyncCommands, keys: Keys, ingress: IngressId, heartbeat_ms: float = 1000
    ) -> None:
        self._alive_ms = max(_LEAST_ALIVE_MS, int(_MISSED_BEATS * heartbeat_ms))
        self._client = client
        self._keys = keys
        self._ingress = ingress

    async def beat(self, report: IngressReport) -> None:
        """Write the hash, and into the register until when the ingress counts as alive."""
        key = self._keys.ingress(self._ingress)
        fields: dict[str, str | int] = {
            "started_ms": report.started_ms,
            "connections": report.connections,
            "port": report.port,
            "ws_port": report.ws_port,
            "status_port": report.status_port,
            "draining": int(report.draining),
        }
        hash_ttl_ms = max(INGRESS_HASH_TTL_MS, self._alive_ms)
        arguments: Sequence[str | int] = (self._ingress, self._alive_ms, REGISTER_TTL_MS, hash_ttl_ms)
        flat = [item for pair in fields.items() for item in pair]
        try:
            await self._client.execute_command("EVAL", _BEAT, 2, self._keys.ingresses, key, *arguments, *flat)
        except (REDIS_ERROR, OSError) as error:
            raise RedisUnavailable from error

    async def others_serve(self) -> bool:
        """Whether another ingress is alive and does not drain."""
        stem = self._keys.ingress_hash_stem
        try:
            reply = await self._client.execute_command(
                "EVAL", _OTHERS_SERVE, 1, self._keys.ingresses, self._ingress, stem
            )
        except (REDIS_ERROR, OSError) as error:
            raise RedisUnavailable from error
        return bool(reply)

    async def leave(self) -> None:
        """Remove the ingress from the register and drop its hash."""
        try:
            await self._client.execute_command("ZREM", self._keys.ingresses, self._ingress)
            await self._client.execute_command("DEL", self._keys.ingress(self._ingress))
        except (REDIS_ERROR, OSError) as error:
            raise RedisUnavailable from error


# KEYS register, hash; ARGV ingress, time alive, register ttl, hash ttl, then the hash's fields. Also forgets
# ingresses that went without a word.
_BEAT: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('HSET', KEYS[2], unpack(ARGV, 5))
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return 1
"""

# KEYS register; ARGV ingress, what stands before an ingress in the key of its hash.
_OTHERS_SERVE: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, ingress in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf')) do
  if ingress ~= ARGV[1] and redis.call('HGET', ARGV[2] .. ingress, 'draining') == '0' then return 1 end
end
return 0
"""
