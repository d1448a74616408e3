"""OpenAI's realtime transcription (docs/openai.md): audio as base64 in events, items out.

A fault of the client is answered by an `error` event, and the session goes on. If a session ends for a cause
after which trying again may help, the close frame alone says so: clients give up after an `error` event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qs

import orjson

from common.client_codec import decode_base64
from common.errors import ERROR_SPECS, ClientFault, ErrorCode, Fault, StreamError, shown
from common.languages import UNKNOWN, Languages
from common.messages import (
    Audio,
    ClientMessage,
    ErrorMessage,
    Finalize,
    Hello,
    Phrases,
    Result,
    ServerMessage,
)
from common.options import StreamOptions
from ingress.api.openai_errors import openai_refusal
from ingress.auth.credentials import subprotocols_of
from ingress.dialects.audio_input import AudioInput
from ingress.dialects.audio_shape import AudioShape
from ingress.dialects.closing import farewell_of
from ingress.dialects.dialect import Farewell, Frame, Heard
from ingress.dialects.openai.events import Events
from ingress.dialects.openai.faults import INVALID_REQUEST, SERVER_ERROR, EventFault, code_of, error_fields
from ingress.dialects.openai.items import Items
from ingress.dialects.openai.session import LOGPROBS, Session
from ingress.http.refusal import Refusal, Refused
from ingress.media.wanted import MediaWanted
from ingress.request import Request

# Sessions have no end of their own, but clients want a time: the first second of the year 2100.
_EXPIRES_AT: Final = 4_102_444_800
_MIN_COMMIT_MS: Final = 100
# OpenAI's bound; a longer id is not repeated.
_MAX_EVENT_ID: Final = 512
# Audio may come before its configuration (Pipecat's does). A second of audio in the usual format may wait.
_MAX_EARLY_BYTES: Final = 48_000
# Learning the shapes of messages that all differ costs more than the JSON parser that they save.
_MAX_SHAPES: Final = 8
_BETA_HEADER: Final = "openai-beta"
_BETA_PROTOCOL: Final = "openai-beta.realtime-v1"
_NO_RESPONSES: Final = (
    "conversation.item.create",
    "conversation.item.delete",
    "conversation.item.retrieve",
    "conversation.item.truncate",
    "output_audio_buffer.clear",
    "response.cancel",
    "response.create",
)
_FIXED: Final = "cannot change any more: the session has audio"


class RealtimeDialect:
    """One connection's side of the protocol (a `Dialect`).

    session: the configuration from the start.
    is_settled: whether audio need not wait for a `session.update`.
    beta: whether the client speaks the beta's shapes.
    languages: those of the served model.
    """

    __slots__ = (
        "_begun",
        "_early",
        "_event_id",
        "_events",
        "_input",
        "_is_settled",
        "_items",
        "_languages",
        "_num_samples",
        "_session",
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

    def __init__(
        self,
        session: Session,
        *,
        is_settled: bool = False,
        beta: bool = False,
        languages: Languages = UNKNOWN,
    ) -> None:
        self.num_streams = 1
        self.resumes = False
        self.admitted_first = False
        self.headers: tuple[tuple[str, str], ...] = ()
        self.media: MediaWanted | None = None
        self.replies: list[Frame] = []
        self._events = Events()
        self._items = Items(self._events)
        self._items.beta = beta
        self._is_settled = is_settled
        self._languages = languages
        self._begun: Session | None = None  # the configuration with which the stream was begun
        self._early = bytearray()
        self._num_samples = 0
        self._shape: AudioShape | None = None
        self._shapes_in_vain = 0
        self._event_id: str | None = None  # id of the event that is being read
        self.options = StreamOptions()
        self._set(session)

    @staticmethod
    def of(request: Request, languages: Languages = UNKNOWN) -> RealtimeDialect:
        """Return the dialect for the connection that a request opens.

        Raises Refused where its client secret holds a session that the served model cannot have.
        """
        held = "" if request.client is None else request.client.session
        try:
            session = Session().updated(orjson.loads(held), languages) if held else Session()
        except EventFault as fault:
            raise Refused(openai_refusal(Refusal(HTTPStatus.BAD_REQUEST, fault.message))) from None
        model = parse_qs(request.query).get("model")
        if model is not None and not held:
            session = session.named(model[0])
        beta = request.header(_BETA_HEADER) is not None or _BETA_PROTOCOL in subprotocols_of(request)
        return RealtimeDialect(session, is_settled=bool(held), beta=beta, languages=languages)

    def _set(self, session: Session) -> None:
        self._session = session
        items, turns = self._items, session.turns
        items.cut_by_client = turns is None
        items.padding_ms = 0 if turns is None else turns.prefix_padding_ms
        items.wants_logprobs = LOGPROBS in session.include
        if self._begun is None:
            self.options = session.options
            items.sample_rate = session.audio.rate
            self._input = AudioInput(session.audio.encoding, session.audio.rate)

    # From the client

    def decode_text(self, data: bytes) -> Heard:
        """Decode one event. If it has a fault, reply with an `error` event."""
        shape = self._shape
        if shape is not None:
            audio = shape.read(data)
            if audio is not None:
                self._shapes_in_vain = 0
                self._num_samples += audio.num_samples
                return audio
        self._event_id = None
        try:
            return self._decode(data)
        except EventFault as fault:
            self._tell(fault)
            return None

    def decode_binary(self, data: bytes) -> Heard:
        """Refuse a binary frame: audio comes as base64."""
        self._event_id = None
        self._tell(
            EventFault(
                "invalid_value", "Audio comes as base64, in 'input_audio_buffer.append', as text frames."
            )
        )
        return None

    def _tell(self, fault: EventFault) -> None:
        error = error_fields(INVALID_REQUEST, fault.code, fault.message, fault.param)
        self.replies.append(self._error(error, self._event_id))

    def _error(self, error: dict[str, Any], event_id: str | None = None) -> Frame:
        return self._events.write("error", error={**error, "event_id": event_id})

    def _decode(self, data: bytes) -> Heard:
        try:
            fields = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise EventFault("invalid_json", f"This is not JSON: {error}.") from None
        if not isinstance(fields, dict):
            raise EventFault("invalid_json", "An event is a JSON object.")
        event_id = fields.get("event_id")
        is_short = isinstance(event_id, str) and len(event_id) <= _MAX_EVENT_ID
        self._event_id = event_id if is_short else None
        kind = fields.get("type")
        if kind == "input_audio_buffer.append":
            return self._append(fields, data)
        if not isinstance(kind, str):
            raise EventFault("missing_required_parameter", "An event has a string 'type'.", "type")
        take = _TAKES.get(kind)
        if take is not None:
            return take(self, fields)
        if kind in _NO_RESPONSES:
            raise EventFault("invalid_value", f"This server transcribes and has no {shown(kind)}.", "type")
        raise EventFault("invalid_value", f"There is no event {shown(kind)}.", "type")

    def _append(self, fields: dict[str, Any], data: bytes) -> Heard:
        encoded = fields.get("audio")
        if not isinstance(encoded, str):
            raise EventFault("missing_required_parameter", "'audio' is a base64 string.", "audio")
        try:
            payload = decode_base64(encoded)
        except ValueError as error:
            reason = str(error).rstrip(".")
            raise EventFault("invalid_value", f"'audio' is not base64: {reason}.", "audio") from None
        if not self._is_settled:
            self._early += payload
            return list(self._settle()) if len(self._early) >= _MAX_EARLY_BYTES else None
        audio = self._taken(payload)
        self._shape = None
        if audio is not None and len(audio.payload) == len(payload) and self._shapes_in_vain < _MAX_SHAPES:
            self._shapes_in_vain += 1
            self._shape = AudioShape.of(data, audio, "audio")
        return audio

    def _settle(self) -> Iterator[Audio]:
        """Yield the audio that waited: the configuration is known, or will not come."""
        self._is_settled = True
        early, self._early = bytes(self._early), bytearray()
        try:
            audio = self._taken(early)
        except EventFault as fault:
            self._tell(fault)
        else:
            if audio is not None:
                yield audio

    def _taken(self, payload: bytes) -> Audio | None:
        """Return the samples of a payload; None if it has none."""
        try:
            audio = self._input.binary(payload)
            self._input.check(audio)
        except ClientFault as fault:
            raise EventFault("invalid_value", fault.message, "audio") from None
        if not audio.payload:
            return None
        self._begun = self._begun or self._session
        self._num_samples += audio.num_samples
        return audio

    @property
    def _audio_ms(self) -> int:
        return self._num_samples * 1000 // self._items.sample_rate

    def _commit(self, fields: dict[str, Any]) -> list[ClientMessage]:
        heard: list[ClientMessage] = list(self._settle())
        self._input.end_of_frames()
        had_ms = self._items.uncommitted_ms(self._audio_ms)
        if had_ms < _MIN_COMMIT_MS:
            sentence = f"An item has at least {_MIN_COMMIT_MS} ms of audio, and the buffer has {had_ms} ms."
            self._tell(EventFault("input_audio_buffer_commit_empty", sentence))
            return heard
        self.replies += self._items.commit(self._audio_ms)
        return [*heard, Finalize()]

    def _clear(self, fields: dict[str, Any]) -> list[ClientMessage]:
        self._early.clear()
        self._input.end_of_frames()
        heard: list[ClientMessage] = []
        if self._items.uncommitted_ms(self._audio_ms) > 0:
            self.replies += self._items.clear(self._audio_ms)
            heard.append(Finalize())
        self.replies.append(self._events.write("input_audio_buffer.cleared"))
        return heard

    def _update(self, fields: dict[str, Any]) -> list[ClientMessage]:
        heard = self._changed_session(fields)
        self.replies.append(self._session_event("session.updated"))
        return [*heard, *self._settle()]

    def _update_beta(self, fields: dict[str, Any]) -> list[ClientMessage]:
        self._items.beta = True
        heard = self._changed_session(fields)
        self.replies.append(self._session_event("transcription_session.updated"))
        return [*heard, *self._settle()]

    def _changed_session(self, fields: dict[str, Any]) -> list[ClientMessage]:
        """Update the session; return messages for its stream, if it has begun. Raises EventFault."""
        before, session = self._session, self._session.updated(fields.get("session"), self._languages)
        if self._begun is not None:
            _check_change(self._begun, session)
        self._set(session)
        self._shape = None
        if self._begun is None or session.phrases == before.phrases:
            return []
        return [Phrases(session.phrases)]

    def _session_event(self, kind: str) -> Frame:
        session: dict[str, Any] = {
            "id": f"sess_{self._events.stream_id}",
            "object": "realtime.transcription_session",
            "expires_at": _EXPIRES_AT,
        }
        if kind.startswith("transcription_"):
            session |= {**self._session.shown_in_beta(), "client_secret": None}
        else:
            session = {"type": "transcription", **session, **self._session.shown()}
        return self._events.write(kind, session=session)

    # To the client

    def resumed(self, options: StreamOptions, sample_rate: int) -> None:
        """Never called: no client resumes a stream in this protocol."""
        raise AssertionError("a realtime session was resumed")

    def encode(self, message: ServerMessage, stream: int) -> list[Frame]:
        """Encode a message; most messages have no event in this protocol."""
        match message:
            case Result():
                return self._items.add(message)
            case Hello():
                self._events.stream_id = message.stream_id
                kind = "transcription_session.created" if self._items.beta else "session.created"
                return [self._session_event(kind)]
            case ErrorMessage():
                return self._encode_error(message)
        return []

    def _encode_error(self, error: ErrorMessage) -> list[Frame]:
        """Encode the failed items, and an `error` event if trying again would not help."""
        is_fault = ERROR_SPECS[ErrorCode(error.code)].fault is Fault.CLIENT
        kind, code = INVALID_REQUEST if is_fault else SERVER_ERROR, code_of(error.code)
        frames = self._items.fail(kind, code, error.message)
        if is_fault:
            frames.append(self._error(error_fields(kind, code, error.message)))
        return frames

    def merge(self, earlier: object, later: object) -> None:
        """Return None: no two events say the same, so none can be merged."""

    def farewell(self, error: StreamError | None) -> Farewell:
        """Return code and reason of the close after an error; None is a normal close."""
        return farewell_of(error)

    def refusal(self, error: StreamError) -> Refusal:
        """Return the answer where the WebSocket is not opened: a key's limits are checked before that."""
        over_limit = error.code is ErrorCode.OVER_LIMIT
        status = HTTPStatus.TOO_MANY_REQUESTS if over_limit else HTTPStatus.SERVICE_UNAVAILABLE
        return openai_refusal(Refusal(status, error.message))


_Take = Callable[[RealtimeDialect, dict[str, Any]], list[ClientMessage]]
_TAKES: Final[dict[str, _Take]] = {
    "session.update": RealtimeDialect._update,
    "transcription_session.update": RealtimeDialect._update_beta,
    "input_audio_buffer.commit": RealtimeDialect._commit,
    "input_audio_buffer.clear": RealtimeDialect._clear,
}


def _check_change(begun: Session, session: Session) -> None:
    """Raise EventFault for a change that a stream under way cannot follow."""
    if session.audio != begun.audio:
        raise EventFault("invalid_value", f"The format {_FIXED}.", "session.audio.input.format")
    if LOGPROBS in session.include and LOGPROBS not in begun.include:
        raise EventFault("invalid_value", f"'include' {_FIXED}.", "session.include")
    if session.hints.language_option != begun.hints.language_option:
        raise EventFault(
            "invalid_value", f"The language {_FIXED}.", "session.audio.input.transcription.language"
        )
    turns = session.turns
    if turns is None:
        return  # the client may begin to end items itself at any time
    if begun.turns is None or turns.applied(StreamOptions()) != begun.turns.applied(StreamOptions()):
        raise EventFault(
            "invalid_value", f"The turn detector {_FIXED}.", "session.audio.input.turn_detection"
        )
