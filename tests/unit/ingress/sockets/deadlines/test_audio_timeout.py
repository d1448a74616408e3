"""A stream that has no audio, in each dialect: it gives its place back, whatever else its client says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from common.entries import LineKind
from ingress.dialects.deepgram.dialect import DeepgramDialect
from ingress.dialects.deepgram.query import parse_listen_query
from ingress.dialects.dialect import Dialect
from ingress.dialects.native import NativeDialect
from ingress.dialects.openai.realtime import RealtimeDialect
from ingress.dialects.openai.session import Session
from tests.fake_backplane import ScriptedBackplane, some_result
from tests.ingress_harness import serving, wait_until
from tests.realtime_talk import append, silence, update

pytestmark = pytest.mark.one_loop

# Of each dialect: how it is made, what begins its stream with 10 ms of audio, and what keeps it in touch.
_DIALECTS: Final[dict[str, tuple[Callable[[], Dialect], str | bytes, str]]] = {
    "native": (
        lambda: NativeDialect(16000),
        bytes(320),
        json.dumps({"type": "ping"}),
    ),
    "deepgram": (
        lambda: DeepgramDialect(parse_listen_query("encoding=linear16&sample_rate=16000")),
        bytes(320),
        json.dumps({"type": "KeepAlive"}),
    ),
    "openai": (
        lambda: RealtimeDialect(Session()),
        json.dumps(append(silence(10))),
        json.dumps(update()),
    ),
}
_SAYS: Final = {
    "native": "idle_timeout",
    "deepgram": "NET-0001",
    "openai": "session_expired",
}


@asynccontextmanager
async def saying(client: ClientConnection, message: str | bytes) -> AsyncIterator[None]:
    """Say something again and again."""

    async def say() -> None:
        with suppress(ConnectionClosed):
            while True:
                await client.send(message)
                await asyncio.sleep(0.02)

    task = asyncio.create_task(say())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("name", list(_DIALECTS))
@pytest.mark.parametrize("drips", ["words", "audio"])
async def test_a_stream_of_less_than_a_second_of_audio_ends_whatever_its_client_says(
    name: str, drips: str
) -> None:
    dialect, audio, word = _DIALECTS[name]
    backplane = ScriptedBackplane(echo=True)
    # 10 ms of audio in each 20 ms would be a second in two.
    async with (
        serving(backplane, dialect=dialect, audio_timeout_s=0.4) as harness,
        connect(harness.ws_url) as client,
    ):
        await client.send(audio)
        heard: list[Any] = []
        async with saying(client, word if drips == "words" else audio), asyncio.timeout(60):
            with suppress(ConnectionClosed):
                while True:
                    heard.append(await client.recv())
        assert _SAYS[name] in f"{heard} {client.close_reason}"
        await wait_until(lambda: backplane.link.log[-1] == "release")


async def test_a_stream_with_a_second_of_audio_in_each_time_goes_on() -> None:
    backplane = ScriptedBackplane()
    async with (
        serving(backplane, audio_timeout_s=3.0) as harness,
        connect(harness.ws_url) as client,
    ):
        async with saying(client, bytes(32_000)):
            await asyncio.sleep(5)
        assert client.close_code is None
        assert backplane.link.samples > 16_000
        await client.send(json.dumps({"type": "ping"}))
        await client.close()


async def test_a_stream_that_waits_for_its_end_is_not_without_audio() -> None:
    backplane = ScriptedBackplane()
    async with serving(backplane, audio_timeout_s=0.1) as harness:
        client = await harness.tcp()
        await client.receive()
        await client.send({"type": "audio", "data": "", "final": True})
        await wait_until(lambda: backplane.link.log[-1:] == ["final"])
        await asyncio.sleep(0.3)
        assert "abandon" not in backplane.link.log
        backplane.link.listener.on_result(LineKind.FINAL, some_result(1, final=True))
        assert (await client.receive())["is_final"] is True
        await client.close()
