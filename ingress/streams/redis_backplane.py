"""The service behind the connections of this ingress, over Redis.

All state that another ingress would need is in Redis. This module keeps only the open streams: it begins them
and brings them to their end. Results come through result_feed.py; takeover.py adds streams that lost their
connection; keeper.py renews keys that would expire; watch.py detects streams that are quiet or stalled;
home.py chooses the Redis server of new streams.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from time import time
from typing import Any, Final

from common.auth.api_key import KeyId
from common.entries import IngressId, StreamId
from common.errors import EntryError, ErrorCode, InternalFault, RedisUnavailable, StreamError, Unavailable
from common.languages import Languages
from common.messages import Audio, Resume
from common.monitoring.metrics import IngressMetrics
from common.presence.leases import IngressPresence, IngressReport
from common.presence.served_model import served_languages
from common.presence.status import shared_status
from common.redis.clients import CONNECTION_ERRORS, AsyncRedis, PipelinedCommands, RedisServers
from common.redis.connect import in_daemon_thread
from common.redis.grants import INGRESS
from common.redis.keys import Keys
from common.redis.requirements import check_servers
from common.streams.admission import Admission, SharedSettings
from common.streams.appender import Appender
from common.streams.assignments import NewStream, StreamDirectory
from common.streams.audio_log import AudioLog
from common.streams.audio_tail import decoded_samples
from common.streams.key_usage import KeyUsage
from common.tracing.tracer import NO_TRACER, Tracer
from ingress.backplane import NOBODY, Caller, Resumption, StreamListener
from ingress.streams.home import HomeServers
from ingress.streams.keeper import Keeper
from ingress.streams.life import Action
from ingress.streams.redis_link import LinkContext, RedisLink
from ingress.streams.result_feed import RETRY_PAUSE_S, ResultFeed
from ingress.streams.takeover import StreamTakeover, new_token, token_hash
from ingress.streams.watch import StreamWatch

logger = logging.getLogger(__name__)

# An admission outlives its ingress by the time in which its clients may come back.
ADMISSION_MARGIN_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class BackplaneSettings:
    """Settings of the backplane; times in seconds. claim_timeout_s: longest time until a worker has a stream.

    redis_outage_s: how long Redis may be away before the streams that wait for it fail.
    adopts: whether an earlier process may have had this ingress's name, and left streams behind.
    """

    ingress: IngressId
    max_num_streams: int
    sample_rate: int
    stream_ttl_s: float
    heartbeat_s: float
    claim_timeout_s: float
    resume_grace_s: float
    coalesce_ms: int = 0
    redis_loss_ms: int = 0
    redis_outage_s: float = 15.0
    adopts: bool = True


class RedisBackplane:
    """The streams of one ingress (a `Backplane`).

    report: returns this ingress's own status, for every heartbeat.   metrics: metrics of this ingress.
    tracer: makes the spans of streams.
    """

    def __init__(
        self,
        settings: BackplaneSettings,
        servers: RedisServers,
        report: Callable[[], IngressReport],
        metrics: IngressMetrics,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self._settings = settings
        self._ttl_ms = int(settings.stream_ttl_s * 1000)
        self._admission_ttl_ms = int((settings.resume_grace_s + ADMISSION_MARGIN_S) * 1000)
        self._keys = Keys(servers.shards)
        self._redis = AsyncRedis(servers)
        self._admission = Admission(PipelinedCommands(self._redis, 0), self._keys)
        self._directory = StreamDirectory(self._redis, self._keys)
        self._audio = AudioLog(
            self._redis,
            self._keys,
            int(settings.redis_outage_s * 1000),
            coalesce_ms=settings.coalesce_ms,
            keep_ms=settings.redis_loss_ms,
            on_commit=metrics.redis_commit_seconds.observe,
        )
        presence = IngressPresence(
            PipelinedCommands(self._redis, 0), self._keys, settings.ingress, settings.heartbeat_s * 1000
        )
        self._links: dict[StreamId, RedisLink] = {}
        self._feed = ResultFeed(self._redis, servers, self._keys, settings.ingress, self._links)
        self._home = HomeServers(self._redis, settings.heartbeat_s)
        self._watch = StreamWatch(
            self._directory,
            self._feed,
            self._links,
            servers=servers,
            ingress=settings.ingress,
            decoded=partial(decoded_samples, self._redis),
            claim_timeout_s=settings.claim_timeout_s,
            patience_s=settings.stream_ttl_s + settings.resume_grace_s,
        )
        self._keeper = Keeper(
            self._admission,
            self._directory,
            presence,
            self._feed,
            self._links,
            shared=SharedSettings(settings.max_num_streams, settings.sample_rate, servers.shards),
            report=report,
            read_languages=partial(served_languages, PipelinedCommands(self._redis, 0), self._keys),
            on_place=self._home.move,
            heartbeat_s=settings.heartbeat_s,
            ttl_ms=self._ttl_ms,
            admission_ttl_ms=self._admission_ttl_ms,
        )
        self._context = LinkContext(
            self._act,
            self._feed.gone,
            self.start_task,
            settings.resume_grace_s,
            metrics,
            settings.sample_rate,
            self._confirm,
            tracer,
        )
        self._takeover = StreamTakeover(
            self._context,
            self._redis,
            self._keys,
            self._directory,
            self._audio,
            self._links,
            self._feed,
            self._watch,
            self._keeper,
            ingress=settings.ingress,
            adopt_for_s=settings.stream_ttl_s,
        )
        self._loop = asyncio.get_running_loop()
        self._tasks: asyncio.TaskGroup | None = None
        self._clean_ups: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()  # a link was dropped

    # Life

    async def start(self) -> None:
        """Check that the servers meet the requirements, and agree with the cluster on the shared settings.

        Raises UnfitRedis, SettingsMismatch or RedisUnavailable.
        """
        servers = self._redis.servers
        try:
            await in_daemon_thread(
                lambda: check_servers(servers.addresses, servers.timeout_ms / 1000, INGRESS)
            )
        except CONNECTION_ERRORS as error:
            raise RedisUnavailable from error
        try:
            await self._keeper.agree()
        except RedisUnavailable as error:
            raise RedisUnavailable(f"Redis at {servers.addresses[0]} cannot be used: {error}") from error

    async def run(self, running: asyncio.Event) -> None:
        """Serve until cancelled; `running` is set once tasks can be started."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            tasks.create_task(self._audio.run(), name="audio-log")
            tasks.create_task(self._feed.run(), name="results")
            tasks.create_task(self._keeper.run(), name="keeper")
            tasks.create_task(self._watch.run(), name="watch")
            tasks.create_task(self._home.run(), name="home")
            if self._settings.adopts:
                tasks.create_task(_guarded(self._takeover.adopt_orphans(), "adoption"), name="adoption")
            running.set()

    @property
    def answered_lately(self) -> bool:
        """Return whether Redis has answered within the last few heartbeats; callable from any thread."""
        return self._keeper.answered_lately

    def announce(self) -> None:
        """Begin to sign on with every heartbeat: the ports are open."""
        self._keeper.announce()

    async def others_serve(self) -> bool:
        """Return whether another ingress accepts clients. Raises RedisUnavailable."""
        return await self._keeper.others_serve()

    async def stop(self, timeout_s: float) -> None:
        """Write all queued entries to Redis, return admissions, sign off; within a bounded time.

        Streams that wait for their client keep their admission: another ingress may resume them.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._audio.flush(timeout_s)
                while any(link.left_at is not None and not link.waits_for_client for link in self._all()):
                    self._changed.clear()
                    await self._changed.wait()
                if self._clean_ups:
                    await asyncio.wait(self._clean_ups)
        except (TimeoutError, RedisUnavailable):
            logger.warning("%d streams have not ended yet; workers and expiries end them", len(self._links))
        try:
            async with asyncio.timeout(timeout_s):
                for link in self._all():
                    if not link.waits_for_client:
                        await self._admission.release(link.stream)
                await self._keeper.leave()
        except (TimeoutError, RedisUnavailable) as error:
            logger.warning("Redis could not be told of the stop: %s", error)

    async def close(self) -> None:
        """Close the connections to Redis."""
        await self._redis.close()

    def _all(self) -> list[RedisLink]:
        """Return a copy of the list of links."""
        return list(self._links.values())

    @property
    def num_streams(self) -> int:
        """Number of streams that this ingress keeps, those of clients that left included."""
        return len(self._links)

    def expel(self, key_id: KeyId) -> None:
        """End the streams that wait for a client whose key has become invalid: it cannot come back."""
        for link in self._all():
            if link.waits_for_client and link.caller.key_id == key_id:
                link.grace_is_over()

    def refresh(self, metrics: IngressMetrics) -> None:
        """Update the gauges about streams and Redis; callable from any thread."""
        links = self._all()
        detached = sum(link.waits_for_client for link in links)
        waiting = sum(link.begun and link.worker is None and not link.waits_for_client for link in links)
        served = sum(link.begun for link in links)
        metrics.streams.update(waiting=waiting, detached=detached, decoding=served - waiting - detached)
        metrics.redis_pending_bytes = sum(link.audio.pending_bytes for link in links)
        metrics.redis_reconnects = self._redis.num_losses
        metrics.audio_restored_entries = self._audio.num_restored

    # Backplane

    @property
    def languages(self) -> Languages:
        """The languages of the served model, as far as they are known."""
        return self._keeper.languages

    async def admit(self, listener: StreamListener, caller: Caller = NOBODY) -> RedisLink:
        """Ask the cluster for a stream. Raises NoFreeStream, NoWorker or RedisUnavailable."""
        return await self._admit(listener, None, new_token(), caller)

    async def readmit(
        self, listener: StreamListener, stream: StreamId, resume_token: str, caller: Caller = NOBODY
    ) -> RedisLink:
        """Ask the cluster again for the slot of a stream, which was returned before the stream began.

        Raises NoFreeStream, NoWorker or RedisUnavailable.
        """
        return await self._admit(listener, stream, resume_token, caller)

    async def _admit(
        self, listener: StreamListener, stream: StreamId | None, resume_token: str, caller: Caller
    ) -> RedisLink:
        shard = self._home.next_shard()
        limit, ttl_ms = self._settings.max_num_streams, self._admission_ttl_ms
        asked = asyncio.create_task(self._admission.admit(limit, ttl_ms, stream, shard), name="admit")
        try:
            stream = await asyncio.shield(asked)
        except asyncio.CancelledError:
            # Who asked has gone, as an upload does whose client leaves; Redis may grant the slot even so.
            self._clean_up(self._give_back(asked), "give-back-unasked")
            raise
        link = RedisLink(self._context, self._keys.stream(stream), listener, resume_token, caller)
        self._links[stream] = link
        return link

    async def resume(self, listener: StreamListener, request: Resume, caller: Caller = NOBODY) -> Resumption:
        """Take a stream over from a connection that was lost.

        Raises Unavailable (`resume_refused`, `redis_unavailable`, `internal`).
        """
        return await self._takeover.resume(listener, request, caller)

    def _confirm(self, link: RedisLink) -> None:
        self.start_task(self._takeover.confirm(link), f"confirm-{link.stream}")

    def key_usage(self) -> KeyUsage:
        """Return the counters of the use of API keys, over all ingresses."""
        return KeyUsage(PipelinedCommands(self._redis, 0), self._keys, self._settings.ingress)

    async def read_status(self) -> bytes:
        """Return the status line of the cluster. Raises RedisUnavailable."""
        return await shared_status(self._redis, self._keys)

    # The life of a stream

    def start_task(self, coroutine: Coroutine[Any, Any, None], name: str) -> object:
        """Run a coroutine as a named task beside the loops."""
        if self._tasks is None:
            raise AssertionError("the backplane does not run")
        return self._tasks.create_task(_guarded(coroutine, name), name=name)

    def _act(self, link: RedisLink, action: Action) -> None:
        """Carry out an action of the table of a stream's life (ingress/streams/life.py)."""
        stream = link.stream
        match action:
            case Action.CREATE:
                self.start_task(self._create(link), f"create-{stream}")
            case Action.GIVE_BACK:
                self._drop(link)
                self._clean_up(self._release(stream), f"give-back-{stream}")
            case Action.TELL_TAKEN:
                self._drop(link)
            case Action.GIVE_UP:
                self._clean_up(self._give_up(link), f"give-up-{stream}")
            case Action.REMOVE | Action.REMOVE_UNSENT:
                self._drop(link)
                self._clean_up(self._remove(link, sent=action is Action.REMOVE), f"remove-{stream}")
            case _:
                raise AssertionError(f"no such action: {action}")

    async def _create(self, link: RedisLink) -> None:
        try:
            appender = await self._created(link)
        except StreamError as error:
            link.is_not_created(error)
        except Exception:
            logger.exception("A stream could not be created", extra={"stream_id": link.stream})
            link.is_not_created(InternalFault())
        else:
            link.is_created(appender)

    async def _created(self, link: RedisLink) -> Appender:
        """Create the stream in Redis, trying again while Redis is away.

        Raises RedisUnavailable, or EntryError where Redis refuses the stream's keys.
        """
        settings, options = self._settings, link.options
        assert options is not None, "a stream that begins has options"
        new = NewStream(
            stream=link.stream,
            ingress=settings.ingress,
            options=options,
            sample_rate=options.sample_rate or settings.sample_rate,
            token_hash=token_hash(link.resume_token, link.caller.key_id),
            created_ms=int(time() * 1000),
            ttl_ms=self._ttl_ms,
            # Two heartbeats at least: where Redis has lost the register, a worker takes this ingress for gone
            # until its next one.
            grace_ms=int(1000 * max(settings.resume_grace_s, 2 * settings.heartbeat_s)),
            trace=link.account.traceparent,
        )
        give_up = self._loop.time() + settings.redis_outage_s
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
                    sample_rate=new.sample_rate,
                    origin=lambda: self._directory.creation_anew(new, link.epoch),
                    ahead_s=link.ahead_s,
                )

    def _drop(self, link: RedisLink) -> None:
        """Drop the link of a stream that goes on elsewhere, or is gone."""
        if self._links.get(link.stream) is link:
            del self._links[link.stream]
        link.audio.drop_origin()
        self._feed.drop(link)
        self._changed.set()

    async def _give_up(self, link: RedisLink) -> None:
        """Bring a failed stream without a listener to its end in Redis."""
        try:
            withdrawn = await self._directory.withdraw(link.keys)
        except (RedisUnavailable, EntryError):
            withdrawn = False
        if withdrawn:
            self._drop(link)
            await self._release(link.stream)
        elif link.audio.can_append:
            link.audio.finish()
        else:
            self._finish_failed(link)

    def _clean_up(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        """Start a task that `stop` waits for."""
        if self._tasks is None:
            raise AssertionError("the backplane does not run")
        task = self._tasks.create_task(_guarded(coroutine, name), name=name)
        self._clean_ups.add(task)
        task.add_done_callback(self._clean_ups.discard)

    async def _remove(self, link: RedisLink, *, sent: bool) -> None:
        """Return the admission of a stream; delete its keys too if no client can come back for them."""
        try:
            if not sent:
                # The client may have resumed at another ingress, which then delivers the end.
                record = await self._directory.read(link.stream)
                if record is not None and record.ingress != self._settings.ingress:
                    return
            await self._admission.release(link.stream)
            # Whether a client has received the end that was sent to it is not known here. A client that may
            # resume finds it until it expires.
            if link.ended and not link.resumable:
                await self._directory.remove(link.keys)
        except (RedisUnavailable, EntryError) as error:
            # The remaining keys expire.
            logger.warning("A stream's keys were left to expire: %s", error, extra={"stream_id": link.stream})

    def _finish_failed(self, link: RedisLink) -> None:
        """Append the final mark of a stream without an appender: else its worker would wait for ever.

        Its appends failed, or its creation was not answered.
        """
        give_up_at = self._loop.time() + self._settings.stream_ttl_s

        def append() -> None:
            failed = link.audio.appender
            appender = (
                self._audio.open(link.keys, again) if failed is None else self._audio.reopen(failed, again)
            )
            appender.append(Audio(b"", final=True))

        def again(error: Unavailable) -> None:
            if error.code is ErrorCode.REDIS_UNAVAILABLE and self._loop.time() < give_up_at:
                append()

        append()

    async def _give_back(self, asked: asyncio.Task[StreamId]) -> None:
        with suppress(StreamError):
            await self._release(await asked)

    async def _release(self, stream: StreamId) -> None:
        try:
            await self._admission.release(stream)
        except RedisUnavailable as error:
            logger.warning("An admission was left to expire: %s", error, extra={"stream_id": stream})


async def _guarded(coroutine: Coroutine[Any, Any, None], name: str) -> None:
    """Run a task about one stream; a defect in it must not end the process with all other streams."""
    try:
        await coroutine
    except Exception:
        logger.exception("%s failed", name)
