"""A stream's text as segments: finals tile the audio, and join to the transcript."""

from __future__ import annotations

from dataclasses import replace

from common.messages import Result, Utterance, Word
from ingress.dialects.deepgram.segment import Segment, Segments
from tests.fake_backplane import some_result


def _word(text: str, start_s: float) -> Word:
    return Word(text, start_s, start_s + 0.2, 0.9)


def _take(segments: Segments, result: Result, heard_s: float) -> list[Segment]:
    return list(segments.add(result, heard_s))


def test_the_open_segment_has_only_what_is_in_no_final() -> None:
    segments = Segments()
    (interim,) = _take(segments, some_result(1, "go for"), 1.0)
    assert (interim.transcript, interim.is_final, interim.start_s, interim.end_s) == (
        "go for",
        False,
        0.0,
        1.0,
    )
    go, forward, ten = _word("go", 0.2), _word("forward", 0.5), _word("Ten", 2.0)
    ended = some_result(
        2, "go forward Te", words=(go, forward), utterances=(Utterance(1, "go forward", 0.1, 0.75),)
    )
    final, interim = _take(segments, ended, 2.1)
    assert (final.transcript, final.words, final.is_final, final.at_end) == (
        "go forward",
        (go, forward),
        True,
        True,
    )
    assert (final.start_s, final.end_s) == (0.0, 0.75)
    assert (interim.transcript, interim.words, interim.start_s, interim.end_s) == ("Te", (), 0.75, 2.1)
    last = some_result(3, "go forward Ten.", words=(ten,), final=True)
    (rest,) = _take(segments, last, 3.0)
    assert (rest.transcript, rest.words, rest.start_s, rest.end_s) == ("Ten.", (ten,), 0.75, 3.0)


def test_a_final_ends_behind_its_last_word_and_no_later_one_begins_before() -> None:
    segments = Segments()
    late = _word("late", 0.9)
    result = some_result(1, "late", words=(late,), utterances=(Utterance(1, "late", 0.0, 0.8),))
    (final,) = _take(segments, result, 1.5)
    assert final.end_s == late.end_s
    early = some_result(2, "late", utterances=(Utterance(2, "", 0.9, 1.0),))
    (empty,) = _take(segments, early, 2.0)
    assert (empty.transcript, empty.start_s, empty.end_s) == ("", late.end_s, late.end_s)


def test_an_open_segment_covers_its_words() -> None:
    segments = Segments()
    said = _word("said", 0.9)  # to the end of a frame of the model, of which not all was heard
    (interim,) = _take(segments, some_result(1, "said it", words=(said,)), 1.05)
    assert (interim.start_s, interim.end_s) == (0.0, said.end_s)


def test_a_mark_that_comes_late_does_not_open_the_next_segment() -> None:
    segments = Segments()
    _take(segments, some_result(1, "yes", utterances=(Utterance(1, "yes", 0.0, 0.5),)), 1.0)
    assert _take(segments, some_result(2, "yes."), 1.1) == []
    (interim,) = _take(segments, some_result(3, "yes. No"), 1.2)
    assert interim.transcript == "No"
    (final,) = _take(segments, some_result(4, "yes. No", utterances=(Utterance(2, "No", 1.0, 1.2),)), 1.9)
    assert final.transcript == "No"


def test_what_does_not_change_is_told_once() -> None:
    segments = Segments()
    assert len(_take(segments, some_result(1, "go"), 1.0)) == 1
    assert _take(segments, some_result(2, "go"), 1.2) == []


def test_a_finalize_is_answered_also_where_nothing_is_open() -> None:
    segments = Segments()
    for seq in (1, 2):
        (final,) = _take(segments, replace(some_result(seq), from_finalize=True), 0.0)
        assert (final.transcript, final.is_final, final.from_finalize) == ("", True, True)
    assert _take(segments, some_result(3, final=True), 0.0) == []  # no audio is open
    (rest,) = _take(Segments(), some_result(1, final=True), 0.5)
    assert (rest.transcript, rest.start_s, rest.end_s) == ("", 0.0, 0.5)


def test_finals_tile_the_audio_and_join_to_the_transcript() -> None:
    segments = Segments()
    words = [_word(f"w{number}", number * 0.5) for number in range(20)]
    told: list[Segment] = []
    text = ""
    for number, word in enumerate(words):
        text = f"{text} {word.word}".strip()
        utterances: tuple[Utterance, ...] = ()
        if number % 5 == 4:
            said = " ".join(one.word for one in words[number - 4 : number + 1])
            utterances = (Utterance(number // 5 + 1, said, word.start_s - 2, word.end_s),)
        told += _take(
            segments, some_result(number + 1, text, words=(word,), utterances=utterances), word.end_s
        )
    finals = [segment for segment in told if segment.is_final]
    assert " ".join(segment.transcript for segment in finals) == text
    assert [one.end_s for one in finals[:-1]] == [one.start_s for one in finals[1:]]
    assert [word for segment in finals for word in segment.words] == words


def test_text_that_another_worker_heard_otherwise_does_no_harm() -> None:
    segments = Segments()
    _take(segments, some_result(1, "go forward", utterances=(Utterance(1, "go forward", 0.0, 1.0),)), 1.5)
    assert _take(segments, some_result(2, "go"), 1.6) == []
    (final,) = _take(segments, some_result(3, "go ten", final=True), 2.0)
    assert final.transcript == "ten"
