"""Strict checks of all that the server said to a client: the shape of every message, and their order.

The shapes are JSON schemas that allow no unknown field, written from what today's clients need. A check
returns complaints, sentences about what is wrong; none is what a test asks for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

from jsonschema import Draft202012Validator

from tests.clients.conversation import Conversation, Exchange
from tests.clients.live_checks import deepgram_order, native_order, realtime_order

_SCHEMAS: Final = Path(__file__).parent / "schemas"
_SRT: Final = re.compile(r"(\d+\n\d\d:\d\d:\d\d,\d{3} --> \d\d:\d\d:\d\d,\d{3}\n(.+\n){1,2}\n)*")
_VTT: Final = re.compile(r"WEBVTT\n\n(\d\d:\d\d:\d\d\.\d{3} --> \d\d:\d\d:\d\d\.\d{3}\n(.+\n){1,2}\n)*")


@cache
def _definitions(schema: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((_SCHEMAS / f"{schema}.json").read_text(encoding="utf-8"))
    return found


@cache
def _validator(schema: str, name: str) -> Draft202012Validator | None:
    whole = _definitions(schema)
    if name not in whole["$defs"]:
        return None
    return Draft202012Validator({"$ref": f"#/$defs/{name}", **whole})


def shape(schema: str, name: str, value: object) -> Iterator[str]:
    """Yield what is wrong with one message. name: of its definition in the schema."""
    validator = _validator(schema, name)
    if validator is None:
        yield f"{schema} has no message {name!r}: {value}"
        return
    for error in validator.iter_errors(value):
        yield f"{schema} {name} {error.json_path}: {error.message}"


def complaints(conversation: Conversation) -> list[str]:
    """Return what is wrong with the server's side of a connection."""
    if conversation.is_websocket:
        return [*_upgrade(conversation), *_live(conversation)]
    return [text for exchange in conversation.exchanges for text in _answer(exchange)]


def _upgrade(conversation: Conversation) -> Iterator[str]:
    request, response = conversation.exchanges[-1].request, conversation.exchanges[-1].response
    if "sec-websocket-protocol" in request.headers and "sec-websocket-protocol" not in response.headers:
        yield "subprotocols were offered and none was chosen"
    if conversation.path == "/v1/listen":
        yield from shape("deepgram", "uuid", response.headers.get("dg-request-id"))


def _live(conversation: Conversation) -> Iterator[str]:
    messages = conversation.messages()
    match conversation.path:
        case "/v1/listen":
            yield from _shapes("deepgram", messages)
            yield from deepgram_order(conversation, messages)
        case "/v1/realtime":
            yield from _shapes("openai_realtime", messages)
            yield from realtime_order(conversation, messages)
        case "/" | "/ws":
            yield from _shapes("native", messages)
            yield from native_order(messages)
        case path:
            yield f"a WebSocket at {path}"


def _shapes(schema: str, messages: Iterable[dict[str, Any]]) -> Iterator[str]:
    for message in messages:
        yield from shape(schema, str(message.get("type")), message)


def _answer(exchange: Exchange) -> Iterator[str]:
    """Yield what is wrong with an answer over HTTP."""
    response = exchange.response
    kind = response.headers.get("content-type", "")
    schema = "deepgram" if exchange.path == "/v1/listen" else "openai_files"
    if schema == "deepgram":
        yield from shape("deepgram", "uuid", response.headers.get("dg-request-id"))
    if response.status != 200:
        yield from shape(schema, "refusal", json.loads(response.body))
    elif exchange.path == "/v1/listen":
        yield from shape("deepgram", "recording", json.loads(response.body))
    elif exchange.path == "/v1/audio/transcriptions":
        yield from _transcription(kind, response.body)
    elif exchange.path == "/v1/models":
        yield from shape("openai_files", "models", json.loads(response.body))
    else:
        yield f"{exchange.path} is not known here"


def _transcription(kind: str, body: bytes) -> Iterator[str]:
    match kind:
        case "application/json":
            answer = json.loads(body)
            yield from shape("openai_files", "verbose_json" if "task" in answer else "json", answer)
        case "text/event-stream; charset=utf-8":
            yield from _events(body.decode())
        case "text/plain; charset=utf-8":
            text = body.decode()
            looks_like_cues = " --> " in text or text.startswith("WEBVTT")
            if looks_like_cues and not (_SRT.fullmatch(text) or _VTT.fullmatch(text)):
                yield f"neither srt nor vtt: {text!r}"
        case _:
            yield f"content type {kind}"


def _events(text: str) -> Iterator[str]:
    """Yield what is wrong with server-sent events of a transcription."""
    *events, rest = text.split("\n\n")
    if rest:
        yield f"an event without its end: {rest!r}"
    messages = []
    for event in events:
        if not event.startswith("data: ") or "\n" in event:
            yield f"not one line of data: {event!r}"
        else:
            messages.append(json.loads(event.removeprefix("data: ")))
    yield from _shapes("openai_files", messages)
    added = "".join(message.get("delta", "") for message in messages)
    whole = messages[-1].get("text") if messages else None
    if added != whole:
        yield f"the deltas are {added!r}, the text {whole!r}"
