"""Messages of the server as JSON, as a client reads them; ingress/dialects/native.py writes them."""

from __future__ import annotations

from typing import Any

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
