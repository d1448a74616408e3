"""The server's pings, with real sockets: who is pinged, what counts as an answer, and what comes of none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.frames import Frame, Opcode

from ingress.sockets.pinger import MAX_UNANSWERED, Pinger
from tests.fake_backplane import ScriptedBackplane
from tests.ingress_harness import HANDSHAKE, TcpClient, serving, wait_until

_PING = Frame(Opcode.PING, b"").serialize(mask=False)
_PONG = Frame(Opcode.PONG, b"").serialize(mask=True)
_GONE = Frame(Opcode.CLOSE, b"\x03\xf3no pong").serialize(mask=False)
_INTERVAL_S = 0.5
_RESUMABLE = Frame(Opcode.TEXT, b'{"type":"config","resume":true}').serialize(mask=True)


async def _opened(client: TcpClient) -> None:
    """Open a WebSocket by hand, which then answers no pings by itself, and read `hello`."""
    await client.send(HANDSHAKE)
    async with asyncio.timeout(60):
        await client.reader.readuntil(b"\r\n\r\n")
        _, length = await client.reader.readexactly(2)
        if length == 126:
            length = int.from_bytes(await client.reader.readexactly(2))
        assert b"hello" in await client.reader.readexactly(length)


async def _pings(client: TcpClient, count: int) -> None:
    """Read so many pings and nothing else."""
    async with asyncio.timeout(60):
        assert await client.reader.readexactly(2 * count) == _PING * count


async def test_a_client_that_answers_stays_however_long_it_says_nothing() -> None:
    async with (
        serving(ScriptedBackplane(echo=True), ping_interval_s=_INTERVAL_S) as harness,
        connect(harness.ws_url, ping_interval=None) as client,
    ):
        await client.recv()
        site = harness.site
        assert site is not None
        (shell,) = harness.shells
        answered = 0

        def beat() -> None:
            nonlocal answered
            answered += shell._unanswered_pings == 0  # type: ignore[attr-defined]

        await _beaten(site.pinger, beat, 3 * (MAX_UNANSWERED + 1))
        assert answered > MAX_UNANSWERED + 1  # an answer may come behind the next beat
        await client.send(b"\0\0" * 30)
        assert json.loads(await client.recv())["text"] == "30 samples"
        assert site.pinger.num_lost == 0


async def _beaten(pinger: Pinger, note: Callable[[], None], times: int) -> None:
    """Join a pinger, and have `note` called so many times."""
    beats = 0
    enough = asyncio.Event()

    class Witness:
        def beat(self) -> None:
            nonlocal beats
            beats += 1
            note()
            if beats == times:
                enough.set()

    witness = Witness()
    pinger.join(witness)
    async with asyncio.timeout(60):
        await enough.wait()
    pinger.leave(witness)


@pytest.mark.parametrize(
    ("begin", "ending"), [(b"", "abandon"), (_RESUMABLE, "keep")], ids=["young", "resumable"]
)
async def test_no_pong_for_two_intervals_ends_the_connection_as_a_lost_one(begin: bytes, ending: str) -> None:
    backplane = ScriptedBackplane()
    async with serving(backplane, ping_interval_s=_INTERVAL_S) as harness:
        client = await harness.raw_ws()
        await _opened(client)
        await client.send(begin)
        await _pings(client, MAX_UNANSWERED)
        assert "keep" not in backplane.link.log
        async with asyncio.timeout(60):
            assert await client.reader.readexactly(len(_GONE)) == _GONE
        assert backplane.link.log[-1] == ending
        assert harness.site is not None
        assert harness.site.pinger.num_lost == 1
        await client.close()
        await wait_until(lambda: harness.site is not None and harness.site.pinger.num_joined == 0)


async def test_audio_is_no_pong() -> None:
    backplane = ScriptedBackplane()
    async with serving(backplane, ping_interval_s=_INTERVAL_S) as harness:
        client = await harness.raw_ws()
        await _opened(client)
        audio = Frame(Opcode.BINARY, b"\0\0").serialize(mask=True)

        async def stream() -> None:
            while True:
                await client.send(audio)
                await asyncio.sleep(_INTERVAL_S / 10)

        streaming = asyncio.create_task(stream())
        await _pings(client, MAX_UNANSWERED)
        async with asyncio.timeout(60):
            assert await client.reader.readexactly(len(_GONE)) == _GONE
        streaming.cancel()
        with suppress(asyncio.CancelledError, ConnectionError):
            await streaming
        await client.close()


async def test_one_pong_answers_all_pings_before_it() -> None:
    async with serving(ScriptedBackplane(), ping_interval_s=_INTERVAL_S) as harness:
        client = await harness.raw_ws()
        await _opened(client)
        for _ in range(3):
            await _pings(client, MAX_UNANSWERED)
            await client.send(_PONG)
        await client.close()


async def test_a_client_that_is_not_read_is_pinged_and_owes_no_pong() -> None:
    backplane = ScriptedBackplane()
    async with serving(backplane, ping_interval_s=_INTERVAL_S) as harness:
        client = await harness.raw_ws()
        await _opened(client)
        backplane.link.room = False
        await client.send(Frame(Opcode.BINARY, b"\0\0").serialize(mask=True))
        await wait_until(lambda: "append" in backplane.link.log)
        await _pings(client, 2 * MAX_UNANSWERED + 1)
        backplane.link.listener.on_room()
        await client.send(_PONG)
        await _pings(client, MAX_UNANSWERED)
        await client.close()


@pytest.mark.parametrize("pieces", [1, 3])
async def test_a_pong_is_no_activity(pieces: int) -> None:
    async with serving(ScriptedBackplane(), idle_timeout_s=0.4) as harness:
        client = await harness.raw_ws()
        await _opened(client)

        async def answer() -> None:
            while True:
                for at in range(0, len(_PONG), -(-len(_PONG) // pieces)):
                    await client.send(_PONG[at : at + -(-len(_PONG) // pieces)])
                    await asyncio.sleep(0.02)

        answering = asyncio.create_task(answer())
        async with asyncio.timeout(60):
            assert b"idle_timeout" in await client.reader.readuntil(b"}")
        answering.cancel()
        with suppress(asyncio.CancelledError, ConnectionError):
            await answering
        await client.close()


async def test_without_an_interval_nobody_is_pinged() -> None:
    async with serving(ScriptedBackplane(), ping_interval_s=0) as harness:
        client = await harness.raw_ws()
        await _opened(client)
        assert harness.site is not None
        assert harness.site.pinger.num_joined == 0
        await client.close()


async def test_a_closed_connection_leaves_the_pinger() -> None:
    async with serving(ScriptedBackplane(), ping_interval_s=60) as harness:
        site = harness.site
        assert site is not None
        clients: list[ClientConnection] = [await connect(harness.ws_url) for _ in range(3)]
        assert site.pinger.num_joined == 3
        for client in clients:
            await client.close()
        await wait_until(lambda: site.pinger.num_joined == 0)


async def test_ten_thousand_connections_have_one_timer_and_even_turns() -> None:
    class Counted:
        beats = 0

        def beat(self) -> None:
            self.beats += 1

    due: list[Pinger] = []

    class Pinged(Pinger):
        """With a tick that the test calls by itself."""

        __slots__ = ()

        def _wait(self) -> None:
            due.append(self)
            self._timer = asyncio.get_running_loop().call_later(3600, self._tick)
            self._timer.cancel()

    pinger = Pinged(20.0)
    crowd = [Counted() for _ in range(10_000)]
    for one in crowd:
        pinger.join(one)
    assert len(due) == 1
    turns = []
    for _ in range(20):
        before = sum(one.beats for one in crowd)
        pinger._tick()
        turns.append(sum(one.beats for one in crowd) - before)
    assert turns == [500] * 20
    assert len(due) == 21, "each tick asks for the next"
