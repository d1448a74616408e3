"""The line of the log at each stream's end, of real ingresses, over every way in."""

from __future__ import annotations

import asyncio
import json
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from common.auth.api_key import KeyId
from common.auth.keys_file import KeyRecord, create_key
from parakeet.client import connect as open_stream
from tests.ports import HOST
from tests.stack import TIMEOUTS, Stack
from tests.waiting import until

pytestmark = pytest.mark.one_server

AUDIO = bytes(32_000)
GRACE_S = 1.0


def wav(pcm: bytes) -> bytes:
    """A recording of 16 kHz, mono."""
    head = b"RIFF" + (36 + len(pcm)).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    head += b"\x01\x00\x01\x00" + (16_000).to_bytes(4, "little") + (32_000).to_bytes(4, "little")
    return head + b"\x02\x00\x10\x00data" + len(pcm).to_bytes(4, "little") + pcm


@pytest.fixture
def key(tmp_path: Path) -> str:
    record = KeyRecord(key_id=KeyId(""), digest="", name="front desk")
    return create_key(tmp_path / "keys.json", record)[1]


async def test_every_stream_has_one_line_whatever_its_way_and_its_end(
    stack: Stack, tmp_path: Path, key: str
) -> None:
    stack.worker()
    ingress = stack.ingress(
        auth_keys_file=str(tmp_path / "keys.json"), log_format="json", resume_grace_s=GRACE_S
    )

    def ends() -> list[dict[str, Any]]:
        lines = (tmp_path / "i-1.log").read_text().splitlines()
        entries = [json.loads(line) for line in lines if line.startswith("{")]
        return [entry for entry in entries if entry["message"].startswith("stream ended")]

    async def ended(number: int) -> dict[str, Any]:
        await until(lambda: len(ends()) >= number, what="the line of a stream's end")
        told = ends()
        assert len(told) == number
        assert told[-1]["key_name"] == "front desk"
        return told[-1]

    for number, url in enumerate((ingress.tcp_url, ingress.ws_url), start=1):
        async with await open_stream(url, timeouts=TIMEOUTS, api_key=key) as stream:
            stream_id = stream.stream_id
            await stream.send(AUDIO)
            await stream.finish()
            texts = [result.text async for result in stream.results()]
        told = await ended(number)
        assert texts[-1]
        assert (told["stream_id"], told["code"], told["audio_s"]) == (stream_id, "final", 1.0)
        assert 0 <= told["first_text_ms"] < 90_000
        assert 0 <= told["final_ms"] < 90_000
        assert texts[-1] not in json.dumps(told)

    headers = {"Authorization": f"Bearer {key}"}
    async with connect(ingress.ws_url, additional_headers=headers) as client:
        await client.recv()
        await client.send(AUDIO)
        await client.send("no json")
        await client.wait_closed()
    told = await ended(3)
    assert (told["code"], told["audio_s"]) == ("bad_json", 1.0)

    async with connect(ingress.ws_url, additional_headers=headers) as client:
        await client.recv()
        await client.send(json.dumps({"type": "config", "resume": True}))
        await client.send(AUDIO)
        await client.recv()
        client.transport.abort()
    told = await ended(4)
    assert told["code"] == "client_gone"

    def upload() -> int:
        with closing(HTTPConnection(HOST, ingress.ws_port, timeout=60)) as connection:
            connection.request("POST", "/v1/listen", wav(2 * AUDIO), headers)
            return connection.getresponse().status

    assert await asyncio.to_thread(upload) == 200
    told = await ended(5)
    assert (told["code"], told["audio_s"]) == ("final", 2.0)
    await stack.empty()
