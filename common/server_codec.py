"""Messages of the server as JSON: what a server writes and a client reads."""

from __future__ import annotations

from typing import Any, Final

import orjson

from common.errors import ErrorCode
from common.messages import (
    Ack,
    ErrorMessage,
    Hello,
    Pong,
    Result,
    Resumed,
    ServerMessage,
    Utterance,
    WarningMessage,
    Word,
)

_PONG: Final = b'{"type":"pong"}'


def encode_server_message(message: ServerMessage) -> bytes:
    """Encode a message as the server sends it, without the newline of the TCP framing."""
    match message:
        case Result():
            return encode_result(message)
        case Pong():
            return _PONG
        case Ack(audio_ack_samples):
            fields: dict[str, Any] = {"type": "ack", "audio_ack_samples": audio_ack_samples}
        case Hello():
            fields = {
                "type": "hello",
                "stream_id": message.stream_id,
                "sample_rate": message.sample_rate,
                "resume_token": message.resume_token,
                "capabilities": message.capabilities,
            }
        case Resumed():
            fields = {
                "type": "resumed",
                "stream_id": message.stream_id,
                "resume_token": message.resume_token,
                "next_sample": message.next_sample,
            }
        case ErrorMessage():
            fields = {"type": "error", "code": message.code, "message": message.message}
            if message.stream_id is not None:
                fields["stream_id"] = message.stream_id
        case WarningMessage(code, sentence):
            fields = {"type": "warning", "code": code, "message": sentence}
    return orjson.dumps(fields)


def encode_result(result: Result, *, new_text: bool = False) -> bytes:
    """Encode a `result` message.

    new_text: with the part of the text that is new, and where it goes, instead of the whole.
    """
    fields: dict[str, Any] = {
        "type": "result",
        "text": result.text[result.text_from :] if new_text else result.text,
    }
    if new_text:
        fields["text_from"] = result.text_from
    fields |= {
        "token_ids": result.token_ids,
        "confidence_scores": result.confidence_scores,
        "is_final": result.is_final,
        "last_state": result.last_state,
        "turn_detection": result.turn_detection,
        "seq": result.seq,
        "audio_ack_samples": result.audio_ack_samples,
    }
    if result.words is not None:
        fields["words"] = [
            {
                "word": word.word,
                "start_s": word.start_s,
                "end_s": word.end_s,
                "confidence": word.confidence,
            }
            for word in result.words
        ]
    if result.utterances:
        fields["utterances"] = result.utterances
    if result.seq_first is not None:
        fields["seq_first"] = result.seq_first
    if result.from_finalize:
        fields["from_finalize"] = True
    return orjson.dumps(fields)


def decode_server_message(data: bytes | bytearray | memoryview | str) -> ServerMessage | None:
    """Decode one line or text frame of a server; None for a type of a newer server.

    Of a result with the new text alone, `text` is that, and `text_from` where it goes.
    Raises ValueError for anything that is not a message of this protocol.
    """
    fields = orjson.loads(data)
    if not isinstance(fields, dict):
        raise ValueError("A message of the server is a JSON object.")
    try:
        match fields.get("type"):
            case "result":
                return _decode_result(fields)
            case "hello":
                return Hello(
                    fields["stream_id"],
                    fields["sample_rate"],
                    fields.get("resume_token", ""),
                    tuple(fields.get("capabilities", ())),
                )
            case "ack":
                return Ack(fields["audio_ack_samples"])
            case "resumed":
                return Resumed(fields["stream_id"], fields["resume_token"], fields["next_sample"])
            case "pong":
                return Pong()
            case "error":
                return ErrorMessage(
                    fields.get("code", ErrorCode.INTERNAL.value),
                    fields["message"],
                    fields.get("stream_id"),
                )
            case "warning":
                return WarningMessage(fields["code"], fields["message"])
            case _:
                return None
    except (KeyError, TypeError) as error:
        raise ValueError(f"A message of the server lacks a field: {error!r}.") from error


def _decode_result(fields: dict[str, Any]) -> Result:
    words = fields.get("words")
    return Result(
        text=fields["text"],
        token_ids=tuple(fields["token_ids"]),
        confidence_scores=tuple(fields["confidence_scores"]),
        is_final=fields["is_final"],
        last_state=fields["last_state"],
        turn_detection=fields["turn_detection"],
        seq=fields["seq"],
        audio_ack_samples=fields["audio_ack_samples"],
        seq_first=fields.get("seq_first"),
        words=None
        if words is None
        else tuple(Word(word["word"], word["start_s"], word["end_s"], word["confidence"]) for word in words),
        utterances=tuple(
            Utterance(one["number"], one["text"], one["start_s"], one["end_s"])
            for one in fields.get("utterances", ())
        ),
        text_from=fields.get("text_from", 0),
        from_finalize=fields.get("from_finalize", False),
    )
