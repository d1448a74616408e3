"""`POST /v1/listen`: a recording in the shapes of Deepgram's pre-recorded API.

The recording is the body of the request. The query has the fields of a live stream's query.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
import uuid
from collections.abc import Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from common.messages import Encoding, Utterance, Word
from common.tracing.tracer import checked_traceparent
from ingress.api.transcriptions import FAILURES, RecordingRefused, admitted, refusal_of
from ingress.dialects.deepgram.query import NO_RATE, ListenQuery, parse_listen_query
from ingress.dialects.deepgram.refusals import body_of, headers_of
from ingress.dialects.deepgram.shapes import MODEL_INFO, MODEL_UUID, confidence_of, timestamp, word_shape
from ingress.files.recording_stream import Transcript
from ingress.files.recordings import RecordingHints, Recordings
from ingress.files.upload import BadUpload, on_disk
from ingress.http.endpoints import endpoint
from ingress.http.presence import unless_left
from ingress.http.refusal import Refused
from ingress.media.decoder import MediaInput
from ingress.media.formats import HEAD_BYTES, NAMES, sniff

# Parts of a body are joined up to this size before a thread writes them.
_WRITE_BYTES: Final = 256 << 10
_SAMPLES: Final = {
    Encoding.PCM16: "s16le",
    Encoding.F32: "f32le",
    Encoding.MULAW: "mulaw",
    Encoding.ALAW: "alaw",
}


def listen_endpoints(recordings: Recordings) -> tuple[Route, ...]:
    """Return the rows of the table of endpoints."""

    async def listen(request: Request) -> Response:
        asked = request.scope["state"]["request"]
        try:
            query = parse_listen_query(asked.query, recordings.backplane.languages, recording=True)
        except Refused as error:
            request.scope["state"]["refused"] = str(error)
            refusal = error.refusal
            return Response(refusal.body, refusal.status, dict(refusal.headers), refusal.content_type)
        try:
            return await _listen(recordings, request, query)
        except FAILURES as error:
            refused = refusal_of(error)
            request.scope["state"]["refused"] = str(refused)
            return _refusal(refused, query.request_id)

    return (endpoint("/v1/listen", listen, "POST"),)


def _refusal(refused: RecordingRefused, request_id: str) -> Response:
    body = body_of(refused.status, str(refused), request_id)
    headers = {**headers_of(str(refused), request_id), **refused.headers}
    return JSONResponse(body, refused.status, headers=headers)


async def _listen(recordings: Recordings, request: Request, query: ListenQuery) -> Response:
    asked = request.scope["state"]["request"]
    client = admitted(asked)
    if "json" in request.headers.get("content-type", ""):
        raise RecordingRefused(
            HTTPStatus.BAD_REQUEST,
            "This server fetches nothing: send the recording itself as the body, not a 'url'.",
        )
    async with recordings.taken(client, asked.address) as recording:
        recording.announced(asked.header("content-length"))
        with on_disk(), tempfile.TemporaryFile() as file:
            digest, head = await _spooled(request, file, recording.received)
            media = _media(head, query, Path(f"/proc/{os.getpid()}/fd/{file.fileno()}"))
            hints = RecordingHints(query.options.phrases, query.options.language)
            trace = checked_traceparent(asked.header("traceparent"))
            if query.multichannel:
                work = recording.transcribed_apart(media, hints, traceparent=trace)
                transcripts = await unless_left(request, work)
            else:
                mixed = recording.transcribed(media, hints, traceparent=trace)
                transcripts = [await unless_left(request, mixed)]
    fields = _shape(transcripts, query.request_id, digest, utterances=query.utterances)
    return JSONResponse(fields, headers={"dg-request-id": query.request_id})


def _media(head: bytes, query: ListenQuery, path: Path) -> MediaInput:
    """Return how the file at `path` is to be decoded. head: the file's first bytes. Raises BadUpload."""
    if not head:
        raise BadUpload("The body is empty.")
    media = sniff(head)
    if media is not None:
        return MediaInput(media.demuxer, file=path)
    if query.media is not None:
        raise BadUpload(f"The body is none of {', '.join(NAMES)}, and no 'encoding' of samples is named.")
    rate = query.options.sample_rate
    if rate is None:
        raise BadUpload(NO_RATE)
    return MediaInput(_SAMPLES[query.encoding], file=path, rate=rate, channels=query.channels)


async def _spooled(request: Request, file: IO[bytes], on_bytes: Callable[[int], None]) -> tuple[str, bytes]:
    """Write the body to a file, off the event loop; return its SHA-256 and its first bytes.

    on_bytes: called with the size of each part in bytes; an exception from it ends the upload.
    """
    digest, head, waiting = hashlib.sha256(), b"", bytearray()

    def write(data: bytes) -> None:
        digest.update(data)
        file.write(data)
        file.flush()

    async for part in request.stream():
        on_bytes(len(part))
        head += part[: HEAD_BYTES - len(head)]
        waiting += part
        if len(waiting) >= _WRITE_BYTES:
            await asyncio.to_thread(write, bytes(waiting))
            waiting.clear()
    await asyncio.to_thread(write, bytes(waiting))
    return digest.hexdigest(), head


def _shape(
    transcripts: Sequence[Transcript], request_id: str, digest: str, *, utterances: bool
) -> dict[str, Any]:
    """Return the body of the answer. transcripts: one for each channel."""
    results: dict[str, Any] = {"channels": [_channel(transcript) for transcript in transcripts]}
    if utterances:
        results["utterances"] = _utterances(transcripts)
    return {
        "metadata": {
            "transaction_key": "deprecated",
            "request_id": request_id,
            "sha256": digest,
            "created": timestamp(),
            "duration": round(max(transcript.duration_s for transcript in transcripts), 4),
            "channels": len(transcripts),
            "models": [MODEL_UUID],
            "model_info": {MODEL_UUID: MODEL_INFO},
        },
        "results": results,
    }


def _channel(transcript: Transcript) -> dict[str, Any]:
    return {
        "alternatives": [
            {
                "transcript": transcript.text,
                "confidence": confidence_of(transcript.words),
                "words": [word_shape(word) for word in transcript.words],
            }
        ]
    }


def _utterances(transcripts: Sequence[Transcript]) -> list[dict[str, Any]]:
    """Return the utterances of all channels, in the order of their beginnings."""
    told = [
        _utterance(number, *one)
        for number, transcript in enumerate(transcripts)
        for one in transcript.words_of_utterances()
    ]
    return sorted(told, key=lambda utterance: utterance["start"])


def _utterance(channel: int, utterance: Utterance, words: Sequence[Word]) -> dict[str, Any]:
    return {
        "start": utterance.start_s,
        "end": utterance.end_s,
        "confidence": confidence_of(words),
        "channel": channel,
        "transcript": utterance.text,
        "words": [word_shape(word) for word in words],
        "id": str(uuid.uuid4()),
    }
