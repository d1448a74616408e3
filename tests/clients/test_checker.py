"""The checker complains of what is wrong; one that never does would make all tests here pass."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.clients.checker import complaints
from tests.clients.conversation import read
from tests.clients.recorder import Recording

Message = dict[str, Any]
_ID = "0b5f8a44-4b0e-4c62-9d0e-0d8e6f2f3a11"


def websocket(path: str, messages: list[Message], asked: list[Message]) -> list[str]:
    """Return the complaints about a connection."""
    request = f"GET {path} HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n".encode()
    answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    answer += f"dg-request-id: {_ID}\r\n\r\n".encode()
    sent = request + b"".join(frame(json.dumps(one).encode(), mask=True) for one in asked)
    received = answer + b"".join(frame(json.dumps(one).encode()) for one in messages)
    return complaints(read(Recording([(0.0, sent)], [(0.0, received)])))


def frame(payload: bytes, *, mask: bool = False) -> bytes:
    head = bytes([0x81, (0x80 if mask else 0) | 126]) + len(payload).to_bytes(2, "big")
    return head + (b"\0\0\0\0" if mask else b"") + payload


def results(start: float, text: str, *, final: bool = True, finalize: bool = False) -> Message:
    words = [
        {"word": word, "punctuated_word": word, "start": start, "end": start + 0.1, "confidence": 0.5}
        for word in text.split()
    ]
    return {
        "type": "Results",
        "channel_index": [0, 1],
        "start": start,
        "duration": 1.0,
        "is_final": final,
        "speech_final": finalize,
        "from_finalize": finalize,
        "channel": {
            "alternatives": [{"transcript": text, "confidence": 0.5 if words else 0, "words": words}]
        },
        "metadata": {
            "request_id": _ID,
            "model_info": {"name": "parakeet", "version": "1", "arch": "rnnt"},
            "model_uuid": _ID,
        },
    }


METADATA: Message = {
    "type": "Metadata",
    "transaction_key": "deprecated",
    "request_id": _ID,
    "sha256": "0" * 64,
    "created": "2026-01-01T00:00:00.000Z",
    "duration": 2.0,
    "channels": 1,
}
LISTENED = [results(0, "go", final=False), results(0, "go"), results(1, "on", finalize=True), METADATA]
ASKED: list[Message] = [{"type": "Finalize"}, {"type": "CloseStream"}]


def test_a_right_conversation_is_not_complained_of() -> None:
    assert websocket("/v1/listen?interim_results=true", LISTENED, ASKED) == []


def change(number: int, **fields: object) -> Callable[[list[Message]], None]:
    return lambda messages: messages[number].update(fields)


@pytest.mark.parametrize(
    ("break_it", "complaint"),
    [
        (change(1, start=0.5), "a result begins at"),
        (change(2, from_finalize=False), "1 Finalize and 0 answers"),
        (change(0, speech_final=True), "an interim result ends the speech"),
        (change(1, extra=1), "Additional properties"),
        (change(3, request_id="1" * 36), "names request"),
        (change(3, sha256="abc"), "sha256"),
        (lambda messages: messages.append(METADATA), "not the last message, or not the only one"),
        (lambda messages: messages[1].pop("speech_final"), "'speech_final' is a required property"),
        (lambda messages: messages.insert(0, {"type": "News"}), "has no message 'News'"),
        (lambda messages: messages[1]["channel"]["alternatives"][0]["words"].clear(), "the words are not"),
    ],
)
def test_what_is_wrong_with_listen_is_told(
    break_it: Callable[[list[Message]], object], complaint: str
) -> None:
    messages = copy.deepcopy(LISTENED)
    break_it(messages)
    assert complaint in "\n".join(websocket("/v1/listen?interim_results=true", messages, ASKED))


def test_interim_results_that_nobody_asked_for_are_told() -> None:
    assert "an interim result that nobody asked for" in websocket("/v1/listen", LISTENED, ASKED)


def event(kind: str, **fields: object) -> Message:
    return {"type": kind, "event_id": f"event_{kind}_{len(fields)}", **fields}


def realtime() -> list[Message]:
    item = {
        "id": "item_1",
        "object": "realtime.item",
        "type": "message",
        "status": "completed",
        "role": "user",
        "content": [{"type": "input_audio", "transcript": None}],
    }
    place: Message = {"item_id": "item_1", "content_index": 0}
    session = {
        "type": "transcription",
        "id": "sess_1",
        "object": "realtime.transcription_session",
        "expires_at": 1,
        "audio": {
            "input": {
                "format": {"type": "audio/pcm", "rate": 24000},
                "transcription": None,
                "noise_reduction": None,
                "turn_detection": None,
            }
        },
        "include": None,
    }
    return [
        event("session.created", session=session),
        event("conversation.item.input_audio_transcription.delta", delta="go", **place),
        event("input_audio_buffer.committed", item_id="item_1", previous_item_id=None),
        event("conversation.item.added", previous_item_id=None, item=item),
        event("conversation.item.done", previous_item_id=None, item=item),
        event(
            "conversation.item.input_audio_transcription.completed",
            transcript="go",
            usage={"type": "duration", "seconds": 1},
            **place,
        ),
    ]


def test_right_events_are_not_complained_of() -> None:
    assert websocket("/v1/realtime", realtime(), []) == []


@pytest.mark.parametrize(
    ("break_it", "complaint"),
    [
        (change(1, delta="stay"), "the deltas of item_1"),
        (change(1, event_id="event_session.created_1"), "came 2 times"),
        (change(2, previous_item_id="item_0"), "names item_0, but follows None"),
        (lambda messages: messages.pop(0), "the first event is"),
        (lambda messages: messages.pop(2), "came as"),
        (lambda messages: messages.append(messages[5] | {"event_id": "other"}), "came as"),
        (lambda messages: messages[5].pop("usage"), "'usage' is a required property"),
    ],
)
def test_what_is_wrong_with_realtime_is_told(
    break_it: Callable[[list[Message]], object], complaint: str
) -> None:
    messages = realtime()
    break_it(messages)
    assert complaint in "\n".join(websocket("/v1/realtime", messages, []))


def test_an_update_without_an_answer_is_told() -> None:
    asked = [{"type": "session.update", "session": {}}]
    assert "1 session.update and 0 answers" in websocket("/v1/realtime", realtime(), asked)
