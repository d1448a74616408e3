"""`POST /v1/listen`: a recording in the shapes of Deepgram's pre-recorded API.

The recording is the body of the request. Options of the query that this service has nothing for are taken and
ignored, except those whose absence a client would not notice: they are refused.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import uuid
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from common.messages import Utterance, Word
from common.tracing.tracer import checked_traceparent
from ingress.auth.client import Client
from ingress.dialects.deepgram.query import MAX_QUERY_FIELDS, REFUSED
from ingress.dialects.deepgram.refusals import body_of, headers_of
from ingress.dialects.deepgram.shapes import MODEL_INFO, MODEL_UUID, confidence_of, timestamp, word_shape
from ingress.files.recording_stream import Transcript
from ingress.http.endpoints import endpoint
from ingress.http.transcriptions import FAILURES, FileService, Refused, refusal_of, transcribed
from ingress.media.formats import HEAD_BYTES, NAMES, sniff


def listen_endpoints(service: FileService) -> tuple[Route, ...]:
    """Return the rows of the table of endpoints."""

    async def listen(request: Request) -> Response:
        request_id = str(uuid.uuid4())
        try:
            return await _listen(service, request, request_id)
        except FAILURES as error:
            return _refusal(refusal_of(error), request_id)

    return (endpoint("/v1/listen", listen, "POST"),)


def _refusal(refused: Refused, request_id: str) -> Response:
    body = body_of(refused.status, str(refused), request_id)
    headers = {**headers_of(str(refused), request_id), **refused.headers}
    return JSONResponse(body, refused.status, headers=headers)


async def _listen(service: FileService, request: Request, request_id: str) -> Response:
    asked = request.scope["state"]["request"]
    client: Client = asked.client
    if not client.may("stream"):
        raise Refused(HTTPStatus.FORBIDDEN, "The key is not for streams.")
    query = _query(asked.query)
    for name in REFUSED:
        if name in query:
            raise Refused(HTTPStatus.BAD_REQUEST, f"This server has no '{name}'.", param=name)
    if "json" in request.headers.get("content-type", ""):
        raise Refused(
            HTTPStatus.BAD_REQUEST,
            "This server fetches nothing: send the recording itself as the body, not a 'url'.",
        )
    with service.uploads.held(), tempfile.TemporaryFile() as file:
        digest = await _spooled(request, file, service.max_upload_bytes)
        file.seek(0)
        media = sniff(file.read(HEAD_BYTES))
        if media is None:
            raise Refused(HTTPStatus.BAD_REQUEST, f"The body is none of {', '.join(NAMES)}.")
        path = Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")
        transcript = await transcribed(
            service,
            media,
            path,
            client,
            service.guard_of(asked.address),
            lambda _: None,
            checked_traceparent(asked.header("traceparent")),
        )
    fields = _shape(transcript, request_id, digest, utterances=query.get("utterances") == ["true"])
    return JSONResponse(fields, headers={"dg-request-id": request_id})


def _query(text: str) -> dict[str, list[str]]:
    """Return the fields of a query. Raises Refused."""
    try:
        return parse_qs(text, keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS)
    except ValueError:
        sentence = f"The query has more than {MAX_QUERY_FIELDS} fields."
        raise Refused(HTTPStatus.BAD_REQUEST, sentence) from None


async def _spooled(request: Request, file: IO[bytes], max_bytes: int) -> str:
    """Write the body to a file; return its SHA-256. Raises Refused."""
    digest, size = hashlib.sha256(), 0
    async for part in request.stream():
        size += len(part)
        if size > max_bytes:
            mib = max_bytes / (1 << 20)
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The upload is over {mib:g} MiB (--max-upload-mb)."
            )
        digest.update(part)
        file.write(part)
    return digest.hexdigest()


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
