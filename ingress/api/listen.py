"""`POST /v1/listen`: a recording in the shapes of Deepgram's pre-recorded API.

The recording is the body of the request. Options of the query that this service has nothing for are taken and
ignored, except those whose absence a client would not notice: they are refused.
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
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from common.messages import Utterance, Word
from common.tracing.tracer import checked_traceparent
from ingress.api.transcriptions import FAILURES, RecordingRefused, admitted, refusal_of
from ingress.dialects.deepgram.query import MAX_QUERY_FIELDS, REFUSED
from ingress.dialects.deepgram.refusals import body_of, headers_of
from ingress.dialects.deepgram.shapes import MODEL_INFO, MODEL_UUID, confidence_of, timestamp, word_shape
from ingress.files.recording_stream import Transcript
from ingress.files.recordings import Recordings
from ingress.files.upload import BadUpload
from ingress.http.endpoints import endpoint
from ingress.http.presence import unless_left
from ingress.media.formats import HEAD_BYTES, NAMES, sniff

# Parts of a body are put together to this before a thread writes them.
_WRITE_BYTES: Final = 256 << 10


def listen_endpoints(recordings: Recordings) -> tuple[Route, ...]:
    """Return the rows of the table of endpoints."""

    async def listen(request: Request) -> Response:
        request_id = str(uuid.uuid4())
        try:
            return await _listen(recordings, request, request_id)
        except FAILURES as error:
            refused = refusal_of(error)
            request.scope["state"]["refused"] = str(refused)
            return _refusal(refused, request_id)

    return (endpoint("/v1/listen", listen, "POST"),)


def _refusal(refused: RecordingRefused, request_id: str) -> Response:
    body = body_of(refused.status, str(refused), request_id)
    headers = {**headers_of(str(refused), request_id), **refused.headers}
    return JSONResponse(body, refused.status, headers=headers)


async def _listen(recordings: Recordings, request: Request, request_id: str) -> Response:
    asked = request.scope["state"]["request"]
    client = admitted(asked)
    query = _query(asked.query)
    for name in REFUSED:
        if name in query:
            raise RecordingRefused(HTTPStatus.BAD_REQUEST, f"This server has no '{name}'.", param=name)
    if "json" in request.headers.get("content-type", ""):
        raise RecordingRefused(
            HTTPStatus.BAD_REQUEST,
            "This server fetches nothing: send the recording itself as the body, not a 'url'.",
        )
    async with recordings.taken(client, asked.address) as recording:
        with tempfile.TemporaryFile() as file:
            digest, head = await _spooled(request, file, recording.received)
            media = sniff(head)
            if media is None:
                raise BadUpload(f"The body is none of {', '.join(NAMES)}.")
            path = Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")
            trace = checked_traceparent(asked.header("traceparent"))
            transcript = await unless_left(request, recording.transcribed(media, path, traceparent=trace))
    fields = _shape(transcript, request_id, digest, utterances=query.get("utterances") == ["true"])
    return JSONResponse(fields, headers={"dg-request-id": request_id})


def _query(text: str) -> dict[str, list[str]]:
    """Return the fields of a query. Raises RecordingRefused."""
    try:
        return parse_qs(text, keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS)
    except ValueError:
        sentence = f"The query has more than {MAX_QUERY_FIELDS} fields."
        raise RecordingRefused(HTTPStatus.BAD_REQUEST, sentence) from None


async def _spooled(request: Request, file: IO[bytes], on_bytes: Callable[[int], None]) -> tuple[str, bytes]:
    """Write the body to a file, off the event loop; return its SHA-256 and its first bytes.

    on_bytes: called with the size of each part; what it raises ends the upload.
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


def _shape(transcript: Transcript, request_id: str, digest: str, *, utterances: bool) -> dict[str, Any]:
    words = [word_shape(word) for word in transcript.words]
    results: dict[str, Any] = {
        "channels": [
            {
                "alternatives": [
                    {
                        "transcript": transcript.text,
                        "confidence": confidence_of(transcript.words),
                        "words": words,
                    }
                ]
            }
        ]
    }
    if utterances:
        results["utterances"] = [_utterance(*one) for one in transcript.words_of_utterances()]
    return {
        "metadata": {
            "transaction_key": "deprecated",
            "request_id": request_id,
            "sha256": digest,
            "created": timestamp(),
            "duration": round(transcript.duration_s, 4),
            "channels": 1,
            "models": [MODEL_UUID],
            "model_info": {MODEL_UUID: MODEL_INFO},
        },
        "results": results,
    }


def _utterance(utterance: Utterance, words: Sequence[Word]) -> dict[str, Any]:
    return {
        "start": utterance.start_s,
        "end": utterance.end_s,
        "confidence": confidence_of(words),
        "channel": 0,
        "transcript": utterance.text,
        "words": [word_shape(word) for word in words],
        "id": str(uuid.uuid4()),
    }
