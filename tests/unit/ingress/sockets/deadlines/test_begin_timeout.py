"""A client that begins no stream gives its slot back, keeps its socket, and may begin later all the same."""

from __future__ import annotations

import asyncio
import base64

import pytest
from websockets.asyncio.client import connect

from common.errors import NoFreeStream, NoWorker, RedisUnavailable, StreamError
from common.messages import Audio, Finalize
from ingress.dialects.dialect import Heard
from ingress.dialects.native import NativeDialect
from ingress.protocol import YOUNG
from tests.fake_backplane import ScriptedBackplane
from tests.ingress_harness import Harness, TcpClient, serving, wait_until

pytestmark = pytest.mark.one_loop

_AUDIO = {"type": "audio", "data": base64.b64encode(b"\0\0" * 10).decode()}


async def _parked(harness: Harness) -> TcpClient:
    """A client whose slot was given back."""
    client = await harness.tcp()
    assert (await client.receive())["type"] == "hello"
    await wait_until(lambda: harness.backplane.link.log == ["abandon"])
    return client


@pytest.mark.parametrize(
    ("first", "log"),
    [
        (_AUDIO, ["begin", "append"]),
        ({"type": "audio", "samples": [0.5], "final": True}, ["begin", "final", "release"]),
        ({"type": "config", "words": True}, ["begin"]),
        ({"type": "close"}, ["begin", "final", "release"]),
    ],
)
async def test_a_later_first_message_has_the_stream_of_its_hello(
    first: dict[str, object], log: list[str]
) -> None:
    backplane = ScriptedBackplane(echo=True)
    async with serving(backplane, begin_timeout_s=0.05) as harness:
        client = await _parked(harness)
        await client.send(first)
        await wait_until(lambda: backplane.link.log == log)
        assert [(link.stream, link.resume_token) for link in backplane.links] == [(1, "secret")] * 2
        if log[-1] != "release":
            await client.send({"type": "close"})
        received = await client.receive_all()
        assert "hello" not in [message["type"] for message in received]
        assert received[-1]["is_final"]
        await client.close()


async def test_what_follows_the_first_message_waits_for_the_slot() -> None:
    backplane = ScriptedBackplane(echo=True)
    async with serving(backplane, begin_timeout_s=0.05) as harness:
        client = await _parked(harness)
        backplane.gate.clear()
        for _ in range(3):
            await client.send(_AUDIO)
        await client.send({"type": "ping"})
        await client.send({"type": "close"})
        await asyncio.sleep(0.1)
        assert len(backplane.links) == 1
        backplane.gate.set()
        received = await client.receive_all()
        texts = [message["text"] for message in received if message["type"] == "result"]
        assert texts == ["10 samples", "20 samples", "30 samples", "30 samples"]
        assert [message for message in received if message["type"] == "pong"] == [{"type": "pong"}]
        assert backplane.link.log == ["begin", "append", "append", "append", "final", "release"]
        await client.close()


async def test_a_ping_begins_no_stream() -> None:
    async with serving(ScriptedBackplane(), begin_timeout_s=0.3) as harness:
        client = await harness.tcp()
        await client.receive()
        while harness.backplane.link.log != ["abandon"]:
            await client.send({"type": "ping"})
            assert await client.receive() == {"type": "pong"}
            await asyncio.sleep(0.02)
        await client.send({"type": "ping"})
        assert await client.receive() == {"type": "pong"}
        assert len(harness.backplane.links) == 1
        await client.close()


async def test_a_stream_that_has_begun_keeps_its_slot() -> None:
    async with serving(ScriptedBackplane(), begin_timeout_s=2.0) as harness:
        client = await harness.tcp()
        await client.receive()
        await client.send({"type": "config", "words": True})
        parked = await harness.tcp()
        await wait_until(lambda: len(harness.backplane.links) == 2 and bool(harness.backplane.link.log))
        assert harness.backplane.links[0].log == ["begin"]
        assert harness.backplane.links[1].log == ["abandon"]
        await client.close()
        await parked.close()


@pytest.mark.parametrize("refusal", [NoFreeStream(), NoWorker(), RedisUnavailable()])
async def test_where_there_is_no_slot_any_more_the_client_is_told(refusal: StreamError) -> None:
    backplane = ScriptedBackplane()
    async with serving(backplane, begin_timeout_s=0.05) as harness:
        client = await _parked(harness)
        backplane.refusal = refusal
        await client.send(_AUDIO)
        await client.send(_AUDIO)
        (message,) = await client.receive_all()
        assert (message["code"], message["message"]) == (refusal.code.value, refusal.message)
        await client.close()
        assert len(backplane.links) == 1


async def test_a_parked_client_may_resume_another_stream() -> None:
    backplane = ScriptedBackplane(echo=True)
    backplane.resumption = (100, 60, False)
    async with serving(backplane, begin_timeout_s=0.05) as harness:
        client = await _parked(harness)
        request = {"type": "resume", "stream_id": 7, "resume_token": "old", "last_seq": 2}
        await client.send(request | {"audio_ack_samples": 60})
        resumed = await client.receive()
        assert (resumed["type"], resumed["stream_id"], resumed["next_sample"]) == ("resumed", 7, 100)
        await client.send({"type": "close"})
        assert (await client.receive())["is_final"]
        await client.close()
        assert backplane.links[0].log == ["abandon"]


@pytest.mark.parametrize("readmitting", [False, True])
async def test_a_parked_client_that_leaves_leaves_nothing_behind(readmitting: bool) -> None:
    backplane = ScriptedBackplane()
    async with serving(backplane, begin_timeout_s=0.05) as harness:
        client = await _parked(harness)
        if readmitting:
            backplane.gate.clear()
            await client.send(_AUDIO)
            (connection,) = harness.connections
            await wait_until(lambda: connection.state in YOUNG and backplane.num_waiting == 1)
            client.writer.transport.abort()
            (server,) = harness.transports
            server.abort()  # it does not read, so nothing else tells it
        else:
            client.writer.transport.abort()
        await wait_until(lambda: not harness.connections)
        backplane.gate.set()
        await wait_until(lambda: backplane.num_waiting == 0)
        await asyncio.sleep(0)
        assert [link.log for link in backplane.links] == [["abandon"]] * (2 if readmitting else 1)


async def test_a_parked_client_is_sent_elsewhere_by_a_drain() -> None:
    async with serving(ScriptedBackplane(), begin_timeout_s=0.05) as harness:
        client = await _parked(harness)
        (connection,) = harness.connections
        assert connection.state in YOUNG
        connection.drain()
        (message,) = await client.receive_all()
        assert message["code"] == "draining"
        await client.close()


async def test_a_parked_clients_fault_is_told() -> None:
    async with serving(ScriptedBackplane(), begin_timeout_s=0.05) as harness:
        client = await _parked(harness)
        await client.send(b"{nonsense\n")
        (message,) = await client.receive_all()
        assert (message["code"], message["stream_id"]) == ("bad_json", 1)
        await client.close()
        assert harness.backplane.link.log == ["abandon"]


async def test_the_websocket_port_parks_too() -> None:
    backplane = ScriptedBackplane(echo=True)
    async with serving(backplane, begin_timeout_s=0.05) as harness, connect(harness.ws_url) as client:
        await client.recv()
        await wait_until(lambda: backplane.link.log == ["abandon"])
        await client.send(b"\0\0" * 5)
        async with asyncio.timeout(60):
            assert '"5 samples"' in str(await client.recv())
        assert backplane.link.stream == 1


class _Finalizing(NativeDialect):
    """The native protocol, but that audio is finalized at once: one frame says two things."""

    def decode_text(self, data: bytes) -> Heard:
        message = super().decode_text(data)
        return [message, Finalize()] if isinstance(message, Audio) else message


async def test_all_that_one_frame_says_waits_for_the_slot() -> None:
    backplane = ScriptedBackplane()
    async with serving(backplane, begin_timeout_s=0.05, dialect=lambda: _Finalizing(16000)) as harness:
        client = await _parked(harness)
        backplane.gate.clear()
        await client.send(_AUDIO)
        await wait_until(lambda: backplane.num_waiting == 1)
        backplane.gate.set()
        await wait_until(lambda: backplane.link.log == ["begin", "append", "finalize"])
        await client.send(_AUDIO)
        await wait_until(lambda: backplane.link.log[3:] == ["append", "finalize"])
        await client.close()
