"""SentencePiece token ids to text, whole or token by token.

The whole-sequence text equals SentencePiece's own `decode` with the special tokens and leading
spaces left out.  The incremental decoder returns the same text however the tokens are split over calls. It
holds back an unfinished UTF-8 sequence of byte pieces until its last byte arrives.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import sentencepiece

from gpu_worker.engine.transcript import TextState
from gpu_worker.model.errors import TokenizerError

SPACE_MARK: Final = "\u2581"
END_OF_UTTERANCE: Final = "<EOU>"
END_OF_BACKCHANNEL: Final = "<EOB>"
# Multilingual models emit a tag of an utterance's language; NeMo's `strip_lang_tags` has the same pattern.
_LANGUAGE_TAG: Final = re.compile(rf"{SPACE_MARK}?<[a-z]{{2}}-[A-Z]{{2}}>")
# Characters that SentencePiece encodes in one call, in about half a millisecond.
_CALL_CHARS: Final = 4_096
_MOST_LETTERS: Final = 4_096
_UNKNOWN_SURFACE: Final = " \u2047 "
# Punctuation that closes the word before it; marks that open a word are not included.
_CLOSING: Final = re.compile(r"[.,?!;:…。，、？！；：]+")
# Scripts without spaces between words (Thai, Lao, Myanmar, Khmer, kana, Han): any piece can begin a word.
_SPACELESS: Final = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]"
)


class Tokenizer:
    """The tokenizer of one checkpoint: converts ids of its vocabulary to pieces and text.

    `eou_id` and `eob_id`, together `marks`, mark the end of an utterance or of a backchannel. Marks, control
    pieces and language tags such as ``<de-DE>`` never appear in text.
    """

    def __init__(self, model: bytes, source: str = "tokenizer.model") -> None:
        """Read a serialized SentencePiece model.  Raises TokenizerError naming `source`."""
        processor: Any = sentencepiece.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(model)
            pieces = [processor.id_to_piece(index) for index in range(processor.vocab_size())]
        except (RuntimeError, UnicodeDecodeError) as error:
            raise TokenizerError(f"{source} is not a SentencePiece model, or is damaged.") from error
        self.model: Final = model
        self._processor: Final = processor
        self._pieces: Final[tuple[str, ...]] = tuple(pieces)
        self.vocab_size: Final = len(pieces)
        self.eou_id: Final = self._find(END_OF_UTTERANCE)
        self.eob_id: Final = self._find(END_OF_BACKCHANNEL)
        self.marks: Final = frozenset(mark for mark in (self.eou_id, self.eob_id) if mark is not None)
        special = self.marks | {
            index for index, piece in enumerate(self._pieces) if _LANGUAGE_TAG.fullmatch(piece)
        }
        self._surfaces: Final[tuple[bytes, ...]] = tuple(
            _surface(processor, index, piece, is_special=index in special)
            for index, piece in enumerate(self._pieces)
        )
        self._texts: Final = tuple(surface.decode("utf-8", errors="replace") for surface in self._surfaces)
        self._is_byte: Final = tuple(processor.is_byte(index) for index in range(self.vocab_size))
        self._starts_word: Final = tuple(
            text.startswith(" ") or _SPACELESS.match(text) is not None for text in self._texts
        )
        self._unwritable: Final = frozenset(
            index
            for index, surface in enumerate(self._surfaces)
            if not surface or processor.is_unknown(index)
        )
        self._is_closing: Final = tuple(_CLOSING.fullmatch(text) is not None for text in self._texts)

    @classmethod
    def from_file(cls, path: Path) -> Tokenizer:
        """Read a `tokenizer.model` file.  Raises TokenizerError."""
        try:
            return cls(path.read_bytes(), str(path))
        except OSError as error:
            raise TokenizerError(f"{path} cannot be read: {error.strerror}.") from error

    @property
    def letters(self) -> str:
        """The characters of its pieces, but the space.

        Empty if it spells any character in bytes, or has more of them than an ingress shall read each second.
        """
        written = (text for index, text in enumerate(self._texts) if index not in self._unwritable)
        letters = set("".join(written)) - {" "}
        return "" if any(self._is_byte) or len(letters) > _MOST_LETTERS else "".join(sorted(letters))

    def piece(self, token: int) -> str:
        """Return the vocabulary's piece of an id. Raises IndexError."""
        return self._pieces[token]

    def encode(self, texts: Sequence[str]) -> list[tuple[int, ...] | None]:
        """Return the tokens of each text; None if the vocabulary cannot spell it. For any thread.

        Many texts in one call take a third of the time of one call for each text. But a call keeps the
        interpreter's lock, and so every other thread waits; calls are short for that.
        """
        return [
            tuple(tokens) if self._unwritable.isdisjoint(tokens) else None
            for some in _parts(texts)
            for tokens in self._processor.encode(some, num_threads=1)
        ]

    def is_special(self, token: int) -> bool:
        """Whether the id never appears in text."""
        return not self._surfaces[token]

    def starts_word(self, token: int) -> bool:
        """Whether the id begins a new word by itself: after a space, or in a script without spaces."""
        return self._starts_word[token]

    def is_closing(self, token: int) -> bool:
        """Whether the id is punctuation that belongs to the word before it."""
        return self._is_closing[token]

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of a whole sequence."""
        state = TextState()
        self.extend(state, tokens)
        return self.finish(state)

    def extend(self, state: TextState, tokens: Iterable[int]) -> None:
        """Append tokens to a transcript.

        The bytes of an unfinished character stay pending. Each byte that cannot be part of a character
        becomes U+FFFD, as in SentencePiece.
        """
        for token in tokens:
            self.append(state, token)

    def append(self, state: TextState, token: int) -> None:
        """Append one token; see `extend`."""
        if self._is_byte[token]:
            text, state.pending = _characters(state.pending + self._surfaces[token])
            _append(state, text)
            return
        if state.pending:
            self.finish(state)
        _append(state, self._texts[token])

    def finish(self, state: TextState) -> str:
        """Close a transcript and return its text; bytes that are still pending become U+FFFD."""
        if state.pending:
            text = "\ufffd" * len(state.pending)
            state.pending = b""
            _append(state, text)
        return state.text

    def start_utterance(self, state: TextState) -> None:
        """Make the next token of a transcript begin a word, whether or not it has the space mark."""
        self.finish(state)
        state.at_word_start = True
        state.spaces = ""

    def _find(self, piece: str) -> int | None:
        return self._pieces.index(piece) if piece in self._pieces else None


def _parts(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield the texts in lists of no more than `_CALL_CHARS` characters, or of one text."""
    some: list[str] = []
    num_chars = 0
    for text in texts:
        if some and num_chars + len(text) > _CALL_CHARS:
            yield some
            some, num_chars = [], 0
        some.append(text)
        num_chars += len(text)
    if some:
        yield some


def _surface(processor: Any, index: int, piece: str, *, is_special: bool) -> bytes:
    if is_special or processor.is_control(index):
        return b""
    if processor.is_unknown(index):
        return _UNKNOWN_SURFACE.encode()
    if processor.is_byte(index):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(SPACE_MARK, " ").encode()


def _append(state: TextState, text: str) -> None:
    if not state.text:
        text = text.lstrip(" ")
    forced = state.at_word_start and not state.spaces
    closes = forced and _CLOSING.fullmatch(text) is not None
    if forced and state.text and not (closes or text.startswith(" ") or _SPACELESS.match(text)):
        text = " " + text
    text = state.spaces + text
    shown = text.rstrip(" ")
    state.spaces = text[len(shown) :]
    if shown:
        state.text += shown
        # A punctuation mark belongs to the word before it, so the next word has not begun.
        state.at_word_start = closes


def _characters(data: bytes) -> tuple[str, bytes]:
    """Split bytes into complete characters and the bytes of an unfinished one.

    Each byte that cannot be part of a character becomes U+FFFD, as in SentencePiece.
    """
    text = ""
    while data:
        for length in range(1, min(len(data), 4) + 1):
            try:
                text += data[:length].decode("utf-8")
            except UnicodeDecodeError as error:
                if error.reason == "unexpected end of data" and length == len(data):
                    return text, data
            else:
                data = data[length:]
                break
        else:
            text += "\ufffd"
            data = data[1:]
    return text, b""
