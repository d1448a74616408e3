"""The transcript of one stream: text so far, and words as they become complete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common.hot_value import hot_value
from common.messages import Word
from gpu_worker.model.tokenizer import TextState, Tokenizer


@hot_value
class Token:
    """One emitted token; `frame` is the stream's absolute encoder frame."""

    token: int
    frame: int
    confidence: float


class Transcript:
    """Text and words of a stream, across utterances.

    Args:
        tokenizer: of the model.
        frame_s: seconds of an encoder frame.
        with_words: whether words are wanted; without, none are collected.
    """

    def __init__(self, tokenizer: Tokenizer, frame_s: float, *, with_words: bool) -> None:
        self._tokenizer = tokenizer
        self._frame_s = frame_s
        self._with_words = with_words
        self._marks = tokenizer.marks
        self._text = TextState()
        self._open: list[Token] = []

    @property
    def text(self) -> str:
        """The whole text so far, without bytes of an unfinished character."""
        return self._text.text

    def add(self, tokens: Sequence[Token], *, ends: bool) -> tuple[Word, ...] | None:
        """Append tokens in order; with `ends`, close the transcript.

        Returns the words that became complete, each once over the stream's life; None when not wanted.  A
        word is complete when the next one begins, its utterance ends, or the stream does.
        """
        tokenizer = self._tokenizer
        words: list[Word] = []
        for token in tokens:
            number = token.token
            tokenizer.append(self._text, number)
            if number in self._marks:
                tokenizer.start_utterance(self._text)
            if self._with_words:
                special = tokenizer.is_special(number)
                if special or tokenizer.starts_word(number):
                    self._close_word(words)
                if not special:
                    self._open.append(token)
        if ends:
            tokenizer.finish(self._text)
            self._close_word(words)
        return tuple(words) if self._with_words else None

    def _close_word(self, words: list[Word]) -> None:
        """End the open word.

        It lasts from the start of its first token's frame to the end of its last one's; its confidence is
        the least of its tokens', NeMo's default aggregation.
        """
        tokens, self._open = self._open, []
        if not tokens:
            return
        text = self._tokenizer.decode([token.token for token in tokens]).strip()
        if text:
            words.append(
                Word(
                    word=text,
                    start_s=round(tokens[0].frame * self._frame_s, 3),
                    end_s=round((tokens[-1].frame + 1) * self._frame_s, 3),
                    confidence=min(token.confidence for token in tokens),
                )
            )

    def export(self) -> dict[str, Any]:
        """The state as JSON values."""
        return {
            "text": self._text.text,
            "pending": self._text.pending.hex(),
            "at_word_start": self._text.at_word_start,
            "open": [[token.token, token.frame, token.confidence] for token in self._open],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from an exported state."""
        self._text = TextState(state["text"], bytes.fromhex(state["pending"]), state["at_word_start"])
        self._open = [Token(*values) for values in state["open"]]
