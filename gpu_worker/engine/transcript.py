"""The transcript of one stream: text so far, and words as they become complete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from common.messages import Word


@dataclass(slots=True)
class TextState:
    """Transcript of one stream under way: the text so far and the bytes of an unfinished character.

    `at_word_start` forces the next token to begin a word (set at the start of an utterance).
    """

    text: str = ""
    pending: bytes = b""
    at_word_start: bool = False


class Vocabulary(Protocol):
    """What a transcript asks of a model's tokens.

    `marks` end an utterance, and `eou_id` is the one among them that ends a turn of speech.
    """

    @property
    def marks(self) -> frozenset[int]: ...
    @property
    def eou_id(self) -> int | None: ...

    def append(self, state: TextState, token: int) -> None:
        """Append one token to the text, but for bytes of a character that it does not complete."""
        ...

    def start_utterance(self, state: TextState) -> None:
        """Make the next token begin a word."""
        ...

    def finish(self, state: TextState) -> str:
        """Close the text; bytes still pending turn into U+FFFD.  Returns it."""
        ...

    def is_special(self, token: int) -> bool:
        """Whether the token never appears in text."""
        ...

    def starts_word(self, token: int) -> bool:
        """Whether the token begins a new word by itself."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of a whole sequence."""
        ...


class Transcript:
    """Text and words of a stream, across utterances.

    Args:
        vocabulary: of the model.
        frame_s: seconds of an encoder frame.
        with_words: whether words are wanted; without, none are collected.
    """

    def __init__(self, vocabulary: Vocabulary, frame_s: float, *, with_words: bool) -> None:
        self._vocabulary = vocabulary
        self._frame_s = frame_s
        self._with_words = with_words
        self._marks = vocabulary.marks
        self._text = TextState()
        # Tokens of the word under way: (token, frame, confidence).
        self._open: list[tuple[int, int, float]] = []

    @property
    def text(self) -> str:
        """The whole text so far, without bytes of an unfinished character."""
        return self._text.text

    def add(
        self, tokens: Sequence[int], frames: Sequence[int], confidences: Sequence[float], *, ends: bool
    ) -> tuple[Word, ...] | None:
        """Append tokens in order, with their absolute encoder frames; with `ends`, close the transcript.

        Returns the words that became complete, each once over the stream's life; None when not wanted.  A
        word is complete when the next one begins, its utterance ends, or the stream does.
        """
        vocabulary = self._vocabulary
        words: list[Word] = []
        for token, frame, confidence in zip(tokens, frames, confidences, strict=True):
            vocabulary.append(self._text, token)
            if token in self._marks:
                vocabulary.start_utterance(self._text)
            if self._with_words:
                special = vocabulary.is_special(token)
                if special or vocabulary.starts_word(token):
                    self._close_word(words)
                if not special:
                    self._open.append((token, frame, confidence))
        if ends:
            vocabulary.finish(self._text)
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
        text = self._vocabulary.decode([token for token, _, _ in tokens]).strip()
        if text:
            words.append(
                Word(
                    word=text,
                    start_s=round(tokens[0][1] * self._frame_s, 3),
                    end_s=round((tokens[-1][1] + 1) * self._frame_s, 3),
                    confidence=min(confidence for _, _, confidence in tokens),
                )
            )

    def export(self) -> dict[str, Any]:
        """The state as JSON values."""
        return {
            "text": self._text.text,
            "pending": self._text.pending.hex(),
            "at_word_start": self._text.at_word_start,
            "open": [list(token) for token in self._open],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from an exported state."""
        self._text = TextState(state["text"], bytes.fromhex(state["pending"]), state["at_word_start"])
        self._open = [(int(token), int(frame), float(score)) for token, frame, score in state["open"]]
