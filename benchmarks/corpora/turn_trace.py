"""What a session's audio tells endpointing, recorded once: chunks with windows and tokens, and verdicts.

Endpointing depends on these alone, so a bench can play one recording with many settings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.corpora.turn_corpus import Session
from common.entries import StreamId
from common.options import StreamOptions
from gpu_worker.engine.config import EngineConfig
from gpu_worker.engine.slots.clock import ChunkClock
from gpu_worker.model.loading.checkpoint import LoadedModel
from gpu_worker.steps.factory import make_model_engine
from gpu_worker.turn.endpointing import Endpointer
from gpu_worker.turn.outcome import WINDOW_SAMPLES, TurnChunk, TurnOutcome, Verdict, token_sample
from gpu_worker.turn.settings import TurnSettings
from gpu_worker.turn.smart_turn import INPUT_SAMPLES, SmartTurn
from gpu_worker.turn.vad import SileroVad

BATCH: Final = 8


@dataclass(slots=True)
class Trace:
    """One session in the engine's chunks.

    probabilities: smart-turn's answers so far, by the sample at which it was asked.
    """

    session: Session
    chunks: tuple[TurnChunk, ...]
    probabilities: dict[int, float] = field(default_factory=dict)


def record(sessions: Sequence[Session], loaded: LoadedModel, context: tuple[int, int] | None) -> list[Trace]:
    """Run the sessions through engine and speech detector."""
    engine = make_model_engine(loaded, EngineConfig(num_slots=BATCH, context=context, turn_detection=False))
    traces: list[Trace] = []
    for index in range(0, len(sessions), BATCH):
        batch = sessions[index : index + BATCH]
        for row, session in enumerate(batch):
            engine.open(StreamId(row), StreamOptions())
            engine.feed(StreamId(row), session.samples)
            engine.finish(StreamId(row))
        eou_frames: list[list[int]] = [[] for _ in batch]
        while engine.has_work():
            for output in engine.step():
                eou_frames[output.stream] += [
                    frame
                    for token, frame in zip(output.token_ids, output.token_frames, strict=True)
                    if token == loaded.config.eou_id
                ]
        chunks = [
            _chunks(session.samples, frames, engine.clock)
            for session, frames in zip(batch, eou_frames, strict=True)
        ]
        traces += [Trace(session, tuple(rows)) for session, rows in zip(batch, chunks, strict=True)]
    return traces


def _chunks(samples: NDArray[np.float32], eou_frames: Sequence[int], clock: ChunkClock) -> list[TurnChunk]:
    """Return the inputs of endpointing for each whole chunk of a session, and for its end."""
    probs, count = _windows(samples), clock.whole_chunks(len(samples))
    ends = [*map(clock.samples_of_chunks, range(1, count + 1)), len(samples)]
    chunks: list[TurnChunk] = []
    begin = 0
    for number, end in enumerate(ends):
        eou = [
            token_sample(frame) for frame in eou_frames if min(frame // clock.chunk_frames, count) == number
        ]
        windows = probs[begin // WINDOW_SAMPLES : end // WINDOW_SAMPLES]
        chunks.append(TurnChunk(end, tuple(windows), tuple(eou), final=number == count))
        begin = end
    return chunks


def play(
    trace: Trace, settings: TurnSettings, model: SmartTurn, threshold: float
) -> list[Sequence[TurnOutcome]]:
    """Return the outcomes of each chunk under the settings; every verdict is there in time."""
    endpointer = Endpointer(settings)
    asked: dict[int, int] = {}
    outcomes: list[Sequence[TurnOutcome]] = []
    for chunk in trace.chunks:
        read = endpointer.read(chunk)
        while True:
            asked |= {question.number: question.end_sample for question in endpointer.take_questions()}
            if read is not None:
                break
            number = endpointer.awaited_question
            assert number is not None
            complete = _probability(trace, asked[number], model) >= threshold
            endpointer.answer(number, Verdict.COMPLETE if complete else Verdict.INCOMPLETE)
            read = endpointer.resume()
        outcomes.append(read)
    return outcomes


def _probability(trace: Trace, end_sample: int, model: SmartTurn) -> float:
    if end_sample not in trace.probabilities:
        audio = trace.session.samples[max(0, end_sample - INPUT_SAMPLES) : end_sample]
        pcm: NDArray[np.int16] = np.rint(np.clip(audio, -1, 1) * 32_767).astype(np.int16)
        trace.probabilities[end_sample] = model.probability(pcm)
    return trace.probabilities[end_sample]


def _windows(samples: NDArray[np.float32]) -> list[float]:
    vad = SileroVad(num_slots=1)
    probs, _ = vad.run(torch.from_numpy(samples)[None], torch.tensor([len(samples)]), torch.tensor([0]))
    return [float(prob) for prob in probs[0, : len(samples) // 512]]
