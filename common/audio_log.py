"""The audio of streams on its way into Redis; common/audio_reader.py has the other side.

An ingress queues appends per stream, and commits those of all streams of one turn of the event loop
as one pipeline a server: XADD for each stream, then one ZADD for each ready set. This order loses no
wake-up: a worker that is told finds the audio. Ids are explicit, so a repeat after a broken
connection is refused as "equal or smaller", which means that the entry is in already.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from common.entries import AudioEntry, Bytes, IngressId, WorkerId, decode_audio_entry
from common.errors import RedisUnavailable, StreamLost, Unavailable
from common.keys import READY_TTL_MS, Keys, StreamKeys
from common.messages import Encoding
from common.pipelined import pack
from common.redis import CONNECTION_ERRORS, RESPONSE_ERROR, AsyncRedis

logger = logging.getLogger(__name__)

# Small messages that queue while a commit is under way become one entry, up to this size; a larger
# message becomes several entries. 64 KiB are two seconds of pcm16 at 16 kHz.
MAX_ENTRY_BYTES: Final = 64 * 1024
# Streams of one pipeline: bounds its reply and the pause between two turns of the event loop.
_MAX_COMMIT: Final = 512
_RETRY_PAUSE_S: Final = 0.05
# Commits begin at least this far apart: a commit costs its writer, Redis and the worker that it wakes
# several system calls, whether it carries one entry or fifty. The first after a pause waits for nothing.
_COMMIT_EVERY_S: Final = 0.005


@dataclass(slots=True)
class _Queued:
    payload: Bytes
    encoding: Encoding
    final: bool
    ingress: IngressId | None


class Appender:
    """The appends of one stream; belongs to the event loop of its `AudioLog`.

    connection: number of this connection of the stream (1 for its first).
    next_seq: seq of the next entry. first_sample: position of the next sample.
    failed: why the stream can take no more audio, or None.
    """

    __slots__ = (
        "_entry",
        "_log",
        "_on_failure",
        "_queue",
        "_room",
        "connection",
        "failed",
        "first_sample",
        "held_samples",
        "keys",
        "next_seq",
        "owner",
        "pending_bytes",
    )

    def __init__(
        self,
        log: AudioLog,
        keys: StreamKeys,
        connection: int,
        next_seq: int,
        first_sample: int,
        on_failure: Callable[[Unavailable], None],
    ) -> None:
        self._log = log
        self._on_failure = on_failure
        self._queue: deque[_Queued] = deque()
        self._entry: AudioEntry | None = None
        self._room: asyncio.Event | None = None
        self.keys: Final = keys
        self.connection: Final = connection
        self.next_seq = next_seq
        self.first_sample = first_sample
        self.owner: WorkerId | None = None
        self.pending_bytes = 0
        self.held_samples = 0  # queued, and held for more to join them (AudioLog)
        self.failed: Unavailable | None = None

    def append(self, payload: Bytes, encoding: Encoding, final: bool = False) -> None:
        """Queue whole samples for the next commit. The payload is kept until it is in Redis.

        Never waits: callers keep to the bound with `room`. Raises the failure of an earlier append.
        """
        if self.failed is not None:
            raise self.failed
        if len(payload) > MAX_ENTRY_BYTES:
            view = memoryview(payload)
            for at in range(0, len(payload), MAX_ENTRY_BYTES):
                part = view[at : at + MAX_ENTRY_BYTES]
                last = at + MAX_ENTRY_BYTES >= len(payload)
                self._queue.append(_Queued(part, encoding, final and last, None))
        else:
            self._queue.append(_Queued(payload, encoding, final, None))
        self.pending_bytes += len(payload)
        self._log._queued(self, len(payload) // encoding.sample_bytes, final)

    def attach(self, ingress: IngressId) -> None:
        """Queue the entry that tells the worker which ingress the stream has moved to."""
        self._queue.append(_Queued(b"", Encoding.PCM16, False, ingress))
        self._log._queued(self, 0, True)

    def set_owner(self, owner: WorkerId) -> None:
        """Take the worker whose ready set is told of new audio, and tell it of what is there."""
        if owner != self.owner:
            self.owner = owner
            self._log._announce(self)

    @property
    def idle(self) -> bool:
        """True when everything that was queued is in Redis."""
        return self._entry is None and not self._queue

    async def room(self, max_bytes: int) -> None:
        """Wait until at most `max_bytes` are queued. Raises the failure of an append."""
        while self.failed is None and self.pending_bytes > max_bytes:
            if self._room is None:
                self._room = asyncio.Event()
            self._room.clear()
            await self._room.wait()
        if self.failed is not None:
            raise self.failed

    def _next_entry(self) -> AudioEntry | None:
        """The entry to commit now: the one under way, or as much of the queue as fits one entry."""
        if self._entry is not None or not self._queue:
            return self._entry
        head = self._queue.popleft()
        parts = [head.payload]
        size = len(head.payload)
        final = head.final
        while self._queue and not final:
            item = self._queue[0]
            if (
                item.ingress is not None
                or head.ingress is not None
                or (item.payload and item.encoding is not head.encoding)
                or size + len(item.payload) > MAX_ENTRY_BYTES
            ):
                break
            self._queue.popleft()
            parts.append(item.payload)
            size += len(item.payload)
            final = item.final
        payload = head.payload if len(parts) == 1 else b"".join(parts)
        entry = AudioEntry(
            self.connection, self.next_seq, self.first_sample, payload, head.encoding, final, head.ingress
        )
        self.next_seq += 1
        self.first_sample += entry.num_samples
        self._entry = entry
        return entry

    def _committed(self) -> None:
        entry = self._entry
        assert entry is not None
        self._entry = None
        self.pending_bytes -= len(entry.payload)
        if self._room is not None:
            self._room.set()

    def _fail(self, error: Unavailable) -> None:
        if self.failed is not None:
            return
        self.failed = error
        self._entry = None
        self._queue.clear()
        self.pending_bytes = 0
        if self._room is not None:
            self._room.set()
        self._on_failure(error)


class AudioLog:
    """Group commit of the appends of all streams of an ingress; one committing task a server.

    give_up_ms: how long an append is tried again while Redis is away or full, before its stream fails.
    coalesce_ms: a message shorter than this waits so long at most for the stream's next ones, which then
        share its entry; 0 commits every message at once.
    sample_rate: of the clients, Hz.
    """

    def __init__(
        self,
        redis: AsyncRedis,
        keys: Keys,
        give_up_ms: int,
        *,
        coalesce_ms: int = 0,
        sample_rate: int = 16000,
    ) -> None:
        self._redis = redis
        self._keys = keys
        # Two messages of just under the bound are enough of an entry.
        self._enough_samples = 2 * coalesce_ms * sample_rate // 1000
        self._lanes = tuple(
            _Lane(redis, keys, server, give_up_ms / 1000, coalesce_ms / 1000)
            for server in range(redis.servers.num_servers)
        )

    def open(
        self,
        keys: StreamKeys,
        on_failure: Callable[[Unavailable], None],
        *,
        connection: int = 1,
        next_seq: int = 1,
        first_sample: int = 0,
    ) -> Appender:
        """Begin to append to a stream that was created. `on_failure` is called at most once."""
        return Appender(self, keys, connection, next_seq, first_sample, on_failure)

    async def run(self) -> None:
        """Commit until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for lane in self._lanes:
                tasks.create_task(lane.run(), name=f"audio-log-{lane.server}")

    async def flush(self, timeout_s: float) -> bool:
        """Wait until nothing is queued, for a shutdown; False when the time was too short."""
        try:
            async with asyncio.timeout(timeout_s):
                for lane in self._lanes:
                    lane.release_held()
                    await lane.drained.wait()
        except TimeoutError:
            return False
        return True

    def _lane(self, appender: Appender) -> _Lane:
        return self._lanes[self._redis.servers.server_of_shard(appender.keys.shard)]

    def _queued(self, appender: Appender, samples: int, urgent: bool) -> None:
        appender.held_samples += samples
        lane = self._lane(appender)
        if urgent or appender.held_samples >= self._enough_samples:
            lane.add(appender)
        else:
            lane.hold(appender)

    def _announce(self, appender: Appender) -> None:
        self._lane(appender).announce(appender)


class _Lane:
    """What is to be committed on one server."""

    def __init__(
        self, redis: AsyncRedis, keys: Keys, server: int, give_up_s: float, coalesce_s: float
    ) -> None:
        self.server = server
        self._loop = asyncio.get_running_loop()
        self._coalesce_s = coalesce_s
        # Streams whose short messages wait for more, and until when; the wait is the same for all, so
        # the order of insertion is that of the times, and one timer serves them all.
        self._held: dict[Appender, float] = {}
        self._release: asyncio.TimerHandle | None = None
        self._connection = redis.pipelined(server)
        self._keys = keys
        self._give_up_s = give_up_s
        self._waiting: dict[Appender, None] = {}
        self._announced: dict[Appender, None] = {}
        self._work = asyncio.Event()
        self.drained = asyncio.Event()
        self.drained.set()

    def hold(self, appender: Appender) -> None:
        if appender in self._waiting or appender in self._held:
            return
        self._held[appender] = self._loop.time() + self._coalesce_s
        self.drained.clear()
        if self._release is None:
            self._release = self._loop.call_later(self._coalesce_s, self._release_due)

    def _release_due(self) -> None:
        self._release = None
        now = self._loop.time()
        while self._held:
            appender, due = next(iter(self._held.items()))
            if due > now:
                self._release = self._loop.call_at(due, self._release_due)
                return
            self.add(appender)

    def release_held(self) -> None:
        """Commit what is held for company."""
        for appender in list(self._held):
            self.add(appender)

    def add(self, appender: Appender) -> None:
        appender.held_samples = 0
        self._held.pop(appender, None)
        self._waiting[appender] = None
        self._work.set()
        self.drained.clear()

    def announce(self, appender: Appender) -> None:
        self._announced[appender] = None
        self._work.set()

    async def run(self) -> None:
        since: float | None = None  # when the server began to refuse, or went away
        while True:
            await self._work.wait()
            started = self._loop.time()
            batch = list(self._waiting)[:_MAX_COMMIT]
            announced = list(self._announced)[:_MAX_COMMIT]
            for appender in batch:
                del self._waiting[appender]
            for appender in announced:
                del self._announced[appender]
            refused = await self._commit(batch, announced)
            if refused is None:
                since = None
            else:
                now = time.monotonic()
                since = since if since is not None else now
                if now - since >= self._give_up_s:
                    for appender in self._waiting:
                        appender._fail(RedisUnavailable(refused))
                    self._waiting.clear()
                    logger.error("appends given up", extra={"server": self.server, "reason": refused})
                    since = None
                else:
                    await asyncio.sleep(_RETRY_PAUSE_S)
            if not self._waiting:
                if not self._held:
                    self.drained.set()
                if not self._announced:
                    self._work.clear()
            early_s = started + _COMMIT_EVERY_S - self._loop.time()
            if early_s > 0 and refused is None:
                await asyncio.sleep(early_s)

    async def _commit(self, batch: list[Appender], announced: list[Appender]) -> str | None:
        """Commit one entry of each stream; gives why some could not be, or None."""
        commands: list[bytes] = []
        sent: list[Appender] = []
        told: dict[bytes, list[Any]] = {}
        now = time.time()
        for appender in batch:
            entry = appender._next_entry()
            if entry is None:
                continue
            sent.append(appender)
            commands.append(
                pack(b"XADD", appender.keys.audio, b"NOMKSTREAM", entry.entry_id, *entry.fields())
            )
            if appender.owner is not None:
                key = self._keys.ready(appender.keys.shard, appender.owner)
                told.setdefault(key, []).extend((now, appender.keys.stream))
        for appender in announced:
            if appender.owner is not None:
                key = self._keys.ready(appender.keys.shard, appender.owner)
                told.setdefault(key, []).extend((now, appender.keys.stream))
        for key, members in told.items():
            commands.append(pack(b"ZADD", key, b"NX", *members))
            commands.append(pack(b"PEXPIRE", key, READY_TTL_MS))
        if not commands:
            return None
        try:
            replies = await self._connection.send(commands)
        except CONNECTION_ERRORS as error:
            self._again(sent, announced)
            return str(error)
        refused: str | None = None
        for appender, reply in zip(sent, replies, strict=False):
            if reply is None:
                appender._fail(StreamLost())
            elif isinstance(reply, RESPONSE_ERROR):
                text = str(reply)
                if "equal or smaller" in text:
                    appender._committed()
                else:  # full (OOM), loading, read-only replica after a failover
                    refused = text
                    self._again([appender], ())
                    continue
            elif isinstance(reply, Exception):
                refused = str(reply)
                self._again([appender], ())
                continue
            else:
                appender._committed()
            if not appender.idle:
                self.add(appender)
        return refused

    def _again(self, appenders: Sequence[Appender], announced: Sequence[Appender]) -> None:
        """Put streams that could not be committed back, before those that came since."""
        self._waiting = dict.fromkeys((*appenders, *self._waiting))
        self._announced = dict.fromkeys((*announced, *self._announced))
        self._work.set()
        self.drained.clear()


async def last_audio(redis: AsyncRedis, keys: StreamKeys) -> AudioEntry | None:
    """The last entry of a stream's audio that is still kept, for a resume; None when there is none."""
    reply = await redis.stream(keys.stream).execute_command(
        "EVAL", "return redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)", 1, keys.audio
    )
    return decode_audio_entry(reply[0][0], reply[0][1]) if reply else None
