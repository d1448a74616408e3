"""Recordings over HTTP, without Redis: what is left behind where a client leaves, and what is refused."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import re
import socket
import struct
import wave
from contextlib import AsyncExitStack
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.types import Message

from common.errors import NoFreeStream
from common.languages import ENGLISH, Languages
from common.monitoring.metrics import IngressMetrics
from ingress.api.listen import listen_endpoints
from ingress.api.transcriptions import _Events, transcription_endpoints
from ingress.auth.client import Client
from ingress.auth.guard import Guard
from ingress.files.recording_stream import Transcript
from ingress.files.recordings import RecordingHints, RecordingLimits, Recordings
from ingress.files.upload import Upload, received
from ingress.media.decoder import Decoders, MediaError, MediaInput
from tests.counting_guard import CountingGuard
from tests.fake_backplane import ScriptedBackplane
from tests.ingress_harness import HOST, serving, wait_until

pytestmark = pytest.mark.one_loop

BOUNDARY = "b0undary"


def recordings_of(
    backplane: ScriptedBackplane,
    guard: Guard | None = None,
    decoders: Decoders | None = None,
    *,
    max_held: int = 2,
    max_bytes: int = 100 << 20,
    max_recording_s: float = 1000.0,
) -> Recordings:
    """What the endpoints work with."""
    guard = guard or CountingGuard()
    limits = RecordingLimits(max_held, max_bytes, max_recording_s)
    return Recordings(backplane, decoders or Decoders(1), lambda address: guard, IngressMetrics(), limits)


def silence(seconds: int) -> bytes:
    """Return a WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes(bytes(32_000 * seconds))
    return file.getvalue()


def streamed(file: bytes) -> bytes:
    """Return a request for the transcript of a file as events."""
    lines = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="stream"\r\n\r\ntrue\r\n'
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    )
    body = lines.encode() + file + f"\r\n--{BOUNDARY}--\r\n".encode()
    head = (
        "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: h\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def reset(writer: asyncio.StreamWriter) -> None:
    """Reset a connection: after a mere end of what a client sends, it may still read."""
    no_linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
    writer.close()


async def test_clients_that_leave_a_streamed_answer_leave_nothing_behind() -> None:
    decoders, guard, backplane = Decoders(1), CountingGuard(), ScriptedBackplane()
    recordings = recordings_of(backplane, guard, decoders)
    async with serving(backplane, endpoints=transcription_endpoints(recordings)) as harness:
        for number in range(1, 4):  # more than there are decoders
            reader, writer = await asyncio.open_connection(HOST, harness.ws_port)
            writer.write(streamed(silence(60)))
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            # No worker takes the audio, so the recording waits behind its first seconds.
            await wait_until(lambda: len(backplane.links) == number and backplane.link.samples > 16_000)  # noqa: B023
            assert (decoders.running, guard.streams) == (1, 1)
            reset(writer)
            await wait_until(lambda: (decoders.running, guard.streams) == (0, 0))
            assert backplane.link.log[-1] == "abandon"
            assert guard.audio_s >= number


async def test_clients_that_leave_before_a_streamed_answer_begins_leave_nothing_behind() -> None:
    decoders, guard, backplane = Decoders(1), CountingGuard(), ScriptedBackplane()
    backplane.gate.clear()
    recordings = recordings_of(backplane, guard, decoders)
    async with serving(backplane, endpoints=transcription_endpoints(recordings)) as harness:
        for number in range(1, 3):
            _, writer = await asyncio.open_connection(HOST, harness.ws_port)
            writer.write(streamed(silence(1)))
            await wait_until(lambda: backplane.num_waiting == number)  # noqa: B023
            reset(writer)
            await wait_until(lambda: (recordings.num_held, decoders.running, guard.streams) == (0, 0, 0))


async def test_a_streamed_answer_that_is_refused_has_a_status() -> None:
    backplane = ScriptedBackplane()
    recordings = recordings_of(backplane)
    async with serving(backplane, endpoints=transcription_endpoints(recordings)) as harness:

        async def answer(file: bytes) -> tuple[int, bytes, dict[str, str]]:
            reader, writer = await asyncio.open_connection(HOST, harness.ws_port)
            writer.write(streamed(file))
            status = int((await reader.readline()).split()[1])
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(re.search(rb"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]
            error = json.loads(await reader.readexactly(size))["error"]
            writer.close()
            return status, head, error

        status, _, error = await answer(silence(0))
        assert (status, error["type"], error["code"]) == (400, "invalid_request_error", "invalid_media")
        backplane.refusal = NoFreeStream()
        status, head, error = await answer(silence(1))
        # A client of OpenAI's tries again after this status, and never after an event with the error.
        assert (status, error["type"], error["code"]) == (503, "server_error", "no_free_stream")
        assert b"retry-after:" in head.lower()
        assert recordings.num_held == 0


async def test_a_file_is_closed_also_where_its_task_is_cancelled_again() -> None:
    parts = streamed(silence(1)).partition(b"\r\n\r\n")[2]
    headers = [(b"content-type", f"multipart/form-data; boundary={BOUNDARY}".encode())]

    async def receive() -> Message:
        return {"type": "http.request", "body": parts, "more_body": False}

    held: list[Upload] = []

    async def hold() -> None:
        async with received(
            Request({"type": "http", "headers": headers}, receive), lambda size: None
        ) as upload:
            held.append(upload)
            await asyncio.Event().wait()

    task = asyncio.create_task(hold())
    await wait_until(lambda: bool(held))
    path = held[0].media.file
    assert path is not None
    assert await asyncio.to_thread(path.exists)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not await asyncio.to_thread(path.exists)


async def test_a_recording_is_counted_before_it_is_decoded() -> None:
    class FullGuard(CountingGuard):
        async def enter(self, client: Client | None, num_streams: int) -> None:
            assert decoders.running == 0
            await super().enter(client, num_streams)

    decoders, guard, backplane = Decoders(1), FullGuard(), ScriptedBackplane(echo=True)
    recordings = recordings_of(backplane, guard, decoders)
    async with serving(backplane, endpoints=listen_endpoints(recordings)) as harness:
        status, answer = await posted(harness.ws_port, "/v1/listen", silence(1))
    assert status == 200
    assert answer["metadata"]["duration"] == pytest.approx(1.0)
    assert guard.audio_s == pytest.approx(1.0)


async def test_a_query_of_too_many_fields_is_refused() -> None:
    backplane = ScriptedBackplane()
    recordings = recordings_of(backplane)
    async with serving(backplane, endpoints=listen_endpoints(recordings)) as harness:
        status, answer = await posted(harness.ws_port, "/v1/listen?" + "a=1&" * 1001, b"")
    assert status == 400
    assert "1000 fields" in answer["err_msg"]


@pytest.mark.parametrize(
    "body",
    [b"garbage", b"--x\r\nA: " + b"y" * 20_000, b"--x\r\n" + b"A: b\r\n" * 1000, b"--x\r\n\xff: b\r\n"],
)
async def test_a_form_that_is_none_is_refused_within_bounds(body: bytes) -> None:
    backplane = ScriptedBackplane()
    recordings = recordings_of(backplane)
    async with serving(backplane, endpoints=transcription_endpoints(recordings)) as harness:
        kind = "multipart/form-data; boundary=x"
        status, answer = await posted(harness.ws_port, "/v1/audio/transcriptions", body, kind)
    assert (status, answer["error"]["message"]) == (400, "Invalid multipart data.")


@pytest.mark.parametrize(
    "kind",
    [
        *(f"multipart/form-data; charset={name}; boundary=x" for name in ("punycode", "undefined", "utf-16")),
        *(
            "application/x-www-form-urlencoded",
            "application/json",
            "audio/wav",
            "multipart/mixed; boundary=x",
        ),
    ],
)
async def test_a_form_is_one_of_parts_in_utf_8(kind: str) -> None:
    backplane = ScriptedBackplane()
    recordings = recordings_of(backplane)
    body = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na-b\r\n--x--\r\n'
    async with serving(backplane, endpoints=transcription_endpoints(recordings)) as harness:
        status, answer = await posted(harness.ws_port, "/v1/audio/transcriptions", body, kind)
    assert status == 400
    assert ("UTF-8" if "charset" in kind else "multipart/form-data") in answer["error"]["message"]


@pytest.mark.parametrize("charset", ["UTF-8", '"utf8"', "ISO-8859-1"])
async def test_a_form_may_name_its_character_set(charset: str) -> None:
    backplane = ScriptedBackplane(echo=True)
    recordings = recordings_of(backplane)
    kind = f"multipart/form-data; charset={charset}; boundary={BOUNDARY}"
    async with serving(backplane, endpoints=transcription_endpoints(recordings)) as harness:
        status, _ = await posted(harness.ws_port, "/v1/audio/transcriptions", spoken({"prompt": "a"}), kind)
    assert status == 200


@pytest.mark.parametrize("target", ["/v1/listen", "/v1/audio/transcriptions"])
async def test_uploads_are_bounded_while_they_are_received(target: str) -> None:
    backplane = ScriptedBackplane(echo=True)
    recordings = recordings_of(backplane, max_held=1)
    endpoints = (*listen_endpoints(recordings), *transcription_endpoints(recordings))
    async with serving(backplane, endpoints=endpoints) as harness:
        _, slow = await asyncio.open_connection(HOST, harness.ws_port)
        head = f"POST {target} HTTP/1.1\r\nHost: h\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        slow.write(f"{head}Content-Length: 1000\r\n\r\n".encode() + b"--x\r\n")

        await wait_until(lambda: recordings.num_held == 1)
        assert (await posted(harness.ws_port, "/v1/listen", silence(1)))[0] == 503
        slow.transport.abort()
        await wait_until(lambda: recordings.num_held == 0)
        assert (await posted(harness.ws_port, "/v1/listen", silence(1)))[0] == 200


@pytest.mark.parametrize("target", ["/v1/listen", "/v1/audio/transcriptions"])
async def test_an_upload_that_is_announced_as_too_large_is_not_waited_for(target: str) -> None:
    recordings = recordings_of(ScriptedBackplane(), max_bytes=1000)
    endpoints = (*listen_endpoints(recordings), *transcription_endpoints(recordings))
    async with serving(ScriptedBackplane(), endpoints=endpoints) as harness:
        client = await harness.raw_ws()
        head = f"POST {target} HTTP/1.1\r\nHost: h\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        await client.send(f"{head}Expect: 100-continue\r\nContent-Length: 1001\r\n\r\n".encode())
        assert (await client.response())[0] == 413
        await client.close()


def full_file() -> FileIO:
    """Return a file on a disk that is full."""
    return FileIO("/dev/full", "w+")


@pytest.mark.parametrize("seconds", [1, 60], ids=["kept in memory by the form", "spooled by the form"])
async def test_an_upload_without_room_on_the_disk_may_come_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, seconds: int
) -> None:
    recordings = recordings_of(ScriptedBackplane(echo=True))
    endpoints = (*listen_endpoints(recordings), *transcription_endpoints(recordings))
    form = spoken({"model": "parakeet"}, seconds)
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    async with serving(ScriptedBackplane(), endpoints=endpoints) as harness:
        with monkeypatch.context() as full:
            full.setattr("tempfile.TemporaryFile", lambda *_, **__: full_file())
            status, answer = await posted(harness.ws_port, "/v1/audio/transcriptions", form, kind)
            assert (status, answer["error"]["code"]) == (503, "busy")
            status, answer = await posted(harness.ws_port, "/v1/listen", silence(seconds))
            assert (status, "disk space" in answer["err_msg"]) == (503, True)
        assert "has no room for an upload" in caplog.text
        assert recordings.num_held == 0
        status, _ = await posted(harness.ws_port, "/v1/audio/transcriptions", form, kind)
        assert status == 200


MULTILINGUAL = Languages(("en-US", "de-DE"), prompted=True)


def spoken(fields: dict[str, str], seconds: int = 1) -> bytes:
    """Return the body of an upload with silence."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    return ("".join(parts) + head).encode() + silence(seconds) + f"\r\n--{BOUNDARY}--\r\n".encode()


@pytest.mark.parametrize(
    ("languages", "field", "value", "option"),
    [
        (ENGLISH, "language", "en", None),
        (MULTILINGUAL, "language", "de", "de-DE"),
        (MULTILINGUAL, "languages[]", "de", "de-DE"),
        (Languages(), "language", "fr", None),
    ],
)
async def test_the_language_of_an_upload_is_the_streams(
    languages: Languages, field: str, value: str, option: str | None
) -> None:
    backplane = ScriptedBackplane(echo=True)
    backplane.languages = languages
    recordings = recordings_of(backplane)
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    endpoints = (*listen_endpoints(recordings), *transcription_endpoints(recordings))
    async with serving(backplane, endpoints=endpoints) as harness:
        port = harness.ws_port
        assert (await posted(port, "/v1/audio/transcriptions", spoken({field: value}), kind))[0] == 200
        uploaded = backplane.link.options
        assert (await posted(port, f"/v1/listen?language={value}", silence(1)))[0] == 200
        heard = backplane.link.options
    assert uploaded is not None
    assert heard is not None
    assert (uploaded.language, heard.language) == (option, option)


@pytest.mark.parametrize("languages", [ENGLISH, MULTILINGUAL])
async def test_a_language_that_the_model_does_not_have_is_refused(languages: Languages) -> None:
    backplane = ScriptedBackplane(echo=True)
    backplane.languages = languages
    recordings = recordings_of(backplane)
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    endpoints = (*listen_endpoints(recordings), *transcription_endpoints(recordings))
    sentence = f'The model does not have the language "fr"; it has {", ".join(languages.names)}.'
    async with serving(backplane, endpoints=endpoints) as harness:
        for field in ("language", "languages"):
            body = spoken({field: "fr"})
            status, answer = await posted(harness.ws_port, "/v1/audio/transcriptions", body, kind)
            assert (status, answer["error"]["code"]) == (400, "invalid_value")
            assert (answer["error"]["param"], answer["error"]["message"]) == (field, sentence)
        status, answer = await posted(harness.ws_port, "/v1/listen?language=fr", silence(1))
    assert (status, answer["err_code"]) == (400, "INVALID_QUERY_PARAMETER")
    assert answer["err_msg"] == sentence
    assert backplane.links == []


async def posted(
    port: int, target: str, body: bytes, kind: str = "application/octet-stream"
) -> tuple[int, dict[str, Any]]:
    """Post a body of a type; return status and answer."""
    reader, writer = await asyncio.open_connection(HOST, port)
    head = f"POST {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Type: {kind}\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    async with asyncio.timeout(60):
        first, _, answer = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(first.split()[1]), json.loads(answer)


async def test_a_failure_that_nobody_waits_for_is_no_defect(caplog: pytest.LogCaptureFixture) -> None:
    class Failing:
        async def transcribed(self, *_: object, **__: object) -> Transcript:
            raise MediaError("The media cannot be decoded.")

    upload = Upload(FormData(), MediaInput("wav", file=Path("a.wav")))
    # A client that left before its answer began: no event of it is asked for.
    events = _Events(Failing(), upload, RecordingHints(), "", AsyncExitStack())  # type: ignore[arg-type]
    await wait_until(events._running.done)
    del events
    gc.collect()
    assert caplog.records == []
