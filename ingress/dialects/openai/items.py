"""The items of a realtime session: results of one stream, cut where the turn detector or the client says.

The transcript of a stream only grows, and each item is a part of it. The end of that part is known late: the
final of an utterance comes up to half a second after the end of the speech, and the transcript may hold words
of the next utterance by then. So text is sent as deltas while it can belong to one item alone. It waits while
an utterance has ended and its final is to come.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from common.captions.words_of_texts import words_of_texts
from common.late_marks import without_late_marks
from common.messages import Result, Utterance, Word
from ingress.dialects.dialect import Frame
from ingress.dialects.openai.events import Events, item_fields, word_logprobs
from ingress.dialects.openai.faults import error_fields

# The detector reports a start after this much speech (the default of `--turn-min-speech-ms`).
_MIN_SPEECH_MS: Final = 96
# The final of an utterance comes within 2.5 s of audio after its end. It never comes if the worker of the
# stream died and another worker began without a snapshot.
_LONGEST_WAIT_MS: Final = 10_000


@dataclass(frozen=True, slots=True)
class _Ended:
    """An utterance that has ended at `at_ms`, and whose final is to come.

    item: None where the utterance is no item of its own, because the client has committed elsewhere.
    """

    item: _Item | None
    at_ms: int


@dataclass(slots=True)
class _Item:
    """One item, until it is finished.

    start_ms, end_ms: bounds of its audio, from the first sample of the session.
    sent: the part of its transcript that was sent as deltas.
    in_speech: whether `speech_started` was sent, and `speech_stopped` was not.
    """

    item_id: str
    start_ms: int
    end_ms: int = 0
    sent: str = ""
    in_speech: bool = False


class Items:
    """The items of a session's audio, as its client receives them.

    cut_by_client: whether the client alone ends items; else the turn detector does, and the client may too.
    padding_ms: audio before an utterance's start that counts as part of it.
    wants_logprobs: whether completed items have the log probabilities of their words.
    beta: whether events have the names of the beta.
    """

    __slots__ = (
        "_committed",
        "_end_ms",
        "_ended",
        "_events",
        "_from",
        "_last_id",
        "_none_finished",
        "_open",
        "_text",
        "_words",
        "beta",
        "cut_by_client",
        "padding_ms",
        "sample_rate",
        "wants_logprobs",
    )

    def __init__(self, events: Events) -> None:
        self._events = events
        self.sample_rate = 1
        self.cut_by_client = False
        self.padding_ms = 0
        self.wants_logprobs = False
        self.beta = False
        self._text = ""  # the whole transcript so far
        self._from = 0  # start of the part that is in no finished item
        self._none_finished = True
        self._open: _Item | None = None  # the item whose audio goes on
        self._ended: deque[_Ended] = deque()
        # Requests that the worker has not answered: the item of a commit, None for a clear.
        self._committed: deque[_Item | None] = deque()
        self._words: list[Word] = []  # words of no finished item
        self._end_ms = 0  # of all audio that is in an item, or cleared
        self._last_id: str | None = None

    def uncommitted_ms(self, audio_ms: int) -> int:
        """Return the audio in no item, in ms. audio_ms: all audio so far."""
        return audio_ms - self._end_ms

    # Events of the client

    def commit(self, audio_ms: int) -> list[Frame]:
        """Make an item of all uncommitted audio; its transcript comes with the answer to a `Finalize`."""
        frames: list[Frame] = []
        item, self._open = self._open or self._new(self._end_ms), None
        self._stop(item, audio_ms, frames)
        self._commit(item, frames)
        self._committed.append(item)
        self._tell_added(frames)
        return frames

    def clear(self, audio_ms: int) -> list[Frame]:
        """Drop all audio that is in no item, and its text up to the answer to a `Finalize`."""
        frames: list[Frame] = []
        item, self._open = self._open, None
        if item is not None:
            self._stop(item, audio_ms, frames)
        self._end_ms = audio_ms
        self._committed.append(None)
        return frames

    # Results of the service

    def add(self, result: Result) -> list[Frame]:
        """Take a result; return the events that it causes."""
        frames: list[Frame] = []
        self._text = result.text
        self._from = min(self._from, len(result.text))  # a worker without a snapshot may have less
        if self.wants_logprobs:
            self._words += result.words or ()
        now_ms = result.audio_ack_samples * 1000 // self.sample_rate
        if result.turn_detection == "start_of_utterance":
            self._started(now_ms, frames)
        elif result.turn_detection == "end_of_utterance":
            self._utterance_ended(now_ms, frames)
        self._tell_added(frames)
        for utterance in result.utterances:
            self._finish_utterance(utterance, frames)
        while self._ended and now_ms - self._ended[0].at_ms > _LONGEST_WAIT_MS:
            self._give_up(frames)
        if result.is_final:
            while self._committed:
                self._answered(frames)
        elif result.from_finalize and self._committed:
            self._answered(frames)
        self._tell_added(frames)
        return frames

    def fail(self, kind: str, code: str, message: str) -> list[Frame]:
        """Return the events that fail all items without a transcript: the stream has failed."""
        items = (*(ended.item for ended in self._ended), *self._committed)
        failed = [item for item in items if item is not None]
        self._ended.clear()
        self._committed.clear()
        error = error_fields(kind, code, message)
        return [self._transcription("failed", item, error=error) for item in failed]

    # Ends and starts

    def _started(self, now_ms: int, frames: list[Frame]) -> None:
        if self.cut_by_client or self._committed:
            return
        item = self._open
        if item is not None and item.in_speech:
            return  # reported by a worker that began without a snapshot
        if item is None:
            start_ms = max(self._end_ms, now_ms - _MIN_SPEECH_MS - self.padding_ms)
            item = self._open = self._new(start_ms)
        item.in_speech = True
        frames.append(
            self._events.write(
                "input_audio_buffer.speech_started", audio_start_ms=item.start_ms, item_id=item.item_id
            )
        )

    def _utterance_ended(self, now_ms: int, frames: list[Frame]) -> None:
        item = self._open
        if item is None or self.cut_by_client or self._committed:
            self._ended.append(_Ended(None, now_ms))
            return
        self._open = None
        self._stop(item, now_ms, frames)
        self._commit(item, frames)
        self._ended.append(_Ended(item, now_ms))

    def _new(self, start_ms: int) -> _Item:
        return _Item(self._events.new_item(), start_ms)

    def _stop(self, item: _Item, now_ms: int, frames: list[Frame]) -> None:
        item.end_ms = max(now_ms, item.start_ms)
        if item.in_speech:
            item.in_speech = False
            frames.append(
                self._events.write(
                    "input_audio_buffer.speech_stopped", audio_end_ms=item.end_ms, item_id=item.item_id
                )
            )

    def _commit(self, item: _Item, frames: list[Frame]) -> None:
        write, item_id, previous = self._events.write, item.item_id, self._last_id
        self._last_id = item_id
        self._end_ms = item.end_ms
        frames.append(write("input_audio_buffer.committed", item_id=item_id, previous_item_id=previous))
        frames += [
            write(f"conversation.item.{kind}", previous_item_id=previous, item=item_fields(item_id))
            for kind in (("created",) if self.beta else ("added", "done"))
        ]

    # Text

    def _tell_added(self, frames: list[Frame]) -> None:
        """Send the new text as a delta of the item to which it belongs, if that is certain."""
        if any(ended.item is not None for ended in self._ended):
            return
        if self._committed:
            item = self._committed[0]
        else:
            if self._open is None and self.cut_by_client and self._gained():
                self._open = self._new(self._end_ms)
            item = self._open
        if item is not None:
            self._tell_up_to(item, self._gained(), frames)

    def _gained(self) -> str:
        """Return the text of no finished item, without late marks of the words before, which finals have."""
        text = self._text[self._from :]
        return (text if self._none_finished else without_late_marks(text)).lstrip()

    def _tell_up_to(self, item: _Item, text: str, frames: list[Frame]) -> None:
        added = text.removeprefix(item.sent)
        # A delta cannot retract text: text that another worker has replaced is in `completed` alone.
        if added and text.startswith(item.sent):
            frames.append(self._transcription("delta", item, delta=added))
            item.sent = text

    def _finish_utterance(self, utterance: Utterance, frames: list[Frame]) -> None:
        item = self._ended.popleft().item if self._ended else None
        if item is None:
            return
        self._complete(item, utterance.text, utterance.end_s - utterance.start_s, frames)
        at = self._text.find(utterance.text, self._from)
        if at >= 0:
            self._from = at + len(utterance.text)

    def _give_up(self, frames: list[Frame]) -> None:
        """Complete an item whose utterance got no final, with all text of no other item."""
        item = self._ended.popleft().item
        if item is not None:
            self._complete(item, self._gained(), (item.end_ms - item.start_ms) / 1000, frames)
            self._from = len(self._text)

    def _answered(self, frames: list[Frame]) -> None:
        """Note that all text before a commit or a clear has come, finals of utterances included."""
        while self._ended:
            self._give_up(frames)
        item = self._committed.popleft()
        if item is not None:
            self._complete(item, self._gained(), (item.end_ms - item.start_ms) / 1000, frames)
        self._from = len(self._text)
        self._none_finished = False
        self._words.clear()

    def _complete(self, item: _Item, transcript: str, seconds: float, frames: list[Frame]) -> None:
        self._tell_up_to(item, transcript, frames)
        fields: dict[str, Any] = {
            "transcript": transcript,
            "usage": {"type": "duration", "seconds": round(seconds, 3)},
        }
        if self.wants_logprobs:
            fields["logprobs"] = word_logprobs(self._take_words(transcript))
        frames.append(self._transcription("completed", item, **fields))
        self._none_finished = False

    def _take_words(self, transcript: str) -> list[Word]:
        """Remove the words of a transcript from the waiting words, and return them."""
        taken, self._words = words_of_texts(self._words, [transcript])
        return taken

    def _transcription(self, kind: str, item: _Item, **fields: Any) -> Frame:
        name = f"conversation.item.input_audio_transcription.{kind}"
        return self._events.write(name, item_id=item.item_id, content_index=0, **fields)
