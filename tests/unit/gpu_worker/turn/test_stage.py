"""The stage: holds a stream's results for a verdict, in order, for a bounded time, and nobody else's."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from common.entries import StreamId
from gpu_worker.engine.interface import StreamOutput
from gpu_worker.engine.transcript import NO_TOKENS, Tokens, Transcript
from gpu_worker.turn.outcome import WINDOW_SAMPLES, Verdict
from gpu_worker.turn.settings import Signal, TurnSettings
from gpu_worker.turn.stage import HISTORY_SAMPLES, TurnAnswer, TurnStage
from tests.oracle.models import tiny

CHUNK = 2_560
ONE, TWO = StreamId(1), StreamId(2)
VAD = TurnSettings(signals=frozenset({Signal.VAD}), end_silence_ms=800)
SMART = replace(VAD, signals=frozenset({Signal.SMART_TURN}), smart_silence_ms=160)


@dataclass
class ScriptedJudge:
    """Answers when the test says so."""

    accepts: bool = True
    timeout_s: float = 0.3
    asked: list[tuple[StreamId, int, NDArray[np.int16]]] = field(default_factory=list)
    ready: list[TurnAnswer] = field(default_factory=list)
    forgotten: list[StreamId] = field(default_factory=list)
    late: int = 0

    def ask(self, stream: StreamId, number: int, audio: NDArray[np.int16]) -> bool:
        self.asked.append((stream, number, audio.copy()))
        return self.accepts

    def answers(self) -> Sequence[TurnAnswer]:
        ready, self.ready = self.ready, []
        return ready

    def count_late(self) -> None:
        self.late += 1

    def drop(self, stream: StreamId) -> None:
        self.forgotten.append(stream)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def transcript() -> Transcript:
    return Transcript(tiny().tokenizer, 0.08, with_words=False, with_starts=True)


def moved(said: Transcript) -> Transcript:
    """The same transcript in another process."""
    there = transcript()
    there.load(json.loads(json.dumps(said.export())))
    return there


def push(
    stage: TurnStage,
    stream: StreamId,
    numbers: Sequence[int],
    prob: float,
    *,
    final: bool = False,
    says: bool = True,
) -> None:
    """Chunks of these numbers (from 1), each recognizable by its token unless it says nothing."""
    for number in numbers:
        stage.push(
            stream,
            Tokens([number], [number * 2 - 1], [0.5]) if says else NO_TOKENS,
            number * CHUNK,
            is_final=final and number == numbers[-1],
            probs=[prob] * 5,
            samples=np.full(CHUNK, number / 1000, np.float32),
        )


def numbers(outputs: Sequence[StreamOutput]) -> list[int]:
    return [one.token_ids[0] for one in outputs]


def test_a_disabled_stream_passes_through() -> None:
    stage = TurnStage()
    stage.open(ONE, TurnSettings(enabled=False), transcript())
    push(stage, ONE, [1], 0.0, says=False)
    push(stage, ONE, [2], 0.0)
    push(stage, ONE, [3], 0.0, says=False, final=True)
    outputs = stage.drain()
    assert [(o.last_state, o.turn_detection, o.is_turn_event) for o in outputs] == [
        (None, "running", False)
    ] * 3
    assert [o.changed for o in outputs] == [False, True, True]


def test_changed_is_a_change_of_text_or_turn() -> None:
    stage = TurnStage()
    stage.open(ONE, VAD, transcript())
    push(stage, ONE, [1, 2], 0.0, says=False)
    push(stage, ONE, [3, 4, 5], 0.9, says=False)
    push(stage, ONE, [6], 0.9)
    got = [(o.last_state, o.turn_detection, o.is_turn_event, o.changed) for o in stage.drain()]
    assert got == [
        ("silence", "pause", False, True),  # nothing was known before
        ("silence", "pause", False, False),
        ("speech", "start_of_utterance", True, True),
        ("speech", "running", False, True),
        ("speech", "running", False, False),
        ("speech", "running", False, True),
    ]


def test_a_final_closes_the_stream() -> None:
    stage = TurnStage()
    stage.open(ONE, VAD, transcript())
    push(stage, ONE, [1, 2], 0.9, final=True)
    outputs = stage.drain()
    assert [o.turn_detection for o in outputs] == ["start_of_utterance", "end_of_utterance"]
    assert outputs[-1].is_final
    stage.open(ONE, VAD, transcript())  # the id is free again


def speak_and_pause(stage: TurnStage, stream: StreamId) -> None:
    """Chunks 1 and 2 are speech, 3 is silence of 160 ms: it needs the verdict."""
    push(stage, stream, [1, 2], 0.9)
    push(stage, stream, [3], 0.0)


def test_a_verdict_holds_the_stream_in_order_and_nobody_else() -> None:
    judge = ScriptedJudge()
    stage = TurnStage(judge)
    stage.open(ONE, SMART, transcript())
    stage.open(TWO, VAD, transcript())
    speak_and_pause(stage, ONE)
    push(stage, ONE, [4, 5], 0.0)
    push(stage, TWO, [1, 2], 0.9)
    outputs = stage.drain()
    assert [(o.stream, o.token_ids[0]) for o in outputs] == [(ONE, 1), (ONE, 2), (TWO, 1), (TWO, 2)]
    assert (stage.num_held, list(stage.waiting)) == (3, [ONE])
    assert not stage.has_ready()

    judge.ready.append(TurnAnswer(ONE, 1, Verdict.COMPLETE))
    assert stage.has_ready()
    outputs = stage.drain()
    assert numbers(outputs) == [3, 4, 5]
    assert [o.turn_detection for o in outputs] == ["end_of_utterance", "pause", "pause"]
    assert (stage.num_held, list(stage.waiting)) == (0, [])


def test_the_question_is_about_the_audio_up_to_the_pause() -> None:
    judge = ScriptedJudge()
    stage = TurnStage(judge)
    stage.open(ONE, SMART, transcript())
    speak_and_pause(stage, ONE)
    ((stream, number, audio),) = judge.asked
    assert (stream, number) == (ONE, 1)
    assert len(audio) == 2 * CHUNK + 3 * WINDOW_SAMPLES  # the pause is noticed after 96 ms
    assert set(audio[-3 * WINDOW_SAMPLES :]) == {98}  # 0.003 of full scale: chunk 3


def test_history_is_bounded_to_what_the_model_hears() -> None:
    judge = ScriptedJudge()
    stage = TurnStage(judge)
    stage.open(ONE, SMART, transcript())
    last = HISTORY_SAMPLES // CHUNK + 20
    push(stage, ONE, range(1, last), 0.9)
    push(stage, ONE, [last], 0.0)
    assert len(judge.asked[0][2]) == HISTORY_SAMPLES
    stage.drain()
    assert len(stage.export(ONE)) < 2 * HISTORY_SAMPLES + 2 * CHUNK + 4_096


def test_a_verdict_that_does_not_come_is_absent_and_counted() -> None:
    judge, clock = ScriptedJudge(), Clock()
    stage = TurnStage(judge, clock=clock)
    stage.open(ONE, SMART, transcript())
    speak_and_pause(stage, ONE)
    stage.drain()
    assert stage.wait_s() == pytest.approx(0.3)
    clock.now_s += 0.29
    assert not stage.has_ready()
    clock.now_s += 0.02
    assert stage.has_ready()
    (held,) = stage.drain()
    assert held.turn_detection == "pause"
    assert judge.late == 1
    assert stage.wait_s() is None
    # Silence decides in its place: 800 ms from the end of the speech.
    push(stage, ONE, range(4, 8), 0.0)
    assert [o.turn_detection for o in stage.drain()] == [*["pause"] * 3, "end_of_utterance"]


def test_a_refused_question_is_absent_at_once() -> None:
    stage = TurnStage(ScriptedJudge(accepts=False))
    stage.open(ONE, SMART, transcript())
    speak_and_pause(stage, ONE)
    assert numbers(stage.drain()) == [1, 2, 3]


def test_a_final_behind_a_verdict_comes_last() -> None:
    judge = ScriptedJudge()
    stage = TurnStage(judge)
    stage.open(ONE, SMART, transcript())
    speak_and_pause(stage, ONE)
    push(stage, ONE, [4], 0.0, final=True)
    assert numbers(stage.drain()) == [1, 2]
    judge.ready.append(TurnAnswer(ONE, 1, Verdict.INCOMPLETE))
    outputs = stage.drain()
    assert [(o.turn_detection, o.is_final) for o in outputs] == [
        ("pause", False),
        ("end_of_utterance", True),
    ]


def test_a_closed_stream_is_forgotten() -> None:
    judge = ScriptedJudge()
    stage = TurnStage(judge)
    stage.open(ONE, SMART, transcript())
    speak_and_pause(stage, ONE)
    stage.close(ONE)
    judge.ready.append(TurnAnswer(ONE, 1, Verdict.COMPLETE))
    assert (stage.holds_results, numbers(stage.drain())) == (False, [])
    assert (stage.num_held, stage.wait_s(), judge.forgotten) == (0, None, [ONE])


@pytest.mark.parametrize("cut", range(1, 7))
@pytest.mark.parametrize(
    "signals", [replace(SMART, auto_finalize=True, finalize_lag_ms=80), VAD, TurnSettings(enabled=False)]
)
def test_going_on_from_an_export_is_exact(cut: int, signals: TurnSettings) -> None:
    """Also from one taken while a verdict is waited for: the new stage asks again."""
    probs = [0.9, 0.9, 0.0, 0.0, 0.9, 0.0, 0.0]

    def pushes(stage: TurnStage, first: int, last: int) -> None:
        for number in range(first, last + 1):
            push(stage, ONE, [number], probs[number - 1], final=number == len(probs))

    def answer_all(stage: TurnStage, judge: ScriptedJudge) -> list[StreamOutput]:
        outputs = stage.drain()
        answered = 0
        while answered < len(judge.asked):
            stream, number, audio = judge.asked[answered]
            verdict = Verdict.COMPLETE if int(audio[-1]) % 2 else Verdict.INCOMPLETE
            judge.ready.append(TurnAnswer(stream, number, verdict))
            answered += 1
            outputs += stage.drain()
        return outputs

    judge = ScriptedJudge()
    stage = TurnStage(judge)
    stage.open(ONE, signals, transcript())
    pushes(stage, 1, len(probs))
    expected = answer_all(stage, judge)
    assert numbers(expected) == list(range(1, len(probs) + 1))

    stage = TurnStage(ScriptedJudge())
    said = transcript()
    stage.open(ONE, signals, said)
    pushes(stage, 1, cut)
    got = stage.drain()
    exported = stage.export(ONE)
    judge = ScriptedJudge()
    stage = TurnStage(judge)
    stage.open(ONE, signals, moved(said), exported=exported)
    pushes(stage, cut + 1, len(probs))
    assert got + answer_all(stage, judge) == expected


def test_an_export_carries_what_was_not_fetched() -> None:
    """An answer that is noticed between two steps makes results ready: a snapshot then must not lose them."""
    judge = ScriptedJudge()
    stage = TurnStage(judge)
    stage.open(ONE, replace(SMART, auto_finalize=True, finalize_lag_ms=0), transcript())
    stage.open(TWO, VAD, transcript())
    speak_and_pause(stage, ONE)
    stage.drain()
    push(stage, TWO, [1], 0.9)
    judge.ready.append(TurnAnswer(ONE, 1, Verdict.COMPLETE))
    assert stage.has_ready()
    exported = stage.export(ONE)
    expected = [one for one in stage.drain() if one.stream == ONE]
    assert [one.turn_detection for one in expected] == ["end_of_utterance"]
    assert expected[0].utterances

    stage = TurnStage(ScriptedJudge())
    stage.open(TWO, replace(SMART, auto_finalize=True, finalize_lag_ms=0), transcript(), exported=exported)
    assert stage.has_ready()
    assert stage.drain() == [replace(one, stream=TWO) for one in expected]


def test_signals_that_the_server_cannot_give_leave_it_to_silence() -> None:
    stage = TurnStage(judge=None, eou_id=None)
    stage.open(ONE, replace(VAD, signals=frozenset({Signal.EOU, Signal.SMART_TURN})), transcript())
    push(stage, ONE, [1], 0.9)
    push(stage, ONE, range(2, 8), 0.0)
    assert [o.turn_detection for o in stage.drain()][-2:] == ["end_of_utterance", "pause"]


def test_a_stream_moves_between_servers_with_and_without_smart_turn() -> None:
    stage = TurnStage(ScriptedJudge())
    stage.open(ONE, SMART, transcript())
    speak_and_pause(stage, ONE)
    assert numbers(stage.drain()) == [1, 2]
    exported = stage.export(ONE)

    without = TurnStage()
    without.open(TWO, SMART, transcript(), exported=exported)  # under another id, too
    (held,) = without.drain()
    assert (held.stream, held.token_ids) == (TWO, (3,))
    push(without, TWO, [4, 5], 0.9)
    exported = without.export(TWO)

    judge = ScriptedJudge()
    stage = TurnStage(judge)
    stage.open(ONE, SMART, transcript(), exported=exported)
    push(stage, ONE, [6], 0.0)
    ((_, _, audio),) = judge.asked
    assert len(audio) == 3 * WINDOW_SAMPLES  # what it has heard itself


def test_without_auto_finalize_no_result_carries_utterances() -> None:
    stage = TurnStage()
    stage.open(ONE, VAD, transcript())
    push(stage, ONE, [1, 2], 0.9)
    push(stage, ONE, range(3, 12), 0.0, final=True)
    assert not any(o.utterances for o in stage.drain())
