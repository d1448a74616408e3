"""Converts audio entries to samples for the engine, independent of how the audio was cut into entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from common.entries import AudioEntry
from common.errors import ClientFault, ErrorCode, StreamLost
from common.messages import Encoding
from common.streams.assignments import BEGINNING, Base
from gpu_worker.engine.interface import ENGINE_SAMPLE_RATE
from gpu_worker.engine.slots.samples import MAX_SAMPLE, PCM16, Samples, float_samples
from gpu_worker.pipeline.g711 import ALAW, MULAW
from gpu_worker.pipeline.resampling import Resampler, replay_start

if TYPE_CHECKING:
    from numpy.typing import NDArray

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


class StreamAudio:
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

    @property
    def next_engine_sample(self) -> int:
        """The engine's first sample that lies wholly after the audio so far, whether resampled yet or not."""
        behind = (self._next - self._base.client_origin) * ENGINE_SAMPLE_RATE
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


def client_samples(rate: int, samples: int, base: Base = BEGINNING) -> int:
    """Return the client's samples that lie wholly within `samples` of the engine, counted from `base`."""
    if rate == ENGINE_SAMPLE_RATE:
        return samples
    return base.client_origin + (samples - base.origin) * rate // ENGINE_SAMPLE_RATE


def first_needed(rate: int, samples: int, base: Base) -> int:
    """Return the first sample of the client that a replay from `samples` of the engine needs."""
    return base.client_origin + replay_start(rate, samples - base.origin)
