"""The client protocol: one frozen dataclass per message; field names and meanings as in docs/protocol.md.

common/client_codec.py, common/server_codec.py and ingress/dialects/native.py encode and decode them as JSON.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, Literal, TypeVar

from common.hot_value import hot_value
from common.options import StreamOptions
from common.phrases import Phrase

TurnDetection = Literal["start_of_utterance", "running", "pause", "end_of_utterance"]
LastState = Literal["speech", "silence"]


class Encoding(StrEnum):
    """The encoding of an audio payload's samples; all are mono, and little-endian where it matters."""

    PCM16 = "pcm16"
    F32 = "f32"
    MULAW = "mulaw"  # ITU-T G.711
    ALAW = "alaw"

    # Encodings are looked up for every message, and Enum's own hash is a Python function.
    __hash__ = str.__hash__

    @property
    def sample_bytes(self) -> int:
        """Number of bytes of one sample."""
        return 1 << _SAMPLE_BITS[self]


# The number of bytes of a sample, as a power of two.
_SAMPLE_BITS: Final = {Encoding.PCM16: 1, Encoding.F32: 2, Encoding.MULAW: 0, Encoding.ALAW: 0}


# Messages of the client ---------------------------------------------------------------------------


@hot_value
class Audio:
    """Samples at the stream's rate: the rate of its `config`, or else of `hello`.

    payload: whole samples in `encoding`, possibly none.
    final: no audio follows; the server answers with the final result.
    """

    payload: bytes
    encoding: Encoding = Encoding.PCM16
    final: bool = False

    @property
    def num_samples(self) -> int:
        """Number of samples in the payload."""
        return len(self.payload) >> _SAMPLE_BITS[self.encoding]


@dataclass(frozen=True, slots=True)
class Config:
    """Options of the stream; only as the first message."""

    options: StreamOptions


@dataclass(frozen=True, slots=True)
class Resume:
    """Go on with a stream whose connection was lost; only as the first message.

    last_seq: `seq` of the last result that the client has, 0 for none.
    audio_ack_samples: the last `audio_ack_samples` that the client has seen.
    """

    stream_id: int
    resume_token: str
    last_seq: int
    audio_ack_samples: int


@dataclass(frozen=True, slots=True)
class Close:
    """No audio follows; the server answers with the final result."""


@dataclass(frozen=True, slots=True)
class Finalize:
    """Request for a result of all audio so far, like that after `Close`; the stream goes on."""


@dataclass(frozen=True, slots=True)
class Phrases:
    """Replaces a stream's phrases from the first chunk after the audio so far; an empty list: none."""

    phrases: tuple[Phrase, ...]


@dataclass(frozen=True, slots=True)
class Ping:
    """Request for a `Pong`; begins no stream."""


@dataclass(frozen=True, slots=True)
class Auth:
    """Shows a key, or a temporary token; on the TCP port of a server with keys, the first message."""

    token: str


ClientMessage = Auth | Audio | Config | Phrases | Resume | Close | Finalize | Ping

# Messages of the server ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of a connection.

    stream_id: unique in the cluster.   sample_rate: rate of the audio if `config` states no other, Hz.
    resume_token: secret that `resume` has to show.   capabilities: names of optional features.
    """

    stream_id: int
    sample_rate: int
    resume_token: str
    capabilities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Word:
    """One word; times in seconds from the first sample of the stream."""

    word: str
    start_s: float
    end_s: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Utterance:
    """The final of one utterance, with the option `auto_finalize`: it will not change any more.

    `number` counts from 1; `text` holds the words of its time; times are in
    seconds from the first sample of the stream.
    """

    number: int
    text: str
    start_s: float
    end_s: float


@hot_value
class Result:
    """The result of a piece of audio: of a chunk, a part of one, or a merged range of them.

    text: the whole transcript of the stream so far, across utterances.
    token_ids, confidence_scores: those of the new tokens in this result, aligned.
    seq: gapless from 1. seq_first: first of the range `seq_first`..`seq` of merged results, else None.
    audio_ack_samples: samples of the client, at the client's rate, that this result covers.
    words: new words, only with the option `words`.
    utterances: finals of utterances, only with the option `auto_finalize` and where there are any.
    from_finalize: whether it is the answer to `Finalize`.
    text_from: number of code points that `text` shares with the result before; the rest is new.
    """

    text: str
    token_ids: tuple[int, ...]
    confidence_scores: tuple[float, ...]
    is_final: bool
    last_state: LastState | None
    turn_detection: TurnDetection
    seq: int
    audio_ack_samples: int
    seq_first: int | None = None
    words: tuple[Word, ...] | None = None
    utterances: tuple[Utterance, ...] = ()
    text_from: int = 0
    from_finalize: bool = False

    def until(self, end_s: float) -> Result:
        """Return the result with no time after the end of the audio: the model's last frame goes on beyond.

        end_s: seconds from the first sample of the stream.
        """
        words = None if self.words is None else tuple([_until(word, end_s) for word in self.words])
        utterances = tuple([_until(utterance, end_s) for utterance in self.utterances])
        return replace(self, words=words, utterances=utterances)


_Timed = TypeVar("_Timed", Word, Utterance)


def _until(timed: _Timed, end_s: float) -> _Timed:
    return replace(timed, start_s=min(timed.start_s, end_s), end_s=min(timed.end_s, end_s))


@dataclass(frozen=True, slots=True)
class Ack:
    """Progress without a result: audio was decoded."""

    audio_ack_samples: int


@dataclass(frozen=True, slots=True)
class Resumed:
    """Answer to `Resume`: results after `last_seq` follow; go on with sample `next_sample`.

    next_sample: first sample, counted from the start of the stream, that the server does not have.
    """

    stream_id: int
    resume_token: str
    next_sample: int


@dataclass(frozen=True, slots=True)
class Pong:
    """Answer to `Ping`."""


@dataclass(frozen=True, slots=True)
class ErrorMessage:
    """An error. `code` is stable (common/errors.py), `message` is a sentence for people."""

    code: str
    message: str
    stream_id: int | None = None


@dataclass(frozen=True, slots=True)
class WarningMessage:
    """A warning of a probable mistake of the client; the stream goes on. `code` is a `WarningCode`."""

    code: str
    message: str


ServerMessage = Hello | Result | Ack | Resumed | Pong | ErrorMessage | WarningMessage
