"""Deepgram's protocol over a real socket, with the service in memory."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from common.entries import LineKind
from common.errors import ErrorCode, NoFreeStream, NoWorker, StreamError
from common.messages import Utterance, Word
from ingress.dialects.deepgram.dialect import DeepgramDialect
from ingress.dialects.deepgram.query import parse_listen_query
from ingress.dialects.deepgram.refusals import shaped
from ingress.server import LISTEN_PATH
from tests.counting_guard import CountingGuard
from tests.fake_backplane import FakeLink, ScriptedBackplane, some_result
from tests.ingress_harness import Harness, serving, wait_until

RAW = "encoding=linear16&sample_rate=16000"


@asynccontextmanager
async def listening(backplane: ScriptedBackplane, **more: Any) -> AsyncIterator[Harness]:
    """The ports, with Deepgram's path."""
    async with serving(
        backplane,
        dialects={LISTEN_PATH: lambda request: DeepgramDialect(parse_listen_query(request.query))},
        shapes={LISTEN_PATH: shaped},
        **more,
    ) as harness:
        yield harness


def url(harness: Harness, query: str = RAW) -> str:
    return f"{harness.ws_url}{LISTEN_PATH}?{query}"


async def heard(client: ClientConnection) -> list[dict[str, Any]]:
    """All messages up to the close."""
    messages = []
    with suppress(ConnectionClosed):
        async with asyncio.timeout(60):
            while True:
                messages.append(json.loads(await client.recv()))
    return messages


async def test_a_stream_from_its_first_sample_to_its_close() -> None:
    backplane = ScriptedBackplane()
    async with (
        listening(backplane) as harness,
        connect(url(harness, f"{RAW}&interim_results=true")) as client,
    ):
        assert client.response is not None
        request_id = client.response.headers["dg-request-id"]
        await client.send('{"type":"KeepAlive"}')
        await client.send(struct.pack("<4h", 1, 2, 3, 4))
        await wait_until(lambda: bool(backplane.links) and "append" in backplane.link.log)
        link = backplane.link
        assert link.options is not None
        assert (link.options.sample_rate, link.options.words, link.options.auto_finalize) == (
            16000,
            True,
            True,
        )
        link.listener.on_result(LineKind.PARTIAL, some_result(1, "go", acked=8000))
        await client.send('{"type":"Finalize"}')
        await wait_until(lambda: "finalize" in link.log)
        answer = replace(
            some_result(2, "go", words=(Word("go", 0.1, 0.3, 0.9),), acked=16000),
            from_finalize=True,
            utterances=(Utterance(1, "go", 0.0, 0.4),),
        )
        link.listener.on_result(LineKind.FINALIZED, answer)
        await client.send('{"type":"CloseStream"}')
        await wait_until(lambda: "final" in link.log)
        link.listener.on_result(LineKind.FINAL, some_result(3, "go on", final=True, acked=32000))
        messages = await heard(client)
        assert client.close_code == 1000
        assert [message["type"] for message in messages] == ["Results", "Results", "Results", "Metadata"]
        interim, finalized, last, metadata = messages
        assert (interim["is_final"], finalized["is_final"], finalized["from_finalize"]) == (False, True, True)
        assert last["channel"]["alternatives"][0]["transcript"] == "on"
        assert (last["start"], last["duration"], metadata["duration"]) == (1.0, 1.0, 2.0)
        assert metadata["request_id"] == request_id
        assert link.log == ["begin", "append", "finalize", "final", "release"]


async def test_a_keepalive_begins_nothing_and_counts_as_activity() -> None:
    backplane = ScriptedBackplane()
    async with (
        listening(backplane, idle_timeout_s=4.0) as harness,
        connect(url(harness)) as client,
    ):
        for _ in range(8):
            await client.send('{"type":"KeepAlive"}')
            await asyncio.sleep(0.6)
        assert backplane.link.log == []
        (error,) = await heard(client)
        assert error["type"] == "Error"
        assert client.close_code == 1011
        assert (client.close_reason or "").startswith("NET-0001")
    assert backplane.link.log == ["abandon"]


async def test_an_end_without_audio_is_metadata_and_a_close_in_order() -> None:
    for end in ('{"type":"CloseStream"}', b""):
        backplane = ScriptedBackplane()
        async with listening(backplane) as harness, connect(url(harness)) as client:
            await client.send(end)
            await wait_until(lambda link=backplane: "final" in link.link.log)  # type: ignore[misc]
            backplane.link.listener.on_result(LineKind.FINAL, some_result(1, final=True))
            (metadata,) = await heard(client)
            assert (metadata["type"], client.close_code) == ("Metadata", 1000)


async def test_each_channel_is_a_stream_of_its_own() -> None:
    backplane = ScriptedBackplane()
    query = f"{RAW}&channels=2&multichannel=true"
    async with listening(backplane) as harness, connect(url(harness, query)) as client:
        await client.send(struct.pack("<4h", 1, -1, 2, -2))
        await client.send('{"type":"CloseStream"}')
        await wait_until(lambda: len(backplane.links) == 2 and "final" in backplane.links[1].log)
        left, right = backplane.links
        assert bytes(left.payload) == struct.pack("<2h", 1, 2)
        right.listener.on_result(LineKind.FINAL, some_result(1, "right", final=True, acked=2))
        left.listener.on_result(LineKind.FINAL, some_result(1, "left", final=True, acked=2))
        right_final, left_final, metadata = await heard(client)
        assert (right_final["channel_index"], left_final["channel_index"]) == ([1, 2], [0, 2])
        assert (metadata["channels"], client.close_code) == (2, 1000)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NoFreeStream(), 503),
        (NoWorker(), 503),
        (StreamError(ErrorCode.OVER_LIMIT, "The key has no more streams."), 429),
    ],
)
async def test_a_full_cluster_is_a_status_before_the_upgrade(error: StreamError, status: int) -> None:
    backplane = ScriptedBackplane()
    backplane.refusal = error
    async with listening(backplane) as harness:
        with pytest.raises(InvalidStatus) as caught:
            async with connect(url(harness)):
                raise AssertionError("it was opened")
        response = caught.value.response
        assert response.status_code == status
        assert response.headers["Retry-After"] == "5"
        assert response.headers["dg-error"] == error.message
        body = json.loads(response.body)
        assert body["err_msg"] == error.message
        assert body["request_id"] == response.headers["dg-request-id"]
        await wait_until(lambda: not harness.connections)


async def test_a_wrong_query_is_a_status_and_takes_no_slot() -> None:
    backplane = ScriptedBackplane()
    async with listening(backplane) as harness:
        with pytest.raises(InvalidStatus) as caught:
            async with connect(url(harness, "encoding=linear16")):
                raise AssertionError("it was opened")
        assert caught.value.response.status_code == 400
        assert json.loads(caught.value.response.body)["err_code"] == "INVALID_QUERY_PARAMETER"
        assert backplane.links == []


async def test_a_browser_gets_its_subprotocol_back_and_no_secret() -> None:
    async with listening(ScriptedBackplane()) as harness:
        offered = [Subprotocol(one) for one in ("token", "KEY", "x-deepgram-session-id", "a-b")]
        async with connect(url(harness), subprotocols=offered) as client:
            assert client.subprotocol == "token"


async def test_what_is_no_audio_ends_the_stream_behind_its_final() -> None:
    backplane = ScriptedBackplane()
    query = "encoding=linear32&sample_rate=16000"
    async with listening(backplane) as harness, connect(url(harness, query)) as client:
        await client.send(struct.pack("<3f", 0.1, 0.2, 0.3))
        await client.send(struct.pack("<f", float("nan")))
        await wait_until(lambda: bool(backplane.links) and "final" in backplane.link.log)
        backplane.link.listener.on_result(LineKind.FINAL, some_result(1, "go", final=True, acked=16000))
        messages = await heard(client)
        assert messages[0]["channel"]["alternatives"][0]["transcript"] == "go"
        assert (messages[-1]["type"], messages[-1]["code"]) == ("Error", "DATA-0000")
        assert client.close_code == 1008


async def _drop(harness: Harness, point: int, variant: int) -> None:
    """Come, and leave at a point of the exchange: by a close frame, or without a word."""
    reader, writer = await asyncio.open_connection("127.0.0.1", harness.ws_port)
    query = f"{RAW}&channels=2&multichannel=true" if variant & 2 else RAW
    head = (
        f"GET {LISTEN_PATH}?{query} HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    ).encode()
    steps = [
        head[:60],
        head[60:],
        None,  # the answer
        b"\x81\x94\0\0\0\0" + b'{"type":"KeepAlive"}',
        b"\x82\x88\0\0\0\0" + bytes(8),
        b"\x81\x93\0\0\0\0" + b'{"type":"Finalize"}',
        b"\x82\x88\0\0\0\0" + bytes(4),  # half a frame
        bytes(4),
        b"\x81\x96\0\0\0\0" + b'{"type":"CloseStream"}',
    ]
    for step in steps[:point]:
        if step is None:
            await reader.readuntil(b"\r\n\r\n")
        else:
            writer.write(step)
            await writer.drain()
            await asyncio.sleep(0)
    if variant & 1 and point > 3 and point != 7:
        writer.write(b"\x88\x80\0\0\0\0")
    writer.close()


async def test_two_hundred_clients_that_leave_at_any_point_leave_nothing_behind() -> None:
    backplane, guard = ScriptedBackplane(), CountingGuard()
    before = len(asyncio.all_tasks())
    async with listening(backplane, guard=guard) as harness:
        settled = len(asyncio.all_tasks())
        await asyncio.gather(*(_drop(harness, number % 10, number // 10) for number in range(200)))
        await wait_until(lambda: not harness.connections)
        await wait_until(lambda: len(asyncio.all_tasks()) == settled)
        assert guard.streams == 0
        assert all(_over(link) for link in backplane.links)
        assert len(backplane.links) > 100
    assert len(asyncio.all_tasks()) == before


def _over(link: FakeLink) -> bool:
    """Whether its slot was given back, once and at last."""
    return link.log[-1:] == ["abandon"] and link.log.count("abandon") == 1
