"""Recordings end with their clients, their keys and their bounds, and are counted."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import Any

import pytest

from common.auth.api_key import KeyId
from common.auth.keys_file import KeyRecord
from common.entries import LineKind
from common.errors import NoFreeStream
from ingress.api.listen import listen_endpoints
from ingress.api.transcriptions import transcription_endpoints
from ingress.auth.client import Client
from ingress.auth.guard import OverLimit
from ingress.files.recordings import Recordings
from ingress.media.decoder import Decoders
from ingress.request import Request
from tests.counting_guard import CountingGuard
from tests.fake_backplane import ScriptedBackplane, some_result
from tests.ingress_harness import HOST, Harness, TcpClient, serving, wait_until
from tests.unit.ingress.http.test_transcriptions import BOUNDARY, posted, recordings_of, silence

pytestmark = pytest.mark.one_loop

LISTEN, TRANSCRIPTIONS = "/v1/listen", "/v1/audio/transcriptions"
KEY = Client(KeyRecord(key_id=KeyId("abcdefgh"), digest="", name="desk"))


def request(target: str, file: bytes, *, length: int | None = None) -> bytes:
    """Return a request with a recording as its body, or in its form; `length`: that is told, of more."""
    kind, body = "audio/wav", file
    if target == TRANSCRIPTIONS:
        kind = f"multipart/form-data; boundary={BOUNDARY}"
        part = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        body = part.encode() + file + f"\r\n--{BOUNDARY}--\r\n".encode()
    head = f"POST {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {length or len(body)}\r\n\r\n".encode() + body


async def answer(client: TcpClient) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, headers and body of the answer, behind interim ones."""
    async with asyncio.timeout(60):
        head = b"HTTP/1.1 102"
        while head.startswith(b"HTTP/1.1 102"):
            head = await client.reader.readuntil(b"\r\n\r\n")
        lines = head.decode().splitlines()
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        body = await client.reader.readexactly(int(headers["content-length"]))
    return int(lines[0].split()[1]), headers, json.loads(body)


async def sent(harness: Harness, data: bytes) -> TcpClient:
    client = await harness.raw_ws()
    await client.send(data)
    return client


def endpoints(recordings: Recordings) -> tuple[Any, ...]:
    return (*listen_endpoints(recordings), *transcription_endpoints(recordings))


@pytest.mark.parametrize("target", [LISTEN, TRANSCRIPTIONS])
@pytest.mark.parametrize("by_reset", [True, False], ids=["reset", "close"])
async def test_a_client_that_leaves_ends_its_recording(target: str, by_reset: bool) -> None:
    decoders, guard, backplane = Decoders(1), CountingGuard(), ScriptedBackplane()
    recordings = recordings_of(backplane, guard, decoders)
    async with serving(backplane, endpoints=endpoints(recordings)) as harness:
        client = await sent(harness, request(target, silence(60)))
        # No worker takes the audio, so the recording waits behind its first seconds.
        await wait_until(lambda: bool(backplane.links) and backplane.link.samples > 16_000)
        assert (decoders.running, guard.streams, recordings.num_held) == (1, 1, 1)
        if by_reset:
            no_linger = struct.pack("ii", 1, 0)
            client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
        client.writer.close()
        await wait_until(lambda: (decoders.running, guard.streams, recordings.num_held) == (0, 0, 0))
        assert backplane.link.log[-1] == "abandon"
        assert recordings.metrics.recordings["client_gone"] == 1
        assert backplane.link.code == "client_gone"


async def test_a_client_that_only_sends_no_more_has_its_answer() -> None:
    backplane = ScriptedBackplane()
    recordings = recordings_of(backplane)
    async with serving(backplane, endpoints=endpoints(recordings)) as harness:
        client = await sent(harness, request(LISTEN, silence(1)))
        client.writer.write_eof()
        async with asyncio.timeout(60):
            for _ in range(2):
                interim = await client.reader.readuntil(b"\r\n\r\n")
                assert interim.startswith(b"HTTP/1.1 102 Processing")
        final = some_result(1, "go on", final=True, acked=16_000)
        backplane.link.listener.on_result(LineKind.FINAL, final)
        status, _, body = await answer(client)
        assert status == 200
        assert body["results"]["channels"][0]["alternatives"][0]["transcript"] == "go on"
        await client.close()


@pytest.mark.parametrize("target", [LISTEN, TRANSCRIPTIONS])
async def test_a_recording_is_bounded_in_length(target: str) -> None:
    guard, backplane = CountingGuard(), ScriptedBackplane(echo=True)
    recordings = recordings_of(backplane, guard, max_recording_s=2.0)
    async with serving(backplane, endpoints=endpoints(recordings)) as harness:
        client = await sent(harness, request(target, silence(4)))
        status, _, body = await answer(client)
        assert status == 413
        assert "--max-recording-s" in str(body)
        await client.close()
        assert (await posted(harness.ws_port, LISTEN, silence(2)))[0] == 200
    assert 2.0 < guard.audio_s <= 4.0, "what was sent of both"
    metrics = recordings.metrics
    assert (metrics.recordings["too_large"], metrics.recordings["transcribed"]) == (1, 1)
    assert [link.code for link in backplane.links] == ["recording_failed", "final"]


@pytest.mark.parametrize("target", [LISTEN, TRANSCRIPTIONS])
async def test_a_key_without_audio_left_ends_its_recording(target: str) -> None:
    guard, backplane = CountingGuard(), ScriptedBackplane(echo=True)
    guard.most_audio_s = 2.0
    recordings = recordings_of(backplane, guard)
    async with serving(backplane, endpoints=endpoints(recordings)) as harness:
        client = await sent(harness, request(target, silence(30)))
        status, headers, _ = await answer(client)
        assert (status, headers["retry-after"]) == (429, "60")
        await client.close()
    assert 2.0 <= guard.audio_s < 6.0, "it is counted by the block"
    assert backplane.link.log[-1] == "abandon"
    assert recordings.metrics.recordings["over_limit"] == 1
    assert backplane.link.code == "over_limit"
    assert recordings.metrics.errors["over_limit"] == 1


async def test_audio_counts_while_a_recording_runs() -> None:
    guard, backplane = CountingGuard(), ScriptedBackplane()
    recordings = recordings_of(backplane, guard)
    async with serving(backplane, endpoints=endpoints(recordings)) as harness:
        client = await sent(harness, request(LISTEN, silence(60)))
        await wait_until(lambda: guard.audio_s >= 10)
        assert recordings.num_held == 1
        assert recordings.metrics.audio_seconds == guard.audio_s
        client.writer.transport.abort()
        await wait_until(lambda: recordings.num_held == 0)


@pytest.mark.parametrize("target", [LISTEN, TRANSCRIPTIONS])
async def test_a_key_at_its_limit_is_refused_before_its_upload(target: str) -> None:
    class FullGuard(CountingGuard):
        async def enter(self, client: Client | None, num_streams: int) -> None:
            raise OverLimit("It has all the streams that it may have.", 7)

    guard, backplane = FullGuard(), ScriptedBackplane()
    recordings = recordings_of(backplane, guard)
    async with serving(backplane, endpoints=endpoints(recordings)) as harness:
        client = await sent(harness, request(target, b"RIFF", length=1_000_000)[:300])
        status, headers, _ = await answer(client)
        assert (status, headers["retry-after"]) == (429, "7")
        await client.close()
    assert (guard.streams, recordings.num_held, recordings.metrics.recordings["over_limit"]) == (0, 0, 1)
    assert recordings.metrics.admissions["over_limit"] == recordings.metrics.errors["over_limit"] == 1
    assert backplane.links == []


@pytest.mark.parametrize("target", [LISTEN, TRANSCRIPTIONS])
@pytest.mark.parametrize("while_", ["received", "transcribed"])
async def test_a_revoked_key_ends_its_recordings_and_no_others(target: str, while_: str) -> None:
    backplane, decoders = ScriptedBackplane(), Decoders(2)
    recordings = recordings_of(backplane, decoders=decoders)

    def by_path(asked: Request) -> Client:
        return KEY if "mine" in asked.query else Client()

    async with serving(backplane, endpoints=endpoints(recordings), authenticate=by_path) as harness:
        other = await sent(harness, request(target, silence(60)))
        await wait_until(lambda: recordings.num_held == 1 and bool(backplane.links))
        data = request(target + "?mine", silence(60))
        if target == TRANSCRIPTIONS:
            data = request(target, silence(60)).replace(b" HTTP", b"?mine HTTP", 1)
        mine = await sent(harness, data[: 1000 if while_ == "received" else None])
        await wait_until(lambda: recordings.num_held == 2)
        if while_ == "transcribed":
            await wait_until(lambda: len(backplane.links) == 2 and backplane.link.samples > 0)
        recordings.expel(KeyId("abcdefgh"))
        await mine.send(data[1000:] if while_ == "received" else b"")
        status, _, body = await answer(mine)
        assert status == 401
        assert "revoked" in str(body)
        assert (recordings.num_held, recordings.metrics.recordings["unauthorized"]) == (1, 1)
        await mine.close()
        other.writer.transport.abort()
        await wait_until(lambda: recordings.num_held == 0 and decoders.running == 0)


async def test_a_recording_is_counted_in_the_metrics() -> None:
    backplane = ScriptedBackplane(echo=True)
    recordings = recordings_of(backplane)
    metrics = recordings.metrics
    file = silence(2)
    async with serving(backplane, endpoints=endpoints(recordings)) as harness:
        assert (await posted(harness.ws_port, LISTEN, file))[0] == 200
        assert metrics.recordings["transcribed"] == 1
        assert metrics.received_bytes["http"] == len(file)
        assert metrics.audio_seconds == pytest.approx(2.0)
        assert metrics.admissions["admitted"] == 1
        assert backplane.link.code == "final"
        assert metrics.results["final"] == 1
        assert sum(metrics.recording_seconds.counts) == 1
        assert metrics.recording_seconds.sum > 0
        assert (await posted(harness.ws_port, LISTEN, b"nonsense"))[0] == 400
        assert (metrics.recordings["invalid"], metrics.received_bytes["http"]) == (1, len(file) + 8)
        backplane.refusal = NoFreeStream()
        assert (await posted(harness.ws_port, LISTEN, file))[0] == 503
        assert (metrics.recordings["busy"], metrics.admissions["full"]) == (1, 1)
        assert metrics.errors["no_free_stream"] == 1
        assert len(backplane.links) == 1


@pytest.mark.parametrize("proxied", [True, False])
async def test_http_behind_a_trusted_proxy_counts_for_the_clients_address(proxied: bool) -> None:
    backplane = ScriptedBackplane()
    recordings = recordings_of(backplane)
    proxies = [HOST] if proxied else []
    async with serving(
        backplane,
        endpoints=endpoints(recordings),
        trusted_proxies=proxies,
        max_connections_per_address=1 if proxied else 2,
    ) as harness:

        async def get(client: TcpClient, address: str) -> int:
            await client.send(f"GET /ws HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: {address}\r\n\r\n".encode())
            async with asyncio.timeout(60):
                head = (await client.reader.readuntil(b"\r\n\r\n")).decode()
            length = next(line for line in head.lower().splitlines() if line.startswith("content-length"))
            await client.reader.readexactly(int(length.split()[1]))
            return int(head.split()[1])

        slow = await harness.raw_ws()
        held = request(LISTEN, b"RIFF", length=1000).replace(
            b"Host: h", b"Host: h\r\nX-Forwarded-For: 192.0.2.1"
        )
        await slow.send(held)
        await wait_until(lambda: recordings.num_held == 1)
        client = await harness.raw_ws()
        assert await get(client, "192.0.2.1") == (429 if proxied else 426)
        assert await get(client, "192.0.2.2") == 426, (
            "another client of the same proxy, on the same connection"
        )
        slow.writer.transport.abort()
        await wait_until(lambda: recordings.num_held == 0)
        # A connection that the proxy keeps, and on which nobody waits, counts for nobody.
        assert await get(client, "192.0.2.1") == 426
        again = await harness.raw_ws()
        assert await get(again, "192.0.2.1") == 426
        await client.close()
        await again.close()
