"""What a connection counts for its key it counts once, and takes back, whenever its client leaves."""

from __future__ import annotations

import asyncio
import base64

from common.errors import ErrorCode, StreamError
from ingress.auth.client import ANYBODY, Client
from tests.fake_backplane import ScriptedBackplane
from tests.ingress_harness import serving, wait_until

_AUDIO = {"type": "audio", "data": base64.b64encode(b"\0\0" * 10).decode(), "final": True}


class CountingGuard:
    """A guard that counts streams, and holds up newcomers at its gate."""

    def __init__(self) -> None:
        self.streams = 0
        self.entered = 0
        self.num_waiting = 0
        self.gate = asyncio.Event()
        self.gate.set()

    def identify(self, secret: str) -> Client:
        return ANYBODY

    async def enter(self, client: Client | None, num_streams: int) -> None:
        self.num_waiting += 1
        await self.gate.wait()
        self.num_waiting -= 1
        self.streams += num_streams
        self.entered += num_streams

    def resumed(self, client: Client | None, num_streams: int) -> None:
        self.streams += num_streams

    def leave(self, client: Client | None, num_streams: int) -> None:
        self.streams -= num_streams

    def heard(self, client: Client | None, audio_s: float) -> None:
        assert self.streams > 0


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
        raise StreamError(ErrorCode.OVER_LIMIT, "It has all the streams that it may have.")


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
