"""What a stream of the pipelined engine has besides its row of arrays."""

from __future__ import annotations

from dataclasses import dataclass

from common.entries import StreamId
from common.options import StreamOptions
from gpu_worker.engine.transcript import Transcript


@dataclass(slots=True)
class PipelinedStream:
    """One open stream.  `order` counts openings; `listens`: its turns are detected."""

    stream: StreamId
    slot: int
    order: int
    options: StreamOptions
    transcript: Transcript
    listens: bool
    finish_asked: bool = False
