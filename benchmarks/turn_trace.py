"""What a session's audio gives to endpointing, recorded once: chunks with windows and tokens, and verdicts.

Endpointing is a function of these, so that a bench can play one recording under many settings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.turn_corpus import Session
from common.entries import StreamId
from common.options import StreamOptions
from gpu_worker.engine.engine import EngineConfig, NativeEngine
from gpu_worker.model.checkpoint import LoadedModel
from gpu_worker.turn.endpointing import Endpointer, TurnChunk, TurnOutcome, Verdict, eou_sample
from gpu_worker.turn.settings import TurnSettings
from gpu_worker.turn.smart_turn import INPUT_SAMPLES, SmartTurn
from gpu_worker.turn.vad import SileroVad, windows_of

BATCH: Final = 8


@dataclass(slots=True)
class Trace:
    """One session, as the engine's chunks cut it.

    probabilities: smart-turn's answers so far, by the sample at which it was asked.
    """

    session: Session
    chunks: tuple[TurnChunk, ...]
    probabilities: dict[int, float] = field(default_factory=dict)


def record(sessions: Sequence[Session], loaded: LoadedModel, context: tuple[int, int] | None) -> list[Trace]:
    """Runs the sessions through engine and speech detector."""
    engine = NativeEngine(loaded, EngineConfig(num_slots=BATCH, context=context, turn_detection=False))
    traces: list[Trace] = []
    for index in range(0, len(sessions), BATCH):
        batch = sessions[index : index + BATCH]
        for row, session in enumerate(batch):
            engine.open(StreamId(row), StreamOptions())
            engine.feed(StreamId(row), session.samples)
            engine.finish(StreamId(row))
        chunks: list[list[TurnChunk]] = [[] for _ in batch]
        probs = [_windows(session.samples) for session in batch]
        start_samples = [0] * len(batch)
        while engine.has_work():
            for output in engine.step():
                row = output.stream
                count = windows_of(start_samples[row], output.samples_decoded)
                start_samples[row] = output.samples_decoded
                mine, probs[row] = probs[row][:count], probs[row][count:]
                frames = [
                    frame
                    for token, frame in zip(output.token_ids, output.token_frames, strict=True)
                    if token == loaded.config.eou_id
                ]
                chunks[row].append(
                    TurnChunk(
                        output.samples_decoded,
                        tuple(mine),
                        tuple(map(eou_sample, frames)),
                        final=output.is_final,
                    )
                )
        traces += [Trace(session, tuple(rows)) for session, rows in zip(batch, chunks, strict=True)]
    return traces


def play(trace: Trace, settings: TurnSettings, model: SmartTurn, threshold: float) -> list[TurnOutcome]:
    """The outcome of each chunk under the settings; every verdict is there in time."""
    endpointer = Endpointer(settings)
    asked: dict[int, int] = {}
    outcomes: list[TurnOutcome] = []
    for chunk in trace.chunks:
        outcome = endpointer.read(chunk)
        while True:
            asked |= {question.number: question.end_sample for question in endpointer.take_questions()}
            if outcome is not None:
                break
            number = endpointer.awaited_question
            assert number is not None
            complete = _probability(trace, asked[number], model) >= threshold
            endpointer.answer(number, Verdict.COMPLETE if complete else Verdict.INCOMPLETE)
            outcome = endpointer.resume()
        outcomes.append(outcome)
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
