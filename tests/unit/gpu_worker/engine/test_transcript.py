"""Text across utterances, words as they become complete."""

from __future__ import annotations

import json

from common.messages import Word
from gpu_worker.engine.transcript import Token, Transcript
from tests.oracle.models import tiny


def ids(*pieces: str) -> list[int]:
    tokenizer = tiny().tokenizer
    known = {tokenizer.piece(index): index for index in range(tokenizer.vocab_size)}
    return [known[piece] for piece in pieces]


def tokens(frame: int, *pieces: str) -> list[Token]:
    return [Token(token, frame + n, 0.9 - n / 10) for n, token in enumerate(ids(*pieces))]


def test_text_goes_on_over_utterances_without_special_tokens() -> None:
    transcript = Transcript(tiny().tokenizer, 0.08, with_words=False)
    assert transcript.add(tokens(0, "▁go", "▁for", "ward", "<EOU>"), ends=False) is None
    assert transcript.text == "go forward"
    transcript.add(tokens(9, "t", "en"), ends=True)
    assert transcript.text == "go forward ten", "a new utterance begins a word"


def test_each_word_comes_once_when_it_is_complete() -> None:
    transcript = Transcript(tiny().tokenizer, 0.08, with_words=True)
    assert transcript.add(tokens(10, "▁go"), ends=False) == ()
    assert transcript.add(tokens(12, "▁for", "ward"), ends=False) == (Word("go", 0.8, 0.88, 0.9),)
    assert transcript.add([], ends=False) == ()
    assert transcript.add(tokens(20, "<EOU>"), ends=False) == (Word("forward", 0.96, 1.12, 0.8),)
    assert transcript.add(tokens(30, "▁the"), ends=True) == (Word("the", 2.4, 2.48, 0.9),)
    assert transcript.add([], ends=True) == ()


def test_an_exported_transcript_goes_on() -> None:
    first = Transcript(tiny().tokenizer, 0.08, with_words=True)
    first.add(tokens(3, "▁go", "<EOU>"), ends=False)
    first.add(tokens(7, "t"), ends=False)
    second = Transcript(tiny().tokenizer, 0.08, with_words=True)
    second.load(json.loads(json.dumps(first.export())))
    rest = tokens(9, "en", "▁the")
    assert first.add(rest, ends=True) == second.add(rest, ends=True)
    assert first.text == second.text == "go ten the"
