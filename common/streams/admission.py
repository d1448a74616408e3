"""Admission of streams by the cluster's limit, and the settings that all processes share.

Scripts run on shard 0 by the clock of its server, so that ingresses need no common clock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final
from uuid import uuid4

from common.entries import LAYOUT_VERSION, StreamId
from common.errors import NO_MEMORY_SENTENCE, NoFreeStream, NoWorker, RedisUnavailable, SettingsMismatch
from common.redis.clients import REDIS_ERROR, PipelinedCommands
from common.redis.keys import Keys
from common.redis.pipelined import SyncClient
from common.redis.scripts import Command
from common.redis.scripts import admission as scripts

# A live worker renews its lease within this time after a pause of Redis, in which all leases lapse: it may
# wait for a reply that was lost, for --redis-timeout-ms.
_RENEWAL_S: Final = 5.0
_ASK_AGAIN_S: Final = 0.1


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
    """The admissions of streams, for an ingress.

    client: client of shard 0. Calls raise RedisUnavailable when it does not answer in time or refuses.
    """

    def __init__(self, client: PipelinedCommands, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    async def admit(
        self, max_num_streams: int, ttl_ms: int, stream: StreamId | None = None, shard: int | None = None
    ) -> StreamId:
        """Admit one more stream for `ttl_ms`, after which `renew` must have been called.

        stream: the id of one that was admitted and released before it began; a new id where it is None.
        shard: of a new id; any where it is None.

        Leases lapse while Redis pauses: where one has lapsed just now, this asks again for a moment, in which
        its worker can renew it.

        Raises NoFreeStream when the cluster is full, NoWorker when no worker takes streams.
        """
        deadline: float | None = None  # counted from the first answer, which comes when the pause is over
        while True:
            granted, answer, *lapsed = await self._ask(max_num_streams, ttl_ms, stream, shard)
            if granted == 1:
                return StreamId(int(answer))
            now = time.monotonic()
            deadline = now + _RENEWAL_S if deadline is None else deadline
            if not any(lapsed) or now > deadline:
                if answer == b"memory":
                    raise NoFreeStream(NO_MEMORY_SENTENCE)
                raise NoFreeStream if answer == b"full" else NoWorker
            await asyncio.sleep(_ASK_AGAIN_S)

    async def _ask(
        self, max_num_streams: int, ttl_ms: int, stream: StreamId | None, shard: int | None
    ) -> Any:
        once = uuid4().hex
        return await self._run(
            scripts.admit(
                self._keys,
                max_num_streams=max_num_streams,
                ttl_ms=ttl_ms,
                once=once,
                stream=stream,
                shard=shard,
            )
        )

    async def renew(self, streams: Iterable[StreamId], ttl_ms: int) -> None:
        """Renew the expiry of these admissions to `ttl_ms` from now."""
        ids = list(streams)
        for at in range(0, len(ids), _MAX_RENEWALS):
            await self._run(scripts.renew(self._keys, ttl_ms=ttl_ms, streams=ids[at : at + _MAX_RENEWALS]))

    async def release(self, stream: StreamId) -> None:
        """Return an admission. Harmless when it is gone."""
        try:
            await self._client.execute_command("ZREM", self._keys.admissions, stream)
        except (REDIS_ERROR, OSError) as error:
            raise RedisUnavailable from error

    async def agree(self, settings: SharedSettings, ttl_ms: int) -> None:
        """Agree on the settings of this process; called at start and with every heartbeat.

        Raises SettingsMismatch when the cluster runs with another value.
        """
        differing = await self._run(scripts.agree(self._keys, ttl_ms=ttl_ms, settings=settings.flat()))
        if differing:
            name, value = (item.decode() for item in differing)
            raise _mismatch(name, getattr(settings, name), value)

    async def _run(self, command: Command) -> Any:
        try:
            return await self._client.execute_command(*command)
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
