"""The client protocol: one frozen dataclass per message, and the JSON codec for both directions.

Field names and meanings are those of docs/protocol.md. Decoding is strict about what it uses and
ignores fields that it does not know, so that a newer client can talk to an older server; options
(common/options.py) are the exception.
"""

from __future__ import annotations

import binascii
import json
import sys
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite
from typing import Any, Final, Literal

import orjson

from common.errors import ClientFault, ErrorCode
from common.hot_value import hot_value
from common.options import StreamOptions, parse_options

# With SIMD instructions the decoding of a message takes a fifteenth of binascii's time, which was the
# largest single part of an ingress's work on a message.
_b64decode: Callable[..., bytes] | None
try:
    from pybase64 import b64decode as _b64decode
except ImportError:
    _b64decode = None

TurnDetection = Literal["start_of_utterance", "running", "pause", "end_of_utterance"]
LastState = Literal["speech", "silence"]


class Encoding(StrEnum):
    """How the samples of an audio payload are written; both are little-endian and mono."""

    PCM16 = "pcm16"
    F32 = "f32"

    # Encodings are looked up for every message, and Enum's own hash is a Python function.
    __hash__ = str.__hash__

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample."""
        return 2 if self is Encoding.PCM16 else 4


# Messages of the client ---------------------------------------------------------------------------


@hot_value
class Audio:
    """Samples at the rate that `hello` stated.

    payload: whole samples in `encoding`, possibly none.
    final: no audio follows; the server answers with the final result.
    """

    payload: bytes
    encoding: Encoding = Encoding.PCM16
    final: bool = False

    @property
    def num_samples(self) -> int:
        """Number of samples in the payload."""
        return len(self.payload) >> (1 if self.encoding is Encoding.PCM16 else 2)


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
class Ping:
    """Asks for a `Pong`; begins no stream."""


ClientMessage = Audio | Config | Resume | Close | Ping

# Messages of the server ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of a connection.

    stream_id: unique in the cluster.   sample_rate: of the audio that the server expects, Hz.
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
    """The final of one utterance: `text` is what the transcript gained since the last one.

    Times are in seconds from the first sample of the stream.
    """

    number: int
    text: str
    start_s: float
    end_s: float


@hot_value
class Result:
    """What the decoder has to say after one chunk (or a merged range of chunks).

    text: the whole transcript of the stream so far, across utterances.
    token_ids, confidence_scores: of the tokens that are new in this result, aligned.
    seq: gapless from 1; `seq_first`..`seq` where partial results were merged, None where not.
    audio_ack_samples: samples of the client, at the client's rate, that this result covers.
    words: new words, only with the option `words`.
    utterances: finals of utterances, only with the option `auto_finalize` and where there are any.
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


@dataclass(frozen=True, slots=True)
class Ack:
    """Audio was decoded without a result; sent only with the option `resume`."""

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
    """What went wrong. `code` is stable (common/errors.py), `message` is a sentence for people."""

    code: str
    message: str
    stream_id: int | None = None


ServerMessage = Hello | Result | Ack | Resumed | Pong | ErrorMessage

# Codec, client to server --------------------------------------------------------------------------

_PCM16: Final = Encoding.PCM16
_F32: Final = Encoding.F32


def decode_client_message(data: bytes | bytearray | memoryview | str) -> ClientMessage:
    """Decode one line or text frame of a client.

    Raises ClientFault, whose code and sentence say what is wrong with the message.
    """
    try:
        fields = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise _bad_json(data, error) from None
    if type(fields) is not dict:
        raise ClientFault(ErrorCode.BAD_MESSAGE, "A message is a JSON object.")
    kind = fields.get("type")
    if kind == "audio":
        return _decode_audio(fields)
    if type(kind) is not str:
        raise ClientFault(ErrorCode.BAD_MESSAGE, "A message has a string 'type'.")
    decode = _CLIENT_DECODERS.get(kind)
    if decode is None:
        raise ClientFault(ErrorCode.UNKNOWN_TYPE, f"There is no message type '{kind[:40]}'.")
    return decode(fields)


def binary_audio(payload: bytes) -> Audio:
    """Take a binary WebSocket frame, which is raw pcm16. Raises ClientFault `odd_byte_count`."""
    if len(payload) & 1:
        raise _odd(payload, _PCM16)
    return Audio(payload)


def _decode_audio(fields: dict[str, Any]) -> Audio:
    final = fields.get("final", False)
    if final is not True and final is not False:
        raise _bad_field("audio", "final", "true or false", final)
    data = fields.get("data")
    if type(data) is str:
        if "samples" in fields:
            raise ClientFault(ErrorCode.BAD_FIELD, "'audio' carries either 'data' or 'samples', not both.")
        encoding = fields.get("encoding", "pcm16")
        if encoding != "pcm16" and encoding != "f32":
            raise ClientFault(
                ErrorCode.WRONG_ENCODING,
                f"'encoding' is 'pcm16' or 'f32', not {_shown(encoding)}.",
            )
        try:
            payload = decode_base64(data)
        except ValueError as error:  # binascii.Error is one, as is a non-ASCII string
            raise ClientFault(
                ErrorCode.BAD_BASE64, f"'data' is not base64: {str(error).rstrip('.')}."
            ) from None
        if encoding == "pcm16":
            if len(payload) & 1:
                raise _odd(payload, _PCM16)
            return Audio(payload, _PCM16, final)
        return Audio(_checked_f32(payload), _F32, final)
    if data is not None:
        raise _bad_field("audio", "data", "a base64 string", data)
    samples = fields.get("samples")
    if samples is None:
        if final:
            return Audio(b"", _PCM16, True)
        raise ClientFault(ErrorCode.BAD_FIELD, "'audio' needs 'data' or 'samples'.")
    if type(samples) is not list:
        raise _bad_field("audio", "samples", "a list of numbers", samples)
    return Audio(_packed_samples(samples), _F32, final)


def decode_base64(data: str | bytes | memoryview) -> bytes:
    """Decode strictly. Raises ValueError with a reason that can be shown."""
    if _b64decode is not None:
        try:
            return _b64decode(data, validate=True)
        except ValueError:
            pass  # its reason is always the same: let binascii, which judges alike, say more
    return binascii.a2b_base64(data, strict_mode=True)


def _packed_samples(samples: list[Any]) -> bytes:
    try:
        values = array("f", samples)
    except (TypeError, OverflowError):
        raise _bad_samples() from None
    return _checked_f32(_little_endian(values).tobytes())


def _checked_f32(payload: bytes) -> bytes:
    if len(payload) & 3:
        raise _odd(payload, _F32)
    values = array("f")
    values.frombytes(payload)
    # The sum in float64 of float32 values is finite exactly if each of them is: they are too small
    # to overflow it. This is the fastest check that needs no numpy.
    if not isfinite(sum(_little_endian(values))):
        raise _bad_samples()
    return payload


def _little_endian(values: array[float]) -> array[float]:
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _decode_config(fields: dict[str, Any]) -> Config:
    return Config(parse_options({name: fields[name] for name in fields if name != "type"}))


def _decode_resume(fields: dict[str, Any]) -> Resume:
    token = fields.get("resume_token")
    if type(token) is not str:
        raise _bad_field("resume", "resume_token", "a string", token)
    return Resume(
        stream_id=_count(fields, "stream_id"),
        resume_token=token,
        last_seq=_count(fields, "last_seq"),
        audio_ack_samples=_count(fields, "audio_ack_samples"),
    )


def _count(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    if type(value) is not int or value < 0:
        raise _bad_field("resume", name, "an integer of at least 0", value)
    return value


_CLIENT_DECODERS: Final[dict[str, Callable[[dict[str, Any]], ClientMessage]]] = {
    "close": lambda fields: Close(),
    "ping": lambda fields: Ping(),
    "config": _decode_config,
    "resume": _decode_resume,
}


def _bad_json(data: bytes | bytearray | memoryview | str, error: orjson.JSONDecodeError) -> ClientFault:
    """Say what is wrong with text that is not JSON.

    Python's and other encoders write NaN and Infinity as bare words, which JSON does not have: that
    gets its own answer, as the fault lies in the samples.
    """
    try:
        text = data if isinstance(data, str) else bytes(data).decode()
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return ClientFault(ErrorCode.BAD_JSON, f"This is not JSON: {str(error).rstrip('.')}.")
    if isinstance(fields, dict) and fields.get("type") == "audio" and "samples" in fields:
        return _bad_samples()
    return ClientFault(ErrorCode.BAD_JSON, "NaN and Infinity are not JSON.")


def _bad_samples() -> ClientFault:
    return ClientFault(ErrorCode.BAD_SAMPLES, "Every sample is a finite number within float32.")


def _odd(payload: bytes, encoding: Encoding) -> ClientFault:
    return ClientFault(
        ErrorCode.ODD_BYTE_COUNT,
        f"{len(payload)} bytes are not a whole number of {encoding.value} samples "
        f"({encoding.sample_bytes} bytes each).",
    )


def _bad_field(message: str, name: str, takes: str, value: object) -> ClientFault:
    got = "nothing" if value is None else _shown(value)
    return ClientFault(ErrorCode.BAD_FIELD, f"'{name}' of '{message}' is {takes}, not {got}.")


def _shown(value: object) -> str:
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    text = orjson.dumps(value).decode()
    return text if len(text) <= 40 else text[:40] + "..."


def encode_client_message(message: ClientMessage) -> bytes:
    """Encode a message as the client sends it, without the newline of the TCP framing."""
    match message:
        case Audio(payload, encoding, final):
            fields: dict[str, Any] = {
                "type": "audio",
                "encoding": encoding.value,
                "data": binascii.b2a_base64(payload, newline=False).decode("ascii"),
            }
            if final:
                fields["final"] = True
        case Config(options):
            fields = {"type": "config", **_options_fields(options)}
        case Resume():
            fields = {
                "type": "resume",
                "stream_id": message.stream_id,
                "resume_token": message.resume_token,
                "last_seq": message.last_seq,
                "audio_ack_samples": message.audio_ack_samples,
            }
        case Close():
            fields = {"type": "close"}
        case Ping():
            fields = {"type": "ping"}
    return orjson.dumps(fields)


def _options_fields(options: StreamOptions) -> dict[str, Any]:
    """Write only what differs from the defaults: an older server knows fewer options."""
    defaults = StreamOptions()
    return {
        name: getattr(options, name)
        for name in StreamOptions.__slots__
        if getattr(options, name) != getattr(defaults, name)
    }


# Codec, server to client --------------------------------------------------------------------------

_PONG: Final = b'{"type":"pong"}'


def encode_server_message(message: ServerMessage) -> bytes:
    """Encode a message as the server sends it, without the newline of the TCP framing."""
    match message:
        case Result():
            return _encode_result(message)
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
    return orjson.dumps(fields)


def _encode_result(result: Result) -> bytes:
    fields: dict[str, Any] = {
        "type": "result",
        "text": result.text,
        "token_ids": result.token_ids,
        "confidence_scores": result.confidence_scores,
        "is_final": result.is_final,
        "last_state": result.last_state,
        "turn_detection": result.turn_detection,
        "seq": result.seq,
    }
    if result.seq_first is not None:
        fields["seq_first"] = result.seq_first
    fields["audio_ack_samples"] = result.audio_ack_samples
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
    return orjson.dumps(fields)


def decode_server_message(data: bytes | bytearray | memoryview | str) -> ServerMessage | None:
    """Decode one line or text frame of a server; None for a type of a newer server.

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
    )
