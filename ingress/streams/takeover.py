"""Streams that lost their connection: another connection resumes them, or they wait for their client.

The earlier connection may have been at this ingress, at another, or at a dead process of this name. The
ingress that attaches a stream in Redis is responsible for it from then on.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Final, TypeVar

from common.entries import IngressId, StreamId
from common.errors import EntryError, ErrorCode, InternalFault, RedisUnavailable, Unavailable
from common.messages import Resume
from common.redis.clients import AsyncRedis
from common.redis.keys import Keys
from common.streams.appender import Appender
from common.streams.assignments import StreamDirectory, StreamRecord
from common.streams.audio_log import AudioLog
from common.streams.audio_tail import audio_tail
from common.streams.kept_text import read_kept_text
from common.streams.result_reader import kept_results
from ingress.backplane import Caller, Resumption, StreamListener
from ingress.streams.keeper import Keeper
from ingress.streams.redis_link import LinkContext, Place, RedisLink
from ingress.streams.result_feed import RETRY_PAUSE_S, ResultFeed
from ingress.streams.watch import StreamWatch

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

# A client may be a moment ahead of the log: an owner that has just lost the stream still publishes, and its
# successor writes the same result. A client waits 10 s and more for its answer.
_AHEAD_S: Final = 5.0


class StreamTakeover:
    """Takes streams over for this ingress.

    context: context of the new links.
    links: the open streams; a new link replaces the earlier one.
    adopt_for_s: how long Redis may be away before a stream without a connection is left to expire.
    """

    def __init__(
        self,
        context: LinkContext,
        redis: AsyncRedis,
        keys: Keys,
        directory: StreamDirectory,
        audio: AudioLog,
        links: MutableMapping[StreamId, RedisLink],
        feed: ResultFeed,
        watch: StreamWatch,
        keeper: Keeper,
        *,
        ingress: IngressId,
        adopt_for_s: float,
    ) -> None:
        self._context = context
        self._redis = redis
        self._keys = keys
        self._directory = directory
        self._audio = audio
        self._links = links
        self._feed = feed
        self._watch = watch
        self._keeper = keeper
        self._ingress = ingress
        self._adopt_for_s = adopt_for_s
        self._loop = asyncio.get_running_loop()
        self._resuming: list[StreamId] = []  # one entry for each resumption under way

    # Resumption by a client

    async def resume(self, listener: StreamListener, request: Resume, caller: Caller) -> Resumption:
        """Take a stream over for its client, from a connection that was lost.

        Raises Unavailable `resume_refused`, RedisUnavailable, or InternalFault where its audio is unreadable.
        """
        stream = StreamId(request.stream_id)
        self._resuming.append(stream)
        try:
            return await self._resume(stream, listener, request, caller)
        except EntryError as error:
            logger.error("%s", error, extra={"stream_id": stream})
            raise InternalFault from error
        finally:
            self._resuming.remove(stream)

    async def _resume(
        self, stream: StreamId, listener: StreamListener, request: Resume, caller: Caller
    ) -> Resumption:
        record, place = await self._resumable(stream, request, caller)
        token = new_token()
        tokens = token_hash(request.resume_token, caller.key_id), token_hash(token, caller.key_id)
        connection = await self._directory.attach(stream, self._ingress, tokens=tokens)
        if connection < 0:  # the client has resumed elsewhere just now, and has confirmed the next token
            raise _unknown(stream)
        if connection == 0 and not record.finished:  # it ended just now
            record, place = await self._resumable(stream, request, caller)
        before = self._links.get(stream)
        if before is not None:
            before.taken()
        link = RedisLink(self._context, self._keys.stream(stream), listener, token, caller)
        try:
            next_sample, finished, num_marks = await self._take_over(
                link, record, connection, place, request.audio_ack_samples, tokens
            )
        except RedisUnavailable:
            # This ingress owns the stream by now, and no connection has it.
            self._context.start_task(self.adopt(stream), f"adopt-{stream}")
            raise
        acked = request.audio_ack_samples
        if next_sample < acked:
            # Redis and its ingress have lost audio that was decoded, and the client let go of it.
            link.abandon(keep=False, code=ErrorCode.RESUME_REFUSED.value)
            raise _refusal(stream, f"its audio from sample {next_sample} on was lost, {acked} were decoded")
        return Resumption(link, next_sample, acked, finished, record.options, record.sample_rate, num_marks)

    async def _resumable(
        self, stream: StreamId, request: Resume, caller: Caller
    ) -> tuple[StreamRecord, Place]:
        """Check that a stream may be resumed; return its record, and the place after `last_seq`."""
        give_up = self._loop.time() + _AHEAD_S
        while True:
            record, place, last = await self._place_after(stream, request, caller)
            if record.finished and request.last_seq == last:
                raise _refusal(stream, f"it has ended, and result {last} was its last")
            if request.last_seq <= last:
                return record, place
            if record.finished or self._loop.time() > give_up:
                raise _refusal(stream, f"it has had no result {request.last_seq} yet")
            await asyncio.sleep(RETRY_PAUSE_S)

    async def _place_after(
        self, stream: StreamId, request: Resume, caller: Caller
    ) -> tuple[StreamRecord, Place, int]:
        """Check the secret; return the record, the place after `last_seq`, and the last result's number."""
        refused = _unknown(stream)
        try:
            record = await self._directory.read(stream)
        except EntryError as error:
            raise refused from error
        shown = token_hash(request.resume_token, caller.key_id)
        good = () if record is None else (record.token_hash, record.token_before)
        matches = [hmac.compare_digest(one, shown) for one in good]
        if record is None or not any(matches):
            raise refused
        last_seq = request.last_seq
        try:
            text = await read_kept_text(self._redis, self._keys.stream(stream))
            # Results that the client has are read too, if their text is not kept: later results add to it.
            kept = await kept_results(self._redis, self._keys.stream(stream), min(last_seq, text.seq))
        except EntryError as error:
            raise refused from error
        first, last = (kept.first, kept.last) if kept is not None else (1, 0)
        if record.finished and first > last:
            raise refused
        if first > last_seq + 1:
            raise _refusal(stream, f"the results after {last_seq} are no longer kept")
        return record, Place(kept.position if kept is not None else None, text.text, last_seq), last

    async def confirm(self, link: RedisLink) -> None:
        """Note that the client has its new resume token: the previous one becomes invalid."""
        token = token_hash(link.resume_token, link.caller.key_id)
        try:
            await self._patiently(partial(self._directory.confirm, link.stream, token))
            link.confirmed = True
        except EntryError as error:
            logger.error("%s", error, extra={"stream_id": link.stream})

    async def _patiently(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """Repeat a call while Redis is away. Raises RedisUnavailable where that takes too long."""
        give_up = self._loop.time() + self._adopt_for_s
        while True:
            try:
                return await call()
            except RedisUnavailable:
                if self._loop.time() > give_up:
                    raise
                await asyncio.sleep(RETRY_PAUSE_S)

    # Adoption without a client

    async def adopt_orphans(self) -> None:
        """Take over the streams of a dead process of the same name, for their clients' grace period.

        Workers end the streams of an ingress that is gone, but this name is alive again.
        """
        for stream in await self._patiently(partial(self._directory.streams_of, self._ingress)):
            await self.adopt(stream)

    async def adopt(self, stream: StreamId) -> None:
        """Keep a stream of this ingress without a connection for its client's grace period."""
        try:
            await self._patiently(partial(self._adopt_now, stream))
        except EntryError as error:
            logger.error("%s", error, extra={"stream_id": stream})

    async def _adopt_now(self, stream: StreamId) -> None:
        while True:
            record = None if self._is_here(stream) else await self._directory.read(stream)
            if record is None or record.finished or record.ingress != self._ingress:
                return
            # 0 where its client has resumed it meanwhile, elsewhere or here: then it is left alone. Or the
            # answer was lost, and the repeated command found the connection that it had made itself.
            connection = await self._directory.attach(
                stream, self._ingress, expected=(record.ingress, record.connection)
            )
            if connection:
                break
        if self._is_here(stream):
            return
        kept = await kept_results(self._redis, self._keys.stream(stream), None)
        link = RedisLink(self._context, self._keys.stream(stream), None, "")
        logger.info("adopting a stream without a connection", extra={"stream_id": stream})
        await self._take_over(link, record, connection, Place(kept.position if kept is not None else None), 0)
        if self._links.get(stream) is link:
            link.abandon(keep=True)

    def _is_here(self, stream: StreamId) -> bool:
        """Return whether the stream has a connection of this process, or is just getting one."""
        return stream in self._links or stream in self._resuming

    # Common to both

    async def _take_over(
        self,
        link: RedisLink,
        record: StreamRecord,
        connection: int,
        place: Place,
        acked_samples: int,
        tokens: tuple[str, str] | None = None,
    ) -> tuple[int, bool, int]:
        """Replace the link that a stream had before by a new one.

        connection: from `StreamDirectory.attach`, 0 for a stream that has ended. tokens: those passed to
        `attach`. Returns the first sample that is not in Redis, whether the audio was finished, and the
        number of entries without samples behind it. Raises EntryError where the audio is unreadable; the
        stream is then brought to its end.
        """
        if connection == 0:
            self._put_in_place(link, record, None, place, next_sample=acked_samples, finished=True)
            return acked_samples, True, 0
        try:
            tail = await audio_tail(self._redis, link.keys)
        except EntryError:
            self._end(link, record, connection, place)
            raise
        if link.abandoned and self._is_here(link.stream):
            return acked_samples, record.finished, 0  # its client was faster than the adoption
        last, next_sample, seq, finished = tail.last, acked_samples, 0, False
        if last is not None:
            next_sample = last.first_sample + last.num_samples
            seq = last.seq
            finished = last.final
        appender = self._audio.open(
            link.keys,
            link.on_append_failed,
            connection=connection,
            next_seq=seq + 1,
            first_sample=next_sample,
            sample_rate=record.sample_rate,
            attachment=lambda: self._attachment(link, connection, tokens),
            ahead_s=link.ahead_s,
        )
        if not finished:
            appender.attach(self._ingress)
        # No await from here to the caller's return: a line that came in between would reach a listener that
        # is not ready for it yet.
        self._put_in_place(link, record, appender, place, next_sample=next_sample, finished=finished)
        self._context.start_task(self._keeper.renew(link), f"renew-{link.stream}")
        if finished:
            self._context.start_task(self._watch.follow(link), f"follow-{link.stream}")
        return next_sample, finished, tail.num_marks

    def _attachment(self, link: RedisLink, connection: int, tokens: tuple[str, str] | None) -> bytes:
        """Return the packed command that attaches a stream again, in case Redis has lost the attachment."""
        if tokens is not None and link.confirmed:
            tokens = "", tokens[1]
        return self._directory.attachment_anew(link.stream, self._ingress, connection, tokens)

    def _end(self, link: RedisLink, record: StreamRecord, connection: int, place: Place) -> None:
        """Finalize a stream without a client, whose audio cannot be continued, to return its slot."""
        # The first entry of this connection comes after all entries of others, readable or not.
        appender = self._audio.open(link.keys, link.on_append_failed, connection=connection)
        self._put_in_place(link, record, appender, place, next_sample=0, finished=False)
        link.abandon(keep=False)

    def _put_in_place(
        self,
        link: RedisLink,
        record: StreamRecord,
        appender: Appender | None,
        place: Place,
        *,
        next_sample: int,
        finished: bool,
    ) -> None:
        """Make it the stream's only link at this ingress."""
        link.adopt(
            appender,
            record.options,
            place,
            next_sample=next_sample,
            finished=finished,
            trace=record.trace,
        )
        if record.owner is not None:
            link.set_worker(record.owner)
        before = self._links.get(link.stream)
        if before is not None:  # another connection has resumed the stream at the same time
            before.taken()
        self._links[link.stream] = link
        self._feed.repair(link)


def _refusal(stream: StreamId, why: str) -> Unavailable:
    return Unavailable(ErrorCode.RESUME_REFUSED, f"Stream {stream} cannot be resumed: {why}.")


def _unknown(stream: StreamId) -> Unavailable:
    """Return one and the same error for a missing stream and a wrong token, so that none can be probed."""
    return _refusal(stream, "it is gone, or its secret differs")


def new_token() -> str:
    """Return a new resume token: the secret that a client has to show to resume its stream."""
    return secrets.token_urlsafe(24)


def token_hash(token: str, binding: str) -> str:
    """Return the hash in a stream's record of the resume token and of the client's key."""
    # A client's token may hold half of a surrogate pair, which is no UTF-8 and in no token of this service.
    return hashlib.sha256(f"{token}:{binding}".encode(errors="surrogatepass")).hexdigest()
