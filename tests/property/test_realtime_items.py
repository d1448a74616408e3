"""What a realtime client is told is in order, adds up and is said once.

This holds whatever the recogniser, the turn detector and the client do.
"""

from __future__ import annotations

from typing import Literal, get_args

from hypothesis import given
from hypothesis import strategies as st

from tests.realtime_talk import RATE, Talk, append, silence, update

Step = Literal["word", "mark", "turn", "final", "audio", "commit", "clear", "answer"]
_CHUNK_MS = 160


class _Recogniser:
    """A stream's worker, as far as its results go: a transcript that grows, and utterances in it."""

    def __init__(self, talk: Talk, *, detects: bool) -> None:
        self.talk = talk
        self.detects = detects
        self.words: list[str] = []
        self.text = ""
        self.now_ms = 0
        self.given = 0  # words in finals of utterances
        self.is_open = False
        self.ended: list[int] = []  # words that there were when an utterance ended
        self.finalizes = 0  # that are not answered

    def say(self) -> None:
        word = f"w{len(self.words)}"
        self.words.append(word)
        self.text = f"{self.text} {word}".strip()
        self._result()

    def mark(self) -> None:
        if self.text:
            self.text += "."
            self._result()

    def turn(self) -> None:
        if not self.detects:
            return
        self.is_open = not self.is_open
        if not self.is_open:
            self.ended.append(len(self.words))
        self._result(turn="start_of_utterance" if self.is_open else "end_of_utterance")

    def final(self, late_words: int) -> None:
        """The final of the oldest utterance, with some of the words that came behind its end."""
        if self.ended:
            self._result(finals=[self._final(late_words)])

    def answer(self) -> None:
        """All of the audio before a finalize is decoded, and its utterances are over."""
        if not self.finalizes:
            return
        self.finalizes -= 1
        ends = self.is_open
        if ends:
            self.is_open = False
            self.ended.append(len(self.words))
        finals = [self._final(len(self.words)) for _ in list(self.ended)]
        self.given = len(self.words)  # what follows is a stream of its own to the recogniser
        self._result(turn="end_of_utterance" if ends else "running", finals=finals, answer=True)

    def _final(self, late_words: int) -> str:
        end = min(self.ended.pop(0) + late_words, len(self.words))
        # Marks are left out here, as they are where they come late.
        text = " ".join(self.words[self.given : max(end, self.given)])
        self.given = max(end, self.given)
        return text

    def _result(self, turn: str = "running", finals: list[str] | None = None, answer: bool = False) -> None:
        self.talk.say(append(silence(_CHUNK_MS)))
        self.now_ms += _CHUNK_MS
        told = tuple((text, 0.0, 0.1) for text in finals or ())
        self.talk.result(self.text, self.now_ms, turn=turn, finals=told, answer=answer)  # type: ignore[arg-type]


@given(
    detects=st.booleans(),
    steps=st.lists(st.sampled_from(get_args(Step)), max_size=60),
    late_words=st.integers(0, 3),
)
def test_items_are_in_order_and_add_up(detects: bool, steps: list[Step], late_words: int) -> None:
    talk = Talk()
    talk.say(update(turn_detection={"type": "server_vad"} if detects else None))
    worker = _Recogniser(talk, detects=detects)
    for step in [*steps, "audio", "commit", *["answer"] * 100]:
        match step:
            case "word":
                worker.say()
            case "mark":
                # A mark within an open utterance is in its final, which the recogniser above leaves out.
                if not detects:
                    worker.mark()
            case "turn":
                worker.turn()
            case "final":
                worker.final(late_words)
            case "answer":
                worker.answer()
            case "audio":
                talk.say(append(silence(200)))
            case "commit" | "clear":
                worker.finalizes += len(talk.say({"type": f"input_audio_buffer.{step}"}))
    assert talk.complaints() == []
    committed = [one["item_id"] for one in talk.events if one["type"] == "input_audio_buffer.committed"]
    assert len(talk.transcripts()) == len(committed)
    said = " ".join(talk.transcripts()).replace(".", "").split()
    if "clear" in steps:
        assert [word for word in worker.words if word in set(said)] == said
    else:
        assert said == worker.words
    assert talk.dialect.options.sample_rate == RATE
