"""What a connection counts for its key it counts once, and takes back, whenever its client leaves."""

from __future__ import annotations

import asyncio
import base64

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.frames import Frame, Opcode

from common.errors import RedisUnavailable
from ingress.auth.client import Client
from ingress.auth.guard import OverLimit
from tests.counting_guard import CountingGuard
from tests.fake_backplane import ScriptedBackplane
from tests.ingress_harness import HANDSHAKE, serving, wait_until

pytestmark = pytest.mark.one_loop

_AUDIO = {"type": "audio", "data": base64.b64encode(b"\0\0" * 10).decode(), "final": True}


async def test_a_slot_that_was_given_back_and_taken_again_counts_once() -> None:
    guard = CountingGuard()
    backplane = ScriptedBackplane(echo=True)
    async with serving(backplane, begin_timeout_s=0.05, guard=guard) as harness:
        client = await harness.tcp()
        await client.receive()
        await wait_until(lambda: backplane.link.log == ["abandon"])
        await client.send(_AUDIO)
        await client.receive_all()
        await client.close()
        await wait_until(lambda: not harness.connections)
    assert (guard.entered, guard.streams) == (1, 0)


async def test_a_client_that_leaves_while_its_key_is_looked_at_counts_no_more() -> None:
    guard = CountingGuard()
    guard.gate.clear()
    async with serving(ScriptedBackplane(), guard=guard) as harness:
        client = await harness.tcp()
        await wait_until(lambda: guard.num_waiting == 1)
        # A reset: the end of what a client sends is not read while it waits.
        next(iter(harness.transports)).abort()
        await wait_until(lambda: not harness.connections)
        guard.gate.set()
        await wait_until(lambda: guard.entered == 1)
        await asyncio.sleep(0)
        assert guard.streams == 0
        await client.close()


class FullGuard(CountingGuard):
    """The guard of a key that has all the streams that it may have."""

    async def enter(self, client: Client | None, num_streams: int) -> None:
        raise OverLimit("It has all the streams that it may have.", 7)


async def test_a_client_whose_key_is_at_its_limit_may_resume_the_stream_that_it_has() -> None:
    guard = FullGuard()
    backplane = ScriptedBackplane(echo=True)
    backplane.resumption = (0, 0, False)
    async with serving(backplane, guard=guard) as harness:
        client = await harness.tcp()
        assert (await client.receive())["code"] == "over_limit"
        request = {"type": "resume", "stream_id": 7, "resume_token": "secret", "last_seq": 0}
        await client.send(request | {"audio_ack_samples": 0})
        assert (await client.receive())["type"] == "resumed"
        assert guard.streams == 1, "a resumed stream counts, so that its place cannot be had twice"
        assert harness.metrics.admissions["over_limit"] == 1
        await client.close()
        await wait_until(lambda: not harness.connections)
    assert guard.streams == 0


async def test_a_key_at_its_limit_is_told_so_before_the_upgrade_and_before_a_slot_is_taken() -> None:
    guard = FullGuard()
    async with serving(ScriptedBackplane(), guard=guard, counted_first=True) as harness:
        with pytest.raises(InvalidStatus) as raised:
            await connect(harness.ws_url)
        response = raised.value.response
        assert response.status_code == 429
        assert response.headers["Retry-After"] == "7"
        assert response.body == b"It has all the streams that it may have.\n"
        assert harness.backplane.links == []
        assert harness.metrics.admissions["over_limit"] == harness.metrics.errors["over_limit"] == 1
        await wait_until(lambda: not harness.connections)
    assert guard.streams == 0


async def test_a_key_is_looked_at_before_the_upgrade_and_counts_once() -> None:
    guard = CountingGuard()
    guard.gate.clear()
    async with serving(ScriptedBackplane(echo=True), guard=guard, counted_first=True) as harness:
        opening = asyncio.create_task(connect(harness.ws_url).__aenter__())
        await wait_until(lambda: guard.num_waiting == 1)
        assert harness.backplane.links == []
        assert not opening.done()
        guard.gate.set()
        client = await opening
        assert b'"hello"' in await client.recv(decode=False)
        await client.send(b"\0\0" * 30)
        assert b"30 samples" in await client.recv(decode=False)
        await client.close()
        await wait_until(lambda: not harness.connections)
    assert (guard.entered, guard.streams) == (1, 0)


async def test_what_a_client_sends_before_its_key_is_looked_at_is_not_lost() -> None:
    guard = CountingGuard()
    guard.gate.clear()
    async with serving(ScriptedBackplane(echo=True), guard=guard, counted_first=True) as harness:
        client = await harness.raw_ws()
        await client.send(HANDSHAKE)
        await client.send(Frame(Opcode.BINARY, b"\0\0" * 5).serialize(mask=True))
        await wait_until(lambda: guard.num_waiting == 1)
        guard.gate.set()
        async with asyncio.timeout(60):
            answer = await client.reader.readuntil(b"5 samples")
        assert answer.startswith(b"HTTP/1.1 101")
        await client.close()


async def test_a_redis_that_is_away_refuses_what_has_to_be_counted_first() -> None:
    class AwayGuard(CountingGuard):
        async def enter(self, client: Client | None, num_streams: int) -> None:
            raise RedisUnavailable

    async with serving(ScriptedBackplane(), guard=AwayGuard(), counted_first=True) as harness:
        with pytest.raises(InvalidStatus) as raised:
            await connect(harness.ws_url)
        assert raised.value.response.status_code == 503
