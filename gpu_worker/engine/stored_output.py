"""Engine outputs that are stored inside a snapshot."""

from __future__ import annotations

from typing import Any

from common.entries import StreamId
from common.messages import Utterance, Word
from gpu_worker.engine.interface import StreamOutput


def decode_output(stream: StreamId, values: dict[str, Any]) -> StreamOutput:
    """Return the output of which `values` is the `asdict`, for a stream that may have a new id."""
    words = values["words"]
    return StreamOutput(
        **{
            **values,
            "stream": stream,
            "token_ids": tuple(values["token_ids"]),
            "confidence_scores": tuple(values["confidence_scores"]),
            "token_frames": tuple(values["token_frames"]),
            "words": None if words is None else tuple(Word(**word) for word in words),
            "utterances": tuple(Utterance(**utterance) for utterance in values["utterances"]),
        }
    )
