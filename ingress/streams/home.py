"""The home servers of an ingress: its part of the cluster's Redis servers, where it creates its streams.

An ingress commits to each server on which it has streams, every 5 to 10 ms. If every ingress had streams on
every server, there would be as many commits as ingresses times servers. So the live ingresses, in the order
of their names, divide the servers among them: with two ingresses and four servers each ingress has two
servers; with three ingresses and two servers the second has half of both. This is only a preference: any
ingress serves any stream.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from common.presence.leases import IngressPlace
from common.redis.clients import REDIS_ERROR, AsyncRedis
from common.redis.requirements import memory_share
from common.redis.scripts.admission import MEMORY_LIMIT

logger = logging.getLogger(__name__)

# The fractional parts of its multiples fill the range from 0 to 1 evenly from the first one on.
_GOLDEN: Final = (5**0.5 - 1) / 2
# A server that has not answered for this long gets no new stream from this ingress.
_PATIENCE_S: Final = 1.0


class HomeServers:
    """Chooses the Redis server of each new stream of an ingress.

    period_s: seconds between two checks of the servers.
    """

    def __init__(self, redis: AsyncRedis, period_s: float) -> None:
        self._redis = redis
        self._period_s = period_s
        self._place = IngressPlace(0, 1)
        self._count = 0
        self._every: Sequence[int] = range(redis.servers.num_servers)
        self._open: Sequence[int] = self._every

    async def run(self) -> None:
        """Check regularly which servers answer and have room, until cancelled."""
        while len(self._every) > 1:
            takes = await asyncio.gather(*map(self._takes, self._every))
            found = [server for server, good in zip(self._every, takes, strict=True) if good]
            closed = sorted(set(self._open) - set(found))
            if closed:
                logger.warning("no new streams on servers that are away or full", extra={"servers": closed})
            self._open = found
            await asyncio.sleep(self._period_s)

    async def _takes(self, server: int) -> bool:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                info = await self._redis.execute(server, "INFO", "memory")
        except (TimeoutError, REDIS_ERROR, OSError):
            return False
        return memory_share(info) <= MEMORY_LIMIT

    def move(self, place: IngressPlace) -> None:
        """Set the place among the live ingresses, which has changed since some have come or gone."""
        self._place = place

    def next_shard(self) -> int:
        """Return the shard of the next stream: on a home server that answers, if one does."""
        count, self._count = self._count, self._count + 1
        servers = self._open or self._every
        at = (self._place.rank + count * _GOLDEN % 1.0) / self._place.count
        shards = self._redis.servers.shards_of_server(servers[int(at * len(servers))])
        return shards[count % len(shards)]
