"""Text across utterances, words as they become complete."""

from __future__ import annotations

import json
from itertools import pairwise

from common.messages import Word
from gpu_worker.engine.transcript import Tokens, Transcript, WordStart
from gpu_worker.model.tokenizer import Tokenizer
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


def test_a_word_that_never_ends_is_kept_in_bounds_and_comes_in_parts() -> None:
    transcript = Transcript(tiny().tokenizer, 0.08, with_words=True, with_starts=True)
    words: list[Word] = []
    largest = 0
    for frame in range(3_000):
        words += add(transcript, frame, "ten"[frame % 3]) or ()
        transcript.take_starts()
        largest = max(largest, len(json.dumps(transcript.export()["open"])))
    assert largest < 20_000, "what a snapshot has of it does not grow with it"
    words += add(transcript, 3_000, "▁go", ends=True) or ()
    assert "".join(word.word for word in words[:-1]) + " go" == transcript.text
    assert all(before.end_s <= word.start_s for before, word in pairwise(words))


def test_parts_of_a_word_have_whole_characters() -> None:
    vocabulary = _Bytes()
    transcript = Transcript(vocabulary, 0.08, with_words=True)
    text = "\u0f40" * 400  # a script without spaces, of three bytes a character
    transcript.add(Tokens(list(text.encode()), range(1_200), [0.5] * 1_200), ends=True)
    words = transcript.take_words() or ()
    assert len(words) > 2
    assert "".join(word.word for word in words) == transcript.text == text


class _Bytes(Tokenizer):
    """A tokenizer whose tokens are bytes."""

    def __init__(self) -> None:
        super().__init__(tiny().tokenizer.model)
        self.__dict__ |= {
            "_surfaces": tuple(bytes([byte]) for byte in range(256)),
            "_texts": ("\ufffd",) * 256,
            "_is_byte": (True,) * 256,
            "_starts_word": (False,) * 256,
            "_is_closing": (False,) * 256,
        }
