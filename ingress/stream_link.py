"""One stream as this ingress sees it: its audio on the way into Redis, its results on the way out.

A link outlives its connection: a stream whose client left is finalized through it, and gives its slot
back once the last result has come.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, Protocol

from common.entries import Line, LineKind, StreamId, WorkerId
from common.errors import InternalFault, StreamError, StreamLost, Unavailable
from common.messages import Audio
from common.options import StreamOptions
from common.redis.keys import StreamKeys
from common.result_record import decode_error, decode_record
from common.streams.appender import Appender
from common.streams.audio_log import AudioLog
from common.streams.result_reader import Position
from ingress.links import StreamListener

logger = logging.getLogger(__name__)

# Audio that one stream may have on its way into Redis before its client is made to wait: eight
# seconds of pcm16 at 16 kHz. It is read again when a quarter is left.
MAX_PENDING_BYTES: Final = 256 * 1024
RESUME_READING_BYTES: Final = MAX_PENDING_BYTES // 4

_FINAL_MARK: Final = Audio(b"", final=True)


class LinkOwner(Protocol):
    """What a link asks of the backplane."""

    @property
    def resume_grace_s(self) -> float:
        """How long a stream waits for its client to come back."""

    def start_task(self, coroutine: Coroutine[Any, Any, None], name: str) -> object:
        """Run a coroutine beside the rest."""

    async def create(self, link: RedisLink, options: StreamOptions) -> Appender:
        """Create the stream in Redis, trying again while Redis is away. Raises RedisUnavailable."""

    def give_back(self, link: RedisLink) -> None:
        """Forget a link whose stream never began, and its admission."""

    def forget(self, link: RedisLink) -> None:
        """Forget the link of a stream that goes on elsewhere, or is gone."""

    def gone(self, link: RedisLink) -> None:
        """Redis has no such stream: its results tell whether it has ended."""

    def give_up(self, link: RedisLink) -> None:
        """The stream has failed and nobody listens: bring it to its end in Redis."""

    def ended(self, link: RedisLink, *, delivered: bool) -> None:
        """The stream has ended: remove its admission, and its keys where no client can come back for them."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a link goes on with the results of a stream that another connection began.

    position: of the last line that need not be read; None before the first.
    text: what is kept of the stream's text, which goes at least as far as that line.
    told_seq: the last result that the client has.
    """

    position: Position | None
    text: str = ""
    told_seq: int = 0


class RedisLink:
    """One admitted stream (a `StreamLink`).

    keys: its keys in Redis.
    binding: what else than the secret a client has to have to resume it (`Backplane.admit`).
    worker, epoch: its owner, None before the first, and the epoch of the last line.
    seq: number of the last result.

    Times are those of the event loop:

    begun_at, created_at, left_at: of its beginning, of its creation in Redis, and of its abandonment; None
        before.
    heard_at, progress_at: of the last line about it, and of the last one that showed progress.
    looked_up_at: of the last look at its record, which StreamWatch notes here.
    suspected_at: since when it is with the suspects, or waits for them; None for a stream that never was.
    finish_at: when an abandoned stream that waits for its client is to be finalized; None for any other.
    """

    __slots__ = (
        "_appender",
        "_ended",
        "_failed",
        "_finished",
        "_held",
        "_held_bytes",
        "_listener",
        "_loop",
        "_owner",
        "_resumable",
        "_settled",
        "_text",
        "_token",
        "_told_seq",
        "_waiting_for_room",
        "begun_at",
        "binding",
        "created_at",
        "epoch",
        "finish_at",
        "heard_at",
        "keys",
        "left_at",
        "looked_up_at",
        "progress_at",
        "seq",
        "suspected_at",
        "worker",
    )

    def __init__(
        self,
        owner: LinkOwner,
        keys: StreamKeys,
        listener: StreamListener | None,
        token: str,
        binding: str = "",
    ) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._token = token
        self.binding = binding
        self._appender: Appender | None = None
        self._held: list[Audio] = []  # audio that came before the stream was created
        self._held_bytes = 0
        self._resumable = False
        self._finished = False  # a final mark was queued
        self._ended = False  # the last result has come
        self._failed = False
        self._waiting_for_room = False
        self._text = ""  # of the last result, as long as somebody listens
        self._told_seq = 0  # results up to this one the client has
        self._settled = asyncio.Event()  # the stream was created, or could not be
        self.keys: Final = keys
        self.worker: WorkerId | None = None
        self.epoch = 0
        self.seq = 0
        self.begun_at: float | None = None
        self.created_at: float | None = None
        self.heard_at = 0.0
        self.progress_at = 0.0
        self.looked_up_at = 0.0
        self.suspected_at: float | None = None
        self.left_at: float | None = None
        self.finish_at: float | None = None

    # StreamLink

    @property
    def stream(self) -> StreamId:
        """The stream's id."""
        return self.keys.stream

    @property
    def resume_token(self) -> str:
        """The secret that `hello` gives to the client."""
        return self._token

    def begin(self, options: StreamOptions) -> None:
        """Create the stream in Redis; audio is held until it is there."""
        self.begun_at = self.heard_at = self._loop.time()
        self._resumable = options.resume
        self._owner.start_task(self._create(options), f"create-{self.stream}")

    def append(self, audio: Audio) -> bool:
        """Append audio; False asks to stop reading until `on_room`."""
        if audio.final:
            self._finished = True
        elif not audio.payload:
            return True  # nothing, which would wait in any number and weigh nothing
        appender = self._appender
        if appender is None:
            if self._failed:
                return True
            self._held.append(audio)
            self._held_bytes += len(audio.payload)
            pending = self._held_bytes
        elif appender.failed is not None:
            return True  # on_failure is on its way
        else:
            appender.append(audio)
            pending = appender.pending_bytes
        if pending <= MAX_PENDING_BYTES:
            return True
        self._wait_for_room()
        return False

    def abandon(self, *, keep: bool) -> None:
        """End the stream now, or after the grace; give the admission back where none has begun."""
        self._listener = None
        if self.begun_at is None:
            self._owner.give_back(self)
            return
        if self.left_at is None:
            self.left_at = self._loop.time()
        if self._ended:
            self._owner.ended(self, delivered=False)
        elif self._failed:
            self._owner.give_up(self)
        elif keep:
            self.finish_at = self.left_at + self._owner.resume_grace_s
        else:
            self.finish()

    def release(self) -> None:
        """The last result has been sent."""
        self._listener = None
        self._owner.ended(self, delivered=True)

    # The backplane's side

    @property
    def abandoned(self) -> bool:
        """Whether nobody listens any more."""
        return self._listener is None

    @property
    def begun(self) -> bool:
        """Whether the stream is, or is being, created."""
        return self.begun_at is not None

    @property
    def created(self) -> bool:
        """Whether the stream is in Redis."""
        return self.created_at is not None and not self._failed

    @property
    def failed(self) -> bool:
        """Whether the stream could not go on before its last result came."""
        return self._failed

    @property
    def ended(self) -> bool:
        """Whether the last result has come."""
        return self._ended

    @property
    def resumable(self) -> bool:
        """Whether the client said that it comes back where its connection is lost."""
        return self._resumable

    @property
    def position(self) -> Position:
        """The last line of the results that this link has; the beginning before its first."""
        if self.epoch == 0:
            return Position(self.keys, 0, 0)
        return Position(self.keys, self.epoch, self.seq)

    def adopt(
        self, appender: Appender | None, options: StreamOptions, place: Place, *, finished: bool
    ) -> None:
        """Become the link of a stream that another connection began."""
        self._resumable = options.resume
        self.begun_at = self.created_at = self.heard_at = self.progress_at = self._loop.time()
        self._appender = appender
        self._settled.set()
        self._finished = finished
        self._text, self._told_seq = place.text, place.told_seq
        if place.position is not None:
            self.epoch, self.seq = place.position.epoch, place.position.seq

    def waits_for_progress(self, least_s: float, now: float) -> float:
        """Seconds without progress though there is something to do: `least_s` of audio, or the end."""
        listener = self._listener
        if listener is None or self.created_at is None:
            return 0.0
        if not self._finished and listener.undecoded_s < least_s:
            self.progress_at = now
        return now - self.progress_at

    @property
    def undecoded_s(self) -> float:
        """Audio of the stream that is not decoded, as far as its connection was told, in seconds."""
        return self._listener.undecoded_s if self._listener is not None else 0.0

    def decoded(self, samples: int) -> None:
        """Tell the connection what is decoded, since it may not have been told."""
        if self._listener is not None and not self._ended:
            self._listener.on_ack(samples)

    def suspected(self, patience_s: float) -> None:
        """The stream is with the suspects, or waits for them: for so long that is no stall."""
        now = self._loop.time()
        if self.suspected_at is None:
            self.suspected_at = now
        if now - self.suspected_at < patience_s:
            self.progress_at = now

    def finish(self) -> None:
        """Append a final mark, unless there is one."""
        self.finish_at = None
        if not self._finished:
            self.append(_FINAL_MARK)

    @property
    def can_append(self) -> bool:
        """Whether audio, or a final mark, can be appended."""
        return self._appender is not None and self._appender.failed is None

    def begin_again(self) -> bool:
        """Give Redis, which has forgotten the stream, all of it anew; False where it is not all kept."""
        return self._appender is not None and self._appender.begin_again()

    def forgotten(self) -> None:
        """This ingress keeps the stream no longer."""
        if self._appender is not None:
            self._appender.forget_origin()

    def successor(self, log: AudioLog, on_failure: Callable[[Unavailable], None]) -> Appender | None:
        """A new appender behind the one that failed, for the final mark; None if there was none."""
        failed = self._appender
        if failed is None:
            return None
        return log.open(
            self.keys,
            on_failure,
            connection=failed.connection,
            next_seq=failed.next_seq,
            first_sample=failed.first_sample,
        )

    def taken(self) -> None:
        """Another connection has resumed the stream: leave it alone."""
        listener, self._listener = self._listener, None
        self._owner.forget(self)
        if listener is not None:
            listener.on_taken()

    def fail(self, error: StreamError) -> None:
        """The stream cannot go on."""
        if self._failed or self._ended:
            return
        self._failed = True
        listener = self._listener
        if listener is None:
            self._owner.give_up(self)
        else:
            listener.on_failure(error)

    def take(self, line: Line, *, repair: bool = False) -> bool:
        """Take one line about this stream; False when lines before it are missing.

        repair: the line was read from the results of the stream, where nothing is missing but what
            was trimmed.
        """
        self.heard_at = self._loop.time()
        if self._ended or line.epoch < self.epoch:
            return True
        kind = line.kind
        if kind is LineKind.OWNER:
            return self._take_owner(line)
        if line.epoch > self.epoch:
            if not repair:
                return False
            self.epoch = line.epoch
        self.progress_at = self.heard_at
        if kind is LineKind.ACK:
            if line.seq > self.seq:
                return False
            if self._listener is not None:
                self._listener.on_ack(line.acked)
            return True
        if line.seq <= self.seq:
            return True
        if line.seq != self.seq + 1:
            if not repair:
                return False
            if self._listener is not None:  # else nobody misses what was trimmed
                self.fail(StreamLost())
                return False
        self.seq = line.seq
        if line.seq <= self._told_seq:
            if kind is not LineKind.ERROR:
                self._text = decode_record(line, self._text).text
            return True
        if kind is LineKind.FINAL or kind is LineKind.ERROR:
            self._ended = True
            if self._appender is not None:
                self._appender.forget_kept()
        if self._listener is not None:
            if kind is LineKind.ERROR:
                self._listener.on_error(decode_error(line))
            else:
                result = decode_record(line, self._text)
                self._text = result.text
                self._listener.on_result(kind, result)
        elif self._ended:
            self._owner.ended(self, delivered=False)
        return True

    # Inside

    def _take_owner(self, line: Line) -> bool:
        if line.seq > self.seq:
            return False
        if 0 < self.epoch < line.epoch:
            self.progress_at = self.heard_at  # a takeover begins with a replay
        self.epoch = line.epoch
        self.set_worker(WorkerId(line.body.decode()))
        return True

    def set_worker(self, worker: WorkerId) -> None:
        """Note the owner, whose ready set is to be told of new audio."""
        self.worker = worker
        if self._appender is not None:
            self._appender.set_owner(worker)

    async def _create(self, options: StreamOptions) -> None:
        try:
            appender = await self._owner.create(self, options)
        except StreamError as error:
            self.fail(error)
            self._settled.set()
            return
        except Exception:
            logger.exception("A stream could not be created", extra={"stream_id": self.stream})
            self.fail(InternalFault())
            self._settled.set()
            return
        self._appender = appender
        self.created_at = self.progress_at = self._loop.time()
        if self.worker is not None:
            appender.set_owner(self.worker)
        held, self._held = self._held, []
        for audio in held:
            if appender.failed is None:
                appender.append(audio)
        self._settled.set()

    def on_append_failed(self, error: Unavailable) -> None:
        """The audio log gave up."""
        if isinstance(error, StreamLost):
            self._owner.gone(self)
        else:
            self.fail(error)

    def _wait_for_room(self) -> None:
        if not self._waiting_for_room:
            self._waiting_for_room = True
            self._owner.start_task(self._room(), f"room-{self.stream}")

    async def _room(self) -> None:
        try:
            await self._settled.wait()
            if self._appender is None:
                return
            await self._appender.room(RESUME_READING_BYTES)
        except StreamError:
            return  # on_failure has told
        except Exception:
            # Its client would wait for ever: nobody else tells it to go on.
            logger.exception("A stream cannot go on", extra={"stream_id": self.stream})
            self.fail(InternalFault())
            return
        finally:
            self._waiting_for_room = False
        if self._listener is not None:
            self._listener.on_room()
