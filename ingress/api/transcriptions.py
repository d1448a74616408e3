"""`POST /v1/audio/transcriptions` and `GET /v1/models`, in the shapes of OpenAI's API.

Every model name is accepted, since the cluster serves one model. A child process decodes the file, and the
samples go through the service as a stream of their own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack
from http import HTTPStatus
from typing import Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from common.errors import ClientFault, ErrorCode, NoFreeStream, NoWorker, RedisUnavailable, StreamError
from common.languages import Languages
from common.phrases import Phrase, fault_about, parse_phrases
from common.tracing.tracer import checked_traceparent
from ingress.auth.client import NOT_FOR_STREAMS, Client
from ingress.auth.guard import OverLimit
from ingress.dialects.openai.faults import error_fields, kind_of
from ingress.dialects.openai.prompt import phrases_of
from ingress.files.recording_stream import Stalled, Transcript
from ingress.files.recordings import Recording, RecordingHints, Recordings, UploadsBusy
from ingress.files.transcription_shapes import FORMATS, STREAMED_FORMATS, plain, subtitles, verbose
from ingress.files.upload import BadUpload, DiskFull, Upload, received
from ingress.http.endpoints import endpoint
from ingress.http.presence import unless_left
from ingress.media.decoder import DecodersBusy, MediaError
from ingress.request import Request as StreamRequest

_RETRY_AFTER_S: Final = 5
_MODELS: Final = (
    "parakeet",
    "whisper-1",
    "gpt-4o-transcribe",
    "gpt-4o-mini-transcribe",
    "gpt-transcribe",
    "gpt-live-transcribe",
    "gpt-realtime-whisper",
)
_STARTED_S: Final = int(time.time())
_GRANULARITIES: Final = ("word", "segment")


class RecordingRefused(Exception):  # noqa: N818 - the name says it
    """A refused request, in the shape of OpenAI's errors."""

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: int = _RETRY_AFTER_S,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """Further headers of the answer."""
        again = (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS)
        return {"Retry-After": str(self.retry_after_s)} if self.status in again else {}

    def response(self) -> Response:
        """Return the answer."""
        error = error_fields(kind_of(self.status), self.code, str(self), self.param)
        return JSONResponse({"error": error}, self.status, headers=self.headers)


def refusal_of(error: Exception) -> RecordingRefused:
    """Return the refusal that the client receives for a failure."""
    unavailable = HTTPStatus.SERVICE_UNAVAILABLE
    match error:
        case RecordingRefused():
            return error
        case BadUpload():
            too_large = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
            status = too_large if error.too_large else HTTPStatus.BAD_REQUEST
            return RecordingRefused(status, str(error), code=error.code, param=error.param)
        case MediaError():
            return RecordingRefused(HTTPStatus.BAD_REQUEST, str(error), param="file", code="invalid_media")
        case DecodersBusy() | UploadsBusy() | DiskFull():
            return RecordingRefused(unavailable, str(error), code="busy")
        case NoFreeStream() | NoWorker() | RedisUnavailable():
            return RecordingRefused(unavailable, error.message, code=error.code.value)
        case StreamError(code=ErrorCode.BAD_OPTION):  # the engine lacks something that the upload asks for
            return RecordingRefused(HTTPStatus.BAD_REQUEST, error.message, code="invalid_value")
        case OverLimit():
            return RecordingRefused(
                HTTPStatus.TOO_MANY_REQUESTS,
                error.message,
                code="rate_limit_exceeded",
                retry_after_s=error.retry_after_s,
            )
        case StreamError(code=ErrorCode.UNAUTHORIZED):
            return RecordingRefused(HTTPStatus.UNAUTHORIZED, error.message, code="invalid_api_key")
        case StreamError():
            return RecordingRefused(HTTPStatus.INTERNAL_SERVER_ERROR, error.message, code=error.code.value)
        case Stalled():
            return RecordingRefused(unavailable, "The recording was not decoded in time.", code="timeout")
    raise error


FAILURES: Final = (
    RecordingRefused,
    BadUpload,
    MediaError,
    DecodersBusy,
    UploadsBusy,
    DiskFull,
    StreamError,
    Stalled,
)


def transcription_endpoints(recordings: Recordings) -> tuple[Route, ...]:
    """Return the rows of the table of endpoints."""

    async def transcriptions(request: Request) -> Response:
        try:
            return await _transcribe(recordings, request)
        except FAILURES as error:
            refused = refusal_of(error)
            request.scope["state"]["refused"] = str(refused)
            return refused.response()

    async def models(request: Request) -> Response:
        languages = recordings.backplane.languages
        return JSONResponse({"object": "list", "data": [_described(name, languages) for name in _MODELS]})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _MODELS:
            refused = RecordingRefused(
                HTTPStatus.NOT_FOUND, "There is no such model.", code="model_not_found", param="model"
            )
            return refused.response()
        return JSONResponse(_described(name, recordings.backplane.languages))

    return (
        endpoint("/v1/audio/transcriptions", transcriptions, "POST"),
        endpoint("/v1/models", models, "GET"),
        endpoint("/v1/models/{name}", model, "GET"),
    )


async def _transcribe(recordings: Recordings, request: Request) -> Response:
    asked = request.scope["state"]["request"]
    client = admitted(asked)
    async with AsyncExitStack() as stack:
        recording = await stack.enter_async_context(recordings.taken(client, asked.address))
        recording.announced(asked.header("content-length"))
        upload = await stack.enter_async_context(received(request, recording.received))
        kind = upload.field("response_format") or "json"
        if kind not in FORMATS:
            raise BadUpload(f"'response_format' is one of {', '.join(FORMATS)}.", "response_format")
        granularities = upload.fields("timestamp_granularities") or ["segment"]
        if not set(granularities) <= set(_GRANULARITIES):
            raise BadUpload("'timestamp_granularities' are word and segment.", "timestamp_granularities")
        hints = RecordingHints(_phrases(upload), _language(upload, recordings.backplane.languages))
        trace = checked_traceparent(asked.header("traceparent"))
        if (upload.field("stream") or "").lower() in ("true", "1") and kind in STREAMED_FORMATS:
            # The response holds the upload and closes it.
            events = _Events(recording, upload, hints, trace, stack.pop_all())
            await unless_left(request, events.begun())
            return StreamingResponse(events.encoded(), media_type="text/event-stream")
        work = recording.transcribed(upload.media, hints, traceparent=trace)
        transcript = await unless_left(request, work)
    if kind == "json":
        return JSONResponse(plain(transcript, logprobs=_wants_logprobs(upload)))
    if kind == "text":
        return PlainTextResponse(transcript.text + "\n")
    if kind == "verbose_json":
        return JSONResponse(verbose(transcript, upload.field("language") or "english", granularities))
    return PlainTextResponse(subtitles(transcript, kind))


def admitted(asked: StreamRequest) -> Client:
    """Return the client that sends a recording. Raises RecordingRefused where its key lacks the scope."""
    if asked.client is None or not asked.client.may("stream"):
        raise RecordingRefused(HTTPStatus.FORBIDDEN, NOT_FOR_STREAMS)
    return asked.client


def _phrases(upload: Upload) -> tuple[Phrase, ...]:
    """Return the phrases that the upload names as likely. Raises BadUpload."""
    keywords = [{"text": word, "optional": True} for word in upload.fields("keywords") if word]
    try:
        return phrases_of(upload.field("prompt"), parse_phrases(keywords))
    except ClientFault as fault:
        raise BadUpload(fault_about("keywords", fault).message, "keywords") from None


def _language(upload: Upload, languages: Languages) -> str | None:
    """Return the model's name of the language that the upload names, if it takes one. Raises BadUpload."""
    name = "language" if upload.field("language") else "languages"
    try:
        return languages.option_for_any(tag for tag in upload.fields(name) if tag)
    except ClientFault as fault:
        raise BadUpload(fault.message, name, code="invalid_value") from None


def _wants_logprobs(upload: Upload) -> bool:
    return "logprobs" in upload.fields("include")


class _Events:
    """A transcript as server-sent events: additions to the text as it is recognised, then the whole text.

    held: resources that are closed when the recording is transcribed or the client has left.
    """

    def __init__(
        self,
        recording: Recording,
        upload: Upload,
        hints: RecordingHints,
        trace: str,
        held: AsyncExitStack,
    ) -> None:
        self._recording = recording
        self._logprobs = _wants_logprobs(upload)
        self._deltas: asyncio.Queue[str | None] = asyncio.Queue()
        self._said = ""
        # Begun here, so that `held` is closed even where the first event is never read.
        work = recording.transcribed(upload.media, hints, self._on_text, traceparent=trace)
        self._running = asyncio.create_task(self._run(work, held), name="transcription")
        # If the client has left, nobody reads the failure: it is counted, and is no defect of the server.
        self._running.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def begun(self) -> None:
        """Wait until the audio goes to a worker, so that a recording which is refused has a status.

        Raises the failures of a recording that ends before. Cancelled, it ends the recording.
        """
        begun = asyncio.create_task(self._recording.begun.wait(), name="recording-begins")
        try:
            await asyncio.wait((begun, self._running), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._running.cancel()
            raise
        finally:
            begun.cancel()
        if self._running.done():
            self._running.result()

    async def encoded(self) -> AsyncIterator[bytes]:
        """Yield the events."""
        try:
            while (delta := await self._deltas.get()) is not None:
                yield _event({"type": "transcript.text.delta", "delta": delta})
            try:
                transcript = await self._running
            except FAILURES as error:
                refused = refusal_of(error)
                told = error_fields(kind_of(refused.status), refused.code, str(refused), refused.param)
                yield _event({"error": told})
            else:
                done = plain(transcript, logprobs=self._logprobs)
                yield _event({"type": "transcript.text.done", **done})
        finally:
            # If the client has left, every wait here is cancelled at once: the task closes the resources.
            self._running.cancel()

    async def _run(self, work: Coroutine[Any, Any, Transcript], held: AsyncExitStack) -> Transcript:
        try:
            return await work
        finally:
            self._deltas.put_nowait(None)
            await held.aclose()

    def _on_text(self, text: str) -> None:
        if text.startswith(self._said) and len(text) > len(self._said):
            self._deltas.put_nowait(text[len(self._said) :])
            self._said = text


def _event(fields: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(fields) + b"\n\n"


def _described(name: str, languages: Languages) -> dict[str, Any]:
    fields = {"id": name, "object": "model", "created": _STARTED_S, "owned_by": "parakeet-server"}
    return {**fields, "languages": languages.names} if languages.names else fields
