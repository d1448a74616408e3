"""A worker with faults that tests ask for by the audio: ``python -m tests.altered.faulty_worker FLAGS``.

A chunk whose first sample is full scale makes the engine raise, as a lost device would; an entry of
exactly CURSED_SAMPLES samples makes its conversion raise, as a defect of the resampler would.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace

import gpu_worker.pipeline.audio
from common.entries import AudioEntry, StreamId
from common.process.logging import configure
from common.settings import parse_or_exit
from gpu_worker.backend import make_backend
from gpu_worker.engine.interface import StreamOutput
from gpu_worker.engine.slots.samples import Samples, float_samples
from gpu_worker.pipeline.audio import AudioConverter
from gpu_worker.steps.null import NullEngine
from gpu_worker.worker import Worker

CURSED_SAMPLES = 12_345


class FaultyEngine(NullEngine):
    """Raises in the step behind a full-scale sample."""

    _lost = False

    def feed(self, stream: StreamId, samples: Samples) -> None:
        super().feed(stream, samples)
        self._lost = self._lost or bool(len(samples) and float_samples(samples)[0] == -1.0)

    def step(self) -> Sequence[StreamOutput]:
        if self._lost:
            raise RuntimeError("the device is lost")
        return super().step()


class FaultyAudio(AudioConverter):
    """Raises at an entry of CURSED_SAMPLES."""

    def push(self, entry: AudioEntry) -> Sequence[Samples]:
        if entry.num_samples == CURSED_SAMPLES:
            raise RuntimeError("the resampler is broken")
        return super().push(entry)


def main(argv: Sequence[str]) -> int:
    settings = parse_or_exit("worker", argv)
    configure(settings.log_level, settings.log_format, fields={"worker_id": settings.worker_id})
    vars(gpu_worker.pipeline.audio)["AudioConverter"] = FaultyAudio
    engine = FaultyEngine(settings.worker_max_streams)
    return Worker(settings, replace(make_backend(settings), engine=engine)).run()


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)
