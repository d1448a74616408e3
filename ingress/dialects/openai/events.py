"""The server's events of OpenAI's realtime protocol, as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import orjson

from common.messages import Word
from ingress.dialects.dialect import Frame

_LEAST_CONFIDENCE: Final = 1e-6


class Events:
    """Encodes the events of one connection, and numbers events and items.

    stream_id: id in `hello`, 0 before; it is part of all ids, so that they are unique in the cluster.
    """

    __slots__ = ("_num_events", "_num_items", "stream_id")

    def __init__(self) -> None:
        self.stream_id = 0
        self._num_events = 0
        self._num_items = 0

    def write(self, kind: str, **fields: Any) -> Frame:
        """Encode the next event."""
        self._num_events += 1
        event_id = f"event_{self.stream_id}_{self._num_events}"
        return Frame(orjson.dumps({"type": kind, "event_id": event_id, **fields}))

    def new_item(self) -> str:
        """Return the id of the next item."""
        self._num_items += 1
        return f"item_{self.stream_id}_{self._num_items}"


def item_fields(item_id: str) -> dict[str, Any]:
    """Return the object of an item: audio that is committed, and whose transcript is to come."""
    return {
        "id": item_id,
        "object": "realtime.item",
        "type": "message",
        "status": "completed",
        "role": "user",
        "content": [{"type": "input_audio", "transcript": None}],
    }


def word_logprobs(words: Sequence[Word]) -> list[dict[str, Any]]:
    """Return words as OpenAI's tokens, which concatenate to the transcript."""
    made = []
    for number, word in enumerate(words):
        token = f" {word.word}" if number else word.word
        logprob = min(0.0, math.log(max(word.confidence, _LEAST_CONFIDENCE)))
        made.append({"token": token, "logprob": round(logprob, 4), "bytes": list(token.encode())})
    return made
