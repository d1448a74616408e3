"""One stream as this ingress sees it: its audio on the way into Redis, its results on the way out.

A link outlives its connection: it finalizes a stream whose client has left, and returns the stream's slot
once the last result has come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast

from common.entries import Line, LineKind, StreamId, WorkerId, decode_error, decode_record
from common.errors import StreamError, StreamLost, Unavailable
from common.messages import Audio, Finalize, Phrases, Result
from common.monitoring.metrics import IngressMetrics
from common.options import StreamOptions
from common.redis.keys import StreamKeys
from common.streams.appender import Appender, StartTask, StreamAudio
from common.streams.result_reader import Position
from common.tracing.tracer import NO_TRACER, Tracer
from ingress.backplane import CLIENT_GONE, FINAL, NOBODY, Caller, StreamListener
from ingress.streams.account import StreamAccount
from ingress.streams.life import Action, Event, State, after

_FINALIZE: Final = Finalize()
# States in which lines of results are ignored.
_DEAF: Final = (State.ENDED, State.OVER, State.CLOSED)
# Looking up a member of an enum costs a call in Python 3.11.
_OWNER: Final = LineKind.OWNER
_ACK: Final = LineKind.ACK
_FINALIZED: Final = LineKind.FINALIZED
_LAST: Final = (LineKind.FINAL, LineKind.ERROR)


@dataclass(frozen=True, slots=True)
class LinkContext:
    """The objects that all links of an ingress share.

    act: carries out a backplane action of the table.   on_gone: called when Redis has no such stream.
    confirm: makes the resume token before a link's own invalid.
    start_task: runs a coroutine as a task.   resume_grace_s: how long a stream waits for its client.
    metrics: count claims, changes of owner and ends.
    sample_rate: rate of streams that name none, Hz.   tracer: makes the spans of streams.
    """

    act: Callable[[RedisLink, Action], None]
    on_gone: Callable[[RedisLink], None]
    start_task: StartTask
    resume_grace_s: float
    metrics: IngressMetrics
    sample_rate: int
    confirm: Callable[[RedisLink], None]
    tracer: Tracer = NO_TRACER


@dataclass(frozen=True, slots=True)
class Place:
    """The place from which a link continues the results of a stream that another connection began.

    position: position of the last line that need not be read; None before the first.
    text: the kept text of the stream, which covers at least the lines up to that one.
    told_seq: number of the last result that the client has.
    """

    position: Position | None
    text: str = ""
    told_seq: int = 0


class RedisLink:
    """One admitted stream (a `StreamLink`): its life, and its results.

    keys: its keys in Redis.   state: its state in the table of life.py.   audio: its audio on the way to
    Redis.
    options: the client's options, once it has begun.
    caller: its client; a resume has to come with the same key.
    account: its record for log and trace.
    worker, epoch: its owner, None before the first, and the epoch of the last line.
    seq: number of the last result.

    Times are those of the event loop:

    begun_at, created_at, left_at: of its begin here, its creation in Redis, its abandonment; None before.
    heard_at, progress_at: of the last line about it, and of the last line that showed progress.
    looked_up_at: of the last read of its record, which StreamWatch notes here.
    suspected_at: since when it is with the suspects, or waits for them; None if it never was.
    grace_ends_at: until when its client may come back; it counts while the stream is WAITING.
    """

    __slots__ = (
        "_context",
        "_failed_with",
        "_is_lost",
        "_listener",
        "_loop",
        "_text",
        "_told_seq",
        "account",
        "audio",
        "begun_at",
        "caller",
        "confirmed",
        "created_at",
        "epoch",
        "grace_ends_at",
        "heard_at",
        "keys",
        "left_at",
        "looked_up_at",
        "options",
        "progress_at",
        "resume_token",
        "seq",
        "state",
        "suspected_at",
        "worker",
    )

    def __init__(
        self,
        context: LinkContext,
        keys: StreamKeys,
        listener: StreamListener | None,
        token: str,
        caller: Caller = NOBODY,
    ) -> None:
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self.resume_token: Final = token
        self.caller: Final = caller
        self.confirmed = False  # whether Redis has noted that the client has its token
        self.keys: Final = keys
        self.state = State.ADMITTED
        self.account: Final = StreamAccount(keys.stream, caller, context.metrics)
        self.audio: Final = StreamAudio(context.start_task, self._on_room, self.fail)
        self._text = ""  # of the last result, as long as there is a listener
        self._told_seq = 0  # number of the last result that the client has
        self._is_lost = False  # whether no connection can go on with it
        self._failed_with = CLIENT_GONE  # the code of its end, where its client does not come back
        self.options: StreamOptions | None = None
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
        self.grace_ends_at = 0.0

    # StreamLink

    @property
    def stream(self) -> StreamId:
        """The stream's id."""
        return self.keys.stream

    def begin(self, options: StreamOptions) -> None:
        """Create the stream in Redis; audio is held until the stream exists."""
        self._have(options, self.caller.traceparent)
        self.heard_at = self.begun_at = self._loop.time()
        self._notify(Event.BEGIN)

    def append(self, audio: Audio) -> bool:
        """Append audio; return False if the caller has to stop reading until `on_room`."""
        account = self.account
        if audio.payload:
            account.num_samples += audio.num_samples
            if not account.has_audio:
                account.audio_began(self._loop.time())
        if audio.final:
            account.audio_ended(self._loop.time())
        return self.audio.append(audio)

    def finalize(self) -> bool:
        """Request a result of all audio so far; return False as `append` does."""
        return self.audio.mark(_FINALIZE)

    def replace_phrases(self, change: Phrases) -> bool:
        """Replace the stream's phrases from the end of its audio so far on; return False as `append` does."""
        return self.audio.mark(change)

    def confirm(self) -> None:
        """Note that the client has this link's resume token, and will not show the previous one."""
        self._context.confirm(self)

    def abandon(self, *, keep: bool, code: str = CLIENT_GONE) -> None:
        """End the stream now, or after the grace period; return the admission if no stream has begun."""
        self._listener = None
        self.left_at = self._loop.time()
        keep = keep and not self._is_lost
        if not keep or self.ended:
            self._ended(code)
        self._notify(Event.CLIENT_LOST if keep else Event.CLIENT_LEFT)

    def release(self, *, code: str = FINAL) -> None:
        """Note that the last result has been sent."""
        self._listener = None
        self._ended(code)
        self._notify(Event.SENT)

    # The backplane's side

    @property
    def abandoned(self) -> bool:
        """Whether the stream has no listener any more."""
        return self._listener is None

    @property
    def begun(self) -> bool:
        """Whether the stream is, or is being, created."""
        return self.options is not None

    @property
    def created(self) -> bool:
        """Whether the stream is in Redis and has not failed here."""
        return self.created_at is not None and not self.failed

    @property
    def failed(self) -> bool:
        """Whether the stream could not go on before its last result came."""
        return self.state in (State.FAILED, State.GIVEN_UP)

    @property
    def given_up(self) -> bool:
        """Whether it has failed, and only its end in Redis is awaited."""
        return self.state is State.GIVEN_UP

    @property
    def ended(self) -> bool:
        """Whether the last result has come."""
        return self.state in (State.ENDED, State.OVER)

    @property
    def waits_for_client(self) -> bool:
        """Whether its client is lost and may come back."""
        return self.state is State.WAITING

    @property
    def resumable(self) -> bool:
        """Whether the client has said that it resumes after a lost connection."""
        return self.options is not None and self.options.resume

    @property
    def position(self) -> Position:
        """The last line of the results that this link has; the beginning before its first."""
        if self.epoch == 0:
            return Position(self.keys, 0, 0)
        return Position(self.keys, self.epoch, self.seq)

    def adopt(
        self,
        appender: Appender | None,
        options: StreamOptions,
        place: Place,
        *,
        next_sample: int,
        finished: bool,
        trace: str = "",
    ) -> None:
        """Become the link of a stream that another connection began. trace: trace context of its record."""
        self._have(options, trace)
        self.account.num_samples = next_sample
        if finished:
            self.account.audio_ended(self._loop.time())
        self.created_at = self.heard_at = self.progress_at = self._loop.time()
        self.audio.open(appender, finished=finished)
        self._text, self._told_seq = place.text, place.told_seq
        if place.position is not None:
            self.epoch, self.seq = place.position.epoch, place.position.seq
        self._notify(Event.ADOPT)

    def is_created(self, appender: Appender) -> None:
        """Note that the stream is in Redis, and append to it from now on."""
        self.created_at = self.progress_at = self._loop.time()
        if self.worker is not None:
            appender.set_owner(self.worker)
        self._notify(Event.CREATED, appender)

    def is_not_created(self, error: StreamError) -> None:
        """Note that the stream could not be created in Redis."""
        self._is_lost = True
        self.audio.open(None)
        self.fail(error)

    def grace_is_over(self) -> None:
        """Note that the client has not come back in time, or may not come back."""
        self._ended(self._failed_with)
        self._notify(Event.GRACE_OVER)

    def expire(self) -> None:
        """Drop a stream that no client waits for: its end has not come, or Redis has lost it."""
        self._ended(CLIENT_GONE)
        self._notify(Event.EXPIRED)

    def waits_for_progress(self, least_s: float, now: float) -> float:
        """Return seconds without progress although `least_s` of audio, or the end, is to be decoded."""
        listener = self._listener
        if listener is None or self.created_at is None:
            return 0.0
        if not self.audio.finished and listener.undecoded_s < least_s:
            self.progress_at = now
        return now - self.progress_at

    @property
    def undecoded_s(self) -> float:
        """Seconds of the stream's audio that are not decoded, as far as its connection knows."""
        return self._listener.undecoded_s if self._listener is not None else 0.0

    def ahead_s(self, num_samples: int) -> float:
        """Return the seconds of the first `num_samples` samples that are not decoded, as far as is known."""
        account = self.account
        return self.undecoded_s - (account.num_samples - num_samples) / account.sample_rate

    def decoded(self, samples: int) -> None:
        """Report the number of decoded samples to the connection, which may have missed the report."""
        if self._listener is not None and not self.ended:
            self._listener.on_ack(samples)

    def suspected(self, patience_s: float) -> None:
        """Note that the stream is with the suspects, or waits for them: for `patience_s` that is no stall."""
        now = self._loop.time()
        if self.suspected_at is None:
            self.suspected_at = now
        if now - self.suspected_at < patience_s:
            self.progress_at = now

    def taken(self) -> None:
        """Give the stream up: another connection has resumed it."""
        self.account.handed_on()
        self._notify(Event.TAKEN)

    def fail(self, error: StreamError) -> None:
        """End the stream for an error, after which this connection cannot go on with it; another may."""
        self._is_lost = self._is_lost or isinstance(error, StreamLost)
        self._failed_with = error.code.value
        if self.abandoned or self._is_lost or not self.resumable:
            self._ended(error.code.value)
        self._notify(Event.FAILURE, error)

    def receive(self, line: Line, *, repair: bool = False) -> bool:
        """Take one line about this stream; return False if lines before it are missing.

        repair: whether the line was read from the stream of results, where only trimmed lines are missing.
        """
        self.heard_at = self._loop.time()
        if line.epoch < self.epoch or self.state in _DEAF:
            return True
        kind = line.kind
        if kind is _OWNER:
            return self._take_owner(line)
        if line.epoch > self.epoch:
            if not repair:
                return False
            self.epoch = line.epoch
        self.progress_at = self.heard_at
        if kind is _ACK:
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
            if self._listener is not None:  # else nobody misses the trimmed lines
                self.fail(StreamLost())
                return False
        self.seq = line.seq
        if line.seq <= self._told_seq:
            if kind is not LineKind.ERROR:
                self._text = decode_record(line, self._text).text
            return True
        if kind in _LAST:
            last: Result | StreamError | None = None
            if kind is LineKind.ERROR:
                last = decode_error(line)
                self._ended(last.code.value)
            elif self._listener is not None:
                last = self._of_all(decode_record(line, self._text))
                self.account.final(self.heard_at, line.acked)
            else:
                self._ended(FINAL)  # there is no listener to tell
            self.audio.drop_kept()
            self._notify(Event.LAST_RESULT, last)
        elif self._listener is not None:
            result = decode_record(line, self._text)
            if kind is _FINALIZED:
                result = self._of_all(result)
            self._text = result.text
            if result.text and not self.account.has_text:
                self.account.first_text(self.heard_at)
            self._listener.on_result(kind, result)
        return True

    # Internal

    def _of_all(self, result: Result) -> Result:
        """Return the result of all audio so far, with no time after that audio."""
        return result.until(result.audio_ack_samples * 1000 // self.account.sample_rate / 1000)

    def _have(self, options: StreamOptions, traceparent: str) -> None:
        self.options = options
        context = self._context
        sample_rate = options.sample_rate or context.sample_rate
        self.account.begun(context.tracer, sample_rate, options.encoding, traceparent)

    def _ended(self, code: str) -> None:
        if self.begun:
            self.account.ended(code)

    def _take_owner(self, line: Line) -> bool:
        if line.seq > self.seq:
            return False
        if 0 < self.epoch < line.epoch:
            self.progress_at = self.heard_at  # a takeover begins with a replay
            self._context.metrics.takeovers += 1
        elif self.epoch == 0 and self.begun_at is not None:
            self._context.metrics.claim_wait_seconds.observe(self.heard_at - self.begun_at)
        self.epoch = line.epoch
        self.set_worker(WorkerId(line.body.decode()))
        self.account.claimed(line.body.decode(), line.epoch)
        return True

    def set_worker(self, worker: WorkerId) -> None:
        """Note the owner; the stream joins the owner's ready set when audio comes."""
        self.worker = worker
        self.audio.set_owner(worker)

    def on_append_failed(self, error: Unavailable) -> None:
        """Note that the audio log gave up. A client that may come back has what was not appended."""
        if isinstance(error, StreamLost):
            self._context.on_gone(self)
        elif self.waits_for_client:
            self._failed_with = error.code.value
        else:
            self.fail(error)

    def _on_room(self) -> None:
        if self._listener is not None:
            self._listener.on_room()

    def _notify(self, event: Event, said: StreamError | Result | Appender | None = None) -> None:
        """Carry out the transition of an event; `said` is its content.

        An action may cause the next event, so the new state is set first.
        """
        self.state, action = after(self.state, event)
        listener = self._listener
        match action:
            case None:
                pass
            case Action.APPEND_HELD:
                self.audio.open(cast("Appender", said))
            case Action.DROP_HELD:
                self.audio.open(None)
            case Action.START_GRACE:
                self.grace_ends_at = self._loop.time() + self._context.resume_grace_s
            case Action.FINISH if self.audio.failed:
                self._context.act(self, Action.GIVE_UP)
            case Action.FINISH:
                self.audio.finish()
            case Action.TELL_FAILURE:
                if listener is not None:
                    listener.on_failure(cast("StreamError", said))
            case Action.DELIVER:
                if isinstance(said, StreamError) and listener is not None:
                    listener.on_error(said)
                elif isinstance(said, Result) and listener is not None:
                    listener.on_result(LineKind.FINAL, said)
            case Action.TELL_TAKEN:
                self._listener = None
                self._context.act(self, action)
                if listener is not None:
                    listener.on_taken()
            case _:
                self._context.act(self, action)
