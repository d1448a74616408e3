"""Heartbeats of an ingress, and renewals of its streams, which keep both from expiring in Redis."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final

from common.entries import StreamId
from common.errors import RedisUnavailable, SettingsMismatch
from common.languages import UNKNOWN, Languages
from common.presence.leases import IngressPlace, IngressPresence, IngressReport
from common.redis.outages import OUTAGES
from common.streams.admission import Admission, SharedSettings
from common.streams.assignments import StreamDirectory
from ingress.streams.redis_link import RedisLink
from ingress.streams.result_feed import ResultFeed

logger = logging.getLogger(__name__)

# Redis counts as away when it has not answered a heartbeat for this long.
_SILENT_S: Final = 5.0

RENEWALS_PER_TTL: Final = 4
RENEWAL_TURNS: Final = 32


class Keeper:
    """Keeps an ingress signed on, and its streams from expiring.

    shared: the settings on which all processes of the cluster have to agree.
    report: returns this ingress's own status, for every heartbeat.
    links: the open streams, kept by the backplane.
    read_languages: reads the languages of the served model.
    on_place: called after every heartbeat with the place of this ingress among the live ones.
    ttl_ms, admission_ttl_ms: life of a stream's keys, and of its admission, without a renewal.
    """

    def __init__(
        self,
        admission: Admission,
        directory: StreamDirectory,
        presence: IngressPresence,
        feed: ResultFeed,
        links: Mapping[StreamId, RedisLink],
        *,
        shared: SharedSettings,
        report: Callable[[], IngressReport],
        read_languages: Callable[[], Awaitable[Languages]],
        on_place: Callable[[IngressPlace], None],
        heartbeat_s: float,
        ttl_ms: int,
        admission_ttl_ms: int,
    ) -> None:
        self._admission = admission
        self._directory = directory
        self._presence = presence
        self._feed = feed
        self._links = links
        self._shared = shared
        self._report = report
        self._read_languages = read_languages
        self.languages: Languages = UNKNOWN
        """The languages of the served model, as they were at the last heartbeat."""
        self._on_place = on_place
        self._heartbeat_s = heartbeat_s
        self._answered = time.monotonic()
        self._ttl_ms = ttl_ms
        self._admission_ttl_ms = admission_ttl_ms
        self._announced = asyncio.Event()
        self._left = False

    async def agree(self) -> None:
        """Agree with the cluster on the shared settings, and learn the languages of its model.

        Raises SettingsMismatch, RedisUnavailable.
        """
        await self._admission.agree(self._shared, self._ttl_ms)
        self.languages = await self._read_languages()

    def announce(self) -> None:
        """Begin to sign on with every heartbeat."""
        self._announced.set()

    async def leave(self) -> None:
        """Sign off, for good. Raises RedisUnavailable."""
        self._left = True
        await self._presence.leave()

    async def others_serve(self) -> bool:
        """Write this ingress's status to Redis, then return whether another ingress serves.

        Raises RedisUnavailable.
        """
        await self._presence.beat(self._report())
        return await self._presence.others_serve()

    async def run(self) -> None:
        """Send heartbeats and renew until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._beat(), name="heartbeat")
            tasks.create_task(self._renew_in_turns(), name="renew")

    async def renew(self, link: RedisLink) -> None:
        """Renew one stream now, before its turn comes."""
        try:
            await self._renew((link,))
        except RedisUnavailable as error:
            logger.warning("expiries are renewed later: %s", error, extra={"stream_id": link.stream})

    @property
    def answered_lately(self) -> bool:
        """Return whether Redis has answered within the last few heartbeats; callable from any thread."""
        return time.monotonic() - self._answered < max(_SILENT_S, 3 * self._heartbeat_s)

    async def _beat(self) -> None:
        await self._announced.wait()
        while not self._left:  # a heartbeat after the sign-off would sign on again
            try:
                self._on_place(await self._presence.beat(self._report()))
                await self.agree()
                self._answered = time.monotonic()
            except (RedisUnavailable, SettingsMismatch) as error:
                OUTAGES.log_retry(logger, "heartbeat failed: %s", error)
            await asyncio.sleep(self._heartbeat_s)

    async def _renew_in_turns(self) -> None:
        """Renew every stream several times within its time to live, in turns of a part of the streams.

        All at once would be thousands of commands, and audio would wait behind them.
        """
        period_s = min(self._ttl_ms, self._admission_ttl_ms) / 1000 / RENEWALS_PER_TTL
        turn = 0
        while True:
            await asyncio.sleep(period_s / RENEWAL_TURNS)
            turn = (turn + 1) % RENEWAL_TURNS
            try:
                await self._renew(
                    [link for link in self._links.values() if link.stream % RENEWAL_TURNS == turn]
                )
            except RedisUnavailable as error:
                OUTAGES.log_retry(logger, "expiries could not be renewed: %s", error)

    async def _renew(self, links: Iterable[RedisLink]) -> None:
        links = [link for link in links if not link.ended]
        try:
            await self._admission.renew((link.stream for link in links), self._admission_ttl_ms)
        finally:  # also where the server of all admissions is away, and those of the streams are not
            begun = [link for link in links if link.created]
            for stream in await self._directory.renew((link.keys for link in begun), self._ttl_ms):
                link = self._links.get(stream)
                if link is not None:
                    self._feed.gone(link)
