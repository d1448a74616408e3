"""The engine's last stage: turns the tokens and windows of each chunk into results with turn detection.

Calls that the engine makes, all from its own thread. `SileroVad` (gpu_worker.turn.vad) belongs to the
step itself; this stage is host code that costs some microseconds a chunk::

    stage = TurnStage(judge=None, eou_id=None)           # a SmartTurnPool where smart-turn is on
    stage.open(stream, settings, transcript)             # its TurnSettings; results go into the transcript
    stage.push(stream, tokens, end_sample, probs=probs)  # every chunk of a stream, in order
    taken = stage.steady.take(...)                       # chunks of a step that change nothing: not pushed
    outputs = stage.drain()                              # at the end of every step: what to return
    stage.close(stream)                                  # stream dropped; after a final it is closed already
    blob = stage.export(stream)                          # of the engine's snapshot, beside the transcript ...
    stage.open(stream, settings, transcript, exported=blob)  # ... and back

A chunk has one result, or one for each start and end of an utterance in it: each but the last covers the
audio up to the position where its event was decided, with the tokens before that position.

Without an open question to smart-turn, the next `drain` returns the results. With an open question they are
held until the verdict is there or the judge's `timeout_s` has passed. `waiting` has the streams that wait so:
the engine launches nothing more for them, and other streams never wait. `has_work()` of the engine is also
true when `stage.has_ready()` is. The judge must wake a thread that sleeps until there is work
(`SmartTurnPool.wake_with`), and the thread must check again after `stage.wait_s()`.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from common.entries import StreamId
from common.messages import Utterance
from gpu_worker.engine.interface import ENGINE_SAMPLE_RATE, StreamOutput
from gpu_worker.engine.transcript import Tokens, Transcript, chunk_output
from gpu_worker.turn.endpointing import Endpointer
from gpu_worker.turn.outcome import TurnChunk, TurnOutcome, Verdict, token_sample
from gpu_worker.turn.settings import Signal, TurnSettings
from gpu_worker.turn.steady import SteadyTurns
from gpu_worker.turn.stream_turns import HeldChunk, StreamTurns, export_turns, import_turns
from gpu_worker.turn.utterances import UtteranceLog

HISTORY_SAMPLES: Final = 8 * 16_000

_OFF: Final = TurnOutcome(None, "running")
"""The turn fields of results of a stream without turn detection."""


@dataclass(frozen=True, slots=True)
class TurnAnswer:
    """A judge's answer to one question."""

    stream: StreamId
    number: int
    verdict: Verdict


class TurnJudge(Protocol):
    """Judges whether an utterance is complete, in threads of its own.

    timeout_s: longest time that a result waits for an answer before it counts as absent.
    """

    timeout_s: float

    def ask(self, stream: StreamId, number: int, audio: NDArray[np.int16]) -> bool:
        """Queue a question about at most 8 s of audio; return False when the queue is full."""
        ...

    def answers(self) -> Sequence[TurnAnswer]:
        """Return the answers since the last call; never blocks."""
        ...

    def count_late(self) -> None:
        """Count an answer that the stage has given up waiting for."""
        ...

    def drop(self, stream: StreamId) -> None:
        """Drop the questions of a stream that was closed: no answer to them comes any more."""
        ...


class TurnStage:
    """Endpointing of all streams of an engine.

    Args:
        judge: smart-turn; None for none: streams that ask for it then have no verdicts.
        eou_id: the model's `<EOU>` token; None where it has none.
        num_slots: slots of the engine.
        clock: returns monotonic seconds.

    `steady` takes the chunks of a step that change nothing; only the others are pushed.
    """

    def __init__(
        self,
        judge: TurnJudge | None = None,
        *,
        eou_id: int | None = None,
        num_slots: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.steady = SteadyTurns(num_slots)
        self._judge = judge
        self.eou_id = eou_id
        self._clock = clock
        self._streams: dict[StreamId, StreamTurns] = {}
        self._by_slot: list[StreamTurns | None] = [None] * num_slots
        self._waiting: dict[StreamId, StreamTurns] = {}
        self._ready: list[StreamOutput] = []
        self._ended: list[StreamId] = []

    @property
    def holds_results(self) -> bool:
        """Whether results are complete that `drain` has not returned."""
        return bool(self._ready)

    @property
    def num_held(self) -> int:
        """Number of chunks that wait for a verdict, over all streams."""
        return sum(1 + len(turns.held) for turns in self._waiting.values())

    @property
    def waiting(self) -> Collection[StreamId]:
        """The streams that wait for a verdict."""
        return self._waiting.keys()

    def open(
        self,
        stream: StreamId,
        settings: TurnSettings,
        transcript: Transcript,
        exported: bytes | None = None,
        *,
        slot: int | None = None,
    ) -> None:
        """Add a stream, at its start or at its export; its tokens go into the transcript.

        Chunks of a stream with a slot may be taken by `steady`.

        Raises:
            ValueError: the stream is open already, or the export is of another version.
        """
        if stream in self._streams:
            raise ValueError(f"stream {stream} is open")
        settings = settings.limited(has_eou=self.eou_id is not None, has_smart_turn=self._judge is not None)
        if exported is not None:
            turns, ready = import_turns(exported, settings, stream, transcript)
            self._ready += ready
            if Signal.SMART_TURN not in settings.signals:
                turns.history = None
            elif turns.history is None and turns.endpointer is not None:
                turns.history = np.zeros(0, np.int16)
        elif settings.enabled:
            turns = StreamTurns(stream, transcript, Endpointer(settings))
            if Signal.SMART_TURN in settings.signals:
                turns.history = np.zeros(0, np.int16)
            if settings.auto_finalize:
                turns.utterances = UtteranceLog(settings)
        else:
            turns = StreamTurns(stream, transcript, reported=(_OFF.last_state, _OFF.turn_detection))
        turns.slot = slot
        if slot is not None:
            self._by_slot[slot] = turns
            if exported is not None and turns.endpointer is not None:
                turns.second = turns.endpointer.read_sample // ENGINE_SAMPLE_RATE
            self.steady.open(slot, settings)
        self._streams[stream] = turns
        if turns.endpointer is not None:
            self._ask(stream, turns)
        if turns.waiting is not None:
            self._waiting[stream] = turns
            self._go_on(stream, turns)
            if turns.waiting is not None:
                self._wait(stream, turns)

    def export(self, stream: StreamId) -> bytes:
        """Return the stream's whole turn state between two steps, with all results not yet drained."""
        turns = self._streams[stream]
        self._settle(turns)
        return export_turns(turns, [one for one in self._ready if one.stream == stream])

    def close(self, stream: StreamId) -> None:
        """Drop the stream, its state and its results that were not drained; do nothing if it is not open."""
        self._end(stream)
        self._ready = [output for output in self._ready if output.stream != stream]
        self._ended = [ended for ended in self._ended if ended != stream]

    def _end(self, stream: StreamId) -> None:
        """Drop the stream's state; its results stay ready."""
        turns = self._streams.pop(stream, None)
        self._waiting.pop(stream, None)
        if turns is None:
            return
        if turns.slot is not None:
            self._by_slot[turns.slot] = None
            self.steady.drop(turns.slot)
        if turns.history is not None and self._judge is not None:
            self._judge.drop(stream)

    def slot_needs_samples(self, slot: int) -> bool:
        """Return whether `push` needs samples of the chunks of a slot's stream, for smart-turn."""
        turns = self._by_slot[slot]
        return turns is not None and turns.history is not None

    def push(
        self,
        stream: StreamId,
        tokens: Tokens,
        end_sample: int,
        *,
        is_final: bool = False,
        probs: Sequence[float] = (),
        samples: NDArray[np.float32] | None = None,
    ) -> None:
        """Take the findings of one chunk of a stream.

        Args:
            stream: an open stream.
            tokens: the chunk's new tokens in order.
            end_sample: end of the chunk, in 16 kHz samples of the stream.
            is_final: whether the stream ends with it.
            probs: probability of speech of each window that the chunk completes; empty when disabled.
            samples: the chunk's audio, only when `slot_needs_samples`.
        """
        self._push(self._streams[stream], tokens, end_sample, is_final, probs, samples)

    def push_slot(
        self,
        slot: int,
        tokens: Tokens,
        end_sample: int,
        is_final: bool,
        probs: Sequence[float],
        samples: NDArray[np.float32] | None,
    ) -> None:
        """Do the same as `push`, for the stream that has a slot."""
        turns = self._by_slot[slot]
        assert turns is not None
        self._push(turns, tokens, end_sample, is_final, probs, samples)

    def _push(
        self,
        turns: StreamTurns,
        tokens: Tokens,
        end_sample: int,
        is_final: bool,
        probs: Sequence[float],
        samples: NDArray[np.float32] | None,
    ) -> None:
        endpointer = turns.endpointer
        if endpointer is None:
            self._emit(turns, tokens, end_sample, _OFF, is_final=is_final)
            return
        # By position: keyword arguments cost half as much time again.
        chunk = TurnChunk(end_sample, tuple(probs), self._eou_samples(tokens) if tokens.ids else (), is_final)
        if turns.slot is not None:
            self.steady.settle(turns.slot, endpointer)
        if turns.history is None and turns.waiting is None:
            outcomes = endpointer.read(chunk)
            if outcomes is None:
                raise AssertionError("a chunk waits for a verdict, and there is no smart-turn")
            self._finish_chunk(turns, tokens, chunk, outcomes)
            return
        held = HeldChunk(tokens, chunk, None if samples is None else _to_int16(samples))
        if turns.waiting is None:
            self._read(turns.stream, turns, held)
        else:
            turns.held.append(held)

    def push_steady(self, slot: int, tokens: Tokens, end_sample: int) -> None:
        """Emit a result of a chunk that `steady` has taken: for its tokens, or as an acknowledgement."""
        turns = self._by_slot[slot]
        assert turns is not None
        if turns.utterances is not None:
            assert turns.endpointer is not None
            self._emit(turns, tokens, end_sample, turns.endpointer.steady_outcome, is_final=False)
            return
        transcript, (last_state, turn_detection) = turns.transcript, turns.reported
        if tokens.ids:
            transcript.add(tokens, ends=False)
        turns.second = end_sample // ENGINE_SAMPLE_RATE
        self._ready.append(
            chunk_output(
                turns.stream,
                transcript,
                tokens,
                end_sample,
                False,
                last_state,
                turn_detection,
            )
        )

    def _settle(self, turns: StreamTurns) -> None:
        """Update the endpointer with the chunks that `steady` has taken."""
        if turns.slot is not None and turns.endpointer is not None:
            self.steady.settle(turns.slot, turns.endpointer)

    def _eou_samples(self, tokens: Tokens) -> tuple[int, ...]:
        ids, frames = tokens.ids, tokens.frames
        if self.eou_id not in ids:
            return ()
        return tuple([token_sample(frames[at]) for at, token in enumerate(ids) if token == self.eou_id])

    def drain(self) -> list[StreamOutput]:
        """Return outputs that are complete, those of one stream in order; never block."""
        self._take_answers()
        if self._waiting:
            now_s = self._clock()
            late = [(s, turns) for s, turns in self._waiting.items() if now_s >= turns.deadline_s]
            for stream, turns in late:
                self._give_up(stream, turns)
        ready, self._ready = self._ready, []
        return ready

    def take_ended(self) -> list[StreamId]:
        """Return the streams whose final results `drain` has returned since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def has_ready(self) -> bool:
        """Return whether `drain` would return something."""
        self._take_answers()
        return bool(self._ready) or (
            bool(self._waiting) and self._clock() >= min(turns.deadline_s for turns in self._waiting.values())
        )

    def wait_s(self) -> float | None:
        """Return the seconds until a verdict is given up, None if no stream waits for one."""
        if not self._waiting:
            return None
        return max(0.0, min(turns.deadline_s for turns in self._waiting.values()) - self._clock())

    def _take_answers(self) -> None:
        if self._judge is None:
            return
        for answer in self._judge.answers():
            turns = self._streams.get(answer.stream)
            if turns is not None and turns.endpointer is not None:
                turns.endpointer.answer(answer.number, answer.verdict)
                self._go_on(answer.stream, turns)

    def _give_up(self, stream: StreamId, turns: StreamTurns) -> None:
        assert turns.endpointer is not None
        assert self._judge is not None
        number = turns.endpointer.awaited_question
        assert number is not None
        self._judge.count_late()
        turns.endpointer.answer(number, Verdict.ABSENT)
        self._go_on(stream, turns)

    def _read(self, stream: StreamId, turns: StreamTurns, held: HeldChunk) -> None:
        assert turns.endpointer is not None
        if turns.history is not None:
            assert held.samples is not None
            turns.history = np.concatenate([turns.history, held.samples])
            turns.history_end_sample = held.chunk.end_sample
        outcomes = turns.endpointer.read(held.chunk)
        self._ask(stream, turns)
        if outcomes is None:
            outcomes = turns.endpointer.resume()  # a refused question is answered already
        if outcomes is None:
            turns.waiting = held
            self._wait(stream, turns)
        else:
            self._finish_chunk(turns, held.tokens, held.chunk, outcomes)

    def _wait(self, stream: StreamId, turns: StreamTurns) -> None:
        assert self._judge is not None
        turns.deadline_s = self._clock() + self._judge.timeout_s
        if turns.slot is not None:
            self.steady.note(turns.slot, None)
        self._waiting[stream] = turns

    def _go_on(self, stream: StreamId, turns: StreamTurns) -> None:
        """Read the held chunks after an answer, until one waits again."""
        if turns.waiting is None:
            return
        assert turns.endpointer is not None
        outcomes = turns.endpointer.resume()
        self._ask(stream, turns)
        if outcomes is None:
            outcomes = turns.endpointer.resume()
        if outcomes is None:
            return
        held, turns.waiting = turns.waiting, None
        self._waiting.pop(stream, None)
        self._finish_chunk(turns, held.tokens, held.chunk, outcomes)
        while turns.held and turns.waiting is None:
            self._read(stream, turns, turns.held.popleft())

    def _ask(self, stream: StreamId, turns: StreamTurns) -> None:
        assert turns.endpointer is not None
        questions = turns.endpointer.take_questions()
        if not questions:
            return
        # Speech has made an earlier question of the same chunk obsolete.
        question = questions[-1]
        if self._judge is None or turns.history is None:
            # The stream has come from a worker with smart-turn to one without.
            turns.endpointer.answer(question.number, Verdict.ABSENT)
            return
        # The history holds whole chunks; the question ends where the pause was noticed.
        end = len(turns.history) - (turns.history_end_sample - question.end_sample)
        if not self._judge.ask(stream, question.number, turns.history[max(0, end - HISTORY_SAMPLES) : end]):
            turns.endpointer.answer(question.number, Verdict.ABSENT)

    def _finish_chunk(
        self,
        turns: StreamTurns,
        tokens: Tokens,
        chunk: TurnChunk,
        outcomes: Sequence[TurnOutcome],
    ) -> None:
        if turns.history is not None and len(turns.history) > HISTORY_SAMPLES:
            turns.history = turns.history[-HISTORY_SAMPLES:]
        for outcome in outcomes[:-1]:
            assert outcome.decided_sample is not None
            decided_sample, count = outcome.decided_sample, 0
            while count < len(tokens.frames) and token_sample(tokens.frames[count]) <= decided_sample:
                count += 1
            self._emit(turns, tokens.first(count), decided_sample, outcome, is_final=False)
            tokens = tokens.after(count)
        self._emit(turns, tokens, chunk.end_sample, outcomes[-1], is_final=chunk.final)
        if turns.slot is not None and not chunk.final:
            self.steady.note(turns.slot, turns.endpointer if turns.is_steady else None)

    def _emit(
        self,
        turns: StreamTurns,
        tokens: Tokens,
        end_sample: int,
        outcome: TurnOutcome,
        *,
        is_final: bool,
    ) -> None:
        """Make a result of the audio up to `end_sample`.

        A stream with a slot, whose steady chunks have none, has a result only if something changes or a
        second of audio ends.
        """
        transcript, reports = turns.transcript, (outcome.last_state, outcome.turn_detection)
        if tokens.ids or is_final:
            transcript.add(tokens, ends=is_final)
        utterances: tuple[Utterance, ...] = ()
        if turns.utterances is not None:
            assert turns.endpointer is not None
            utterances = turns.utterances.take(
                outcome,
                transcript,
                end_sample,
                onset_sample=turns.endpointer.onset_sample,
                is_final=is_final,
            )
        is_turn_event = outcome.is_turn_event or bool(utterances)
        changed = is_turn_event or reports != turns.reported
        turns.reported = reports
        second = end_sample // ENGINE_SAMPLE_RATE
        speaks = changed or tokens.ids or is_final or turns.slot is None or second > turns.second
        if not speaks:
            return
        turns.second = second
        self._ready.append(
            chunk_output(
                turns.stream,
                transcript,
                tokens,
                end_sample,
                is_final,
                outcome.last_state,
                outcome.turn_detection,
                is_turn_event,
                changed,
                utterances,
            )
        )
        if is_final:
            self._ended.append(turns.stream)
            self._end(turns.stream)


def _to_int16(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    """Return samples as int16: half the size, with the precision of a telephone or microphone."""
    scaled: NDArray[np.int16] = np.rint(np.clip(samples, -1.0, 1.0) * 32_767.0).astype(np.int16)
    return scaled
