"""Who sends faster than real time waits, over all of its streams, and who speaks does not."""

from __future__ import annotations

import asyncio
import json

import pytest
from websockets.asyncio.client import ClientConnection, connect

from common.auth.api_key import KeyId
from common.auth.keys_file import KeyRecord
from common.options import StreamOptions
from ingress.auth.client import ANYBODY, Client
from ingress.clients.pace import Lead, Pace, Pacer, Paces
from tests.fake_backplane import ScriptedBackplane
from tests.ingress_harness import serving, wait_until

pytestmark = pytest.mark.one_loop

_SECOND = bytes(32_000)  # pcm16 at 16 kHz


class Streams:
    """Streams of one client under a clock of the test."""

    def __init__(self, pace: Pace, count: int) -> None:
        self.pace = pace
        pace.change_streams(count, 0.0)
        self.leads = [Lead(0.0) for _ in range(count)]
        self.ready_s = [0.0] * count
        self.taken_s = [0.0] * count

    def flood(self, until_s: float, numbers: list[int]) -> None:
        """Let these streams send all they can up to a time."""
        while True:
            number = min(numbers, key=self.ready_s.__getitem__)
            now_s = self.ready_s[number]
            if now_s >= until_s:
                return
            self.taken_s[number] += 1.0
            # A second of audio is read and written in a millisecond.
            wait_s = self.pace.heard(1.0, now_s, self.leads[number])
            self.ready_s[number] = now_s + 0.001 + wait_s


def test_a_flood_has_its_lead_and_then_so_many_times_real_time() -> None:
    flood = Streams(Pace("a", 2.0, 60.0, 0.0), 1)
    flood.flood(100.0, [0])
    assert flood.taken_s[0] == pytest.approx(60 + 2 * 100, abs=6)


def test_many_streams_of_one_client_have_no_more_than_their_number() -> None:
    flood = Streams(Pace("a", 2.0, 60.0, 0.0), 20)
    flood.flood(100.0, list(range(20)))
    assert sum(flood.taken_s) == pytest.approx(20 * (60 + 2 * 100), rel=0.02)
    assert max(flood.taken_s) - min(flood.taken_s) < 60


def test_a_lead_that_is_used_up_is_not_had_again_by_another_stream() -> None:
    """A program that opens a stream after the other."""
    pace = Pace("a", 2.0, 60.0, 0.0)
    taken_s = now_s = 0.0
    while now_s < 100.0:
        lead = Lead(now_s)
        pace.change_streams(1, now_s)
        for _ in range(30):
            taken_s += 1.0
            now_s += 0.001 + pace.heard(1.0, now_s, lead)
        pace.change_streams(-1, now_s)
    # Each stream may stutter, so a new one is ahead of what it would be by 5 s at most.
    assert taken_s <= 60 + 2 * 100 * 30 / 25 + 30


def test_a_speaker_does_not_wait_beside_a_flood_of_the_same_client() -> None:
    streams = Streams(Pace("a", 2.0, 60.0, 0.0), 5)
    for second in range(1, 300):
        streams.flood(float(second), [1, 2, 3, 4])
        assert streams.pace.heard(1.0, float(second), streams.leads[0]) == 0.0


def test_who_stays_below_the_rate_never_waits_and_may_catch_up() -> None:
    pace, lead = Pace("a", 2.0, 60.0, 0.0), Lead(0.0)
    pace.change_streams(1, 0.0)
    for second in range(1, 1000):
        assert pace.heard(1.9, float(second), lead) == 0.0
    assert pace.heard(50.0, 1000.0, lead) == 0.0  # what a broken connection has kept


async def test_a_client_is_forgotten_once_it_is_ahead_no_more() -> None:
    paces = Paces(100.0, 60.0)
    pace, other = paces.enter("key", 1), paces.enter("key", 1)
    assert pace is not None
    assert other is pace
    pace.heard(10.0, paces.now_s(), Lead(paces.now_s()))
    paces.leave(pace, 1)
    paces.leave(pace, 1)
    assert len(paces) == 1  # its next stream is the same client's
    await wait_until(lambda: len(paces) == 0)


async def test_a_client_that_comes_and_goes_is_looked_at_by_one_timer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timers: list[float] = []
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "call_later", lambda delay_s, call, *args: timers.append(delay_s))
    paces = Paces(2.0, 60.0)
    for _ in range(100):
        pace = paces.enter("key", 1)
        assert pace is not None
        pace.heard(10.0, paces.now_s(), Lead(paces.now_s()))
        paces.leave(pace, 1)
    assert len(timers) == 1


async def test_nobody_is_counted_where_no_rate_is_set() -> None:
    paces = Paces(0.0, 60.0)
    assert paces.enter("key", 1) is None
    assert len(paces) == 0


async def test_a_flood_is_not_read_for_a_while_and_everything_arrives_in_the_end() -> None:
    backplane = ScriptedBackplane()
    paces = Paces(40.0, 10.0)
    async with (
        serving(backplane, paces=paces) as harness,
        connect(harness.ws_url, max_size=None) as client,
    ):
        sending = asyncio.create_task(_send(client, 60))
        (connection,) = harness.connections
        await wait_until(lambda: connection.reading.is_paused, 20)
        taken = backplane.link.samples
        assert taken >= 10 * 16_000
        await sending
        await wait_until(lambda: backplane.link.samples == 60 * 16_000, 20)
        assert paces.num_waits > 0
        await client.send(json.dumps({"type": "ping"}))
        assert json.loads(await client.recv())["type"] == "hello"
        assert json.loads(await client.recv())["type"] == "pong"
    await wait_until(lambda: len(paces) == 0)


async def test_recordings_that_say_so_do_not_wait() -> None:
    backplane = ScriptedBackplane()
    paces = Paces(0.001, 1.0)
    async with (
        serving(backplane, paces=paces) as harness,
        connect(harness.ws_url) as client,
    ):
        await client.send(json.dumps({"type": "config", "recording": True}))
        await _send(client, 30)
        await wait_until(lambda: backplane.link.samples == 30 * 16_000)
        assert backplane.link.options == StreamOptions(recording=True)
        assert paces.num_waits == len(paces) == 0


async def test_a_client_that_leaves_while_it_waits_leaves_nothing_behind() -> None:
    backplane = ScriptedBackplane()
    paces = Paces(0.01, 1.0)
    async with serving(backplane, paces=paces) as harness:
        client = await harness.tcp()
        await client.receive()
        audio = {"type": "audio", "data": "AAAA" * 10_000}
        for _ in range(8):
            await client.send(audio)
        await wait_until(lambda: paces.num_waits > 0)
        (connection,) = harness.connections
        assert connection.reading.is_paused
        backplane.link.listener.on_room()  # Redis has room, and the client waits all the same
        assert connection.reading.is_paused
        client.writer.transport.abort()
        harness.transports[-1].abort()
        await wait_until(lambda: backplane.link.log[-1] == "abandon")


async def _send(client: ClientConnection, count: int) -> None:
    for _ in range(count):
        await client.send(_SECOND)


async def test_clients_without_a_key_count_by_their_address_and_those_with_one_by_their_key() -> None:
    paces = Paces(2.0, 60.0)

    def begin(address: str, client: Client | None = ANYBODY) -> None:
        Pacer(paces, address, lambda: None, lambda: None).begin(client, 1)

    begin("192.0.2.1")
    begin("192.0.2.1", None)
    assert len(paces) == 1
    # A host has all addresses of its /64.
    begin("2001:db8:0:1::1")
    begin("2001:db8:0:1:ffff::2")
    assert len(paces) == 2
    begin("2001:db8:0:2::1")
    assert len(paces) == 3
    key = Client(KeyRecord(key_id=KeyId("aaaaaaaa"), digest="", name="front desk"))
    begin("192.0.2.1", key)
    begin("192.0.2.2", key)
    assert len(paces) == 4
