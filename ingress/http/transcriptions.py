"""`POST /v1/audio/transcriptions` and `GET /v1/models`, in the shapes of OpenAI's API.

Model names are taken as they come: this cluster has one model. A file is decoded in a child process and goes
through the service as a stream of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from common.errors import ClientFault, ErrorCode, NoFreeStream, NoWorker, RedisUnavailable, StreamError
from common.options import StreamOptions
from common.phrases import Phrase, parse_phrases
from common.tracing.tracer import checked_traceparent
from ingress.auth.client import Client
from ingress.auth.guard import Guard
from ingress.dialects.openai.faults import SERVER_ERROR, error_fields, kind_of
from ingress.files.recording_stream import RecordingStream, Stalled, Transcript
from ingress.files.transcription_shapes import FORMATS, plain, subtitles, verbose
from ingress.files.upload import BadUpload, Upload, Uploads, UploadsBusy, received
from ingress.http.endpoints import endpoint
from ingress.links import Backplane, Caller
from ingress.media.decoder import Decoders, DecodersBusy, MediaError, MediaInput
from ingress.media.formats import MediaFormat

_RETRY_AFTER: Final = {"Retry-After": "5"}
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


@dataclass(frozen=True, slots=True)
class FileService:
    """What the endpoints work with. guard_of: returns what counts the streams of a client, by its address."""

    backplane: Backplane
    decoders: Decoders
    guard_of: Callable[[str], Guard]
    max_upload_bytes: int
    uploads: Uploads


class Refused(Exception):  # noqa: N818 - the name says it
    """A request that is refused, in the shape of OpenAI's errors."""

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param

    @property
    def headers(self) -> dict[str, str]:
        """Further headers of the answer."""
        return dict(_RETRY_AFTER) if self.status in (HTTPStatus.SERVICE_UNAVAILABLE, 429) else {}

    def response(self) -> Response:
        """Return the answer."""
        error = error_fields(kind_of(self.status), self.code, str(self), self.param)
        return JSONResponse({"error": error}, self.status, headers=self.headers)


def refusal_of(error: Exception) -> Refused:
    """Return what a client is told of a failure."""
    unavailable = HTTPStatus.SERVICE_UNAVAILABLE
    match error:
        case Refused():
            return error
        case BadUpload():
            too_large = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
            status = too_large if error.too_large else HTTPStatus.BAD_REQUEST
            return Refused(status, str(error), param=error.param)
        case MediaError():
            return Refused(HTTPStatus.BAD_REQUEST, str(error), param="file", code="invalid_media")
        case DecodersBusy() | UploadsBusy():
            return Refused(unavailable, str(error), code="busy")
        case NoFreeStream() | NoWorker() | RedisUnavailable():
            return Refused(unavailable, error.message, code=error.code.value)
        case StreamError(code=ErrorCode.BAD_OPTION):  # a keyword that the model cannot write
            return Refused(HTTPStatus.BAD_REQUEST, error.message, code="invalid_value")
        case StreamError(code=ErrorCode.OVER_LIMIT):
            return Refused(HTTPStatus.TOO_MANY_REQUESTS, error.message, code="rate_limit_exceeded")
        case StreamError():
            return Refused(HTTPStatus.INTERNAL_SERVER_ERROR, error.message, code=error.code.value)
        case Stalled():
            return Refused(unavailable, "The recording was not decoded in time.", code="timeout")
    raise error


FAILURES: Final = (Refused, BadUpload, MediaError, DecodersBusy, UploadsBusy, StreamError, Stalled)


def transcription_endpoints(service: FileService) -> tuple[Route, ...]:
    """Return the rows of the table of endpoints."""

    async def transcriptions(request: Request) -> Response:
        try:
            return await _transcribe(service, request)
        except FAILURES as error:
            return refusal_of(error).response()

    return (
        endpoint("/v1/audio/transcriptions", transcriptions, "POST"),
        endpoint("/v1/models", _models, "GET"),
        endpoint("/v1/models/{name}", _model, "GET"),
    )


async def _transcribe(service: FileService, request: Request) -> Response:
    asked = request.scope["state"]["request"]
    client: Client = asked.client
    if not client.may("stream"):
        raise Refused(HTTPStatus.FORBIDDEN, "The key is not for streams.")
    stack = _held(service, request)
    upload = await stack.__aenter__()
    try:
        kind = upload.field("response_format") or "json"
        if kind not in FORMATS:
            raise Refused(
                HTTPStatus.BAD_REQUEST,
                f"'response_format' is one of {', '.join(FORMATS)}.",
                param="response_format",
            )
        granularities = upload.fields("timestamp_granularities") or ["segment"]
        if not set(granularities) <= set(_GRANULARITIES):
            raise Refused(
                HTTPStatus.BAD_REQUEST,
                "'timestamp_granularities' are word and segment.",
                param="timestamp_granularities",
            )
        _phrases(upload)
        guard = service.guard_of(asked.address)
        trace = checked_traceparent(asked.header("traceparent"))
        if (upload.field("stream") or "").lower() in ("true", "1") and kind == "json":
            # The upload is held by the answer, which closes it.
            return StreamingResponse(
                _events(service, upload, client, guard, trace, lambda: stack.__aexit__(None, None, None)),
                media_type="text/event-stream",
            )
        transcript = await _run(service, upload, client, guard, trace, lambda _: None)
    except BaseException:
        await stack.__aexit__(None, None, None)
        raise
    await stack.__aexit__(None, None, None)
    if kind == "json":
        return JSONResponse(plain(transcript, logprobs=_wants_logprobs(upload)))
    if kind == "text":
        return PlainTextResponse(transcript.text + "\n")
    if kind == "verbose_json":
        return JSONResponse(verbose(transcript, upload.field("language") or "english", granularities))
    return PlainTextResponse(subtitles(transcript, kind))


@asynccontextmanager
async def _held(service: FileService, request: Request) -> AsyncGenerator[Upload]:
    with service.uploads.held():
        async with received(request, service.max_upload_bytes) as upload:
            yield upload


def _phrases(upload: Upload) -> tuple[Phrase, ...]:
    """What the recording is likely to have. Raises Refused."""
    try:
        return parse_phrases(upload.fields("keywords"))
    except ClientFault as fault:
        sentence = fault.message.replace("Option 'phrases'", "'keywords'")
        raise Refused(HTTPStatus.BAD_REQUEST, sentence, param="keywords") from None


def _wants_logprobs(upload: Upload) -> bool:
    return "logprobs" in upload.fields("include")


async def _run(
    service: FileService,
    upload: Upload,
    client: Client,
    guard: Guard,
    trace: str,
    on_text: Callable[[str], None],
) -> Transcript:
    phrases = _phrases(upload)
    return await transcribed(service, upload.media, upload.path, client, guard, on_text, trace, phrases)


async def transcribed(
    service: FileService,
    media: MediaFormat,
    path: Path,
    client: Client,
    guard: Guard,
    on_text: Callable[[str], None],
    traceparent: str = "",
    phrases: tuple[Phrase, ...] = (),
) -> Transcript:
    """Decode and transcribe a file. Raises one of FAILURES.

    on_text: called with the text as it grows. traceparent: the trace that the request is a part of. phrases:
    what the recording is likely to have.
    """
    stream: RecordingStream | None = None
    await guard.enter(client, 1)
    try:
        async with await service.decoders.start(MediaInput(media.demuxer, file=path)) as decoder:
            audio = await decoder.audio()
            stream = RecordingStream(audio.rate, on_text)
            options = StreamOptions(
                sample_rate=audio.rate, words=True, auto_finalize=True, phrases=phrases, recording=True
            )
            async with aclosing(_whole_samples(decoder.blocks())) as blocks:
                return await stream.run(
                    service.backplane, options, blocks, Caller(client.key_id or "", client.name, traceparent)
                )
    finally:
        if stream is not None:
            guard.heard(client, stream.sent_s)  # also of a recording that failed, or whose client left
        guard.leave(client, 1)


async def _whole_samples(blocks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """Yield the same bytes in blocks of whole 16-bit samples."""
    rest = b""
    async for block in blocks:
        data = rest + block
        cut = len(data) & 1
        rest = data[len(data) - cut :]
        if len(data) > cut:
            yield data[: len(data) - cut]


async def _events(
    service: FileService,
    upload: Upload,
    client: Client,
    guard: Guard,
    trace: str,
    close: Callable[[], Awaitable[Any]],
) -> AsyncIterator[bytes]:
    """Yield server-sent events: what is added to the text as it is recognised, then all of it."""
    deltas: asyncio.Queue[str | None] = asyncio.Queue()
    said = ""

    def on_text(text: str) -> None:
        nonlocal said
        if text.startswith(said) and len(text) > len(said):
            deltas.put_nowait(text[len(said) :])
            said = text

    async def run() -> Transcript:
        try:
            return await _run(service, upload, client, guard, trace, on_text)
        finally:
            deltas.put_nowait(None)
            await close()

    running = asyncio.create_task(run(), name="transcription")
    try:
        while (delta := await deltas.get()) is not None:
            yield _event({"type": "transcript.text.delta", "delta": delta})
        try:
            transcript = await running
        except FAILURES as error:
            refused = refusal_of(error)
            yield _event({"error": error_fields(SERVER_ERROR, refused.code, str(refused), refused.param)})
        else:
            done = plain(transcript, logprobs=_wants_logprobs(upload))
            yield _event({"type": "transcript.text.done", **done})
    finally:
        # Where the client has left, all that is awaited here is cancelled at once: the task tidies up.
        running.cancel()


def _event(fields: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(fields) + b"\n\n"


def _described(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": _STARTED_S, "owned_by": "parakeet-server"}


async def _models(request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [_described(name) for name in _MODELS]})


async def _model(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _MODELS:
        refused = Refused(
            HTTPStatus.NOT_FOUND, "There is no such model.", code="model_not_found", param="model"
        )
        return refused.response()
    return JSONResponse(_described(name))
