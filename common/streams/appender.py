"""The audio of one stream on its way to Redis: held until the stream exists, then queued for the log."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from common.entries import AudioEntry, Bytes, IngressId, WorkerId, audio_entry_id, mark_bytes
from common.errors import InternalFault, StreamError, Unavailable
from common.messages import Audio, Encoding, Finalize, Phrases
from common.redis.connect import pack
from common.redis.keys import StreamKeys

logger = logging.getLogger(__name__)

# Small messages that queue while a commit is under way become one entry, up to this size; a larger
# message becomes several entries. 64 KiB are two seconds of pcm16 at 16 kHz.
MAX_ENTRY_BYTES: Final = 64 * 1024
# Audio of a stream that is kept after Redis took it, whatever its age: eight seconds of pcm16 at 16 kHz.
MAX_KEPT_BYTES: Final = 256 * 1024

# XADD key NOMKSTREAM id o first p payload, in RESP and split before the payload, which goes to the socket
# without a copy. Nearly every command is this one.
_XADD: Final = b"*8\r\n$4\r\nXADD\r\n$%d\r\n%b\r\n$10\r\nNOMKSTREAM\r\n"
_ID_AND_FIELDS: Final = b"%b$%d\r\n%b\r\n$1\r\no\r\n$%d\r\n%b\r\n$1\r\np\r\n$%d\r\n"
_END: Final = b"\r\n"
_PCM16: Final = Encoding.PCM16
# Audio that one stream may have on its way into Redis before its client is made to wait: eight
# seconds of pcm16 at 16 kHz. It is read again when a quarter is left.
MAX_PENDING_BYTES: Final = 256 * 1024
RESUME_READING_BYTES: Final = MAX_PENDING_BYTES // 4
_MESSAGE_BYTES: Final = 128  # of a message of audio, beside its samples: it may have a single one
_FINAL_MARK: Final = Audio(b"", final=True)

StartTask = Callable[[Coroutine[Any, Any, None], str], object]

Mark = Finalize | Phrases
"""A client's request after the audio so far, in an entry of its own."""


def _weight(item: Audio | IngressId | Mark) -> int:
    """Return the bytes that an item counts while it waits."""
    if isinstance(item, Audio):
        return len(item.payload) + _MESSAGE_BYTES
    if isinstance(item, Phrases):
        return mark_bytes(item.phrases)
    return mark_bytes() if isinstance(item, Finalize) else 0


class Log(Protocol):
    """What commits the entries of appenders (`ServerLog` of common/streams/audio_log.py)."""

    def ready_key(self, shard: int, owner: WorkerId) -> bytes:
        """Return the key of a worker's ready set."""

    def queued(self, appender: Appender, audio: Audio | None) -> None:
        """Commit an entry of this appender, of `audio` or of a mark."""

    def announce(self, appender: Appender) -> None:
        """Put the stream into its owner's ready set."""

    def suspect_loss(self) -> None:
        """Note that Redis may have lost its last writes."""


class Appender:
    """The appends of one stream; belongs to the event loop of its `AudioLog`.

    connection: number of this connection of the stream (1 for its first).
    next_seq: seq of the next entry. first_sample: position of the next sample.
    keep_s: how long an entry that Redis took is kept, to be appended again if Redis loses it; 0 for no time.
    origin: returns the packed command that creates the stream, for a Redis that has lost all of it; None if
    this process cannot restore the stream.
    attachment: returns the packed command that attaches the stream to this ingress again; None for a stream
    that began here, or whose attachment Redis has had for `keep_s`.
    owner, ready: the worker that is notified of new audio, and the key of its ready set; None before.
    held_samples: queued samples that are held to be joined with more, up to `enough_samples` (AudioLog).
    ahead_s: returns the seconds that are not decoded of the first samples, given their number.
    failed: why the stream can take no more audio, or None.
    """

    __slots__ = (
        "__weakref__",
        "_keep_s",
        "_kept",
        "_kept_bytes",
        "_log",
        "_on_failure",
        "_origin",
        "_queue",
        "_room",
        "_stem",
        "_under_way",
        "_under_way_bytes",
        "ahead_s",
        "attachment",
        "connection",
        "enough_samples",
        "failed",
        "first_sample",
        "held_samples",
        "keys",
        "member",
        "next_seq",
        "owner",
        "pending_bytes",
        "ready",
    )

    def __init__(
        self,
        log: Log,
        keys: StreamKeys,
        connection: int,
        next_seq: int,
        first_sample: int,
        on_failure: Callable[[Unavailable], None],
        keep_s: float = 0.0,
        origin: Callable[[], bytes] | None = None,
        attachment: Callable[[], bytes] | None = None,
    ) -> None:
        self._log = log
        self._on_failure = on_failure
        self._queue: deque[Audio | IngressId | Mark] = deque()
        self._under_way: tuple[Bytes, ...] = ()  # the packed command of the entry to commit next
        self._under_way_bytes = 0  # as `pending_bytes` counts what is in that entry
        self._keep_s = keep_s
        # Entries that Redis took: the time, the entry's seq, its command, its bytes.
        self._kept: deque[tuple[float, int, tuple[Bytes, ...], int]] = deque()
        self._kept_bytes = 0
        # Dropped together with the first kept entry.
        self._origin = origin if keep_s else None
        self.attachment = attachment if keep_s else None
        self._room: asyncio.Event | None = None
        self._stem = _XADD % (len(keys.audio), keys.audio)
        self.keys: Final = keys
        self.connection: Final = connection
        self.member: Final = b"%d" % keys.stream
        self.next_seq = next_seq
        self.first_sample = first_sample
        self.owner: WorkerId | None = None
        self.ready: bytes | None = None
        self.pending_bytes = 0
        self.held_samples = 0
        self.enough_samples = 0
        self.ahead_s: Callable[[int], float] = lambda _: 0.0
        self.failed: Unavailable | None = None

    def append(self, audio: Audio) -> None:
        """Queue whole samples for the next commit. The payload is kept until it is in Redis.

        Never waits: callers keep to the bound with `room`. Raises the failure of an earlier append.
        """
        if self.failed is not None:
            raise self.failed
        size = len(audio.payload)
        if size > MAX_ENTRY_BYTES:
            for at in range(0, size, MAX_ENTRY_BYTES):
                part = audio.payload[at : at + MAX_ENTRY_BYTES]
                self._enqueue(Audio(part, audio.encoding, audio.final and at + MAX_ENTRY_BYTES >= size))
        else:
            self._enqueue(audio)
        self._log.queued(self, audio)

    def _enqueue(self, item: Audio | Mark) -> None:
        self._queue.append(item)
        self.pending_bytes += _weight(item)

    def attach(self, ingress: IngressId) -> None:
        """Queue the entry that names the stream's new ingress for the worker."""
        self._queue.append(ingress)
        self._log.queued(self, None)

    def mark(self, mark: Mark) -> None:
        """Queue the entry of a mark after the audio so far. Raises as `append` does."""
        if self.failed is not None:
            raise self.failed
        self._enqueue(mark)
        self._log.queued(self, None)

    def set_owner(self, owner: WorkerId) -> None:
        """Set the worker whose ready set gets the stream when audio comes; add it now if there is audio."""
        if owner != self.owner:
            self.owner = owner
            self.ready = self._log.ready_key(self.keys.shard, owner)
            self._log.announce(self)

    @property
    def idle(self) -> bool:
        """Whether every queued entry is in Redis."""
        return not self._under_way and not self._queue

    async def room(self, max_bytes: int) -> None:
        """Wait until at most `max_bytes` are queued. Raises the failure of an append."""
        while self.failed is None and self.pending_bytes > max_bytes:
            if self._room is None:
                self._room = asyncio.Event()
            self._room.clear()
            await self._room.wait()
        if self.failed is not None:
            raise self.failed

    # The log's side

    def write_next(self, out: list[Bytes]) -> bool:
        """Add the command of the next entry, in parts, to `out`; return False if there is none.

        The command stays the same until it is `committed`.
        """
        if not self._under_way:
            if not self._queue:
                return False
            self._take_next()
        out += self._under_way
        return True

    def _take_next(self) -> None:
        """Make one entry of as many queued items as fit."""
        head = self._queue.popleft()
        self._under_way_bytes = _weight(head)
        if isinstance(head, (Finalize, Phrases)):
            phrases = head.phrases if isinstance(head, Phrases) else None
            self._pack(finalize=phrases is None, phrases=phrases)
            return
        if not isinstance(head, Audio):
            self._pack(ingress=head)
            return
        payload, encoding, final = head.payload, head.encoding, head.final
        if self._queue and not final:
            payload, final = self._join(payload, encoding)
        if final or encoding is not _PCM16 or not payload:
            self._pack(payload, encoding=encoding, final=final)
            return
        size = len(payload)
        entry_id = b"%d-%d" % (self.connection, self.next_seq)
        first = b"%d" % self.first_sample
        start = _ID_AND_FIELDS % (self._stem, len(entry_id), entry_id, len(first), first, size)
        self._under_way = (start, payload, _END)
        self.next_seq += 1
        self.first_sample += size >> 1

    def _join(self, payload: bytes, encoding: Encoding) -> tuple[bytes, bool]:
        """Take the items that may share an entry with `payload`; return them joined, and if it is final."""
        queue = self._queue
        parts = [payload]
        size = len(payload)
        final = False
        while queue and not final:
            item = queue[0]
            if (
                not isinstance(item, Audio)
                or (item.payload and item.encoding is not encoding)
                or size + len(item.payload) > MAX_ENTRY_BYTES
            ):
                break
            queue.popleft()
            parts.append(item.payload)
            size += len(item.payload)
            self._under_way_bytes += _weight(item)
            final = item.final
        return b"".join(parts), final

    def _pack(self, payload: bytes = b"", **more: Any) -> None:
        """Make an entry of any form. more: further fields of `AudioEntry`."""
        entry_id = audio_entry_id(self.connection, self.next_seq)
        entry = AudioEntry(entry_id, self.first_sample, payload, **more)
        command = pack(b"XADD", self.keys.audio, b"NOMKSTREAM", entry.entry_id, *entry.fields())
        self._under_way = (command,)
        self.next_seq += 1
        self.first_sample += entry.num_samples

    def committed(self) -> bool:
        """Note that the entry is in Redis; return whether more entries wait."""
        if self._keep_s:
            self._keep()
        self._under_way = ()
        self.pending_bytes -= self._under_way_bytes
        if self._room is not None:
            self._room.set()
        return bool(self._queue)

    def drop_kept(self) -> None:
        """Drop the kept entries: none will be needed again."""
        self._kept.clear()
        self._kept_bytes = 0
        self._origin = self.attachment = None

    def _keep(self) -> None:
        now = time.monotonic()
        kept, size = self._kept, sum(map(len, self._under_way))
        kept.append((now, self.next_seq - 1, self._under_way, size))
        self._kept_bytes += size
        while kept[0][0] < now - self._keep_s or self._kept_bytes > MAX_KEPT_BYTES:
            self._kept_bytes -= kept.popleft()[3]
            self._origin = self.attachment = None

    @property
    def keeps(self) -> bool:
        """Whether there are entries that could be appended again."""
        something = bool(self._kept) or self._origin is not None or self.attachment is not None
        return something and self.failed is None

    def begin_again(self) -> bool:
        """Create the stream, which Redis has lost, anew; return False if that is not possible."""
        if self._origin is None or self.failed is not None:
            return False
        self._log.suspect_loss()
        return True

    def drop_origin(self) -> None:
        """Prevent that the stream is created anew: this process would not handle its end."""
        self._origin = None

    def write_forgotten(self, last: bytes | None, out: list[Bytes]) -> int:
        """Add the commands of entries that Redis took and has lost to `out`; return their number.

        last: id of the last entry that Redis has; None where the whole stream is gone.
        """
        if last is None:
            if self._origin is None:
                return 0
            out.append(self._origin())
            for _, _, parts, _ in self._kept:
                out += parts
            return 1 + len(self._kept)
        connection, seq = map(int, last.split(b"-"))
        forgotten = [
            parts for _, number, parts, _ in self._kept if (self.connection, number) > (connection, seq)
        ]
        for parts in forgotten:
            out += parts
        return len(forgotten)

    def fail(self, error: Unavailable) -> None:
        """Give up: no queued entry will be in Redis."""
        if self.failed is not None:
            return
        self.failed = error
        self._under_way = ()
        self._queue.clear()
        self.drop_kept()
        self.pending_bytes = 0
        if self._room is not None:
            self._room.set()
        self._on_failure(error)


class StreamAudio:
    """The audio of a stream on its way to its `Appender`: held until the stream is in Redis.

    on_room: called when there is room again, after `append` returned False.
    on_failure: called instead if there will be no room, and no other call reports that.
    appender: None before the stream is in Redis, and where it could not be created.
    finished: whether a final mark was queued.
    """

    __slots__ = (
        "_held",
        "_held_bytes",
        "_on_failure",
        "_on_room",
        "_settled",
        "_start_task",
        "appender",
        "finished",
    )

    def __init__(
        self, start_task: StartTask, on_room: Callable[[], None], on_failure: Callable[[StreamError], None]
    ) -> None:
        self._start_task = start_task
        self._on_failure = on_failure
        self._on_room: Callable[[], None] | None = on_room  # None while a task waits for room
        self.appender: Appender | None = None
        self._held: list[Audio | Mark] = []
        self._held_bytes = 0
        self._settled = asyncio.Event()  # the stream was created, or could not be
        self.finished = False

    def append(self, audio: Audio) -> bool:
        """Append audio; False asks to stop reading until there is room."""
        if audio.final:
            self.finished = True
        elif not audio.payload:
            return True  # empty audio is ignored: its number would have no bound
        appender = self.appender
        if appender is not None and appender.failed is None:
            appender.append(audio)
            return appender.pending_bytes <= MAX_PENDING_BYTES or self._is_full()
        return self._put(audio)

    def mark(self, mark: Mark) -> bool:
        """Append a mark, unless the audio has ended; False asks to stop reading until there is room."""
        return self.finished or self._put(mark)

    def _put(self, item: Audio | Mark) -> bool:
        appender = self.appender
        if appender is None:
            if self._settled.is_set():
                return True  # it could not be created
            self._held.append(item)
            self._held_bytes += _weight(item)
            pending = self._held_bytes
        elif appender.failed is not None:
            return True  # the failure is being reported
        else:
            _append(appender, item)
            pending = appender.pending_bytes
        return pending <= MAX_PENDING_BYTES or self._is_full()

    def _is_full(self) -> bool:
        """Call `on_room` once there is room; return False, since too much is queued now."""
        if self._on_room is not None:
            on_room, self._on_room = self._on_room, None
            self._start_task(self._wait_for_room(on_room), "room")
        return False

    def finish(self) -> None:
        """Append a final mark, unless there is one."""
        if not self.finished:
            self.append(_FINAL_MARK)

    def open(self, appender: Appender | None, *, finished: bool | None = None) -> None:
        """Append to a stream that is in Redis, held audio first; None if nothing can be appended.

        finished: whether the audio of a stream that another connection began has ended.
        """
        self.appender = appender
        if finished is not None:
            self.finished = finished
        held, self._held, self._held_bytes = self._held, [], 0
        for item in held:
            if appender is not None and appender.failed is None:
                _append(appender, item)
        self._settled.set()

    def set_owner(self, worker: WorkerId) -> None:
        """Note the worker whose ready set gets the stream when audio comes."""
        if self.appender is not None:
            self.appender.set_owner(worker)

    @property
    def pending_bytes(self) -> int:
        """Bytes of audio that Redis has not confirmed yet; for any thread."""
        appender = self.appender
        return self._held_bytes if appender is None else appender.pending_bytes

    @property
    def can_append(self) -> bool:
        """Whether audio, or a final mark, can be appended."""
        return self.appender is not None and self.appender.failed is None

    @property
    def failed(self) -> bool:
        """Whether it was opened, and no more can be appended."""
        return self.appender is not None and self.appender.failed is not None

    def begin_again(self) -> bool:
        """Write the whole stream anew for a Redis that has lost it; return False if not all of it is kept."""
        return self.appender is not None and self.appender.begin_again()

    def drop_kept(self) -> None:
        """Drop the kept entries: none will be needed again."""
        if self.appender is not None:
            self.appender.drop_kept()

    def drop_origin(self) -> None:
        """Prevent that this process creates the stream anew."""
        if self.appender is not None:
            self.appender.drop_origin()

    async def _wait_for_room(self, on_room: Callable[[], None]) -> None:
        try:
            await self._settled.wait()
            if self.appender is None:
                return
            await self.appender.room(RESUME_READING_BYTES)
        except StreamError:
            return  # the failure is reported
        except Exception:
            # The client would wait for ever: no other call lets it go on.
            logger.exception("a stream cannot go on")
            self._on_failure(InternalFault())
            return
        finally:
            self._on_room = on_room
        on_room()


def _append(appender: Appender, item: Audio | Mark) -> None:
    if isinstance(item, Audio):
        appender.append(item)
    else:
        appender.mark(item)
