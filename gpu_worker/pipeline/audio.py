"""From audio entries to commands for the engine thread, independent of how the audio was cut into entries."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from common.entries import AudioEntry, RawEntry, decode_audio_entry, entry_order
from common.errors import ClientFault, ErrorCode, StreamError, StreamLost
from common.messages import Encoding
from common.streams.assignments import BEGINNING, Base
from gpu_worker.engine.interface import ENGINE_SAMPLE_RATE
from gpu_worker.engine.slots.samples import MAX_SAMPLE, PCM16, Samples, float_samples
from gpu_worker.pipeline.engine_events import (
    Command,
    Fail,
    Feed,
    Finalize,
    Finish,
    ReplacePhrases,
    worker_failed,
)
from gpu_worker.pipeline.flow import StreamFlow, Undecoded
from gpu_worker.pipeline.g711 import ALAW, MULAW
from gpu_worker.pipeline.resampling import Resampler, replay_start

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

_PCM16_ENCODING: Final = Encoding.PCM16
_TABLES: Final = {Encoding.MULAW: MULAW, Encoding.ALAW: ALAW}


def entry_samples(entry: AudioEntry) -> Samples:
    """Return the samples of an entry in the format of engines; far beyond full scale they are clipped.

    Raises ClientFault `bad_samples` for a sample that is not finite, `odd_byte_count` for half a sample.
    """
    payload, encoding = entry.payload, entry.encoding
    if len(payload) & (encoding.sample_bytes - 1):
        raise ClientFault(ErrorCode.ODD_BYTE_COUNT, "The audio is not a whole number of samples.")
    if encoding is _PCM16_ENCODING:
        return np.frombuffer(payload, PCM16)
    table = _TABLES.get(encoding)
    if table is not None:
        return table.take(np.frombuffer(payload, np.uint8))
    samples = np.frombuffer(payload, "<f4")
    if not np.isfinite(samples).all():
        raise ClientFault(ErrorCode.BAD_SAMPLES, "Every sample must be a finite number within float32.")
    clipped: NDArray[np.float32] = np.clip(samples.astype(np.float32, copy=False), -MAX_SAMPLE, MAX_SAMPLE)
    return clipped


class AudioConverter:
    """The audio of one stream on its way into the engine; for one thread.

    rate: rate of the client, Hz.
    samples_decoded: sample at which the engine goes on, at the engine's rate (0, or the position of its
        snapshot); `next_sample` is then the first sample of the client to be read.
    base: origin from which the samples of both rates are counted: the beginning, or the last `finalize`.
    """

    __slots__ = ("_base", "_next", "_resampler", "_skip", "rate")

    def __init__(self, rate: int, samples_decoded: int = 0, base: Base = BEGINNING) -> None:
        self.rate: Final = rate
        self._base: Final = base
        decoded = samples_decoded - base.origin
        start = replay_start(rate, decoded)
        self._next = base.client_origin + start
        self._resampler: Resampler | None = None
        self._skip = 0
        if rate != ENGINE_SAMPLE_RATE:
            self._resampler = Resampler(rate, start)
            self._skip = decoded - self._resampler.first_output

    @property
    def next_sample(self) -> int:
        """Position of the next sample, at the client's rate."""
        return self._next

    def engine_sample(self, sample: int) -> int:
        """Return the engine's first sample that lies wholly after the client's samples before `sample`.

        It may lie before those that are read here, and may not be resampled yet.
        """
        behind = (sample - self._base.client_origin) * ENGINE_SAMPLE_RATE
        return self._base.origin - (-behind // self.rate)

    def push(self, entry: AudioEntry) -> Sequence[Samples]:
        """Return the samples for the engine from the next entry.

        Samples that were there already are left out. Raises ClientFault for bad samples and StreamLost where
        audio before the entry is missing.
        """
        samples = entry_samples(entry)
        if entry.first_sample > self._next:
            raise StreamLost
        repeated = self._next - entry.first_sample
        if repeated:
            samples = samples[repeated:]
        if not len(samples):
            return []
        self._next += len(samples)
        if self._resampler is None:
            return [samples]
        return self._unskipped(self._resampler.push(float_samples(samples)))

    def finish(self) -> list[NDArray[np.float32]]:
        """Return the last samples for the engine."""
        return [] if self._resampler is None else self._unskipped(self._resampler.finish())

    def _unskipped(self, parts: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Leave out the samples that the engine's snapshot covers."""
        while self._skip and parts:
            head = parts[0]
            if len(head) > self._skip:
                parts[0] = head[self._skip :]
                self._skip = 0
            else:
                self._skip -= len(head)
                del parts[0]
        return parts


class StreamReading:
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
        self.audio = AudioConverter(record.sample_rate, checkpoint.first_sample, checkpoint.base)
        self.last_read = 0.0
        self.last_entry = record.checkpoint.entry_id or b"0"
        self.finalized = checkpoint.base.finalized
        self.phrased: bytes | None = None
        self.missed = False
        self.behind = flow.owned.epoch > 1
        self.queued = False


class ReadBatch:
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

    def take(self, reading: StreamReading, entries: Sequence[RawEntry]) -> None:
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
                        # A replay has entries from before its audio, which the engine's snapshot has, too.
                        sample = audio.engine_sample(min(entry.first_sample, audio.next_sample))
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

    def _finalize(self, reading: StreamReading, entry_id: bytes) -> None:
        flow = reading.flow
        if _is_behind(entry_id, reading.finalized):
            reading.finalized = entry_id
            at = reading.audio.next_sample
            # The resampler has to return all samples that it holds, and begins anew.
            self._feed(flow, reading.audio.finish())
            base = Base(origin=flow.fed_samples, client_origin=at)
            reading.audio = AudioConverter(reading.audio.rate, flow.fed_samples, base)
            flow.undecoded.append(Undecoded(entry_id, at, finalizes=True))
            self._feed_parts()
            self._commands.append(Finalize(flow, entry_id))
        else:
            # A replay that begins after the answer, or a Redis that has lost that it had delivered the entry;
            # no result will report that it is done.
            flow.undecoded.append(Undecoded(entry_id, reading.audio.next_sample))

    def end(self, reading: StreamReading) -> None:
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


def client_samples(rate: int, samples: int, base: Base = BEGINNING) -> int:
    """Return the client's samples that lie wholly within `samples` of the engine, counted from `base`."""
    if rate == ENGINE_SAMPLE_RATE:
        return samples
    return base.client_origin + (samples - base.origin) * rate // ENGINE_SAMPLE_RATE


def first_needed(rate: int, samples: int, base: Base) -> int:
    """Return the first sample of the client that a replay from `samples` of the engine needs."""
    return base.client_origin + replay_start(rate, samples - base.origin)
