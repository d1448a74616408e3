"""An ingress's backplane alone, against a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from common.entries import IngressId
from common.monitoring.metrics import IngressMetrics
from common.presence.leases import IngressReport
from common.redis.clients import RedisServers
from ingress.streams.redis_backplane import BackplaneSettings, RedisBackplane


@asynccontextmanager
async def running_backplane(
    url: str, ingress: IngressId, *, adopts: bool = False, redis_outage_s: float = 15.0
) -> AsyncIterator[RedisBackplane]:
    """Run the backplane of this ingress; it is closed at the end."""
    settings = BackplaneSettings(
        ingress=ingress,
        max_num_streams=10,
        sample_rate=16_000,
        stream_ttl_s=60.0,
        heartbeat_s=1.0,
        claim_timeout_s=10.0,
        resume_grace_s=5.0,
        redis_outage_s=redis_outage_s,
        adopts=adopts,
    )
    servers = RedisServers.parse((url,))
    backplane = RedisBackplane(settings, servers, lambda: IngressReport(0, 0), IngressMetrics())
    running = asyncio.Event()
    serving = asyncio.create_task(backplane.run(running))
    await running.wait()
    try:
        yield backplane
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        await backplane.close()
