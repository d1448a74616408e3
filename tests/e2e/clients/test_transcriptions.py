"""Recordings uploaded whole, to a server with the bundled model, in every container and shape."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import socket
import time
import uuid
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.serve_process import ServeProcess
from tests.media_files import ENCODINGS, LOSSLESS, encode, read_pcm
from tests.ports import HOST
from tests.service_process import ROOT
from tests.waiting import wait_until

RECORDING = ROOT / "parakeet" / "recordings" / "goforward.wav"
TEXT = "go forward ten meters"


@pytest.fixture(scope="module")
def server() -> Iterator[ServeProcess]:
    flags = ("--backend", "native", "--model-size", "tiny", "--max-upload-mb", "1", "--max-num-streams", "4")
    with ServeProcess(*flags) as serve:
        serve.wait_until_ready()
        yield serve


def form(fields: dict[str, str], file: bytes | None, name: str = "audio.wav") -> tuple[bytes, str]:
    """Return the body and the content type of a form."""
    boundary = uuid.uuid4().hex
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{value}\r\n'.encode()
        for field, value in fields.items()
    ]
    if file is not None:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        parts.append(head.encode() + b"Content-Type: audio/x-wav\r\n\r\n" + file + b"\r\n")
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def post(server: ServeProcess, file: bytes | None, **fields: str) -> tuple[HTTPResponse, bytes]:
    body, content_type = form({"model": "whisper-1", **fields}, file)
    http = HTTPConnection(HOST, server.ws_port, timeout=60)
    try:
        http.request("POST", "/v1/audio/transcriptions", body, {"Content-Type": content_type})
        response = http.getresponse()
        return response, response.read()
    finally:
        http.close()


def connected_streams(server: ServeProcess) -> int:
    with socket.create_connection((HOST, server.status_port), timeout=60) as connection:
        status = json.loads(b"".join(iter(lambda: connection.recv(65536), b"")))
    return int(status["connected_streams"])


def answered(server: ServeProcess, file: bytes, **fields: str) -> Any:
    response, body = post(server, file, **fields)
    assert response.status == 200, body
    return json.loads(body)


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_container_is_read(server: ServeProcess, tmp_path: Path, name: str) -> None:
    rate, pcm = read_pcm(RECORDING)
    file = encode(pcm, rate, name, tmp_path).read_bytes()
    text = answered(server, file)["text"]
    if name in LOSSLESS:
        assert text == TEXT
    else:
        # What a codec does to the sound may change a word of this small model.
        assert len(set(text.split()) & set(TEXT.split())) >= 2, text


def test_the_shapes_of_a_transcript(server: ServeProcess) -> None:
    file = RECORDING.read_bytes()
    assert answered(server, file) == {"text": TEXT, "usage": {"type": "duration", "seconds": 3}}
    sure = answered(server, file, **{"include[]": "logprobs", "keywords[]": "ten meters"})["logprobs"]
    assert "".join(one["token"] for one in sure) == TEXT
    assert all(one["logprob"] <= 0 and bytes(one["bytes"]).decode() == one["token"] for one in sure)
    for name in ("prompt", "keywords[]"):
        # What the model cannot write is left out.
        assert answered(server, file, **{name: "VortiQore V8"})["text"] == TEXT
    response, body = post(server, file, response_format="text")
    assert (response.getheader("content-type"), body) == ("text/plain; charset=utf-8", TEXT.encode() + b"\n")
    whole = answered(server, file, response_format="verbose_json", **{"timestamp_granularities[]": "word"})
    assert whole["text"] == TEXT
    assert whole["duration"] == pytest.approx(2.786, abs=0.01)
    assert [word["word"] for word in whole["words"]] == TEXT.split()
    assert "segments" not in whole
    starts = [word["start"] for word in whole["words"]]
    assert starts == sorted(starts)
    segments = answered(server, file, response_format="verbose_json")["segments"]
    assert " ".join(segment["text"] for segment in segments) == TEXT
    assert all(segment["avg_logprob"] <= 0 for segment in segments)
    _, srt = post(server, file, response_format="srt")
    assert re.fullmatch(rb"1\n00:00:00,\d{3} --> 00:00:0\d,\d{3}\ngo forward ten meters\n\n", srt), srt
    _, vtt = post(server, file, response_format="vtt")
    assert vtt.startswith(b"WEBVTT\n\n00:00:0")


@pytest.mark.parametrize("fields", [{}, {"response_format": "text"}])
def test_a_streamed_answer_adds_up_to_the_text(server: ServeProcess, fields: dict[str, str]) -> None:
    response, body = post(server, RECORDING.read_bytes(), stream="true", **fields)
    assert response.getheader("content-type") == "text/event-stream; charset=utf-8"
    events = [json.loads(line.removeprefix("data: ")) for line in body.decode().split("\n\n") if line]
    assert events[-1]["type"] == "transcript.text.done"
    assert events[-1]["text"] == TEXT
    deltas = [event["delta"] for event in events[:-1]]
    assert "".join(deltas) == TEXT
    assert len(deltas) > 1


@pytest.mark.parametrize(
    ("kind", "begins"), [("srt", b"1\n00:00:0"), ("vtt", b"WEBVTT\n\n"), ("verbose_json", b'{"task":')]
)
def test_a_format_with_times_is_answered_whole(server: ServeProcess, kind: str, begins: bytes) -> None:
    response, body = post(server, RECORDING.read_bytes(), stream="true", response_format=kind)
    assert response.status == 200
    assert body.startswith(begins)
    assert TEXT.encode() in body


@pytest.mark.parametrize(
    ("file", "fields", "status", "param"),
    [
        (None, {}, 400, "file"),
        (b"no media at all", {}, 400, "file"),
        (b"RIFF\xff\xff\xff\xffWAVEjunk" + b"\0" * 100, {}, 400, "file"),
        (b"", {}, 400, "file"),
        (RECORDING.read_bytes(), {"response_format": "docx"}, 400, "response_format"),
        (RECORDING.read_bytes(), {"timestamp_granularities[]": "letter"}, 400, "timestamp_granularities"),
        (RECORDING.read_bytes(), {"keywords[]": " "}, 400, "keywords"),
        (RECORDING.read_bytes() + bytes(1 << 20), {}, 413, "file"),
    ],
)
def test_what_is_wrong_is_told_in_the_shape_of_the_api(
    server: ServeProcess, file: bytes | None, fields: dict[str, str], status: int, param: str
) -> None:
    response, body = post(server, file, **fields)
    assert response.status == status, body
    error = json.loads(body)["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["message"].endswith((".", ")")), error


def test_a_body_that_is_no_form_is_refused(server: ServeProcess) -> None:
    http = HTTPConnection(HOST, server.ws_port, timeout=60)
    http.request("POST", "/v1/audio/transcriptions", b"{}", {"Content-Type": "application/json"})
    assert http.getresponse().status == 400
    http.close()


def test_models_are_listed_and_found(server: ServeProcess) -> None:
    http = HTTPConnection(HOST, server.ws_port, timeout=60)
    http.request("GET", "/v1/models")
    listed = json.loads(http.getresponse().read())
    assert listed["object"] == "list"
    names = [model["id"] for model in listed["data"]]
    assert "whisper-1" in names
    http.request("GET", "/v1/models/whisper-1")
    one = json.loads(http.getresponse().read())
    assert (one["id"], one["languages"]) == ("whisper-1", ["en"])
    http.request("GET", "/v1/models/none")
    response = http.getresponse()
    assert response.status == 404
    assert json.loads(response.read())["error"]["code"] == "model_not_found"
    http.close()


def test_a_client_that_leaves_in_the_middle_leaves_no_stream_behind(server: ServeProcess) -> None:
    body, content_type = form({"model": "m"}, RECORDING.read_bytes())
    for cut in (len(body) // 2, len(body)):
        http = HTTPConnection(HOST, server.ws_port, timeout=60)
        http.putrequest("POST", "/v1/audio/transcriptions")
        http.putheader("Content-Type", content_type)
        http.putheader("Content-Length", str(len(body)))
        http.endheaders()
        http.send(body[:cut])
        http.close()
    wait_until(lambda: connected_streams(server) == 0, what="the end of all streams")
    assert answered(server, RECORDING.read_bytes())["text"] == TEXT


def listen(
    server: ServeProcess, body: bytes, query: str = "", content_type: str = "audio/wav"
) -> tuple[int, dict[str, Any]]:
    """Post a recording in Deepgram's way."""
    http = HTTPConnection(HOST, server.ws_port, timeout=60)
    http.request("POST", f"/v1/listen{query}", body, {"Content-Type": content_type})
    response = http.getresponse()
    assert response.getheader("dg-request-id")
    answer = response.status, json.loads(response.read())
    http.close()
    return answer


def test_a_recording_in_deepgrams_way(server: ServeProcess) -> None:
    file = RECORDING.read_bytes()
    status, answer = listen(server, file, "?model=nova-3&punctuate=true&utterances=true&smart_format=false")
    assert status == 200
    metadata = answer["metadata"]
    assert metadata["sha256"] == hashlib.sha256(file).hexdigest()
    assert metadata["duration"] == pytest.approx(2.786, abs=0.01)
    assert list(metadata["model_info"]) == metadata["models"]
    (alternative,) = answer["results"]["channels"][0]["alternatives"]
    assert alternative["transcript"] == TEXT
    assert [word["word"] for word in alternative["words"]] == TEXT.split()
    assert 0 < alternative["confidence"] <= 1
    utterances = answer["results"]["utterances"]
    assert " ".join(one["transcript"] for one in utterances) == TEXT
    assert "utterances" not in listen(server, file)[1]["results"]


@pytest.mark.parametrize(
    ("body", "query", "content_type", "status", "sentence"),
    [
        (b'{"url":"https://a.example/x.wav"}', "", "application/json", 400, "fetches nothing"),
        (b"nonsense", "", "audio/wav", 400, "none of"),
        (RECORDING.read_bytes(), "?redact=pii", "audio/wav", 400, "'redact'"),
        (RECORDING.read_bytes(), "?callback=https://a.example", "audio/wav", 400, "'callback'"),
        (RECORDING.read_bytes() + bytes(1 << 20), "", "audio/wav", 413, "over 1 MiB"),
    ],
)
def test_what_deepgrams_way_refuses(
    server: ServeProcess, body: bytes, query: str, content_type: str, status: int, sentence: str
) -> None:
    answered_status, answer = listen(server, body, query, content_type)
    assert answered_status == status
    assert sentence in answer["err_msg"]
    assert set(answer) == {"err_code", "err_msg", "request_id"}


def test_a_recording_whose_upload_a_sigterm_meets_is_answered() -> None:
    flags = ("--backend", "native", "--model-size", "tiny", "--max-num-streams", "4")
    body, content_type = form({"model": "whisper-1"}, RECORDING.read_bytes())
    with ServeProcess(*flags) as serve:
        serve.wait_until_ready()
        http = HTTPConnection(HOST, serve.ws_port, timeout=60)
        http.putrequest("POST", "/v1/audio/transcriptions")
        http.putheader("Content-Type", content_type)
        http.putheader("Content-Length", str(len(body)))
        http.endheaders(body[: len(body) // 2])
        serve.process.send_signal(signal.SIGTERM)
        time.sleep(
            1.0
        )  # nothing tells when the ingress drains; one that did not wait would have ended by now
        http.send(body[len(body) // 2 :])
        response = http.getresponse()
        assert response.status == 200
        assert json.loads(response.read())["text"] == TEXT
        http.close()
        assert serve.process.wait(120) == 0
