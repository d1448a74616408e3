"""The service's own protocol (docs/protocol.md): JSON in lines or text frames, raw audio in binary frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Final

import orjson

from common.client_codec import decode_client_message
from common.errors import ErrorCode, StreamError
from common.messages import (
    Ack,
    Audio,
    Close,
    Config,
    Encoding,
    ErrorMessage,
    Finalize,
    Hello,
    Phrases,
    Pong,
    Result,
    Resume,
    Resumed,
    ServerMessage,
    WarningMessage,
)
from common.options import StreamOptions
from ingress.dialects.audio_check import message_in_binary
from ingress.dialects.audio_input import AudioInput
from ingress.dialects.audio_shape import AudioShape
from ingress.dialects.closing import farewell_of
from ingress.dialects.dialect import Farewell, Frame, Heard
from ingress.http.refusal import Refusal
from ingress.media.wanted import MediaWanted

_PONG: Final = b'{"type":"pong"}'
_JSON_BEGINS: Final = b"{ \t\r\n"
# If a time or a number precedes the base64, each message has a new shape, and learning shapes costs more than
# the JSON parser that they save.
_MAX_SHAPES: Final = 8


class NativeDialect:
    """One connection's side of the native protocol (a `Dialect`).

    sample_rate: rate of a client that states no other, Hz.
    """

    __slots__ = (
        "_finished",
        "_input",
        "_new_text",
        "_sample_rate",
        "_shape",
        "_shapes_in_vain",
        "admitted_first",
        "headers",
        "media",
        "num_streams",
        "options",
        "replies",
        "resumes",
    )

    def __init__(self, sample_rate: int) -> None:
        self.options = StreamOptions()
        self.num_streams = 1
        self.resumes = True
        self.admitted_first = False
        self.headers: tuple[tuple[str, str], ...] = ()
        self.media: MediaWanted | None = None
        self.replies: list[Frame] = []
        self._sample_rate = sample_rate
        self._input = AudioInput(Encoding.PCM16, sample_rate)
        self._shape: AudioShape | None = None
        self._shapes_in_vain = 0
        self._finished = False
        self._new_text = False  # results carry the new part of the text, not the whole

    def decode_text(self, data: bytes) -> Heard:
        """Decode one line, or one text frame; return None for white space. Raises ClientFault."""
        shape = self._shape
        if shape is not None:
            audio = shape.read(data)
            if audio is not None:
                self._shapes_in_vain = 0
                return audio
        if not data or data.isspace():
            return None
        message = decode_client_message(data, self._input.encoding)
        match message:
            case Audio():
                self._end_of_frames()
                self._checked(message)
                self._finished |= message.final
                if self._shapes_in_vain < _MAX_SHAPES:
                    self._shapes_in_vain += 1
                    self._shape = AudioShape.of(data, message)
            case Finalize() | Phrases():
                self._end_of_frames()
            case Close():
                self._end_of_frames()
                self._finished = True
            case Config(options):
                self._new_text = options.text == "new"
                self._input = AudioInput(Encoding(options.encoding), options.sample_rate or self._sample_rate)
            case Resume():
                self._input.goes_on()
        return message

    def decode_binary(self, data: bytes) -> Audio:
        """Decode one binary frame of raw audio, cut anywhere. Raises ClientFault."""
        if data and data[0] in _JSON_BEGINS:
            fault = message_in_binary(data)
            if fault is not None:
                raise fault
        self._shape = None  # the next message has to check whether this frame ended within a sample
        return self._checked(self._input.binary(data))

    def resumed(self, options: StreamOptions, sample_rate: int) -> None:
        """Note that the connection has resumed a stream with these options, at this rate in Hz."""
        self._new_text = options.text == "new"
        self._input = AudioInput(Encoding(options.encoding), sample_rate)
        self._input.goes_on()

    def encode(self, message: ServerMessage, stream: int) -> Sequence[Frame]:
        """Encode a message as one frame; a connection of this protocol has one stream."""
        return (self._frame(message),)

    def merge(self, earlier: object, later: object) -> Frame | None:
        """Merge two results, or an acknowledgement with the message after it.

        The merged result has the newest text, state and acknowledgement; the `token_ids`,
        `confidence_scores`, `words` and `utterances` of both; and `seq_first`..`seq` for the range.
        """
        match earlier, later:
            case Result(), Result():
                return self._frame(merge_results(earlier, later))
            case Ack(), (Ack() | Result()) as newest:
                return self._frame(newest)
        return None

    def farewell(self, error: StreamError | None) -> Farewell:
        """Return code and reason of the close after an error, or after the final result."""
        return farewell_of(error)

    def refusal(self, error: StreamError) -> Refusal:
        """Return the answer where the WebSocket is not opened: a key's limits are checked before that."""
        over_limit = error.code is ErrorCode.OVER_LIMIT
        status = HTTPStatus.TOO_MANY_REQUESTS if over_limit else HTTPStatus.SERVICE_UNAVAILABLE
        return Refusal(status, error.message)

    def _frame(self, message: ServerMessage) -> Frame:
        if type(message) is Result:
            return Frame(encode_result(message, new_text=self._new_text), message)
        return Frame(encode_server_message(message), message)

    def _checked(self, audio: Audio) -> Audio:
        warning = self._input.check(audio)
        if warning is not None:
            self.replies.append(self._frame(warning))
        return audio

    def _end_of_frames(self) -> None:
        """Check that the binary frames end with a whole sample; after the end, messages are refused anyway.

        Raises ClientFault.
        """
        fault = self._input.end_of_frames()
        if fault is not None and not self._finished:
            raise fault


def merge_results(earlier: Result, later: Result) -> Result:
    """Merge two neighbouring results into one with the content of both."""
    words = later.words
    if earlier.words is not None:
        words = earlier.words + (words or ())
    return replace(
        later,
        token_ids=earlier.token_ids + later.token_ids,
        confidence_scores=earlier.confidence_scores + later.confidence_scores,
        words=words,
        utterances=earlier.utterances + later.utterances,
        text_from=min(earlier.text_from, later.text_from),
        seq_first=earlier.seq if earlier.seq_first is None else earlier.seq_first,
    )


def encode_server_message(message: ServerMessage) -> bytes:
    """Encode a message as JSON, without the newline of the TCP framing."""
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
    """Encode a `result` message as JSON.

    new_text: whether it carries the new part of the text and its position, instead of the whole text.
    """
    fields: dict[str, Any] = {
        "type": "result",
        "text": result.text,
        "token_ids": result.token_ids,
        "confidence_scores": result.confidence_scores,
        "is_final": result.is_final,
        "last_state": result.last_state,
        "turn_detection": result.turn_detection,
        "seq": result.seq,
        "audio_ack_samples": result.audio_ack_samples,
    }
    if new_text:
        fields["text"] = result.text[result.text_from :]
        fields["text_from"] = result.text_from
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
