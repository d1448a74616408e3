"""Delivers results from Redis to the links of this ingress.

Pub/sub is the fast path. After a possible loss (a gap in the numbers, a new subscription, a quiet stream) the
results are read from the Redis streams of results, which hold all of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from functools import partial
from typing import Final

from common.entries import IngressId, Line, StreamId, decode_lines
from common.errors import EntryError, InternalFault, RedisUnavailable, StreamLost
from common.redis.clients import AsyncRedis, RedisServers, subscription
from common.redis.keys import Keys
from common.redis.outages import OUTAGES
from common.streams.result_reader import catch_up
from ingress.streams.redis_link import RedisLink

logger = logging.getLogger(__name__)

RETRY_PAUSE_S: Final = 0.2
# Streams whose results are read with one command: bounds the reply.
_BATCH: Final = 256


class ResultFeed:
    """Delivers lines to the links that they are about.

    links: the open streams, kept by the backplane.
    """

    def __init__(
        self,
        redis: AsyncRedis,
        servers: RedisServers,
        keys: Keys,
        ingress: IngressId,
        links: Mapping[StreamId, RedisLink],
    ) -> None:
        self._redis = redis
        self._servers = servers
        self._keys = keys
        self._ingress = ingress
        self._links = links
        self._loop = asyncio.get_running_loop()
        # Links whose results are to be read, or are being read: whether lines about them were published
        # meanwhile, and skipped.
        self._repairing: dict[RedisLink, bool] = {}
        # Those to be read next, by server: one that is away keeps no stream of another waiting.
        self._repairs: tuple[dict[RedisLink, None], ...] = tuple({} for _ in range(servers.num_servers))
        self._gone: set[RedisLink] = set()  # those whose streams Redis does not have
        self._repair_due = tuple(asyncio.Event() for _ in range(servers.num_servers))

    async def run(self) -> None:
        """Listen and repair until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for server in range(self._servers.num_servers):
                channel = self._keys.channel(self._ingress)
                published = subscription(self._servers, server, channel, partial(self._hear, server))
                tasks.create_task(published.run(), name=f"results-{server}")
                tasks.create_task(self._repair(server), name=f"repair-{server}")

    def repair(self, link: RedisLink) -> None:
        """Read the results that this link may have missed; results published meanwhile wait for that."""
        server = self._server_of(link)
        self._repairing[link] = False
        self._repairs[server][link] = None
        self._repair_due[server].set()

    def gone(self, link: RedisLink) -> None:
        """Handle a stream that Redis does not have: find its end, or else create it anew, or else give it up.

        If replies were lost, a stream that has ended looks like a lost stream.
        """
        self._gone.add(link)
        self.repair(link)

    def is_repairing(self, link: RedisLink) -> bool:
        """Return whether the results that this link may have missed are being read."""
        return link in self._repairing

    def drop(self, link: RedisLink) -> None:
        """Stop reading for this link."""
        self._repairing.pop(link, None)
        self._repairs[self._server_of(link)].pop(link, None)
        self._gone.discard(link)

    def _hear(self, server: int, payload: bytes | None) -> None:
        """Take a payload that a server has published; None where payloads may have been missed."""
        if payload is None:
            for link in self._links.values():
                if link.begun and self._server_of(link) == server:
                    self.repair(link)
            return
        try:
            lines = decode_lines(payload)
        except EntryError as error:
            logger.error("unreadable results", extra={"reason": str(error)})
            return
        for line in lines:
            self._take(line)

    def _take(self, line: Line) -> None:
        link = self._links.get(line.stream)
        if link is None:
            return
        if link in self._repairing:
            self._repairing[link] = True
            return
        try:
            complete = link.receive(line)
        except Exception:
            self._failed(link)
            return
        if not complete:
            self.repair(link)

    def _failed(self, link: RedisLink) -> None:
        """End one stream, and no other, for the exception that its handling has just raised."""
        logger.exception("A line could not be handled", extra={"stream_id": link.stream})
        link.fail(InternalFault())

    async def _repair(self, server: int) -> None:
        repairs, due = self._repairs[server], self._repair_due[server]
        away = False
        while True:
            await due.wait()
            links = list(repairs)[:_BATCH]
            if not links:
                due.clear()
                continue
            for link in links:
                del repairs[link]
            try:
                await self._read_up(links)
                away = False
            except RedisUnavailable as error:
                if not away:
                    OUTAGES.log_retry(logger, "results cannot be read, trying again: %s", error)
                away = True
                for link in links:
                    if link in self._repairing or link in self._gone:
                        repairs[link] = None
                await asyncio.sleep(RETRY_PAUSE_S)

    async def _read_up(self, links: list[RedisLink]) -> None:
        gone = self._gone.intersection(links)  # without those that are found to be gone during this read
        found = await catch_up(self._redis, [link.position for link in links])
        for link, read in zip(links, found, strict=True):
            missed = self._repairing.pop(link, False)
            if read.error is not None:
                logger.error("%s", read.error, extra={"stream_id": link.stream})
                self._gone.discard(link)
                link.fail(InternalFault())
                continue
            link.heard_at = self._loop.time()
            try:
                for line in read.lines:
                    if not self._is_open(link) or not link.receive(line, repair=True):
                        break
            except Exception:
                self._failed(link)
            if (missed or read.more) and self._is_open(link):
                self.repair(link)
            elif link in gone:
                self._gone.discard(link)
                if link.given_up:
                    link.expire()
                elif not link.audio.begin_again():
                    link.fail(StreamLost())

    def _server_of(self, link: RedisLink) -> int:
        return self._servers.server_of_shard(link.keys.shard)

    def _is_open(self, link: RedisLink) -> bool:
        return self._links.get(link.stream) is link
