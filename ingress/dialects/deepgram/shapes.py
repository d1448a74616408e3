"""Deepgram's JSON shapes of words, the model and times, for live streams and recordings."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from common.messages import Word

MODEL_NAME: Final = "parakeet"
MODEL_INFO: Final = {"name": MODEL_NAME, "version": "1", "arch": "fastconformer-rnnt"}
MODEL_UUID: Final = str(uuid.uuid5(uuid.NAMESPACE_URL, MODEL_NAME))


def word_shape(word: Word) -> dict[str, Any]:
    """Return the object of a word: bare, as it was written, and its times in seconds."""
    return {
        "word": bare(word.word),
        "start": word.start_s,
        "end": word.end_s,
        "confidence": word.confidence,
        "punctuated_word": word.word,
    }


def bare(word: str) -> str:
    """Return a word in lower case, without punctuation marks around it."""
    return word.lower().strip('.,?!;:"“”„()') or word.lower()


def confidence_of(words: Sequence[Word]) -> float:
    """Return the mean of the words' confidences; 0 without words."""
    return round(sum(word.confidence for word in words) / len(words), 6) if words else 0.0


def timestamp() -> str:
    """Return the present time in the format of `created`."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
