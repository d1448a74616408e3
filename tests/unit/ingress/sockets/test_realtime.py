"""OpenAI's realtime protocol on real sockets, with the backplane in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from common.entries import LineKind
from common.errors import ErrorCode, NoFreeStream, NoWorker, StreamError
from common.messages import Result
from ingress.dialects.openai.realtime import RealtimeDialect
from ingress.dialects.openai.session import Session
from tests.counting_guard import CountingGuard
from tests.fake_backplane import FakeLink, ScriptedBackplane, some_result
from tests.ingress_harness import HANDSHAKE, Harness, serving, wait_until
from tests.realtime_talk import append, silence, update

_MANUAL = update(turn_detection=None)
_COMMIT = {"type": "input_audio_buffer.commit"}
_NUM_DROPPED = 200


@asynccontextmanager
async def _serving(backplane: ScriptedBackplane, **more: Any) -> AsyncIterator[Harness]:
    async with serving(backplane, dialect=lambda: RealtimeDialect(Session()), **more) as harness:
        yield harness


async def _say(client: ClientConnection, *events: dict[str, Any]) -> None:
    for event in events:
        await client.send(json.dumps(event))


async def _hear(client: ClientConnection, count: int = 1) -> list[str]:
    """The types of the next events."""
    async with asyncio.timeout(60):
        return [json.loads(await client.recv())["type"].rpartition(".")[2] for _ in range(count)]


async def _close_code(client: ClientConnection) -> tuple[int, str]:
    with pytest.raises(ConnectionClosed):
        await _hear(client, 100)
    assert client.close_code is not None
    return client.close_code, client.close_reason or ""


def _tell(link: FakeLink, text: str, *, answer: bool = False) -> None:
    link.seq += 1
    result: Result = replace(some_result(link.seq, text, acked=link.samples), from_finalize=answer)
    kind = LineKind.FINALIZED if answer else LineKind.PARTIAL
    link.listener.on_result(kind, result)


async def test_a_session_from_its_beginning_to_its_end() -> None:
    backplane = ScriptedBackplane()
    async with _serving(backplane) as harness, connect(harness.ws_url) as client:
        assert await _hear(client) == ["created"]
        await _say(client, append(silence(50)), _MANUAL, append(silence(100)), _COMMIT)
        assert await _hear(client, 4) == ["updated", "committed", "added", "done"]
        link = backplane.link
        await wait_until(lambda: link.log == ["begin", "append", "append", "finalize"])
        assert link.samples == 24 * 150
        assert link.options is not None
        assert link.options.sample_rate == 24000
        _tell(link, "go")
        _tell(link, "go on", answer=True)
        assert await _hear(client, 3) == ["delta", "delta", "completed"]
        await client.close()
        assert client.close_code == 1000
        await wait_until(lambda: link.log[-1] == "abandon")


@pytest.mark.parametrize(
    "refusal", [NoFreeStream(), NoWorker(), StreamError(ErrorCode.OVER_LIMIT, "Too many.")]
)
async def test_a_client_without_a_stream_is_sent_away_by_the_close_code_alone(refusal: StreamError) -> None:
    backplane = ScriptedBackplane()
    backplane.refusal = refusal
    async with _serving(backplane, refused_grace_s=60) as harness, connect(harness.ws_url) as client:
        assert await _close_code(client) == (1013, refusal.code.value)


async def test_a_slot_that_was_given_back_is_asked_for_again_by_audio() -> None:
    backplane = ScriptedBackplane()
    async with _serving(backplane, begin_timeout_s=0.05) as harness, connect(harness.ws_url) as client:
        assert await _hear(client) == ["created"]
        await _say(client, append(silence(200)))
        await wait_until(lambda: backplane.link.log == ["abandon"])
        await _say(client, _COMMIT)
        assert await _hear(client, 3) == ["committed", "added", "done"]
        await wait_until(lambda: backplane.link.log == ["begin", "append", "finalize"])
        _tell(backplane.link, "yes", answer=True)
        assert await _hear(client, 2) == ["delta", "completed"]


async def test_a_fault_leaves_the_session_and_its_stream() -> None:
    backplane = ScriptedBackplane()
    async with _serving(backplane) as harness, connect(harness.ws_url) as client:
        await _hear(client)
        await client.send(b"\0\0")
        await client.send("{")
        await _say(client, {"type": "response.create"}, _MANUAL, append(silence(100)))
        assert await _hear(client, 4) == ["error", "error", "error", "updated"]
        await wait_until(lambda: backplane.link.log == ["begin", "append"])


async def test_a_message_that_is_too_long_ends_the_session_behind_what_was_said() -> None:
    backplane = ScriptedBackplane()
    async with _serving(backplane, max_frame_bytes=20_000) as harness, connect(harness.ws_url) as client:
        await _hear(client)
        await _say(client, _MANUAL, append(silence(100)), _COMMIT)
        await _hear(client, 4)
        await _say(client, append(silence(1000)))
        link = backplane.link
        await wait_until(lambda: link.log[-1] == "final")
        link.listener.on_result(LineKind.FINAL, some_result(1, "go", final=True, acked=link.samples))
        assert await _hear(client, 3) == ["delta", "completed", "error"]
        assert (await _close_code(client))[0] == 1009


async def test_a_failed_stream_fails_its_items_and_no_more_is_said() -> None:
    backplane = ScriptedBackplane()
    async with _serving(backplane) as harness, connect(harness.ws_url) as client:
        await _hear(client)
        await _say(client, _MANUAL, append(silence(100)), _COMMIT)
        await _hear(client, 4)
        await wait_until(lambda: "finalize" in backplane.link.log)
        backplane.link.listener.on_error(StreamError(ErrorCode.WORKER_FAILED, "It failed."))
        assert await _hear(client) == ["failed"]
        assert await _close_code(client) == (1013, "worker_failed")


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (["realtime", "openai-insecure-api-key.pk_secret"], "realtime"),
        (["realtime", "openai-insecure-api-key.pk_secret", "openai-beta.realtime-v1"], "realtime"),
        ([], None),
    ],
)
async def test_the_subprotocol_that_is_answered(offered: list[str], chosen: str | None) -> None:
    names = [Subprotocol(name) for name in offered] or None
    async with (
        _serving(ScriptedBackplane()) as harness,
        connect(harness.ws_url, subprotocols=names) as client,
    ):
        assert client.subprotocol == chosen
        assert await _hear(client) == ["created"]


_Step = Callable[[ClientConnection, ScriptedBackplane], Awaitable[None]]


async def _nothing(client: ClientConnection, backplane: ScriptedBackplane) -> None:
    """Leave with the upgrade."""


async def _created(client: ClientConnection, backplane: ScriptedBackplane) -> None:
    await _hear(client)


async def _configured(client: ClientConnection, backplane: ScriptedBackplane) -> None:
    await _say(client, _MANUAL)


async def _early(client: ClientConnection, backplane: ScriptedBackplane) -> None:
    await _say(client, append(silence(20)))


async def _half_an_event(client: ClientConnection, backplane: ScriptedBackplane) -> None:
    client.transport.write(b"\x81\xfe\x10\x00\0\0\0\0" + b'{"type":"input_audio')


async def _heard(client: ClientConnection, backplane: ScriptedBackplane) -> None:
    await _say(client, _MANUAL, append(silence(200)))
    await _hear(client, 2)


async def _committed(client: ClientConnection, backplane: ScriptedBackplane) -> None:
    await _heard(client, backplane)
    await _say(client, _COMMIT)
    await _hear(client)


async def _told(client: ClientConnection, backplane: ScriptedBackplane) -> None:
    await _committed(client, backplane)
    for link in list(backplane.links):
        if "finalize" in link.log:
            _tell(link, "go")


async def _completed(client: ClientConnection, backplane: ScriptedBackplane) -> None:
    await _committed(client, backplane)
    for link in list(backplane.links):
        if "finalize" in link.log:
            _tell(link, "go", answer=True)


async def _cleared(client: ClientConnection, backplane: ScriptedBackplane) -> None:
    await _heard(client, backplane)
    await _say(client, {"type": "input_audio_buffer.clear"})


_STEPS: tuple[_Step, ...] = (
    _nothing,
    _created,
    _configured,
    _early,
    _half_an_event,
    _heard,
    _committed,
    _told,
    _completed,
    _cleared,
)


async def _dropped(harness: Harness, number: int) -> None:
    """Connect, go some way, and leave: by a reset, or as one should."""
    step = _STEPS[number % len(_STEPS)]
    # Behind half an event, the close frame is a part of it: nobody answers it.
    async with connect(harness.ws_url, close_timeout=0.5) as client:
        await step(client, harness.backplane)
        if number // len(_STEPS) % 2:
            client.transport.abort()
        else:
            await client.close()


async def test_200_connections_dropped_at_every_point_leave_nothing() -> None:
    guard = CountingGuard()
    backplane = ScriptedBackplane()
    before = asyncio.all_tasks()
    async with _serving(backplane, guard=guard) as harness:
        async with asyncio.timeout(60):
            await asyncio.gather(*(_dropped(harness, number) for number in range(_NUM_DROPPED)))
        # And some that leave while the cluster is asked for their stream, or within the head of the request.
        backplane.gate.clear()
        for head in (HANDSHAKE, HANDSHAKE[:40]) * 10:
            client = await harness.raw_ws()
            await client.send(head)
            await client.close()
        backplane.gate.set()
        await wait_until(lambda: not harness.connections and backplane.num_waiting == 0)
        await wait_until(lambda: guard.streams == 0)
        assert guard.entered >= _NUM_DROPPED
        # Every stream was given up once, and none after it was.
        await wait_until(lambda: all(link.log[-1:] == ["abandon"] for link in backplane.links))
        assert all(link.log.count("abandon") == 1 for link in backplane.links)
    # What is left are tasks of the clients' library, which end with their sockets.
    await wait_until(lambda: asyncio.all_tasks() <= before)
