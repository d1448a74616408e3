"""One channel of a stream, cut into segments: each ends with a final, and the finals join to the transcript.

The service's results have the whole text, and the finals of utterances (`auto_finalize`). Deepgram's clients
receive the open segment, which runs from the end of the last final to now, and each final once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from common.late_marks import without_late_marks
from common.messages import Result, Utterance, Word


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment as it is sent: open, or frozen (`is_final`). Times are seconds from the stream's start.

    words: complete words; the last word of an open segment is often missing.
    at_end: whether an utterance, or the audio, ends with this segment.
    """

    transcript: str
    words: tuple[Word, ...]
    start_s: float
    end_s: float
    is_final: bool = False
    at_end: bool = False
    from_finalize: bool = False


class Segments:
    """The segments of one channel. After each result, `heard_s` is the audio that it covered, in seconds."""

    __slots__ = ("_offset", "_shown", "_start_s", "_words", "heard_s", "last_word_end_s")

    def __init__(self) -> None:
        self._offset = 0  # code points of the text that are in finals
        self._start_s = 0.0  # of the open segment
        self._words: list[Word] = []  # words that are in no final
        self._shown = ""  # of the open segment
        self.heard_s = 0.0
        self.last_word_end_s: float | None = None
        """End of the last word of a final, in seconds; None at first, and while there are newer words."""

    def add(self, result: Result, heard_s: float) -> Iterator[Segment]:
        """Take the next result; yield the segments to send.

        heard_s: audio that the result covers, in seconds.
        """
        self.heard_s = max(self.heard_s, heard_s)
        self._words += result.words or ()
        text = result.text
        self._offset = min(self._offset, len(text))
        if result.is_final or result.from_finalize:
            if result.from_finalize or self.heard_s > self._start_s or self._open(text):
                yield self._rest(text, from_finalize=result.from_finalize)
            return
        for utterance in result.utterances:
            yield self._final(text, utterance)
        transcript = self._open(text)
        if transcript:
            self.last_word_end_s = None
        if transcript != self._shown:
            self._shown = transcript
            words = tuple(self._words)
            end_s = max(self._start_s, self.heard_s, words[-1].end_s if words else 0.0)
            yield Segment(transcript, words, self._start_s, end_s)

    def _open(self, text: str) -> str:
        rest = text[self._offset :]
        return (without_late_marks(rest) if self._offset else rest).strip()

    def _final(self, text: str, utterance: Utterance) -> Segment:
        """Return the final of an utterance, which may stand before words of the next one."""
        said = utterance.text
        at = text.find(said, self._offset)
        self._offset = (at if at >= 0 else self._offset) + len(said)
        num_words = len(said.split())
        words, self._words = tuple(self._words[:num_words]), self._words[num_words:]
        return self._told(said, words, utterance.end_s)

    def _rest(self, text: str, *, from_finalize: bool) -> Segment:
        """Return the final of all open text, where the audio ends or a client has sent `Finalize`."""
        transcript = self._open(text)
        words, self._words = tuple(self._words), []
        self._offset = len(text)
        return self._told(transcript, words, self.heard_s, from_finalize=from_finalize)

    def _told(
        self, transcript: str, words: tuple[Word, ...], end_s: float, *, from_finalize: bool = False
    ) -> Segment:
        start_s = self._start_s
        self._start_s = max(start_s, end_s, words[-1].end_s if words else 0.0)
        self._shown = ""
        if words:
            self.last_word_end_s = words[-1].end_s
        return Segment(
            transcript,
            words,
            start_s,
            self._start_s,
            is_final=True,
            at_end=True,
            from_finalize=from_finalize,
        )
