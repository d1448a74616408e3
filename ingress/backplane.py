"""The service behind the connections of this ingress, over Redis.

Everything that another ingress would need stands in Redis; here are only the open streams, and the
loops that keep them: heartbeats and expiries are renewed, abandoned streams are brought to their end.
Results come through result_feed.py; stream_watch.py sees to what nobody tells.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from time import time
from typing import Any, Final

import orjson

from common.admission import Admission, SharedSettings
from common.appender import Appender
from common.assignments import NewStream, StreamDirectory, StreamRecord
from common.audio_log import AudioLog, last_audio
from common.entries import IngressId, LineKind, StreamId
from common.errors import (
    EntryError,
    ErrorCode,
    InternalFault,
    RedisUnavailable,
    SettingsMismatch,
    StreamLost,
    Unavailable,
)
from common.keys import Keys
from common.leases import IngressPresence, IngressReport
from common.messages import Audio, Resume
from common.options import StreamOptions
from common.redis import AsyncRedis, PipelinedCommands, RedisServers
from common.result_reader import Position, catch_up
from common.status import read_status
from ingress.links import Resumption, StreamListener
from ingress.result_feed import RETRY_PAUSE_S, ResultFeed
from ingress.stream_link import RedisLink
from ingress.stream_watch import StreamWatch

logger = logging.getLogger(__name__)

# How long Redis may be away before the streams that wait for it fail: longer than a restart or a
# failover takes, shorter than people take to notice silence.
OUTAGE_LIMIT_S: Final = 15.0
RENEWALS_PER_TTL: Final = 4
RENEWAL_TURNS: Final = 32
# An admission outlives its ingress by the time in which its clients may come back.
ADMISSION_MARGIN_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class BackplaneSettings:
    """What the backplane is told; times in seconds, `claim_timeout_s` until a worker has a stream."""

    ingress: IngressId
    max_num_streams: int
    sample_rate: int
    stream_ttl_s: float
    heartbeat_s: float
    claim_timeout_s: float
    resume_grace_s: float
    coalesce_ms: int = 0
    redis_loss_ms: int = 0


class RedisBackplane:
    """Streams of one ingress (a `Backplane`, and the `LinkOwner` of its links).

    report: what this ingress says of itself with every heartbeat.
    """

    def __init__(
        self,
        settings: BackplaneSettings,
        servers: RedisServers,
        report: Callable[[], IngressReport],
    ) -> None:
        self._settings = settings
        self._servers = servers
        self._report = report
        self._keys = Keys(servers.shards)
        self._redis = AsyncRedis(servers)
        self._admission = Admission(PipelinedCommands(self._redis, 0), self._keys)
        self._directory = StreamDirectory(self._redis, self._keys)
        self._audio = AudioLog(
            self._redis,
            self._keys,
            int(OUTAGE_LIMIT_S * 1000),
            coalesce_ms=settings.coalesce_ms,
            sample_rate=settings.sample_rate,
            keep_ms=settings.redis_loss_ms,
        )
        self._presence = IngressPresence(
            PipelinedCommands(self._redis, 0), self._keys, settings.ingress, settings.heartbeat_s * 1000
        )
        self._links: dict[StreamId, RedisLink] = {}
        self._resuming: list[StreamId] = []  # by each resumption under way
        self._feed = ResultFeed(self._redis, servers, self._keys, settings.ingress, self._links)
        self._watch = StreamWatch(
            self._directory,
            self._feed,
            self._links,
            ingress=settings.ingress,
            sample_rate=settings.sample_rate,
            claim_timeout_s=settings.claim_timeout_s,
            patience_s=settings.stream_ttl_s + settings.resume_grace_s,
            give_up=lambda link: self.ended(link, delivered=False),
        )
        self._loop = asyncio.get_running_loop()
        self._tasks: asyncio.TaskGroup | None = None
        self._clean_ups: set[asyncio.Task[None]] = set()
        self._announced = asyncio.Event()
        self._changed = asyncio.Event()  # a link was forgotten
        self._ttl_ms = int(settings.stream_ttl_s * 1000)
        self._admission_ttl_ms = int((settings.resume_grace_s + ADMISSION_MARGIN_S) * 1000)

    # Life

    async def start(self) -> None:
        """Agree with the cluster on the shared settings. Raises SettingsMismatch, RedisUnavailable."""
        await self._agree()

    async def run(self, running: asyncio.Event) -> None:
        """Serve until cancelled; `running` is set once tasks can be started."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            tasks.create_task(self._audio.run(), name="audio-log")
            tasks.create_task(self._feed.run(), name="results")
            tasks.create_task(self._beat(), name="heartbeat")
            tasks.create_task(self._renew(), name="renew")
            tasks.create_task(self._watch.run(), name="watch")
            tasks.create_task(_guarded(self._adopt_orphans(), "adoption"), name="adoption")
            running.set()

    def announce(self) -> None:
        """Begin to sign on with every heartbeat: the ports are open."""
        self._announced.set()

    async def stop(self, timeout_s: float) -> None:
        """Bring what is queued into Redis, give admissions back, sign off; within a bounded time.

        Streams that wait for their client keep their admission: another ingress may resume them.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._audio.flush(timeout_s)
                while any(link.left_at is not None and link.finish_at is None for link in self._all()):
                    self._changed.clear()
                    await self._changed.wait()
                if self._clean_ups:
                    await asyncio.wait(self._clean_ups)
        except (TimeoutError, RedisUnavailable):
            logger.warning("%d streams have not ended yet; workers and expiries end them", len(self._links))
        try:
            async with asyncio.timeout(timeout_s):
                for link in self._all():
                    if link.finish_at is None:
                        await self._admission.release(link.stream)
                await self._presence.leave()
        except (TimeoutError, RedisUnavailable) as error:
            logger.warning("Redis could not be told of the stop: %s", error)

    async def close(self) -> None:
        """Close the connections to Redis."""
        await self._redis.close()

    def _all(self) -> list[RedisLink]:
        """The links of this moment."""
        return list(self._links.values())

    @property
    def num_streams(self) -> int:
        """Streams that this ingress keeps, those of clients that left included."""
        return len(self._links)

    # Backplane

    async def admit(self, listener: StreamListener) -> RedisLink:
        """Ask the cluster for a stream. Raises NoFreeStream, NoWorker or RedisUnavailable."""
        stream = await self._admission.admit(self._settings.max_num_streams, self._admission_ttl_ms)
        link = RedisLink(self, self._keys.stream(stream), listener, secrets.token_urlsafe(24))
        self._links[stream] = link
        return link

    async def resume(self, listener: StreamListener, request: Resume) -> Resumption:
        """Take a stream over from a connection that was lost.

        Raises Unavailable `resume_refused`, RedisUnavailable, or InternalFault where its audio is unreadable.
        """
        stream = StreamId(request.stream_id)
        self._resuming.append(stream)
        try:
            return await self._resume(stream, listener, request)
        finally:
            self._resuming.remove(stream)

    async def _resume(self, stream: StreamId, listener: StreamListener, request: Resume) -> Resumption:
        record = await self._resumable(stream, request)
        connection = 0 if record.finished else await self._directory.attach(stream, self._settings.ingress)
        if connection == 0 and not record.finished:  # it ended just now
            record = await self._resumable(stream, request)
        before = self._links.get(stream)
        if before is not None:
            before.taken()
        link = RedisLink(self, self._keys.stream(stream), listener, request.resume_token)
        try:
            next_sample, finished = await self._take_over(
                link, record, connection, request.last_seq, request.audio_ack_samples
            )
        except RedisUnavailable:
            # The stream is this ingress's by now, and no connection has it.
            self.start_task(self._adopt(stream), f"adopt-{stream}")
            raise
        except EntryError as error:
            logger.error("%s", error, extra={"stream_id": stream})
            raise InternalFault from error
        acked = min(request.audio_ack_samples, next_sample)
        return Resumption(link, next_sample, acked, finished, record.options)

    async def _take_over(
        self, link: RedisLink, record: StreamRecord, connection: int, last_seq: int, acked_samples: int
    ) -> tuple[int, bool]:
        """Put a link in the place of the one that a stream had before.

        connection: from `StreamDirectory.attach`, 0 for a stream that has ended. Gives the first sample
        that is not in Redis, and whether the audio was finished.
        """
        appender: Appender | None = None
        next_sample, finished = acked_samples, record.finished
        if connection > 0:
            try:
                last = await last_audio(self._redis, link.keys)
            except EntryError:
                self._end(link, record, connection, last_seq)
                raise
            if link.abandoned and self._is_here(link.stream):
                return next_sample, finished  # its client was faster than its adoption
            seq = 0
            if last is not None:
                next_sample = last.first_sample + last.num_samples
                finished = last.final
                seq = last.seq
            appender = self._audio.open(
                link.keys,
                link.on_append_failed,
                connection=connection,
                next_seq=seq + 1,
                first_sample=next_sample,
            )
            if not finished:
                appender.attach(self._settings.ingress)
        # No wait from here to the caller's return: a line that came in between would reach a listener that
        # is not ready for it yet.
        self._put_in_place(link, record, appender, last_seq, finished=finished)
        if connection > 0:  # a stream that has ended takes no admission, and expires when its end said
            self.start_task(self._renew_now(link), f"renew-{link.stream}")
            if finished:
                self.start_task(self._watch.follow(link), f"follow-{link.stream}")
        return next_sample, finished

    def _put_in_place(
        self, link: RedisLink, record: StreamRecord, appender: Appender | None, last_seq: int, *, finished: bool
    ) -> None:
        link.adopt(appender, record.options, last_seq, finished=finished)
        if record.owner is not None:
            link.set_worker(record.owner)
        self._links[link.stream] = link
        self._feed.repair(link)

    def _end(self, link: RedisLink, record: StreamRecord, connection: int, last_seq: int) -> None:
        """Finalize for nobody a stream whose audio nobody can go on with, so that its slot is given back."""
        # The first entry of this connection is behind all that others have appended, readable or not.
        appender = self._audio.open(link.keys, link.on_append_failed, connection=connection)
        self._put_in_place(link, record, appender, last_seq, finished=False)
        link.abandon(keep=False)

    async def _resumable(self, stream: StreamId, request: Resume) -> StreamRecord:
        refused = Unavailable(
            ErrorCode.RESUME_REFUSED,
            f"Stream {stream} cannot be resumed: it is gone, its secret differs, or results after "
            f"{request.last_seq} are no longer kept.",
        )
        try:
            record = await self._directory.read(stream)
        except EntryError as error:
            raise refused from error
        if record is None or not hmac.compare_digest(record.token_hash, _token_hash(request.resume_token)):
            raise refused
        (lines,) = await catch_up(self._redis, (Position(self._keys.stream(stream), 0, 0),))
        seqs = [line.seq for line in lines if line.kind is not LineKind.OWNER]
        if (seqs and seqs[0] > request.last_seq + 1) or (record.finished and not seqs):
            raise refused
        return record

    def _is_here(self, stream: StreamId) -> bool:
        """Whether the stream has a connection of this process, or is just getting one."""
        return stream in self._links or stream in self._resuming

    async def _adopt_orphans(self) -> None:
        """Take over the streams of a process of the same name that died, for their clients' grace.

        Workers end the streams of an ingress that is gone, but this name is there again.
        """
        for stream in await self._directory.live_streams():
            await self._adopt(stream)

    async def _adopt(self, stream: StreamId) -> None:
        """Keep a stream of this ingress that has no connection, for its client's grace."""
        give_up = self._loop.time() + self._settings.stream_ttl_s
        while not self._is_here(stream):
            try:
                await self._adopt_now(stream)
                return
            except EntryError as error:
                logger.error("%s", error, extra={"stream_id": stream})
                return
            except RedisUnavailable:
                if self._loop.time() > give_up:
                    raise
                await asyncio.sleep(RETRY_PAUSE_S)

    async def _adopt_now(self, stream: StreamId) -> None:
        record = await self._directory.read(stream)
        if record is None or record.finished or record.ingress != self._settings.ingress:
            return
        connection = await self._directory.attach(stream, self._settings.ingress)
        if connection == 0 or self._is_here(stream):
            return
        link = RedisLink(self, self._keys.stream(stream), None, "")
        logger.info("adopting a stream without a connection", extra={"stream_id": stream})
        await self._take_over(link, record, connection, 0, 0)
        if self._links.get(stream) is link:
            link.abandon(keep=True)

    async def read_status(self) -> bytes:
        """The status line of the cluster. Raises RedisUnavailable."""
        return orjson.dumps(await read_status(self._redis, self._keys))

    # LinkOwner

    @property
    def resume_grace_s(self) -> float:
        """How long a stream waits for its client to come back."""
        return self._settings.resume_grace_s

    def start_task(self, coroutine: Coroutine[Any, Any, None], name: str) -> object:
        """Run a coroutine beside the loops."""
        if self._tasks is None:
            raise AssertionError("the backplane does not run")
        return self._tasks.create_task(_guarded(coroutine, name), name=name)

    async def create(self, link: RedisLink, options: StreamOptions) -> Appender:
        """Create the stream in Redis, trying again while Redis is away. Raises RedisUnavailable."""
        settings = self._settings
        new = NewStream(
            stream=link.stream,
            ingress=settings.ingress,
            options=options,
            sample_rate=settings.sample_rate,
            token_hash=_token_hash(link.resume_token),
            created_ms=int(time() * 1000),
            ttl_ms=self._ttl_ms,
            grace_ms=int(settings.resume_grace_s * 1000),
        )
        give_up = self._loop.time() + OUTAGE_LIMIT_S
        while True:
            try:
                await self._directory.create(new)
            except RedisUnavailable:
                if self._loop.time() > give_up:
                    raise
                await asyncio.sleep(RETRY_PAUSE_S)
            else:
                return self._audio.open(
                    link.keys,
                    link.on_append_failed,
                    origin=lambda: self._directory.creation_anew(new, link.epoch),
                )

    def give_back(self, link: RedisLink) -> None:
        """Forget a link whose stream never began, and its admission."""
        self.forget(link)
        self._clean_up(self._release((link.stream,)), f"give-back-{link.stream}")

    def forget(self, link: RedisLink) -> None:
        """Forget the link of a stream that goes on elsewhere, or is gone."""
        if self._links.get(link.stream) is link:
            del self._links[link.stream]
        link.forgotten()
        self._feed.forget(link)
        self._changed.set()

    def give_up(self, link: RedisLink) -> None:
        """The stream has failed and nobody listens: bring it to its end in Redis."""
        self._clean_up(self._give_up(link), f"give-up-{link.stream}")

    async def _give_up(self, link: RedisLink) -> None:
        try:
            withdrawn = await self._directory.withdraw(link.keys)
        except RedisUnavailable:
            withdrawn = False
        if withdrawn:
            self.forget(link)
            await self._release((link.stream,))
        elif link.can_append:
            link.finish()
        else:
            self._finish_failed(link)

    def ended(self, link: RedisLink, *, delivered: bool) -> None:
        """The stream has ended: remove its admission, and its keys where no client can come back for them."""
        self.forget(link)
        self._clean_up(self._remove(link, delivered=delivered), f"remove-{link.stream}")

    def _clean_up(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        """Start a task that `stop` waits for."""
        if self._tasks is None:
            raise AssertionError("the backplane does not run")
        task = self._tasks.create_task(_guarded(coroutine, name), name=name)
        self._clean_ups.add(task)
        task.add_done_callback(self._clean_ups.discard)

    async def _remove(self, link: RedisLink, *, delivered: bool) -> None:
        try:
            if not delivered:
                # The client may have resumed at another ingress, which then delivers the end.
                record = await self._directory.read(link.stream)
                if record is not None and record.ingress != self._settings.ingress:
                    return
            await self._admission.release(link.stream)
            # That a client has the end which was sent to it, nobody here knows. One that may resume finds it
            # until it expires.
            if link.ended and not link.resumable:
                await self._directory.remove(link.keys)
        except (RedisUnavailable, EntryError) as error:
            # What is left has an expiry.
            logger.warning("A stream's keys were left to expire: %s", error, extra={"stream_id": link.stream})

    def _finish_failed(self, link: RedisLink) -> None:
        """Append the final mark of a stream whose appends failed, or its worker would wait for ever."""

        def again(error: Unavailable) -> None:
            waited = self._loop.time() - (link.left_at or 0.0)
            if error.code is ErrorCode.REDIS_UNAVAILABLE and waited < self._settings.stream_ttl_s:
                self._finish_failed(link)

        appender = link.successor(self._audio, again)
        if appender is not None:
            appender.append(Audio(b"", final=True))

    async def _release(self, streams: Iterable[StreamId]) -> None:
        for stream in streams:
            try:
                await self._admission.release(stream)
            except RedisUnavailable as error:
                logger.warning("An admission was left to expire: %s", error, extra={"stream_id": stream})

    # Keeping

    async def _agree(self) -> None:
        shared = SharedSettings(
            self._settings.max_num_streams, self._settings.sample_rate, self._servers.shards
        )
        await self._admission.agree(shared, self._ttl_ms)

    async def _beat(self) -> None:
        await self._announced.wait()
        while True:
            try:
                await self._presence.beat(self._report())
                await self._agree()
            except (RedisUnavailable, SettingsMismatch) as error:
                logger.warning("heartbeat failed: %s", error)
            await asyncio.sleep(self._settings.heartbeat_s)

    async def _renew(self) -> None:
        """Renew every stream some times within its time to live, each turn those whose turn it is.

        All at once would be thousands of commands, behind which the audio of that moment waits.
        """
        period_s = min(self._settings.stream_ttl_s, self._admission_ttl_ms / 1000) / RENEWALS_PER_TTL
        turn = 0
        while True:
            await asyncio.sleep(period_s / RENEWAL_TURNS)
            turn = (turn + 1) % RENEWAL_TURNS
            try:
                await self._renew_links(link for link in self._all() if link.stream % RENEWAL_TURNS == turn)
            except RedisUnavailable as error:
                logger.warning("expiries could not be renewed: %s", error)

    async def _renew_now(self, link: RedisLink) -> None:
        try:
            await self._renew_links((link,))
        except RedisUnavailable as error:
            logger.warning("expiries are renewed later: %s", error, extra={"stream_id": link.stream})

    async def _renew_links(self, links: Iterable[RedisLink]) -> None:
        links = [link for link in links if not link.ended]
        await self._admission.renew((link.stream for link in links), self._admission_ttl_ms)
        begun = [link for link in links if link.created]
        for stream in await self._directory.renew((link.keys for link in begun), self._ttl_ms):
            link = self._links.get(stream)
            if link is not None and not link.begin_again():
                link.fail(StreamLost())


async def _guarded(coroutine: Coroutine[Any, Any, None], name: str) -> None:
    """Run a task about one stream; a defect in it must not end the process, and all other streams."""
    try:
        await coroutine
    except Exception:
        logger.exception("%s failed", name)


def _token_hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
