"""Detects streams that are quiet, that make no progress, or that went to another ingress."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from common.entries import IngressId, StreamId
from common.errors import EntryError, NoWorker, RedisUnavailable
from common.redis.clients import RedisServers
from common.redis.keys import StreamKeys
from common.redis.outages import OUTAGES
from common.redis.scripts.ownership import SUSPICIOUS_DEATHS
from common.streams.assignments import StreamDirectory
from ingress.streams.redis_link import RedisLink
from ingress.streams.result_feed import ResultFeed

logger = logging.getLogger(__name__)

# A stream without a line for this long is looked up: pub/sub may have lost lines.
QUIET_S: Final = 2.0
WATCH_S: Final = 0.5
# If audio (more than any model's chunk) waits this long without progress, no worker can decode it: a takeover
# or a replay reports itself sooner.
STALLED_AUDIO_S: Final = 4.0
STALL_S: Final = 30.0
STANDSTILL_S: Final = 2.0
"""Lateness of a round from which the process has stood still: it was stopped, or had no processor."""
REPAIR_S: Final = 2.0
"""Time after a standstill in which no stream is given up."""
# Acknowledgements come more often than once in this much audio.
UNTOLD_AUDIO_S: Final = 1.0
# A suspect waits for the process of suspects (gpu_worker/ownership/quarantine.py), which may have to load a
# model anew.
SUSPECT_PATIENCE_S: Final = 180.0
# Streams without lines or progress whose records are read in one round.
_LOOK_UPS: Final = 64
# How often the results of a stream are read that are not published to this ingress.
_FOLLOW_S: Final = 0.1


class StreamWatch:
    """Watches the open streams of an ingress.

    links: the open streams, kept by the backplane.
    decoded: returns how many samples of a stream are decoded.
    claim_timeout_s: longest time until a worker has a stream.
    patience_s: time after which a stream without a client is given up.
    """

    def __init__(
        self,
        directory: StreamDirectory,
        feed: ResultFeed,
        links: Mapping[StreamId, RedisLink],
        *,
        servers: RedisServers,
        ingress: IngressId,
        decoded: Callable[[StreamKeys], Awaitable[int]],
        claim_timeout_s: float,
        patience_s: float,
    ) -> None:
        self._directory = directory
        self._feed = feed
        self._links = links
        self._servers = servers
        self._ingress = ingress
        self._decoded = decoded
        self._claim_timeout_s = claim_timeout_s
        self._patience_s = patience_s
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """Watch until cancelled."""
        concludes_at = -STANDSTILL_S
        while True:
            before = self._loop.time()
            await asyncio.sleep(WATCH_S)
            now = self._loop.time()
            # What came while this process stood still is not read yet, and lines were lost: first a repair. A
            # loop that is always slow is watched all the same, with pauses.
            stood_still = now - before > WATCH_S + STANDSTILL_S
            if stood_still and now - concludes_at > STANDSTILL_S:
                concludes_at = now + REPAIR_S
            stuck = []
            for link in list(self._links.values()):
                if not link.begun or self._links.get(link.stream) is not link:
                    continue
                if now >= concludes_at:
                    self._watch_link(link, now)
                # Also streams that were given up: nothing else shows that Redis has lost them meanwhile.
                in_redis = link.created or link.given_up
                if not in_redis or self._links.get(link.stream) is not link:
                    continue
                quiet = now - link.heard_at > QUIET_S
                if quiet and not self._feed.is_repairing(link):
                    self._feed.repair(link)
                if quiet or now - link.progress_at > QUIET_S:
                    stuck.append(link)
            await self._look_up_all(sorted(stuck, key=lambda link: link.looked_up_at), now)

    async def _look_up_all(self, stuck: Sequence[RedisLink], now: float) -> None:
        """Look streams up, one after the other: a repair ends the quiet of a stream.

        Of a server that is away one is looked up, and streams of other servers do not wait for it.
        """
        away: set[int] = set()
        num_asked = 0
        for link in stuck:
            server = self._servers.server_of_shard(link.keys.shard)
            if server in away:
                continue
            link.looked_up_at = now
            try:
                await self._look_up(link)
            except RedisUnavailable as error:
                OUTAGES.log_retry(logger, "quiet streams cannot be looked up: %s", error)
                away.add(server)
            num_asked += 1
            if num_asked == _LOOK_UPS:
                return

    async def follow(self, link: RedisLink) -> None:
        """Read the rest of a stream whose audio is complete, until its link ends.

        No further entry can tell the stream's worker that the stream has moved here, so the worker publishes
        to the previous ingress.
        """
        while self._links.get(link.stream) is link and not (link.ended or link.failed):
            if not self._feed.is_repairing(link):
                self._feed.repair(link)
            try:
                await self._look_up(link)
            except RedisUnavailable as error:
                logger.warning("a stream's end cannot be read: %s", error, extra={"stream_id": link.stream})
            await asyncio.sleep(_FOLLOW_S)

    def _watch_link(self, link: RedisLink, now: float) -> None:
        if link.waits_for_client and now >= link.grace_ends_at:
            link.grace_is_over()
        claim_s = self._claim_timeout_s
        if link.worker is None and link.created_at is not None and now - link.created_at > claim_s:
            link.fail(NoWorker(f"No worker took the stream within {claim_s:g} s."))
        elif link.waits_for_progress(STALLED_AUDIO_S, now) > STALL_S:
            link.fail(NoWorker(f"No worker has decoded the stream's audio for {STALL_S:g} s."))
        if link.left_at is not None and now - link.left_at > self._patience_s:
            # Nobody waits for it; what it has in Redis expires.
            link.expire()

    async def _look_up(self, link: RedisLink) -> None:
        """Check whether a quiet stream is gone, or goes on at another ingress."""
        try:
            await self._look_up_record(link)
        except EntryError as error:
            logger.error("%s", error, extra={"stream_id": link.stream})

    async def _look_up_record(self, link: RedisLink) -> None:
        record = await self._directory.read(link.stream)
        if self._links.get(link.stream) is not link or link.ended:
            return
        if record is None:
            self._feed.gone(link)
        elif record.ingress != self._ingress:
            link.taken()
        else:
            if record.deaths >= SUSPICIOUS_DEATHS:
                link.suspected(SUSPECT_PATIENCE_S)
            if link.undecoded_s >= UNTOLD_AUDIO_S:
                # An acknowledgement is published and not stored. The client, or the stall's clock above, may
                # be waiting for the last one.
                link.decoded(await self._decoded(link.keys))
