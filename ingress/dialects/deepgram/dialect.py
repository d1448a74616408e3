"""`GET /v1/listen`: Deepgram's streaming protocol (docs/deepgram.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import orjson

from common.errors import ERROR_SPECS, ClientFault, ErrorCode, StreamError
from common.messages import (
    Ack,
    ClientMessage,
    Close,
    ErrorMessage,
    Finalize,
    Phrases,
    Result,
    ServerMessage,
)
from common.options import StreamOptions
from common.phrases import MAX_PHRASES
from ingress.dialects.audio_input import AudioInput
from ingress.dialects.closing import INTERNAL_ERROR, POLICY_VIOLATION, farewell_of
from ingress.dialects.deepgram.query import ListenQuery, phrases_of
from ingress.dialects.deepgram.refusals import refusal_of
from ingress.dialects.deepgram.segment import Segment, Segments
from ingress.dialects.deepgram.shapes import MODEL_INFO, MODEL_UUID, confidence_of, timestamp, word_shape
from ingress.dialects.dialect import Farewell, Frame, Heard
from ingress.dialects.mixdown import Mixdown
from ingress.http.refusal import Refusal
from ingress.media.wanted import Media, MediaWanted

DEFAULT_RATE: Final = 16_000
_MAX_PACKET_BYTES: Final = 0xFFFF
_MAX_SHOWN: Final = 200
_MAX_REASON_BYTES: Final = 123  # of a close frame (RFC 6455, section 5.5)
# The detector reports a start of speech after this much speech (--turn-min-speech-ms): the speech began then.
_START_HEARD_S: Final = 0.1

# Close code, and Deepgram's own code where it has one.
_BAD_AUDIO: Final = (POLICY_VIOLATION, "DATA-0000")
_CLOSES: Final = {
    ErrorCode.WRONG_ENCODING: _BAD_AUDIO,
    ErrorCode.BAD_SAMPLES: _BAD_AUDIO,
    ErrorCode.POISON: _BAD_AUDIO,
    ErrorCode.IDLE_TIMEOUT: (INTERNAL_ERROR, "NET-0001"),
}


class _Interim(NamedTuple):
    """An interim result that a later one of the same channel may replace."""

    data: bytes


class DeepgramDialect:
    """One connection's side of Deepgram's protocol (a `Dialect`).

    query: the parsed query of its request.
    """

    def __init__(self, query: ListenQuery) -> None:
        self.options: StreamOptions = query.options
        self.num_streams = query.num_streams
        self.resumes = False
        self.admitted_first = True
        self.headers: tuple[tuple[str, str], ...] = (("dg-request-id", query.request_id),)
        self.replies: list[Frame] = []
        self.media: MediaWanted | None = query.media
        self._query = query
        self._input = AudioInput(query.encoding, query.options.sample_rate or DEFAULT_RATE, query.channels)
        is_mixed = query.media is None and query.num_streams < query.channels
        self._mixdown = Mixdown(query.encoding, query.channels) if is_mixed else None
        self._begun = False
        self._digest = hashlib.sha256()
        self._created = timestamp()
        self._channels = [Segments() for _ in range(query.num_streams)]
        self._num_ended = 0
        self._metadata = {
            "request_id": query.request_id,
            "model_info": MODEL_INFO,
            "model_uuid": MODEL_UUID,
        }

    # Messages from the client

    def decode_binary(self, data: bytes) -> Heard:
        """Take audio; an empty frame ends the stream. Raises ClientFault."""
        if not data:
            return self._behind_audio(Close())
        self._digest.update(data)
        if self.media is not None:
            return self._packet(data) if self.media.packets else Media(data)
        if not self._begun:
            self._begun = True
            if data.startswith(b"RIFF"):
                self._input.goes_on()  # a recording with its WAV head, which is decoded as samples: a click
        audio = self._input.binary(data)
        self._input.check(audio)
        if self._mixdown is not None:
            audio = self._mixdown.mixed(audio)
        return audio if audio.payload else None

    def _behind_audio(self, message: ClientMessage) -> Heard:
        """Return a message behind all audio that came before it."""
        rest = None if self._mixdown is None else self._mixdown.rest()
        return message if rest is None else [rest, message]

    @staticmethod
    def _packet(data: bytes) -> Media:
        if len(data) > _MAX_PACKET_BYTES:
            raise ClientFault(ErrorCode.WRONG_ENCODING, "A packet of Opus has at most 65535 bytes.")
        return Media(len(data).to_bytes(2, "big") + data)

    def decode_text(self, data: bytes) -> Heard:
        """Take a control message. An invalid message gets an error as reply, and the stream goes on."""
        try:
            message = orjson.loads(data)
        except orjson.JSONDecodeError:
            message = None
        match message:
            case {"type": "KeepAlive"}:
                return None
            case {"type": "Finalize"}:
                return self._behind_audio(Finalize())
            case {"type": "CloseStream"}:
                return self._behind_audio(Close())
            case {"type": "Configure"}:
                return self._configure(message.get("keyterms"))
        self._reply(
            type="Error",
            variant="SchemaError",
            description="A text frame is KeepAlive, Finalize, CloseStream or Configure, as JSON.",
            message=data[:_MAX_SHOWN].decode(errors="replace"),
        )
        return None

    def _configure(self, keyterms: object) -> Phrases | None:
        """Reply to `Configure` with the key terms in effect; the features that it names change nothing."""
        request_id = self._query.request_id
        if keyterms is None:
            self._reply(type="ConfigureSuccess", request_id=request_id)
            return None
        try:
            if not isinstance(keyterms, list) or not all(isinstance(term, str) for term in keyterms):
                raise ClientFault(ErrorCode.BAD_OPTION, "'keyterms' is a list of strings.")
            phrases = phrases_of(keyterms, name="keyterms")
        except ClientFault as error:
            too_many = isinstance(keyterms, list) and len(keyterms) > MAX_PHRASES
            code = "CONFIGURE_KEYTERM_LIMIT_EXCEEDED" if too_many else "CONFIGURE_INTERNAL_ERROR"
            self._reply(type="ConfigureFailure", request_id=request_id, code=code, description=error.message)
            return None
        in_effect = [term for term in keyterms if self._query.languages.can_write(term)]
        self._reply(type="ConfigureSuccess", request_id=request_id, keyterms=in_effect)
        return Phrases(phrases)

    def _reply(self, **fields: object) -> None:
        self.replies.append(Frame(orjson.dumps(fields)))

    def resumed(self, options: StreamOptions, sample_rate: int) -> None:
        """Never called: no client resumes a stream in this protocol."""

    # Messages to the client

    def encode(self, message: ServerMessage, stream: int) -> Sequence[Frame]:
        """Encode a message about one channel."""
        match message:
            case Result():
                return self._result(message, stream)
            case Ack(samples):
                return self._utterance_end(stream, samples / self._rate)
            case ErrorMessage():
                return self._error(message)
        return ()

    def _result(self, result: Result, stream: int) -> Sequence[Frame]:
        channel = self._channels[stream]
        heard_s = result.audio_ack_samples / self._rate
        frames: list[Frame] = []
        if self._query.vad_events and result.turn_detection == "start_of_utterance":
            began_s = round(max(0.0, heard_s - _START_HEARD_S), 3)
            frames.append(_frame(type="SpeechStarted", channel=self._index(stream), timestamp=began_s))
        for segment in channel.add(result, heard_s):
            if segment.is_final:
                frames.append(Frame(self._results(segment, stream)))
            elif self._query.interim and segment.transcript:
                data = self._results(segment, stream)
                frames.append(Frame(data, _Interim(data)))
        if result.is_final:
            self._num_ended += 1
            if self._num_ended == self.num_streams:
                frames.append(self._end())
        else:
            frames += self._utterance_end(stream, heard_s)
        return frames

    def _results(self, segment: Segment, stream: int) -> bytes:
        alternative = {
            "transcript": segment.transcript,
            "confidence": confidence_of(segment.words),
            "words": [word_shape(word) for word in segment.words],
        }
        return orjson.dumps(
            {
                "type": "Results",
                "channel_index": self._index(stream),
                "start": round(segment.start_s, 3),
                "duration": round(segment.end_s - segment.start_s, 3),
                "is_final": segment.is_final,
                "speech_final": segment.at_end and (self._query.ends_speech or segment.from_finalize),
                "from_finalize": segment.from_finalize,
                "channel": {"alternatives": [alternative]},
                "metadata": self._metadata,
            }
        )

    def _utterance_end(self, stream: int, heard_s: float) -> Sequence[Frame]:
        """Return `UtteranceEnd`, if enough audio has passed after the last word of a final."""
        channel = self._channels[stream]
        ended_s, gap_s = channel.last_word_end_s, self._query.utterance_end_s
        if gap_s is None or ended_s is None or heard_s < ended_s + gap_s:
            return ()
        channel.last_word_end_s = None
        return (_frame(type="UtteranceEnd", channel=self._index(stream), last_word_end=round(ended_s, 3)),)

    def _end(self) -> Frame:
        return _frame(
            type="Metadata",
            transaction_key="deprecated",
            request_id=self._query.request_id,
            sha256=self._digest.hexdigest(),
            created=self._created,
            duration=round(max(channel.heard_s for channel in self._channels), 3),
            channels=self._query.channels,
        )

    def _error(self, error: ErrorMessage) -> Sequence[Frame]:
        code = ErrorCode(error.code)
        if not ERROR_SPECS[code].closes:
            return ()  # audio behind the end is not reported
        _, name = _close_of(StreamError(code, error.message))
        return (_frame(type="Error", variant=error.code, description=error.message, message="", code=name),)

    def _index(self, stream: int) -> list[int]:
        return [stream, self.num_streams]

    @property
    def _rate(self) -> int:
        """Sample rate in Hz; the rate of compressed audio is known before the first result."""
        return self.options.sample_rate or DEFAULT_RATE

    def merge(self, earlier: object, later: object) -> Frame | None:
        """Replace two interim results by the later one; None where both have to be sent."""
        if isinstance(earlier, _Interim) and isinstance(later, _Interim):
            return Frame(later.data, later)
        return None

    def farewell(self, error: StreamError | None) -> Farewell:
        """Return code and reason of the close; the reason begins with Deepgram's code."""
        if error is None:
            return farewell_of(None)
        code, name = _close_of(error)
        reason = f"{name} {error.message}".encode()[:_MAX_REASON_BYTES].decode(errors="ignore")
        return Farewell(error, code, reason)

    def refusal(self, error: StreamError) -> Refusal:
        """Return the answer to a request that gets no stream."""
        return refusal_of(error, self._query.request_id)


def _frame(**fields: Any) -> Frame:
    return Frame(orjson.dumps(fields))


def _close_of(error: StreamError) -> tuple[int, str]:
    """Return the WebSocket close code, and Deepgram's code."""
    return _CLOSES.get(error.code) or (farewell_of(error).code, error.code.value.upper())
