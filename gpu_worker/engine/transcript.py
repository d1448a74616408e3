"""The transcript of one stream: text so far, and words as they become complete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from common.entries import StreamId
from common.hot_value import hot_value
from common.messages import LastState, TurnDetection, Utterance, Word
from gpu_worker.engine.interface import StreamOutput

# A word that has this many tokens is complete, whatever follows: its tokens are kept until it ends, also in
# the snapshots of its stream. Names that are spelt out and addresses of pages have some dozens.
_MAX_WORD_TOKENS: Final = 256


@dataclass(slots=True)
class TextState:
    """Text of an unfinished transcript: the text so far and the bytes of an unfinished character.

    `at_word_start` forces the next token to begin a word (set at the start of an utterance). `spaces` are
    held back until text follows them: a text never ends with a space.
    """

    text: str = ""
    pending: bytes = b""
    at_word_start: bool = False
    spaces: str = ""


class Vocabulary(Protocol):
    """The interface of a model's tokens to a transcript.

    `marks` are tokens that end an utterance, and `eou_id` is the mark that ends a turn of speech.
    """

    @property
    def marks(self) -> frozenset[int]: ...
    @property
    def eou_id(self) -> int | None: ...

    def append(self, state: TextState, token: int) -> None:
        """Append one token to the text; bytes of an unfinished character are held back."""
        ...

    def start_utterance(self, state: TextState) -> None:
        """Make the next token begin a word."""
        ...

    def finish(self, state: TextState) -> str:
        """Close the text, with U+FFFD for bytes that are still held back, and return it."""
        ...

    def is_special(self, token: int) -> bool:
        """Return whether the token never appears in text."""
        ...

    def starts_word(self, token: int) -> bool:
        """Return whether the token begins a new word by itself."""
        ...

    def is_closing(self, token: int) -> bool:
        """Return whether the token is punctuation that belongs to the word before it."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of a whole sequence."""
        ...


@hot_value
class Tokens:
    """Tokens in order: parallel sequences of ids, absolute encoder frames and confidences."""

    ids: Sequence[int]
    frames: Sequence[int]
    confidences: Sequence[float]

    def first(self, count: int) -> Tokens:
        """Return the first `count` tokens."""
        return Tokens(self.ids[:count], self.frames[:count], self.confidences[:count])

    def after(self, count: int) -> Tokens:
        """Return the tokens after the first `count`."""
        return Tokens(self.ids[count:], self.frames[count:], self.confidences[count:])


NO_TOKENS: Final = Tokens((), (), ())


@hot_value
class WordStart:
    """The start of a word: encoder frame of its first token, and length of the text before it."""

    frame: int
    offset: int


class Transcript:
    """Text and words of a stream, across utterances.

    Args:
        vocabulary: vocabulary of the model.
        frame_s: duration of an encoder frame, in seconds.
        with_words: whether words are collected.
        with_starts: whether the starts of words are collected.
    """

    __slots__ = (
        "_frame_s",
        "_mark_frame",
        "_marks",
        "_open",
        "_starts",
        "_text",
        "_vocabulary",
        "_with_starts",
        "_with_words",
        "_words",
    )

    def __init__(
        self, vocabulary: Vocabulary, frame_s: float, *, with_words: bool, with_starts: bool = False
    ) -> None:
        self._vocabulary = vocabulary
        self._frame_s = frame_s
        self._with_words = with_words
        self._with_starts = with_starts
        self._marks = vocabulary.marks
        self._text = TextState()
        # Tokens of the open word: (token, frame, confidence).
        self._open: list[tuple[int, int, float]] = []
        self._words: list[Word] = []
        self._starts: list[WordStart] = []
        self._mark_frame: int | None = None

    @property
    def text(self) -> str:
        """The whole text so far, without spaces at its end and bytes of an unfinished character."""
        return self._text.text

    @property
    def open_frames(self) -> tuple[int, int] | None:
        """Frames of the first and of the last token of the open word, which the next token may continue."""
        return (self._open[0][1], self._open[-1][1]) if self._open else None

    @property
    def mark_frame(self) -> int | None:
        """Frame of the mark at the end of the text so far, if any; None where starts are not collected."""
        return self._mark_frame

    def add(self, tokens: Tokens, *, ends: bool) -> None:
        """Append tokens; with `ends`, close the transcript.

        A word is complete when the next one begins, its utterance ends, or the stream does. One that is
        longer than `_MAX_WORD_TOKENS` comes in parts, between which the text has no space.
        """
        vocabulary, tracks = self._vocabulary, self._with_words or self._with_starts
        for at, token in enumerate(tokens.ids):
            offset = len(self._text.text)
            vocabulary.append(self._text, token)
            if token in self._marks:
                vocabulary.start_utterance(self._text)
            if tracks:
                self._track(token, tokens.frames[at], tokens.confidences[at], offset)
        if ends:
            vocabulary.finish(self._text)
            self._end_word()

    def _track(self, token: int, frame: int, confidence: float, offset: int) -> None:
        vocabulary = self._vocabulary
        special = vocabulary.is_special(token)
        if special or vocabulary.starts_word(token):
            self._end_word()
        if special:
            if token in self._marks:
                self._mark_frame = frame
            return
        self._mark_frame = None
        if not self._open:
            if vocabulary.is_closing(token):
                return  # punctuation of a word that is complete already
            if self._with_starts:
                self._starts.append(WordStart(frame, offset))
        self._open.append((token, frame, confidence))
        # Never within a character, whose bytes would be no text in either word.
        if len(self._open) >= _MAX_WORD_TOKENS and not self._text.pending:
            self._end_word()

    def close_word(self) -> None:
        """End the open word: the next token begins another word, whatever it is."""
        if self._open:
            self._vocabulary.start_utterance(self._text)
            self._end_word()

    def take_words(self) -> tuple[Word, ...] | None:
        """Return the words that became complete since the last call; None where words are not collected."""
        if not self._with_words:
            return None
        words, self._words = self._words, []
        return tuple(words)

    def take_starts(self) -> Sequence[WordStart]:
        """Return the starts of words since the last call; none unless they are collected."""
        starts, self._starts = self._starts, []
        return starts

    def _end_word(self) -> None:
        """End the open word.

        It lasts from the start of its first token's frame to the end of its last token's frame. Its
        confidence is the least of its tokens', NeMo's default aggregation.
        """
        tokens, self._open = self._open, []
        if not (tokens and self._with_words):
            return
        text = self._vocabulary.decode([token for token, _, _ in tokens]).strip()
        if text:
            self._words.append(
                Word(
                    word=text,
                    start_s=round(tokens[0][1] * self._frame_s, 3),
                    end_s=round((tokens[-1][1] + 1) * self._frame_s, 3),
                    confidence=min(confidence for _, _, confidence in tokens),
                )
            )

    def export(self) -> dict[str, Any]:
        """Return the state as JSON values; words and starts must have been taken."""
        return {
            "text": self._text.text,
            "pending": self._text.pending.hex(),
            "at_word_start": self._text.at_word_start,
            "spaces": self._text.spaces,
            "open": [list(token) for token in self._open],
            "mark": self._mark_frame,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from an exported state."""
        self._text = TextState(
            state["text"], bytes.fromhex(state["pending"]), state["at_word_start"], state["spaces"]
        )
        self._open = [(int(token), int(frame), float(score)) for token, frame, score in state["open"]]
        self._mark_frame = state["mark"]


def chunk_output(
    stream: StreamId,
    transcript: Transcript,
    tokens: Tokens,
    samples_decoded: int,
    is_final: bool,
    last_state: LastState | None = None,
    turn_detection: TurnDetection = "running",
    is_turn_event: bool = False,
    changed: bool = False,
    utterances: tuple[Utterance, ...] = (),
) -> StreamOutput:
    """Return the output of a piece of audio whose tokens are in the transcript.

    Without the fields of turns it is the output of a stream without turn detection. changed: whether the turn
    fields changed.
    """
    # By position: keyword arguments cost half as much time again.
    return StreamOutput(
        stream,
        samples_decoded,
        tuple(tokens.ids),
        tuple(tokens.confidences),
        tuple(tokens.frames),
        transcript.text,
        last_state,
        turn_detection,
        is_final,
        is_turn_event,
        transcript.take_words(),
        changed or bool(tokens.ids) or is_final,
        None,
        utterances,
    )
