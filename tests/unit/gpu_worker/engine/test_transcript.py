"""Text across utterances, words as they become complete."""

from __future__ import annotations

import json

from common.messages import Word
from gpu_worker.engine.transcript import Tokens, Transcript, WordStart
from tests.oracle.models import tiny


def ids(*pieces: str) -> list[int]:
    tokenizer = tiny().tokenizer
    known = {tokenizer.piece(index): index for index in range(tokenizer.vocab_size)}
    return [known[piece] for piece in pieces]


def add(transcript: Transcript, frame: int, *pieces: str, ends: bool = False) -> tuple[Word, ...] | None:
    """One token a frame, each of less confidence than the one before."""
    tokens = ids(*pieces)
    frames = [frame + number for number in range(len(tokens))]
    confidences = [0.9 - number / 10 for number in range(len(tokens))]
    transcript.add(Tokens(tokens, frames, confidences), ends=ends)
    return transcript.take_words()


def test_text_goes_on_over_utterances_without_special_tokens() -> None:
    transcript = Transcript(tiny().tokenizer, 0.08, with_words=False)
    assert add(transcript, 0, "▁go", "▁for", "ward", "<EOU>") is None
    assert transcript.text == "go forward"
    add(transcript, 9, "t", "en", ends=True)
    assert transcript.text == "go forward ten", "a new utterance begins a word"


def test_each_word_comes_once_when_it_is_complete() -> None:
    transcript = Transcript(tiny().tokenizer, 0.08, with_words=True)
    assert add(transcript, 10, "▁go") == ()
    assert add(transcript, 12, "▁for", "ward") == (Word("go", 0.8, 0.88, 0.9),)
    assert add(transcript, 0) == ()
    assert add(transcript, 20, "<EOU>") == (Word("forward", 0.96, 1.12, 0.8),)
    assert add(transcript, 30, "▁the", ends=True) == (Word("the", 2.4, 2.48, 0.9),)
    assert add(transcript, 0, ends=True) == ()


def test_an_exported_transcript_goes_on() -> None:
    first = Transcript(tiny().tokenizer, 0.08, with_words=True)
    add(first, 3, "▁go", "<EOU>")
    add(first, 7, "t")
    second = Transcript(tiny().tokenizer, 0.08, with_words=True)
    second.load(json.loads(json.dumps(first.export())))
    assert add(first, 9, "en", "▁the", ends=True) == add(second, 9, "en", "▁the", ends=True)
    assert first.text == second.text == "go ten the"


def test_a_word_that_was_closed_does_not_go_on() -> None:
    transcript = Transcript(tiny().tokenizer, 0.08, with_words=True, with_starts=True)
    transcript.add(Tokens(ids("▁for"), [5], [0.9]), ends=False)
    before = transcript.open_frames
    transcript.close_word()
    assert (before, transcript.open_frames) == ((5, 5), None)
    assert transcript.take_words() == (Word("for", 0.4, 0.48, 0.9),)
    assert add(transcript, 20, "ward", ends=True) == (Word("ward", 1.6, 1.68, 0.9),)
    assert transcript.text == "for ward"


def test_starts_are_where_words_begin() -> None:
    transcript = Transcript(tiny().tokenizer, 0.08, with_words=False, with_starts=True)
    add(transcript, 10, "▁go", "▁for", "ward")
    add(transcript, 20, "<EOU>", "t", "en")
    assert transcript.text == "go forward ten"
    assert transcript.take_starts() == [WordStart(10, 0), WordStart(11, 2), WordStart(21, 10)]
    assert transcript.take_starts() == []


def test_a_text_never_ends_with_a_space() -> None:
    transcript = Transcript(tiny().tokenizer, 0.08, with_words=False)
    said = []
    for piece in ("▁go", "▁", "t", "en", "▁"):
        add(transcript, 0, piece)
        said.append(transcript.text)
        again = Transcript(tiny().tokenizer, 0.08, with_words=False)
        again.load(json.loads(json.dumps(transcript.export())))
        transcript = again
    add(transcript, 0, ends=True)
    assert [*said, transcript.text] == ["go", "go", "go t", "go ten", "go ten", "go ten"]
