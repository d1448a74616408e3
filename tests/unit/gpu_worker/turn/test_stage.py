"""The stage: holds a stream's results for a verdict, in order, for a bounded time, and nobody else's."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from common.entries import StreamId
from common.messages import Word
from gpu_worker.engine.interface import EngineError, StreamOutput
from gpu_worker.turn.endpointing import WINDOW_SAMPLES, Verdict
from gpu_worker.turn.settings import Signal, TurnSettings
from gpu_worker.turn.stage import HISTORY_SAMPLES, MAX_HELD_CHUNKS, TurnAnswer, TurnStage

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
    answer_in_wait: Verdict | None = None

    def ask(self, stream: StreamId, number: int, audio: NDArray[np.int16]) -> bool:
        self.asked.append((stream, number, audio.copy()))
        return self.accepts

    def answers(self) -> Sequence[TurnAnswer]:
        ready, self.ready = self.ready, []
        return ready

    def wait(self, timeout_s: float) -> None:
        assert timeout_s > 0
        assert self.answer_in_wait is not None, "the stage blocked"
        stream, number, _ = self.asked[-1]
        self.ready.append(TurnAnswer(stream, number, self.answer_in_wait))

    def count_late(self) -> None:
        self.late += 1

    def forget(self, stream: StreamId) -> None:
        self.forgotten.append(stream)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def output(stream: StreamId, number: int, *, final: bool = False, changed: bool = False) -> StreamOutput:
    """Result of chunk `number` (from 1), recognizable by its token."""
    return StreamOutput(
        stream=stream,
        samples_decoded=number * CHUNK,
        token_ids=(number,),
        confidence_scores=(0.5,),
        token_frames=(number * 2,),
        text=f"word {number}",
        last_state=None,
        turn_detection="running",
        is_final=final,
        is_turn_event=False,
        words=(Word("word", 0.0, 0.1, 0.5),),
        changed=changed,
    )


def push(
    stage: TurnStage, stream: StreamId, numbers: Sequence[int], prob: float, *, final: bool = False
) -> None:
    for number in numbers:
        stage.push(
            output(stream, number, final=final and number == numbers[-1]),
            [prob] * 5,
            samples=np.full(CHUNK, number / 1000, np.float32) if stage.needs_samples(stream) else None,
        )


def numbers(outputs: Sequence[StreamOutput]) -> list[int]:
    return [one.token_ids[0] for one in outputs]


def test_a_disabled_stream_passes_through() -> None:
    stage = TurnStage()
    stage.open(ONE, TurnSettings(enabled=False))
    assert not stage.is_enabled(ONE)
    stage.push(output(ONE, 1))
    stage.push(output(ONE, 2, changed=True))
    stage.push(output(ONE, 3, final=True))
    outputs = stage.drain()
    assert [(o.last_state, o.turn_detection, o.is_turn_event) for o in outputs] == [
        (None, "running", False)
    ] * 3
    assert [o.changed for o in outputs] == [False, True, True]


def test_changed_is_a_change_of_text_or_turn() -> None:
    stage = TurnStage()
    stage.open(ONE, VAD)
    push(stage, ONE, [1, 2], 0.0)
    push(stage, ONE, [3, 4, 5], 0.9)
    stage.push(output(ONE, 6, changed=True), [0.9] * 5)
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
    stage.open(ONE, VAD)
    push(stage, ONE, [1, 2], 0.9, final=True)
    outputs = stage.drain()
    assert [o.turn_detection for o in outputs] == ["start_of_utterance", "end_of_utterance"]
    assert outputs[-1].is_final
    stage.open(ONE, VAD)  # the id is free again


def test_a_failed_output_passes_and_closes_the_stream() -> None:
    stage = TurnStage()
    stage.open(ONE, VAD)
    stage.push(replace(output(ONE, 1), failed=EngineError("no page left")))
    (failed,) = stage.drain()
    assert failed.failed is not None
    stage.open(ONE, VAD)


def speak_and_pause(stage: TurnStage, stream: StreamId) -> None:
    """Chunks 1 and 2 are speech, 3 is silence of 160 ms: it needs the verdict."""
    push(stage, stream, [1, 2], 0.9)
    push(stage, stream, [3], 0.0)


def test_a_verdict_holds_the_stream_in_order_and_nobody_else() -> None:
    judge = ScriptedJudge()
    stage = TurnStage(judge)
    stage.open(ONE, SMART)
    stage.open(TWO, VAD)
    speak_and_pause(stage, ONE)
    push(stage, ONE, [4, 5], 0.0)
    push(stage, TWO, [1, 2], 0.9)
    outputs = stage.drain()
    assert [(o.stream, o.token_ids[0]) for o in outputs] == [(ONE, 1), (ONE, 2), (TWO, 1), (TWO, 2)]
    assert (stage.num_held, stage.num_waiting_streams) == (3, 1)
    assert not stage.has_ready()

    judge.ready.append(TurnAnswer(ONE, 1, Verdict.COMPLETE))
    assert stage.has_ready()
    outputs = stage.drain()
    assert numbers(outputs) == [3, 4, 5]
    assert [o.turn_detection for o in outputs] == ["end_of_utterance", "pause", "pause"]
    assert (stage.num_held, stage.num_waiting_streams) == (0, 0)


def test_the_question_is_about_the_audio_up_to_the_pause() -> None:
    judge = ScriptedJudge()
    stage = TurnStage(judge)
    stage.open(ONE, SMART)
    speak_and_pause(stage, ONE)
    ((stream, number, audio),) = judge.asked
    assert (stream, number) == (ONE, 1)
    assert len(audio) == 2 * CHUNK + 3 * WINDOW_SAMPLES  # the pause is noticed after 96 ms
    assert set(audio[-3 * WINDOW_SAMPLES :]) == {98}  # 0.003 of full scale: chunk 3


def test_history_is_bounded_to_what_the_model_hears() -> None:
    judge = ScriptedJudge()
    stage = TurnStage(judge)
    stage.open(ONE, SMART)
    last = HISTORY_SAMPLES // CHUNK + 20
    push(stage, ONE, range(1, last), 0.9)
    push(stage, ONE, [last], 0.0)
    assert len(judge.asked[0][2]) == HISTORY_SAMPLES
    stage.drain()
    assert len(stage.export(ONE)) < 2 * HISTORY_SAMPLES + 2 * CHUNK + 4_096


def test_a_verdict_that_does_not_come_is_absent_and_counted() -> None:
    judge, clock = ScriptedJudge(), Clock()
    stage = TurnStage(judge, clock=clock)
    stage.open(ONE, SMART)
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
    stage.open(ONE, SMART)
    speak_and_pause(stage, ONE)
    assert numbers(stage.drain()) == [1, 2, 3]


def test_a_stream_far_ahead_waits_for_its_verdict() -> None:
    judge = ScriptedJudge()
    stage = TurnStage(judge)
    stage.open(ONE, SMART)
    speak_and_pause(stage, ONE)
    push(stage, ONE, range(4, 4 + MAX_HELD_CHUNKS), 0.0)
    assert stage.num_held == 1 + MAX_HELD_CHUNKS
    judge.answer_in_wait = Verdict.COMPLETE
    push(stage, ONE, [4 + MAX_HELD_CHUNKS], 0.0)
    assert stage.num_held == 0
    assert numbers(stage.drain()) == list(range(1, 5 + MAX_HELD_CHUNKS))


def test_a_final_behind_a_verdict_comes_last() -> None:
    judge = ScriptedJudge()
    stage = TurnStage(judge)
    stage.open(ONE, SMART)
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
    stage.open(ONE, SMART)
    speak_and_pause(stage, ONE)
    stage.close(ONE)
    judge.ready.append(TurnAnswer(ONE, 1, Verdict.COMPLETE))
    assert numbers(stage.drain()) == [1, 2]
    assert (stage.num_held, stage.wait_s(), judge.forgotten) == (0, None, [ONE])


@pytest.mark.parametrize("cut", range(1, 7))
@pytest.mark.parametrize("signals", [SMART, VAD, TurnSettings(enabled=False)])
def test_going_on_from_an_export_is_exact(cut: int, signals: TurnSettings) -> None:
    """Also from one taken while a verdict is waited for: the new stage asks again."""
    probs = [0.9, 0.9, 0.0, 0.0, 0.9, 0.0, 0.0]

    def pushes(stage: TurnStage, first: int, last: int) -> None:
        for number in range(first, last + 1):
            stage.push(
                output(ONE, number, final=number == len(probs)),
                [probs[number - 1]] * 5 if stage.is_enabled(ONE) else (),
                samples=np.full(CHUNK, number / 1000, np.float32) if stage.needs_samples(ONE) else None,
            )

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
    stage.open(ONE, signals)
    pushes(stage, 1, len(probs))
    expected = answer_all(stage, judge)
    assert numbers(expected) == list(range(1, len(probs) + 1))

    stage = TurnStage(ScriptedJudge())
    stage.open(ONE, signals)
    pushes(stage, 1, cut)
    got = stage.drain()
    exported = stage.export(ONE)
    judge = ScriptedJudge()
    stage = TurnStage(judge)
    stage.open(ONE, signals, exported=exported)
    pushes(stage, cut + 1, len(probs))
    assert got + answer_all(stage, judge) == expected


def test_an_export_carries_what_was_not_fetched() -> None:
    """An answer that is noticed between two steps makes results ready: a snapshot then must not lose them."""
    judge = ScriptedJudge()
    stage = TurnStage(judge)
    stage.open(ONE, replace(SMART, auto_finalize=True, finalize_lag_ms=0))
    stage.open(TWO, VAD)
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
    stage.open(TWO, replace(SMART, auto_finalize=True, finalize_lag_ms=0), exported=exported)
    assert stage.has_ready()
    assert stage.drain() == [replace(one, stream=TWO) for one in expected]


def test_signals_that_the_server_cannot_give_leave_it_to_silence() -> None:
    stage = TurnStage(judge=None, has_eou=False)
    stage.open(ONE, replace(VAD, signals=frozenset({Signal.EOU, Signal.SMART_TURN})))
    assert not stage.needs_samples(ONE)
    push(stage, ONE, [1], 0.9)
    push(stage, ONE, range(2, 8), 0.0)
    assert [o.turn_detection for o in stage.drain()][-2:] == ["end_of_utterance", "pause"]


def test_a_stream_moves_between_servers_with_and_without_smart_turn() -> None:
    stage = TurnStage(ScriptedJudge())
    stage.open(ONE, SMART)
    speak_and_pause(stage, ONE)
    assert numbers(stage.drain()) == [1, 2]
    exported = stage.export(ONE)

    without = TurnStage()
    without.open(TWO, SMART, exported=exported)  # under another id, too
    (held,) = without.drain()
    assert (held.stream, held.token_ids) == (TWO, (3,))
    push(without, TWO, [4, 5], 0.9)
    exported = without.export(TWO)

    judge = ScriptedJudge()
    stage = TurnStage(judge)
    stage.open(ONE, SMART, exported=exported)
    push(stage, ONE, [6], 0.0)
    ((_, _, audio),) = judge.asked
    assert len(audio) == 3 * WINDOW_SAMPLES  # what it has heard itself


def test_auto_finalize_gives_each_utterance_a_final_with_its_text() -> None:
    stage = TurnStage()
    stage.open(ONE, replace(VAD, end_silence_ms=160, finalize_lag_ms=320, auto_finalize=True))
    probs = [0.9, 0.9, 0.0, 0.0, 0.0, 0.9, 0.0, 0.9, 0.0]
    for number, prob in enumerate(probs, 1):
        one = output(ONE, number, final=number == len(probs))
        stage.push(replace(one, text=" ".join(f"w{k}" for k in range(1, number + 1))), [prob] * 5)
    outputs = stage.drain()
    assert [
        (o.turn_detection, [(u.number, u.text, u.start_s, u.end_s) for u in o.utterances]) for o in outputs
    ] == [
        ("start_of_utterance", []),
        ("running", []),
        ("end_of_utterance", []),  # decided after 160 ms, before the last word must have come
        ("pause", [(1, "w1 w2 w3 w4", 0.0, 0.32)]),
        ("pause", []),
        ("start_of_utterance", []),
        ("end_of_utterance", []),
        ("start_of_utterance", [(2, "w5 w6 w7 w8", 0.8, 0.96)]),  # at the latest with the next start
        ("end_of_utterance", [(3, "w9", 1.12, 1.28)]),  # or with the end of the stream
    ]
    assert all(o.is_turn_event and o.changed for o in outputs if o.utterances)


@pytest.mark.parametrize(
    ("late", "second"),
    [
        (". How are you?", "How are you?"),
        ("?! Well", "Well"),
        ("。你好", "你好"),
        (" .5 percent", ".5 percent"),
        (" 'tis so", "'tis so"),
        (".", ""),
    ],
)
def test_punctuation_that_comes_late_does_not_leak_into_the_next_utterance(late: str, second: str) -> None:
    stage = TurnStage()
    stage.open(ONE, replace(VAD, end_silence_ms=160, finalize_lag_ms=320, auto_finalize=True))
    for number, prob in enumerate((0.9, 0.9, 0.0, 0.0, 0.9, 0.0), 1):
        text = "Fine" if number < 5 else "Fine" + late
        stage.push(replace(output(ONE, number, final=number == 6), text=text), [prob] * 5)
    assert [one.text for o in stage.drain() for one in o.utterances] == ["Fine", second]


def test_without_auto_finalize_no_result_carries_utterances() -> None:
    stage = TurnStage()
    stage.open(ONE, VAD)
    push(stage, ONE, [1, 2], 0.9)
    push(stage, ONE, range(3, 12), 0.0, final=True)
    assert not any(o.utterances for o in stage.drain())
