"""The intake: reads audio from Redis for the engine, with one thread a Redis server.

The thread waits on the worker's ready sets, reads the new audio of all streams there by one command an epoch,
and feeds it to the engine thread (gpu_worker/pipeline/audio.py makes the commands). The outlet acknowledges
decoded entries; the next owner of a stream reads the others again. Once a second the thread also reads the
streams that it has not read since: that finds audio whose notice was lost, and streams that another worker
has taken.

Streams that are behind, such as all streams after a takeover, have more audio than a read returns. They take
turns, a portion of them a round, after the streams that keep up: a takeover of a thousand streams makes no
other stream late.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from common.entries import RawEntry, StreamId, WorkerId
from common.monitoring.metrics import WorkerMetrics
from common.process.pace import Pace
from common.redis.clients import (
    REDIS_ERROR,
    RESPONSE_ERROR,
    RedisServers,
    blocking_connection,
    is_passing,
)
from common.redis.connect import pack
from common.redis.keys import Keys, StreamKeys, audio_group
from common.redis.outages import OUTAGES
from common.redis.pipelined import SyncPipelinedConnection
from common.redis.scripts.ownership import look
from gpu_worker.part import Part
from gpu_worker.pipeline.audio import ReadBatch, StreamReading
from gpu_worker.pipeline.engine_events import Open
from gpu_worker.pipeline.flow import StreamFlow, StreamTable

logger = logging.getLogger(__name__)

# Most streams a read: larger replies cause the tail of the latency.
MAX_STREAMS: Final = 256
# Most entries of one stream a read: some seconds of a client that sends small messages.
MAX_ENTRIES: Final = 64
# Streams and entries of a read of streams that are behind: some megabytes, so that it takes milliseconds in
# Redis, here, and in the engine's thread, which all have the other streams to serve.
MAX_BEHIND: Final = 32
MAX_ENTRIES_BEHIND: Final = 16
_BLOCK_MS: Final = 500
_SWEEP_S: Final = 1.0
_RETRY_S: Final = 0.2
# Average time between the rounds of an idle worker, and of a busy one, over all servers; a round may come
# early. Each round wakes the engine thread and the outlet and ends in one publication an ingress, whether it
# reads one stream or fifty. An ingress keeps at least twice these times between its commits
# (common/streams/audio_log.py), so with one or two ingresses hardly a round waits on one or two servers.
_ROUND_EVERY_S: Final = 0.00125
_BUSY_ROUND_EVERY_S: Final = 0.005


# What was read of a stream: the key of its audio and entries for `decode_audio_entry`, in order; None for
# the entries where the audio group is gone (the stream was taken over, or left Redis), or where Redis refuses
# the key.
AudioRead = tuple[bytes, Sequence[RawEntry] | None]


class AudioReader:
    """Reads of a worker on one server; for one thread.

    connection: one for blocking reads (common/redis/clients.py).
    """

    def __init__(
        self, connection: SyncPipelinedConnection, keys: Keys, shards: Sequence[int], worker: WorkerId
    ) -> None:
        self._connection = connection
        self._worker = worker
        self._ready = [keys.ready(shard, worker) for shard in shards]

    def wait(
        self, block_ms: int | None, max_streams: int, on_wait: Callable[[float], None] | None = None
    ) -> list[StreamId]:
        """Ids of up to `max_streams` streams with new audio, or of none after `block_ms`; None only looks.

        The shards take turns at being asked first. on_wait: called with the seconds since the oldest audio of
        the read was announced, by the clock of its ingress.
        """
        ready = self._ready
        if block_ms:
            pop = pack(b"BZMPOP", block_ms / 1000, len(ready), *ready, b"MIN", b"COUNT", max_streams)
        else:  # a time of 0 waits for ever
            pop = pack(*look(ready, most=max_streams))
        reply = self._call(pop)
        if len(ready) > 1:
            ready.append(ready.pop(0))
        if not reply:
            return []
        # The first one has the smallest score: the time of its announcement in milliseconds, 0 for none.
        announced_ms = float(reply[1][0][1])
        if on_wait is not None and announced_ms:
            on_wait(max(0.0, time.time() - announced_ms / 1000))
        # A call of StreamId would do nothing, for every chunk.
        return [int(member) for member, _ in reply[1]]  # type: ignore[misc]

    def read(self, streams: Sequence[tuple[StreamKeys, int]], max_entries: int) -> list[AudioRead]:
        """Read the new entries of these streams, given with their epochs; one command an epoch.

        Streams without news are left out. Entries stay pending until the outlet acknowledges them. Never
        repeated by itself: when this raises, entries of any of the streams may have been delivered to
        nobody, and `reread` has to look.
        """
        by_epoch: dict[int, list[bytes]] = {}
        for keys, epoch in streams:
            by_epoch.setdefault(epoch, []).append(keys.audio)
        read: list[AudioRead] = []
        for epoch, group in by_epoch.items():
            read += self._read_group(epoch, group, max_entries)
        return read

    def reread(self, keys: StreamKeys, epoch: int, after: bytes, max_entries: int) -> list[AudioRead]:
        """Return entries after `after` that were delivered to this worker before and are not acknowledged."""
        return self._read_after(after, epoch, [keys.audio], max_entries)

    def _call(self, command: bytes, repeat: bool = True) -> Any:
        """Send a packed command; return its reply."""
        (reply,) = self._connection.call((command,), repeat=repeat)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def _read_group(self, epoch: int, group: list[bytes], max_entries: int) -> list[AudioRead]:
        read = self._read_after(b">", epoch, group, max_entries, repeat=False)
        if len(group) > 1 and read and read[0][1] is None:
            # One missing group, or one key that is no stream, fails the whole read with nothing consumed.
            return [one for key in group for one in self._read_group(epoch, [key], max_entries)]
        return read

    def _read_after(
        self, after: bytes, epoch: int, keys: Sequence[bytes], max_entries: int, *, repeat: bool = True
    ) -> list[AudioRead]:
        try:
            reply: list[AudioRead] | None = self._call(
                pack(
                    *(b"XREADGROUP", b"GROUP", audio_group(epoch), self._worker, b"COUNT", max_entries),
                    *(b"STREAMS", *keys, *([after] * len(keys))),
                ),
                repeat=repeat,
            )
        except RESPONSE_ERROR as error:
            if is_passing(error):
                raise
            if "NOGROUP" not in str(error) and len(keys) == 1:
                logger.error("Redis refuses a stream's audio: %s", error, extra={"key": keys[0].decode()})
            return [(key, None) for key in keys]
        return reply or []


class Intake(Part):
    """Reads the audio of the worker's streams on one server.

    put: takes commands for the engine thread. on_lost: called with streams whose audio is gone:
    other workers have them, or they have left Redis.
    """

    def __init__(
        self,
        *,
        servers: RedisServers,
        server: int,
        keys: Keys,
        worker: WorkerId,
        table: StreamTable,
        put: Callable[..., None],
        metrics: WorkerMetrics,
        on_lost: Callable[[Sequence[StreamFlow]], None],
    ) -> None:
        super().__init__(f"intake-{server}")
        self._connection = blocking_connection(servers, server, _BLOCK_MS)
        self._reader = AudioReader(self._connection, keys, servers.shards_of_server(server), worker)
        self._table = table
        self._put = put
        self._metrics = metrics
        self._on_lost = on_lost
        self._readings: dict[StreamId, StreamReading] = {}
        self._behind: deque[StreamReading] = deque()
        # Held while a stream is added, so that a notice about it finds it.
        self._lock = threading.Lock()
        self._finishing: deque[StreamFlow] = deque()
        self._next_sweep = time.monotonic() + _SWEEP_S
        self._next_round = 0.0
        self._pace = Pace(
            _BUSY_ROUND_EVERY_S * servers.num_servers, shortest_s=_ROUND_EVERY_S * servers.num_servers
        )

    def take_in(self, flow: StreamFlow, snapshot: bytes | None) -> None:
        """Add a stream: the engine opens it, then its audio is read."""
        reading = StreamReading(flow)
        with self._lock:
            self._table.add(flow)
            self._put(Open(flow, snapshot))
            self._readings[flow.stream] = reading

    def finish(self, flow: StreamFlow) -> None:
        """End a stream at its present audio, without a final entry. The thread does so within a second."""
        self._finishing.append(flow)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._round()
            except (REDIS_ERROR, OSError) as error:
                OUTAGES.log_retry(logger, "reads failed, trying again: %s", error)
                self._stop.wait(_RETRY_S)
            except Exception:
                # After a defect in reading, the worker must not hold its lease and read nothing.
                logger.exception("reading failed")
                self._stop.wait(_RETRY_S)
        self._connection.close()

    def _round(self) -> None:
        early_s = self._next_round - time.monotonic()
        if early_s > 0:
            time.sleep(early_s)
        # Rounded up to whole blocks: a sweep may come one block late.
        block_ms = None if self._behind else _BLOCK_MS
        streams = self._reader.wait(block_ms, MAX_STREAMS, self._metrics.audio_wait_seconds.observe)
        now = time.monotonic()
        self._pace.begun()
        self._next_round = max(self._next_round + self._pace.interval_s, now)
        self._read(self._readable(streams, now), MAX_ENTRIES)
        self._catch_up(now)
        while self._finishing:
            self._finish(self._finishing.popleft())
        if now >= self._next_sweep:
            self._next_sweep = now + _SWEEP_S
            self._sweep(now)

    def _finish(self, flow: StreamFlow) -> None:
        reading = self._readings.get(flow.stream)
        if reading is not None and reading.flow is flow and not flow.ended:
            got = ReadBatch()
            got.end(reading)
            self._put(*got.commands())

    def _sweep(self, now: float) -> None:
        """Drop streams that have ended; read those that were not read for a while."""
        with self._lock:
            for stream, reading in list(self._readings.items()):
                if self._table.get(stream) is not reading.flow:
                    del self._readings[stream]
            quiet = [
                stream for stream, reading in self._readings.items() if now - reading.last_read >= _SWEEP_S
            ]
        for at in range(0, len(quiet), MAX_STREAMS):
            self._read(self._readable(quiet[at : at + MAX_STREAMS], now), MAX_ENTRIES)

    def _catch_up(self, now: float) -> None:
        """Read a portion of the streams that are behind; the longest waiting first."""
        portion = [self._behind.popleft() for _ in range(min(MAX_BEHIND, len(self._behind)))]
        for reading in portion:
            reading.queued = False
        with self._lock:
            portion = [reading for reading in portion if self._readings.get(reading.flow.stream) is reading]
        chosen = [reading for reading in portion if self._takes_more(reading, now)]
        for reading in chosen:
            reading.behind = False  # until the read finds it behind again
        self._read(chosen, MAX_ENTRIES_BEHIND)

    def _read(self, chosen: Sequence[StreamReading], max_entries: int) -> None:
        """Read up to `max_entries` entries of each of these streams."""
        if not chosen or self._stop.is_set():
            return
        for reading in chosen:
            if reading.missed:
                self._reread(reading)
        try:
            read = self._reader.read([reading.key for reading in chosen], max_entries)
            self._handle(read, {reading.key[0].audio: reading for reading in chosen}, max_entries)
        except BaseException:
            # It is unknown which entries of these streams were delivered.
            for reading in chosen:
                reading.missed = True
            raise

    def _reread(self, reading: StreamReading) -> None:
        """Read the entries of a failed read again; new entries are read after them."""
        more = True
        while more:
            read = self._reader.reread(*reading.key, reading.last_entry, MAX_ENTRIES)
            more = any(len(entries or ()) >= MAX_ENTRIES for _, entries in read)
            if any(entries for _, entries in read):
                logger.info("audio read again", extra={"stream_id": reading.flow.stream})
            self._handle(read, {reading.key[0].audio: reading}, MAX_ENTRIES)
        reading.missed = False

    def _readable(self, streams: Iterable[StreamId], now: float) -> list[StreamReading]:
        """Return those of the streams that are read now; others that have audio get their turn."""
        chosen = []
        with self._lock:
            for stream in streams:
                reading = self._readings.get(stream)
                if reading is None:
                    continue
                if reading.behind:
                    self._queue(reading)
                elif self._takes_more(reading, now):
                    chosen.append(reading)
        return chosen

    def _takes_more(self, reading: StreamReading, now: float) -> bool:
        """Return whether a stream is read now; if the engine has enough of it, it is read later."""
        flow, most = reading.flow, self._table.max_backlog_samples
        if flow.lost:
            return False
        reading.last_read = now
        if flow.ended:
            # Read on, so that a takeover is noticed; nothing can follow a final entry.
            return flow.backlog_samples > 0
        if flow.backlog_samples < most:
            return True
        reading.behind = True
        flow.held = True
        # The outlet may have checked before `held` was set: then nothing would wake this thread.
        if flow.backlog_samples < most:
            flow.held = False
            return True
        return False

    def _queue(self, reading: StreamReading) -> None:
        if not reading.queued:
            reading.queued = True
            self._behind.append(reading)

    def _handle(
        self, read: Iterable[AudioRead], readings: dict[bytes, StreamReading], max_entries: int
    ) -> None:
        """Feed the audio that was read. readings: streams by the key of their audio."""
        got = ReadBatch()
        lost: list[StreamFlow] = []
        for key, entries in read:
            reading = readings[key]
            if entries is None:
                lost.append(reading.flow)
                continue
            got.take(reading, entries)
            if len(entries) >= max_entries:
                reading.behind = True
                self._queue(reading)
        self._put(*got.commands())
        if lost:
            self._on_lost(lost)
