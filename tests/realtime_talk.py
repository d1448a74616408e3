"""A conversation with the realtime dialect, without a socket or a worker.

What each side says is kept, and is checked as `make test-clients` checks what real clients are told.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import Any

from common.errors import ErrorCode
from common.messages import Audio, ClientMessage, ErrorMessage, Hello, Result, TurnDetection, Utterance, Word
from ingress.dialects.openai.realtime import RealtimeDialect
from ingress.dialects.openai.session import Session
from ingress.media.wanted import Media
from tests.clients.checker import shape
from tests.clients.conversation import TEXT, Conversation, Frame
from tests.clients.live_checks import realtime_order

RATE = 24_000
TRANSCRIPTION = "conversation.item.input_audio_transcription"


def append(pcm: bytes, **more: object) -> dict[str, Any]:
    """An event with audio."""
    return {"type": "input_audio_buffer.append", "audio": base64.b64encode(pcm).decode(), **more}


def silence(ms: int, rate: int = RATE) -> bytes:
    """So much audio."""
    return b"\0\0" * (rate * ms // 1000)


def update(**audio_input: object) -> dict[str, Any]:
    """A `session.update` of `session.audio.input`."""
    session = {"type": "transcription", "audio": {"input": audio_input}}
    return {"type": "session.update", "session": session}


@dataclass
class Talk:
    """One connection. heard: what the dialect made of the client's frames."""

    dialect: RealtimeDialect = field(default_factory=lambda: RealtimeDialect(Session()))
    events: list[dict[str, Any]] = field(default_factory=list)
    heard: list[ClientMessage] = field(default_factory=list)
    said: list[bytes] = field(default_factory=list)
    seq: int = 0

    def __post_init__(self) -> None:
        self.tell(Hello(7, 16000, "secret", ()))

    def say(self, *events: dict[str, Any] | bytes) -> list[ClientMessage]:
        """The client says something; what that means to the stream."""
        heard: list[ClientMessage] = []
        for event in events:
            data = event if isinstance(event, bytes) else json.dumps(event).encode()
            if not isinstance(event, bytes):
                self.said.append(data)
            message = self.dialect.decode_text(data)
            assert not isinstance(message, Media), "audio comes as samples"
            heard += message if isinstance(message, list) else [] if message is None else [message]
            replies, self.dialect.replies = self.dialect.replies, []
            self.events += [json.loads(frame.data) for frame in replies]
        self.heard += heard
        return heard

    def tell(self, message: Any) -> list[dict[str, Any]]:
        """The service says something; what the client is told of it."""
        told = [json.loads(frame.data) for frame in self.dialect.encode(message, 0)]
        self.events += told
        return told

    def result(
        self,
        text: str,
        ms: int,
        *,
        turn: TurnDetection = "running",
        finals: tuple[tuple[str, float, float], ...] = (),
        words: tuple[Word, ...] | None = None,
        answer: bool = False,
        final: bool = False,
    ) -> list[dict[str, Any]]:
        """A result whose audio ends at `ms`; `finals` are texts and times of utterances."""
        self.seq += 1
        return self.tell(
            Result(
                text=text,
                token_ids=(),
                confidence_scores=(),
                is_final=final,
                last_state="speech",
                turn_detection=turn,
                seq=self.seq,
                audio_ack_samples=RATE * ms // 1000,
                words=words,
                utterances=tuple(Utterance(number, *one) for number, one in enumerate(finals, 1)),
                from_finalize=answer,
            )
        )

    def error(self, code: ErrorCode) -> list[dict[str, Any]]:
        """The connection ends with an error."""
        return self.tell(ErrorMessage(code.value, "A sentence.", 7))

    @property
    def kinds(self) -> list[str]:
        """Types of all events, without the names that they share."""
        return [event["type"].removeprefix(f"{TRANSCRIPTION}.") for event in self.events]

    def transcripts(self) -> list[str]:
        """Of the items that were completed, in order."""
        return [event["transcript"] for event in self.events if event["type"] == f"{TRANSCRIPTION}.completed"]

    def faults(self) -> list[dict[str, Any]]:
        """What stands in the `error` events."""
        return [event["error"] for event in self.events if event["type"] == "error"]

    def payload(self) -> bytes:
        """The audio that the stream has."""
        return b"".join(message.payload for message in self.heard if isinstance(message, Audio))

    def complaints(self) -> list[str]:
        """What a strict client would find wrong, but for `error` events, which a test may provoke."""
        found = [text for event in self.events for text in shape("openai_realtime", event["type"], event)]
        talk = Conversation((), tuple(Frame(0.0, TEXT, data) for data in self.said), ())
        events = [event for event in self.events if event["type"] != "error"]
        return found + list(realtime_order(talk, events))
