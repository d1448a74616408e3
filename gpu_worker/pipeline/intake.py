"""The intake: reads audio from Redis for the engine, with one thread a Redis server.

The thread waits on the worker's ready sets, reads the new audio of all streams there with one command,
converts it, and feeds it to the engine thread. Once a second it also reads the streams that it has not read
since: that finds audio whose notice was lost, and streams that another worker has taken.

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
from typing import TYPE_CHECKING, Final

from common.entries import RawEntry, StreamId, WorkerId, decode_audio_entry, entry_order
from common.errors import StreamError
from common.monitoring.metrics import WorkerMetrics
from common.process.pace import Pace
from common.redis.clients import REDIS_ERROR, RedisServers, blocking_connection
from common.redis.keys import Keys
from common.redis.outages import OUTAGES
from common.streams.assignments import Base
from common.streams.audio_reader import AudioRead, AudioReader
from gpu_worker.pipeline.audio import StreamAudio
from gpu_worker.pipeline.engine_events import (
    Command,
    Fail,
    Feed,
    Finalize,
    Finish,
    Open,
    ReplacePhrases,
    worker_failed,
)
from gpu_worker.pipeline.flow import StreamFlow, StreamTable, Undecoded

if TYPE_CHECKING:
    from gpu_worker.engine.slots.samples import Samples

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


class _Reading:
    """The intake's own state of one stream.

    last_entry: id of the last audio entry that it has. finalized: the last `finalize` that the engine was
    sent, or that an earlier owner has answered. phrased: the last phrases that the engine was sent. missed:
    whether a read of the stream failed, and may have delivered entries that were lost. behind: whether it has
    more audio than a read returns. queued: whether it is in the queue of streams that are behind.
    """

    __slots__ = (
        "audio",
        "behind",
        "finalized",
        "flow",
        "key",
        "last_entry",
        "last_read",
        "missed",
        "phrased",
        "queued",
    )

    def __init__(self, flow: StreamFlow) -> None:
        record = flow.owned.record
        self.flow: Final = flow
        self.key: Final = (flow.owned.keys, flow.owned.epoch)
        checkpoint = record.checkpoint
        self.audio = StreamAudio(record.sample_rate, checkpoint.first_sample, checkpoint.base)
        self.last_read = 0.0
        self.last_entry = record.checkpoint.entry_id or b"0"
        self.finalized = checkpoint.base.finalized
        self.phrased: bytes | None = None
        self.missed = False
        self.behind = flow.owned.epoch > 1
        self.queued = False


class Intake:
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
        self._connection = blocking_connection(servers, server, _BLOCK_MS)
        self._reader = AudioReader(self._connection, keys, servers.shards_of_server(server), worker)
        self._table = table
        self._put = put
        self._metrics = metrics
        self._on_lost = on_lost
        self._readings: dict[StreamId, _Reading] = {}
        self._behind: deque[_Reading] = deque()
        # Held while a stream is added, so that a notice about it finds it.
        self._lock = threading.Lock()
        self._finishing: deque[StreamFlow] = deque()
        self._stop = threading.Event()
        self._next_sweep = time.monotonic() + _SWEEP_S
        self._next_round = 0.0
        self._pace = Pace(
            _BUSY_ROUND_EVERY_S * servers.num_servers, shortest_s=_ROUND_EVERY_S * servers.num_servers
        )
        self._thread = threading.Thread(target=self._run, name=f"intake-{server}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def request_stop(self) -> None:
        """Read no more from now on; the read under way is finished."""
        self._stop.set()

    def stop(self, timeout_s: float) -> bool:
        """End the thread; return False if it did not end in time."""
        self.request_stop()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def take_in(self, flow: StreamFlow, snapshot: bytes | None) -> None:
        """Add a stream: the engine opens it, then its audio is read."""
        with self._lock:
            self._table.add(flow)
            self._put(Open(flow, snapshot))
            self._readings[flow.stream] = _Reading(flow)

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
            got = _Got()
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

    def _read(self, chosen: Sequence[_Reading], max_entries: int) -> None:
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

    def _reread(self, reading: _Reading) -> None:
        """Read the entries of a failed read again; new entries are read after them."""
        more = True
        while more:
            read = self._reader.reread(*reading.key, reading.last_entry, MAX_ENTRIES)
            more = any(len(entries or ()) >= MAX_ENTRIES for _, entries in read)
            if any(entries for _, entries in read):
                logger.info("audio read again", extra={"stream_id": reading.flow.stream})
            self._handle(read, {reading.key[0].audio: reading}, MAX_ENTRIES)
        reading.missed = False

    def _readable(self, streams: Iterable[StreamId], now: float) -> list[_Reading]:
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

    def _takes_more(self, reading: _Reading, now: float) -> bool:
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

    def _queue(self, reading: _Reading) -> None:
        if not reading.queued:
            reading.queued = True
            self._behind.append(reading)

    def _handle(self, read: Iterable[AudioRead], readings: dict[bytes, _Reading], max_entries: int) -> None:
        """Feed the audio that was read. readings: streams by the key of their audio."""
        got = _Got()
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


class _Got:
    """The commands of one read, in order: audio of its streams, and further commands after that audio."""

    def __init__(self) -> None:
        self._parts: list[tuple[StreamFlow, Samples]] = []
        self._commands: list[Command] = []
        self._ends: list[Command] = []

    def commands(self) -> list[Command]:
        """Return the commands for the engine thread, nearly always one for the audio of all streams."""
        self._feed_parts()
        return self._commands + self._ends

    def _feed_parts(self) -> None:
        if self._parts:
            self._commands.append(Feed(self._parts))
            self._parts = []

    def take(self, reading: _Reading, entries: Sequence[RawEntry]) -> None:
        """Take the entries of a stream. A fault in them ends that stream alone."""
        flow = reading.flow
        for entry_id, flat in entries:
            reading.last_entry = entry_id
            try:
                entry = decode_audio_entry(entry_id, flat)
                if entry.ingress is not None:
                    flow.ingress = entry.ingress
                if flow.ended:
                    continue
                if entry.finalize:
                    self._finalize(reading, entry_id)
                    continue
                audio = reading.audio
                if entry.phrases is not None:
                    flow.undecoded.append(Undecoded(entry_id, audio.next_sample))
                    if _is_behind(entry_id, reading.phrased):  # else delivered again: the engine has them
                        reading.phrased = entry_id
                        self._feed_parts()
                        sample = audio.next_engine_sample
                        self._commands.append(ReplacePhrases(flow, entry.phrases, sample))
                    continue
                parts = audio.push(entry)
                flow.undecoded.append(Undecoded(entry_id, audio.next_sample))
                self._feed(flow, parts)
                if entry.final:
                    self.end(reading)
            except StreamError as error:
                logger.warning("audio refused: %s", error, extra={"stream_id": flow.stream})
                self._fail(flow, error)
            except Exception:
                # The other streams of this read have been delivered to this worker: they must get their
                # audio.
                logger.exception("audio could not be read", extra={"stream_id": flow.stream})
                self._fail(flow, worker_failed())

    def _finalize(self, reading: _Reading, entry_id: bytes) -> None:
        flow = reading.flow
        if _is_behind(entry_id, reading.finalized):
            reading.finalized = entry_id
            at = reading.audio.next_sample
            # The resampler has to return all samples that it holds, and begins anew.
            self._feed(flow, reading.audio.finish())
            base = Base(origin=flow.fed_samples, client_origin=at)
            reading.audio = StreamAudio(reading.audio.rate, flow.fed_samples, base)
            flow.undecoded.append(Undecoded(entry_id, at, finalizes=True))
            self._feed_parts()
            self._commands.append(Finalize(flow, entry_id))
        else:
            # A replay that begins after the answer, or a Redis that has lost that it had delivered the entry;
            # no result will report that it is done.
            flow.undecoded.append(Undecoded(entry_id, reading.audio.next_sample))

    def end(self, reading: _Reading) -> None:
        """End a stream: feed the rest of its resampler, then the end."""
        flow = reading.flow
        self._feed(flow, reading.audio.finish())
        flow.ended = True
        self._ends.append(Finish(flow))

    def _feed(self, flow: StreamFlow, parts: Sequence[Samples]) -> None:
        for samples in parts:
            flow.fed_samples += len(samples)
            self._parts.append((flow, samples))

    def _fail(self, flow: StreamFlow, error: StreamError) -> None:
        if not flow.ended:
            flow.ended = True
            self._ends.append(Fail(flow, error))


def _is_behind(entry_id: bytes, last: bytes | None) -> bool:
    """Return whether an entry comes after the last one of its kind; a Redis may forget what it delivered."""
    return last is None or entry_order(last) < entry_order(entry_id)
