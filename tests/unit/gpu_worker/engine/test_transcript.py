"""Text across utterances, words as they become complete."""

from __future__ import annotations

import json

from common.messages import Word
from gpu_worker.engine.transcript import Transcript
from tests.oracle.models import tiny


def ids(*pieces: str) -> list[int]:
    tokenizer = tiny().tokenizer
    known = {tokenizer.piece(index): index for index in range(tokenizer.vocab_size)}
    return [known[piece] for piece in pieces]


def add(transcript: Transcript, frame: int, *pieces: str, ends: bool = False) -> tuple[Word, ...] | None:
    """One token a frame, each of less confidence than the one before."""
    tokens = ids(*pieces)
    frames = [frame + number for number in range(len(tokens))]
    return transcript.add(tokens, frames, [0.9 - number / 10 for number in range(len(tokens))], ends=ends)


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
