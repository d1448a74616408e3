"""The endpointing state machine: what it says of a given course of probabilities, tokens and verdicts."""

import json
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_worker.turn.endpointing import Endpointer
from gpu_worker.turn.outcome import WINDOW_SAMPLES, Cause, TurnChunk, TurnOutcome, Verdict, token_sample
from gpu_worker.turn.settings import Signal, TurnSettings

CHUNK = 1_280
ALL = TurnSettings(signals=frozenset(Signal), smart_silence_ms=160, end_silence_ms=800, max_pause_ms=2_000)
VAD = replace(ALL, signals=frozenset({Signal.VAD}))
EOU = replace(ALL, signals=frozenset({Signal.EOU}))
SMART = replace(ALL, signals=frozenset({Signal.SMART_TURN}))


def course(*parts: tuple[float, int]) -> list[float]:
    """Probabilities of windows: (probability, number of windows) after one another."""
    return [prob for prob, count in parts for _ in range(count)]


def play(
    endpointer: Endpointer,
    probs: list[float],
    eou_frames: Iterable[int] = (),
    *,
    chunk_samples: int = CHUNK,
    final: bool = False,
    verdicts: dict[int, Verdict] | None = None,
    start_sample: int = 0,
) -> list[TurnOutcome]:
    """Feeds whole windows' worth of audio in chunks; answers questions at once with `verdicts`."""
    frames = list(eou_frames)
    end = start_sample + len(probs) * WINDOW_SAMPLES
    outcomes: list[TurnOutcome] = []
    sample = start_sample
    while sample < end:
        chunk_end = min(sample + chunk_samples, end)
        first, last = (
            (at - start_sample) // WINDOW_SAMPLES if at < end else len(probs) for at in (sample, chunk_end)
        )
        read = endpointer.read(
            TurnChunk(
                chunk_end,
                tuple(probs[first:last]),
                tuple(token_sample(f) for f in frames if sample < token_sample(f) <= chunk_end),
                final=final and chunk_end == end,
            )
        )
        while read is None:
            number = endpointer.awaited_question
            assert number is not None
            endpointer.answer(number, (verdicts or {}).get(number, Verdict.ABSENT))
            read = endpointer.resume()
        outcomes += read
        sample = chunk_end
    return outcomes


def events(outcomes: list[TurnOutcome]) -> list[tuple[str, int | None, Cause | None]]:
    return [(o.turn_detection, o.decided_sample, o.cause) for o in outcomes if o.is_turn_event]


def windows(count: int) -> int:
    return count * WINDOW_SAMPLES


def test_silence_alone_ends_an_utterance_after_end_silence() -> None:
    outcomes = play(Endpointer(VAD), course((0.01, 10), (0.9, 20), (0.01, 40)))
    assert events(outcomes) == [
        ("start_of_utterance", windows(13), None),
        ("end_of_utterance", windows(30 + 25), Cause.SILENCE),  # 800 ms are 25 windows
    ]
    (end,) = [o for o in outcomes if o.turn_detection == "end_of_utterance"]
    assert end.speech_end_sample == windows(30)


def test_what_each_chunk_reports() -> None:
    outcomes = play(Endpointer(VAD), course((0.01, 10), (0.9, 10), (0.01, 30)), chunk_samples=WINDOW_SAMPLES)
    said = [(o.last_state, o.turn_detection) for o in outcomes]
    assert said == [
        *[("silence", "pause")] * 12,  # the first two windows of speech are not enough
        ("speech", "start_of_utterance"),
        *[("speech", "running")] * 9,  # two windows of silence are no pause yet
        *[("silence", "pause")] * 22,
        ("silence", "end_of_utterance"),
        *[("silence", "pause")] * 5,
    ]


def test_nothing_is_known_before_the_first_window() -> None:
    assert Endpointer(VAD).read(TurnChunk(end_sample=400)) == (TurnOutcome(None, "pause"),)


def test_speech_shorter_than_min_speech_opens_nothing() -> None:
    assert events(play(Endpointer(VAD), course((0.01, 5), (0.9, 2), (0.01, 50)), final=True)) == []


def test_a_probability_in_the_margin_keeps_what_was() -> None:
    probs = course((0.4, 10), (0.9, 10), (0.4, 60), (0.3, 40))
    assert events(play(Endpointer(VAD), probs)) == [
        ("start_of_utterance", windows(13), None),
        ("end_of_utterance", windows(80 + 25), Cause.SILENCE),
    ]


def test_a_click_in_a_pause_does_not_start_the_silence_anew() -> None:
    probs = course((0.9, 10), (0.01, 10), (0.9, 1), (0.01, 30))
    assert events(play(Endpointer(VAD), probs))[-1] == (
        "end_of_utterance",
        windows(10 + 25),
        Cause.SILENCE,
    )


def test_speech_in_a_pause_goes_on_with_the_utterance() -> None:
    probs = course((0.9, 10), (0.01, 20), (0.9, 5), (0.01, 40))
    assert events(play(Endpointer(VAD), probs)) == [
        ("start_of_utterance", windows(3), None),
        ("end_of_utterance", windows(35 + 25), Cause.SILENCE),
    ]


def test_eou_after_the_speech_ends_the_utterance_at_the_token() -> None:
    probs = course((0.9, 20), (0.01, 60))  # the speech ends at sample 10,240
    token_frame = 11
    outcomes = play(Endpointer(EOU), probs, [token_frame])
    assert events(outcomes)[-1] == ("end_of_utterance", token_sample(token_frame), Cause.EOU)


def test_eou_before_the_detector_hears_silence_ends_at_eou_silence() -> None:
    probs = course((0.9, 20), (0.01, 60))
    token_frame = 6  # ends 1,280 samples before the last speech window does
    assert events(play(Endpointer(EOU), probs, [token_frame]))[-1] == (
        "end_of_utterance",
        windows(23),  # 96 ms of silence
        Cause.EOU,
    )


def test_eou_in_the_middle_of_speech_is_forgotten() -> None:
    probs = course((0.9, 60), (0.01, 100))
    assert events(play(Endpointer(EOU), probs, [6]))[-1] == (
        "end_of_utterance",
        windows(60) + 32_256,  # the first window at or past 2,000 ms
        Cause.MAX_PAUSE,
    )


def test_eou_of_before_a_pause_does_not_end_the_next_one() -> None:
    settings_ = replace(EOU, eou_silence_ms=320)
    # 8 windows of pause are too short for the token, and the speech after it takes it back.
    probs = course((0.9, 20), (0.01, 8), (0.9, 4), (0.01, 30))
    assert [name for name, _, _ in events(play(Endpointer(settings_), probs, [8]))] == ["start_of_utterance"]


def test_eou_without_an_utterance_says_nothing() -> None:
    assert events(play(Endpointer(ALL), course((0.01, 50)), [3, 9])) == []


@pytest.mark.parametrize(
    ("verdict", "signals", "end_window", "cause"),
    [
        (Verdict.COMPLETE, SMART, 20 + 5, Cause.SMART_TURN),
        (Verdict.INCOMPLETE, SMART, 20 + 63, Cause.MAX_PAUSE),
        (Verdict.ABSENT, SMART, 20 + 25, Cause.SILENCE),
        (Verdict.INCOMPLETE, ALL, 20 + 63, Cause.MAX_PAUSE),
        (Verdict.ABSENT, ALL, 20 + 25, Cause.SILENCE),
    ],
)
def test_a_verdict_takes_effect_at_smart_silence(
    verdict: Verdict, signals: TurnSettings, end_window: int, cause: Cause
) -> None:
    endpointer = Endpointer(signals)
    outcomes = play(endpointer, course((0.9, 20), (0.01, 80)), verdicts={1: verdict})
    assert events(outcomes)[-1] == ("end_of_utterance", windows(end_window), cause)


@pytest.mark.parametrize("token_frame", [9, 14])  # before and after the verdict is read
@pytest.mark.parametrize(
    ("verdict", "ends"),
    [
        (Verdict.INCOMPLETE, {9: (25, Cause.SILENCE), 14: (25, Cause.SILENCE)}),
        (Verdict.ABSENT, {9: (6, Cause.EOU), 14: (18, Cause.EOU)}),
        (Verdict.COMPLETE, {9: (6, Cause.EOU), 14: (6, Cause.SMART_TURN)}),
    ],
)
def test_a_token_waits_for_the_verdict_and_loses_against_it(
    token_frame: int, verdict: Verdict, ends: dict[int, tuple[int, Cause]]
) -> None:
    settings_ = replace(ALL, eou_silence_ms=160, smart_silence_ms=192)
    probs = course((0.9, 20), (0.01, 80))
    outcomes = play(Endpointer(settings_), probs, [token_frame], verdicts={1: verdict})
    _, at_sample, cause = events(outcomes)[-1]
    silence, expected = ends[token_frame]
    assert cause is expected
    assert at_sample is not None
    assert -(-at_sample // WINDOW_SAMPLES) == 20 + silence


def test_a_verdict_counts_from_its_position_only() -> None:
    """Silence that ends an utterance before it does not ask when the answer came."""
    settings_ = replace(ALL, end_silence_ms=128, smart_silence_ms=320)
    probs = course((0.9, 20), (0.01, 80))
    late = play(Endpointer(settings_), probs, chunk_samples=WINDOW_SAMPLES)
    endpointer = Endpointer(settings_)
    early = play(endpointer, probs[:23], chunk_samples=WINDOW_SAMPLES)
    endpointer.answer(1, Verdict.INCOMPLETE)
    early += play(endpointer, probs[23:], chunk_samples=WINDOW_SAMPLES, start_sample=windows(23))
    assert events(early) == events(late)
    assert events(late)[-1] == ("end_of_utterance", windows(24), Cause.SILENCE)


def test_smart_turn_is_asked_at_each_edge_about_the_audio_up_to_the_pause() -> None:
    endpointer = Endpointer(SMART)
    play(endpointer, course((0.9, 20), (0.01, 4), (0.9, 10), (0.01, 4)))
    questions = endpointer.take_questions()
    assert [(q.number, q.end_sample) for q in questions] == [(1, windows(23)), (2, windows(37))]
    assert endpointer.take_questions() == ()


def test_an_answer_that_came_before_it_is_needed_changes_nothing() -> None:
    """The same outcomes, whether the verdict is there long before its position or only then."""
    probs = course((0.9, 20), (0.01, 20))
    late = play(Endpointer(SMART), probs, verdicts={1: Verdict.COMPLETE})
    endpointer = Endpointer(SMART)
    early = play(endpointer, probs[:23], chunk_samples=WINDOW_SAMPLES)
    endpointer.answer(1, Verdict.COMPLETE)
    early += play(endpointer, probs[23:], chunk_samples=WINDOW_SAMPLES, start_sample=windows(23))
    assert events(early) == events(late)


def test_an_answer_to_an_overtaken_question_is_ignored() -> None:
    endpointer = Endpointer(SMART)
    play(endpointer, course((0.9, 20), (0.01, 4), (0.9, 10)))
    endpointer.answer(1, Verdict.COMPLETE)
    outcomes = play(
        endpointer,
        course((0.01, 70)),
        verdicts={2: Verdict.INCOMPLETE},
        start_sample=windows(34),
    )
    assert events(outcomes)[-1] == ("end_of_utterance", windows(34 + 63), Cause.MAX_PAUSE)


def test_the_end_of_the_audio_ends_an_open_utterance_in_the_final() -> None:
    outcomes = play(Endpointer(ALL), course((0.9, 20)), final=True)
    assert outcomes[-1].turn_detection == "end_of_utterance"
    assert events(outcomes)[-1][2] is Cause.FINISHED


def test_each_event_of_a_chunk_has_an_outcome_of_its_own() -> None:
    settings_ = replace(VAD, end_silence_ms=160)
    probs = course((0.9, 10), (0.01, 6), (0.9, 10), (0.01, 34))
    outcomes = play(Endpointer(settings_), probs, chunk_samples=windows(20))
    assert [(o.turn_detection, o.decided_sample) for o in outcomes] == [
        ("start_of_utterance", windows(3)),  # the first chunk
        ("end_of_utterance", windows(15)),
        ("start_of_utterance", windows(19)),
        ("end_of_utterance", windows(31)),  # the second
        ("pause", None),
    ]


def test_an_utterance_within_the_final_chunk_has_a_start_and_an_end() -> None:
    outcomes = play(Endpointer(VAD), course((0.01, 2), (0.9, 8)), chunk_samples=windows(20), final=True)
    assert events(outcomes) == [
        ("start_of_utterance", windows(5), None),
        ("end_of_utterance", windows(10), Cause.FINISHED),
    ]


def test_an_onset_is_speech_that_has_started_nothing_yet() -> None:
    onsets = []
    for parts in ([(0.9, 2)], [(0.9, 3)], [(0.9, 2), (0.01, 1)]):
        endpointer = Endpointer(VAD)
        play(endpointer, course((0.01, 3), *parts))
        onsets.append(endpointer.onset_sample)
    assert onsets == [windows(3), None, None], "it becomes an utterance, or it was a click"


def test_chunks_are_checked() -> None:
    endpointer = Endpointer(VAD)
    with pytest.raises(ValueError, match="completes 2 windows, got 1"):
        endpointer.read(TurnChunk(CHUNK, (0.1,)))
    endpointer.read(TurnChunk(CHUNK, (0.1, 0.1), final=True))
    with pytest.raises(ValueError, match="final"):
        endpointer.read(TurnChunk(2 * CHUNK, (0.1, 0.1, 0.1)))


PROBS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.34, 0.36, 0.49, 0.5, 0.99]), st.integers(1, 12)),
    min_size=1,
    max_size=40,
).map(lambda parts: course(*parts))


@st.composite
def plays(draw: st.DrawFn) -> tuple[TurnSettings, list[float], list[int], dict[int, Verdict]]:
    signals = draw(st.sets(st.sampled_from(Signal)))
    pause_ms = draw(st.integers(1, 200))
    chosen = TurnSettings(
        signals=frozenset(signals),
        min_speech_ms=draw(st.integers(1, 200)),
        min_resume_ms=draw(st.integers(1, 200)),
        pause_ms=pause_ms,
        eou_silence_ms=draw(st.integers(1, 300)),
        eou_hold_ms=draw(st.integers(0, 500)),
        smart_silence_ms=pause_ms + draw(st.integers(0, 300)),
        end_silence_ms=pause_ms + draw(st.integers(0, 600)),
        max_pause_ms=1_000,
    )
    probs = draw(PROBS)
    frames = draw(st.lists(st.integers(0, len(probs) * 512 // 1280), max_size=10, unique=True))
    verdicts = draw(st.lists(st.sampled_from(Verdict), min_size=40, max_size=40))
    return chosen, probs, sorted(frames), dict(enumerate(verdicts, 1))


@given(plays())
@settings(max_examples=300)
def test_starts_and_ends_alternate_and_the_last_utterance_ends(
    case: tuple[TurnSettings, list[float], list[int], dict[int, Verdict]],
) -> None:
    chosen, probs, frames, verdicts = case
    outcomes = play(
        Endpointer(chosen),
        probs,
        frames,
        chunk_samples=WINDOW_SAMPLES,
        final=True,
        verdicts=verdicts,
    )
    names = [name for name, _, _ in events(outcomes)]
    assert names == ["start_of_utterance", "end_of_utterance"] * (len(names) // 2)
    samples = [sample for _, sample, _ in events(outcomes) if sample is not None]
    assert samples == sorted(samples)


@given(plays(), st.sampled_from([512, 1280, 2560, 17920]), st.data())
@settings(max_examples=200)
def test_going_on_from_an_export_is_exact(
    case: tuple[TurnSettings, list[float], list[int], dict[int, Verdict]],
    chunk_samples: int,
    data: st.DataObject,
) -> None:
    """Cut at any chunk, also at one that waits for its verdict."""
    chosen, probs, frames, verdicts = case
    whole = play(
        Endpointer(chosen),
        probs,
        frames,
        chunk_samples=chunk_samples,
        final=True,
        verdicts=verdicts,
    )
    cut = data.draw(st.integers(0, len(probs) * WINDOW_SAMPLES // chunk_samples))
    endpointer = Endpointer(chosen)
    got: list[TurnOutcome] = []
    sample, end = 0, len(probs) * WINDOW_SAMPLES
    while sample < end:
        chunk_end = min(sample + chunk_samples, end)
        at_cut = sample // chunk_samples == cut
        if at_cut:
            endpointer = Endpointer.restore(chosen, endpointer.export())
        read = endpointer.read(
            TurnChunk(
                chunk_end,
                tuple(probs[sample // WINDOW_SAMPLES : chunk_end // WINDOW_SAMPLES]),
                tuple(token_sample(f) for f in frames if sample < token_sample(f) <= chunk_end),
                final=chunk_end == end,
            )
        )
        while read is None:
            if at_cut:
                exported = endpointer.export()
                endpointer = Endpointer.restore(chosen, exported)
                # The question that stands is asked anew, by the process that took over.
                (question,) = endpointer.take_questions()
                assert question.number == endpointer.awaited_question
            number = endpointer.awaited_question
            assert number is not None
            endpointer.answer(number, verdicts.get(number, Verdict.ABSENT))
            read = endpointer.resume()
        got += read
        sample = chunk_end
    assert got == whole


@given(plays(), st.sampled_from([1_280, 2_560, 17_920]))
@settings(max_examples=200)
def test_events_and_state_do_not_depend_on_how_the_audio_is_cut(
    case: tuple[TurnSettings, list[float], list[int], dict[int, Verdict]], chunk_samples: int
) -> None:
    """Chunks of mere speech or silence are read whole: the same as window by window."""
    chosen, probs, frames, verdicts = case
    # In silence and speech of a second, so that there are such chunks.
    probs = [0.0] * 40 + [0.99] * 40 + probs
    by_window, by_chunk = Endpointer(chosen), Endpointer(chosen)
    single = play(by_window, probs, frames, chunk_samples=WINDOW_SAMPLES, verdicts=verdicts)
    whole = play(by_chunk, probs, frames, chunk_samples=chunk_samples, verdicts=verdicts)
    states = [json.loads(endpointer.export()) for endpointer in (by_window, by_chunk)]
    assert states[0] == states[1]
    assert events(whole) == events(single)


def test_a_foreign_export_is_refused() -> None:
    with pytest.raises(ValueError, match="another version"):
        Endpointer.restore(VAD, b'{"version": 0}')
