# ruff: noqa: N818  (a name such as NoFreeStream or StreamLost says more than NoFreeStreamError)
"""The one error tree of the service.

Three families. `StreamError` and its two children reach a client, as an ``error`` message with a
stable ``code`` and one sentence; `ServiceError` and its children stay inside and reach a log or the
command line; nothing else is raised on purpose. Codes are part of the protocol: docs/protocol.md
lists them, and a code is never renamed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite
from typing import Final

import orjson


class ParakeetError(Exception):
    """Root of every error that the service raises on purpose."""


class ErrorCode(StrEnum):
    """Stable codes of ``error`` messages."""

    BAD_JSON = "bad_json"
    BAD_MESSAGE = "bad_message"
    UNKNOWN_TYPE = "unknown_type"
    BAD_FIELD = "bad_field"
    WRONG_ENCODING = "wrong_encoding"
    BAD_BASE64 = "bad_base64"
    ODD_BYTE_COUNT = "odd_byte_count"
    BAD_SAMPLES = "bad_samples"
    LINE_TOO_LONG = "line_too_long"
    FRAME_TOO_LONG = "frame_too_long"
    AUDIO_AFTER_FINAL = "audio_after_final"
    TOO_MUCH_AUDIO = "too_much_audio"
    UNKNOWN_OPTION = "unknown_option"
    BAD_OPTION = "bad_option"
    UNEXPECTED_MESSAGE = "unexpected_message"
    SLOW_READER = "slow_reader"
    IDLE_TIMEOUT = "idle_timeout"
    RESUME_REFUSED = "resume_refused"
    RESUMED_ELSEWHERE = "resumed_elsewhere"
    NO_FREE_STREAM = "no_free_stream"
    NO_WORKER = "no_worker"
    UNAUTHORIZED = "unauthorized"
    OVER_LIMIT = "over_limit"
    TOO_MANY_CONNECTIONS = "too_many_connections"
    REDIS_UNAVAILABLE = "redis_unavailable"
    STREAM_LOST = "stream_lost"
    DRAINING = "draining"
    PHRASES_FULL = "phrases_full"
    WORKER_FAILED = "worker_failed"
    POISON = "poison"
    INTERNAL = "internal"


class WarningCode(StrEnum):
    """Stable codes of ``warning`` messages."""

    INTEGER_SCALE = "integer_scale"
    OVER_FULL_SCALE = "over_full_scale"


class Fault(StrEnum):
    """The side that caused an error: the client's next step depends on it."""

    CLIENT = "client"  # sending the same again fails again
    SERVICE = "service"  # trying again, later or elsewhere, may work


class Retry(StrEnum):
    """What a client may do after an error that closes its connection. All clients go by it."""

    RESUME = "resume"  # the stream waits, if it has the option `resume`
    LATER = "later"  # a connection was refused: a stream that was to be resumed on it still waits
    ANEW = "anew"  # the stream is over, and its audio is not at fault
    NO = "no"


@dataclass(frozen=True, slots=True)
class ErrorSpec:
    """The protocol's promise about one code.

    closes: whether the server closes the connection after this error.
    meaning: one sentence for docs/protocol.md.
    retry: what the client may do then.
    """

    code: ErrorCode
    fault: Fault
    closes: bool
    meaning: str
    retry: Retry = Retry.NO


_SPECS: Final = (
    ErrorSpec(
        ErrorCode.BAD_JSON,
        Fault.CLIENT,
        True,
        "A line or text frame is not JSON, or not UTF-8. It may have been audio, so the stream "
        "cannot go on without a hole.",
    ),
    ErrorSpec(
        ErrorCode.BAD_MESSAGE,
        Fault.CLIENT,
        True,
        "The JSON is not an object with a string `type`, or it came in a binary frame.",
    ),
    ErrorSpec(
        ErrorCode.UNKNOWN_TYPE,
        Fault.CLIENT,
        False,
        "The protocol has no such `type`; the message is ignored.",
    ),
    ErrorSpec(ErrorCode.BAD_FIELD, Fault.CLIENT, True, "A field is missing or has the wrong JSON type."),
    ErrorSpec(
        ErrorCode.WRONG_ENCODING,
        Fault.CLIENT,
        True,
        "The protocol has no such `encoding`, or the audio is a container (WebM, Ogg, FLAC, MP3, WAV, MP4 "
        "and others) instead of samples.",
    ),
    ErrorSpec(ErrorCode.BAD_BASE64, Fault.CLIENT, True, "`data` is not strict base64."),
    ErrorSpec(
        ErrorCode.ODD_BYTE_COUNT,
        Fault.CLIENT,
        True,
        "The audio of a message, or of all binary frames together, is not a whole number of samples (2 bytes "
        "each for pcm16, 4 for f32, 1 for mulaw and alaw).",
    ),
    ErrorSpec(
        ErrorCode.BAD_SAMPLES,
        Fault.CLIENT,
        True,
        "A sample is NaN, infinite, beyond float32, or no number.",
    ),
    ErrorSpec(
        ErrorCode.LINE_TOO_LONG,
        Fault.CLIENT,
        True,
        "A TCP line is longer than `--max-line-bytes`.",
    ),
    ErrorSpec(
        ErrorCode.FRAME_TOO_LONG,
        Fault.CLIENT,
        True,
        "A WebSocket message is longer than `--max-frame-bytes`.",
    ),
    ErrorSpec(
        ErrorCode.AUDIO_AFTER_FINAL,
        Fault.CLIENT,
        False,
        "Audio came after `final: true` or `close`; it is ignored and the final result still comes.",
    ),
    ErrorSpec(
        ErrorCode.TOO_MUCH_AUDIO,
        Fault.CLIENT,
        True,
        "Too much waits: more than `--max-stream-seconds` of audio that is not decoded yet, `--max-finalizes`"
        " `finalize` messages, or 100 `phrases` messages.",
    ),
    ErrorSpec(ErrorCode.UNKNOWN_OPTION, Fault.CLIENT, True, "`config` names an option that does not exist."),
    ErrorSpec(
        ErrorCode.BAD_OPTION,
        Fault.CLIENT,
        True,
        "An option of `config`, or a phrase of `phrases`, has a value of the wrong type or out of its "
        "bounds, or one that the model does not have.",
    ),
    ErrorSpec(
        ErrorCode.UNEXPECTED_MESSAGE,
        Fault.CLIENT,
        True,
        "`config` or `resume` came after the stream had begun.",
    ),
    ErrorSpec(
        ErrorCode.SLOW_READER,
        Fault.CLIENT,
        True,
        "The client left its results unread past `--send-buffer-bytes`, or for too long.",
        Retry.RESUME,
    ),
    ErrorSpec(
        ErrorCode.IDLE_TIMEOUT,
        Fault.CLIENT,
        True,
        "Nothing came from the client for `--idle-timeout-s` (off by default), or less than a second of "
        "audio in `--audio-timeout-s` (an hour).",
    ),
    ErrorSpec(
        ErrorCode.RESUME_REFUSED,
        Fault.CLIENT,
        True,
        "The stream to resume is gone, its secret does not match, results after `last_seq` are no longer "
        "kept, no result had the number `last_seq`, or Redis has lost audio that was decoded.",
    ),
    ErrorSpec(
        ErrorCode.RESUMED_ELSEWHERE,
        Fault.CLIENT,
        True,
        "Another connection resumed this stream; this one is closed and the stream goes on there.",
    ),
    ErrorSpec(
        ErrorCode.NO_FREE_STREAM,
        Fault.SERVICE,
        True,
        "The cluster already serves `--max-num-streams` streams.",
        Retry.LATER,
    ),
    ErrorSpec(
        ErrorCode.NO_WORKER,
        Fault.SERVICE,
        True,
        "No worker of the cluster is alive, or none took the stream within `--claim-timeout-ms`.",
        Retry.RESUME,
    ),
    ErrorSpec(
        ErrorCode.UNAUTHORIZED,
        Fault.CLIENT,
        True,
        "The server asks for a key, and the client showed none, a wrong one, or one that was revoked, has "
        "expired, or does not allow this.",
    ),
    ErrorSpec(
        ErrorCode.OVER_LIMIT,
        Fault.SERVICE,
        True,
        "The client's key is at its limit of streams, of new streams in this minute, or of audio today.",
        Retry.LATER,
    ),
    ErrorSpec(
        ErrorCode.TOO_MANY_CONNECTIONS,
        Fault.SERVICE,
        True,
        "The ingress has `--max-connections` connections open, or the client's address has "
        "`--max-connections-per-address`.",
        Retry.LATER,
    ),
    ErrorSpec(
        ErrorCode.REDIS_UNAVAILABLE,
        Fault.SERVICE,
        True,
        "Redis does not answer, or is full.",
        Retry.RESUME,
    ),
    ErrorSpec(
        ErrorCode.STREAM_LOST,
        Fault.SERVICE,
        True,
        "Redis no longer has the stream's keys, so its audio cannot be decoded.",
        Retry.ANEW,
    ),
    ErrorSpec(
        ErrorCode.DRAINING,
        Fault.SERVICE,
        True,
        "This ingress is stopping; resume or connect elsewhere.",
        Retry.RESUME,
    ),
    ErrorSpec(
        ErrorCode.PHRASES_FULL,
        Fault.SERVICE,
        True,
        "The worker has no memory left for the stream's phrases (`--phrase-memory-mb`).",
        Retry.ANEW,
    ),
    ErrorSpec(
        ErrorCode.WORKER_FAILED,
        Fault.SERVICE,
        True,
        "The worker could not decode the stream.",
        Retry.ANEW,
    ),
    ErrorSpec(
        ErrorCode.POISON,
        Fault.CLIENT,
        True,
        "The audio of this stream made its worker crash, alone and repeatedly.",
    ),
    ErrorSpec(
        ErrorCode.INTERNAL,
        Fault.SERVICE,
        True,
        "A defect of the server; its log has the cause.",
        Retry.RESUME,
    ),
)

ERROR_SPECS: Final[dict[ErrorCode, ErrorSpec]] = {spec.code: spec for spec in _SPECS}


def retry_of(code: str) -> Retry:
    """Return what a client may do after an error; of a code that only newer servers have, nothing."""
    spec = ERROR_SPECS.get(code)  # type: ignore[call-overload]
    return Retry.NO if spec is None else spec.retry


WARNING_MEANINGS: Final[dict[WarningCode, str]] = {
    WarningCode.INTEGER_SCALE: "Float samples are in the scale of 16-bit integers: divide them by 32768.",
    WarningCode.OVER_FULL_SCALE: "A quarter of the float samples of a second, or more, are beyond twice the "
    "full scale of 1.0: the gain is too high, and the text will suffer.",
}
"""The meaning of each warning, one sentence for docs/protocol.md."""

NO_FREE_STREAM_SENTENCE: Final = "No free streaming state available."
NO_MEMORY_SENTENCE: Final = "Redis has too little memory left for another stream."


_SHOWN_CHARACTERS: Final = 40


def shown(value: object) -> str:
    """Return a client's value in the form for an error's sentence: JSON, and short."""
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    if isinstance(value, float) and not isfinite(value):
        return "a number that is too large"
    try:
        text = orjson.dumps(value).decode()
    except TypeError:  # a lone surrogate, which UTF-8 cannot encode
        text = json.dumps(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


class StreamError(ParakeetError):
    """An error that reaches the client of one stream and touches no other stream.

    code: stable machine-readable code.
    message: one sentence for people.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code: Final = code
        self.message: Final = message

    @property
    def closes(self) -> bool:
        """Whether the connection is closed after this error."""
        return ERROR_SPECS[self.code].closes

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.code.value!r}, {self.message!r})"


class ClientFault(StreamError):
    """The client sent something that the protocol does not allow."""


class Unavailable(StreamError):
    """The service cannot serve this stream, through no fault of its client."""


class NoFreeStream(Unavailable):
    """`--max-num-streams` streams are connected to the cluster, or Redis has no memory for another one."""

    def __init__(self, message: str = NO_FREE_STREAM_SENTENCE) -> None:
        super().__init__(ErrorCode.NO_FREE_STREAM, message)


class NoWorker(Unavailable):
    """No worker has a live heartbeat, or none took the stream in time."""

    def __init__(self, message: str = "No worker is alive to decode the stream.") -> None:
        super().__init__(ErrorCode.NO_WORKER, message)


class RedisUnavailable(Unavailable):
    """Redis did not answer within its time-out, or refused a write.

    reason: the cause and the address, for logs (`str`); clients receive neither. By default it is that of the
        error from which this one is raised.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(ErrorCode.REDIS_UNAVAILABLE, "Redis is not available.")
        self._reason = reason

    def __str__(self) -> str:
        return self._reason or str(self.__cause__ or self.message)


class StreamLost(Unavailable):
    """The keys of a stream have left Redis while the stream was in use."""

    def __init__(self) -> None:
        super().__init__(ErrorCode.STREAM_LOST, "The stream is no longer in Redis.")


class InternalFault(Unavailable):
    """A defect of the server ended the stream; the log has the details."""

    def __init__(self) -> None:
        super().__init__(ErrorCode.INTERNAL, "The server failed; the fault is logged.")


class ServiceError(ParakeetError):
    """An error that stays inside: it goes to a log or to the command line, never to a client."""


class SettingsError(ServiceError):
    """A flag, environment variable or combination of them has a wrong value."""


class UnfitRedis(SettingsError):
    """The server at a Redis address is not one that the service can use, and waiting does not help."""


class SettingsMismatch(SettingsError):
    """The cluster was started with another value of a setting that all its processes must share."""


class NameTaken(SettingsError):
    """Another process is the worker of this name."""

    def __init__(self, worker_id: str) -> None:
        super().__init__(
            f"Another process of this cluster is the worker {worker_id}: --worker-id must be unique, and this"
            " process ends."
        )


class EntryError(ServiceError):
    """An entry read from Redis does not have the layout that this version writes."""


class EngineError(ServiceError):
    """The engine cannot carry out a call."""


class EngineFull(EngineError):
    """Every slot of the engine is taken."""


class ModelError(ServiceError):
    """A model cannot be found, read or used."""
