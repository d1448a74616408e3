"""Subtitles: where a cue ends, how long it may be, and how the two formats write it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from common.captions.subtitles import Cue, cues, srt, vtt
from common.messages import Utterance, Word


def _words(text: str, *, each_s: float = 0.3, start_s: float = 0.0) -> list[Word]:
    return [
        Word(word, start_s + at * each_s, start_s + (at + 1) * each_s, 0.9)
        for at, word in enumerate(text.split())
    ]


def _utterances(*texts: str) -> list[Utterance]:
    return [Utterance(number, text, number * 2.0, number * 2.0 + 1) for number, text in enumerate(texts, 1)]


def test_a_cue_ends_where_its_utterance_ends() -> None:
    words = [*_words("go forward"), *_words("ten meters", start_s=2.0), *_words("stop", start_s=5.0)]
    one_each: list[tuple[str, ...]] = [("go forward",), ("ten meters",), ("stop",)]
    utterances = _utterances("go forward", "ten meters.", "stop")
    assert [cue.lines for cue in cues(words, utterances)] == one_each
    assert [cue.lines for cue in cues(words)] == [("go forward ten meters stop",)]
    # An utterance without a word changes nothing.
    assert [cue.lines for cue in cues(words, _utterances("go forward", "", "ten meters", "stop"))] == one_each


def test_a_last_word_that_was_emitted_behind_its_utterance_is_in_its_cue() -> None:
    words = [Word("go", 0.5, 0.6, 0.9), Word("forward", 1.3, 1.4, 0.9), Word("stop", 1.5, 1.6, 0.9)]
    utterances = [Utterance(1, "go forward", 0.4, 1.0), Utterance(2, "stop", 1.2, 1.6)]
    assert [cue.lines for cue in cues(words, utterances)] == [("go forward",), ("stop",)]


def test_words_beyond_all_utterances_are_shown_too() -> None:
    found = cues(_words("go forward ten"), _utterances("go forward"))
    assert [cue.lines for cue in found] == [("go forward",), ("ten",)]


def test_a_cue_has_two_lines_of_42_characters_and_seven_seconds_at_most() -> None:
    words = _words("seven letters or so and more of them " * 20)
    found = list(cues(words))
    assert " ".join(line for cue in found for line in cue.lines).split() == [word.word for word in words]
    for cue in found:
        assert len(cue.lines) <= 2
        assert all(len(line) <= 42 for line in cue.lines)
        assert cue.end_s - cue.start_s <= 7.0
    slow = list(cues(_words("a b c d e f g h", each_s=2.0)))
    assert [cue.lines for cue in slow] == [("a b c",), ("d e f",), ("g h",)]


def test_a_word_longer_than_a_line_is_cut_and_nothing_is_lost() -> None:
    (cue,) = cues(_words("x" * 60))
    assert cue.lines == ("x" * 42, "x" * 18)


def test_a_word_longer_than_a_cue_has_several() -> None:
    found = list(cues([Word("x" * 100, 1.0, 3.0, 0.9)]))
    assert found == [Cue(1.0, 2.0, ("x" * 42, "x" * 42)), Cue(2.0, 3.0, ("x" * 16,))]
    (late,) = cues([Word("well", 1.0, 30.0, 0.9)])
    assert late.end_s == 8.0


@given(
    st.lists(
        st.lists(
            st.tuples(st.text("ab.,'-", min_size=1, max_size=100), st.floats(0, 12), st.floats(0, 12)),
            max_size=30,
        ),
        max_size=6,
    )
)
def test_no_cue_is_too_long_or_of_two_utterances(spoken: list[list[tuple[str, float, float]]]) -> None:
    at_s = 0.0
    words: list[Word] = []
    texts: list[str] = []
    for number, utterance in enumerate(spoken):
        said = []
        for letters, pause_s, length_s in utterance:
            # The number of its utterance stands in each word.
            said.append(f"{number}{letters}{number}")
            words.append(Word(said[-1], at_s + pause_s, at_s + pause_s + length_s, 0.9))
            at_s += pause_s + length_s
        texts.append(" ".join(said))
    found = list(cues(words, _utterances(*texts)))
    shown = "".join("".join(cue.lines) for cue in found)
    assert shown.replace(" ", "") == "".join(word.word for word in words)
    for cue in found:
        assert 1 <= len(cue.lines) <= 2
        assert all(len(line) <= 42 for line in cue.lines)
        assert 0 < cue.end_s - cue.start_s <= 7.0 + 1e-9
        assert len(set("".join(cue.lines)) & set("0123456789")) <= 1


def test_no_words_are_no_cues() -> None:
    assert list(cues([], _utterances(""))) == []
    assert srt([]) == ""
    assert vtt([]) == "WEBVTT\n\n"


def test_how_they_are_written() -> None:
    found = [Cue(0.0, 1.5, ("go", "forward")), Cue(3661.0419, 3662.9996, ("a < b & c",))]
    assert srt(found) == (
        "1\n00:00:00,000 --> 00:00:01,500\ngo\nforward\n\n2\n01:01:01,042 --> 01:01:03,000\na < b & c\n\n"
    )
    assert vtt(found) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\ngo\nforward\n\n"
        "01:01:01.042 --> 01:01:03.000\na &lt; b &amp; c\n\n"
    )
