"""The leases of workers and the presence of ingresses, which show which processes are alive.

A worker has one lease, and owns its streams while the lease holds. Times are those of shard 0's
server, so that the clocks of the processes do not matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final
from uuid import uuid4

from common.entries import IngressId, WorkerId
from common.errors import RedisUnavailable
from common.redis.clients import REDIS_ERROR, PipelinedCommands
from common.redis.keys import INGRESS_HASH_TTL_MS, Keys
from common.redis.pipelined import SyncClient
from common.redis.scripts import presence as scripts

# An ingress counts as gone after this many missed heartbeats in a row, and no sooner than this time.
_MISSED_BEATS: Final = 4
_LEAST_ALIVE_MS: Final = 2_000


class Renewal(Enum):
    """The state in which a renewal found the lease."""

    HELD = 1
    LAPSED = 0  # it had run out: other workers may have taken streams
    NEW = -1


class WorkerLease:
    """The lease of one worker.

    client: client of shard 0, not shared with a thread that may be slow. Calls raise the client's errors.
    """

    def __init__(self, client: SyncClient, keys: Keys, worker: WorkerId, lease_ms: int) -> None:
        self._client = client
        self._keys = keys
        self._worker = worker
        self._lease_ms = lease_ms
        self._process = uuid4().hex

    def end_ms(self) -> int:
        """Return when the lease ends, whoever holds it, by Redis' clock; 0 where nobody holds it."""
        return int(self._client.execute_command(*scripts.lease_end(self._keys, worker=self._worker)))

    def renew(self, *, begins: bool = False) -> Renewal:
        """Take or renew the lease for `lease_ms`.

        Where it had lapsed, workers whose leases lapsed with it have this time, too: Redis stood still.

        begins: whether a process starts with it. The lease of its predecessor has lapsed by itself.
        """
        command = scripts.renew_lease(self._keys, worker=self._worker, ttl_ms=self._lease_ms, begins=begins)
        return Renewal(int(self._client.execute_command(*command)))

    def report(self, fields: Mapping[str, str | int | float], *, takes: bool = False) -> bool:
        """Write the worker's hash (common/presence/status.py has its fields).

        Returns False, and writes nothing, if another process has written it since; not where this one `takes`
        the name.
        """
        flat = [item for pair in fields.items() for item in pair]
        command = scripts.report(
            self._keys, worker=self._worker, process=self._process, takes=takes, fields=flat
        )
        return bool(self._client.execute_command(*command))

    def release(self) -> None:
        """Let the lease lapse now: other workers take over the streams that it still owns at once."""
        self._client.execute_command(*scripts.release_lease(self._keys, worker=self._worker))

    def lapsed_workers(self) -> list[WorkerId]:
        """Return other workers whose lease has lapsed and that no worker has cleaned up after.

        None while this worker has no lease itself: all leases lapse while Redis stands still.
        """
        reply = self._client.execute_command(*scripts.lapsed_workers(self._keys, worker=self._worker))
        return [WorkerId(member.decode()) for member in reply]

    def register(self, owners: Iterable[WorkerId]) -> int:
        """Give workers that own streams and are not registered a lease; return how many these were.

        Without it nobody would take their streams over if they are dead.
        """
        command = scripts.register_owners(self._keys, ttl_ms=self._lease_ms, owners=owners)
        return int(self._client.execute_command(*command))

    def remove(self, worker: WorkerId) -> bool:
        """Remove the keys of a worker without streams; return False if its lease holds again."""
        return bool(self._client.execute_command(*scripts.remove_worker(self._keys, worker=worker)))

    def missing_ingresses(self, ingresses: Iterable[IngressId]) -> set[IngressId]:
        """Return those of the ingresses that count as gone."""
        names = list(ingresses)
        if not names:
            return set()
        reply = self._client.execute_command(*scripts.missing_ingresses(self._keys, ingresses=names))
        return {IngressId(name.decode()) for name in reply}


@dataclass(frozen=True, slots=True)
class IngressReport:
    """The status of an ingress in its hash.

    started_ms: Unix time. connections: open sockets, with or without a stream.
    """

    started_ms: int
    connections: int
    port: int = 0
    ws_port: int = 0
    status_port: int = 0
    draining: bool = False


@dataclass(frozen=True, slots=True)
class IngressPlace:
    """The place of an ingress among all live ones, by their names: `rank` of `count`, from 0 on."""

    rank: int
    count: int


class IngressPresence:
    """The heartbeat of one ingress. client: client of shard 0. Calls raise RedisUnavailable.

    heartbeat_ms: time from one beat to the next.
    """

    def __init__(
        self, client: PipelinedCommands, keys: Keys, ingress: IngressId, heartbeat_ms: float = 1000
    ) -> None:
        self._alive_ms = max(_LEAST_ALIVE_MS, int(_MISSED_BEATS * heartbeat_ms))
        self._client = client
        self._keys = keys
        self._ingress = ingress

    async def beat(self, report: IngressReport) -> IngressPlace:
        """Write the hash, and the time until which the ingress counts as alive into the register.

        Returns its place among the live ingresses.
        """
        fields: dict[str, str | int] = {
            "started_ms": report.started_ms,
            "connections": report.connections,
            "port": report.port,
            "ws_port": report.ws_port,
            "status_port": report.status_port,
            "draining": int(report.draining),
        }
        hash_ttl_ms = max(INGRESS_HASH_TTL_MS, self._alive_ms)
        command = scripts.beat(
            self._keys,
            ingress=self._ingress,
            alive_ms=self._alive_ms,
            hash_ttl_ms=hash_ttl_ms,
            fields=[item for pair in fields.items() for item in pair],
        )
        try:
            rank, count = await self._client.execute_command(*command)
        except (REDIS_ERROR, OSError) as error:
            raise RedisUnavailable from error
        return IngressPlace(int(rank), int(count))

    async def others_serve(self) -> bool:
        """Return whether another ingress is alive and does not drain."""
        try:
            reply = await self._client.execute_command(
                *scripts.others_serve(self._keys, ingress=self._ingress)
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
