"""A transcript in the shapes of OpenAI's transcription endpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from common.captions.subtitles import cues, srt, vtt
from common.messages import Utterance, Word
from ingress.dialects.openai.events import word_logprobs
from ingress.files.recording_stream import Transcript

FORMATS: Final = ("json", "text", "srt", "vtt", "verbose_json")
# OpenAI has no events with times: where it takes these formats (whisper-1), it ignores `stream`.
STREAMED_FORMATS: Final = ("json", "text")
# Values of fields that have no meaning for this model.
_NO_COMPRESSION: Final = 1.0


def subtitles(transcript: Transcript, kind: str) -> str:
    """Return the transcript as srt or vtt."""
    made = cues(transcript.words, transcript.utterances)
    return srt(made) if kind == "srt" else vtt(made)


def plain(transcript: Transcript, *, logprobs: bool = False) -> dict[str, Any]:
    """Return the shape `json`. logprobs: whether to add the log probability of each word."""
    shape: dict[str, Any] = {"text": transcript.text, "usage": usage(transcript)}
    if logprobs:
        shape["logprobs"] = word_logprobs(transcript.words)
    return shape


def usage(transcript: Transcript) -> dict[str, Any]:
    """Return the object `usage`: the length of the audio, as OpenAI counts it."""
    return {"type": "duration", "seconds": math.ceil(transcript.duration_s)}


def verbose(transcript: Transcript, language: str, granularities: Sequence[str]) -> dict[str, Any]:
    """Return the shape `verbose_json`; segments are utterances."""
    shape: dict[str, Any] = {
        "task": "transcribe",
        "language": language,
        "duration": round(transcript.duration_s, 3),
        "text": transcript.text,
        "usage": usage(transcript),
    }
    if "segment" in granularities:
        shape["segments"] = [
            _segment(number, utterance, words)
            for number, (utterance, words) in enumerate(transcript.words_of_utterances())
        ]
    if "word" in granularities:
        shape["words"] = [
            {"word": word.word, "start": word.start_s, "end": word.end_s} for word in transcript.words
        ]
    return shape


def _segment(number: int, utterance: Utterance, words: Sequence[Word]) -> dict[str, Any]:
    logprobs = [math.log(max(word.confidence, 1e-6)) for word in words]
    return {
        "id": number,
        "seek": 0,
        "start": utterance.start_s,
        "end": utterance.end_s,
        "text": utterance.text,
        "tokens": [],
        "temperature": 0.0,
        "avg_logprob": round(sum(logprobs) / len(logprobs), 4) if logprobs else 0.0,
        "compression_ratio": _NO_COMPRESSION,
        "no_speech_prob": 0.0,
    }
