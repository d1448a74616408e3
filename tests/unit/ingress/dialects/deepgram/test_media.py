"""Compressed audio over Deepgram's protocol: decoded in a child, with what the client says in its place."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import struct
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from common.entries import LineKind
from common.errors import NoFreeStream
from common.messages import Close, Finalize
from ingress.media.decoder import Decoders
from ingress.media.inlet import MediaInlet
from ingress.media.wanted import Media, MediaWanted
from tests.fake_backplane import ScriptedBackplane, some_result
from tests.ingress_harness import Harness, wait_until
from tests.media_files import encode, opus_packets, read_pcm
from tests.unit.ingress.dialects.deepgram.test_connection import heard, listening, url

pytestmark = pytest.mark.one_loop

RECORDING = Path("parakeet/recordings/goforward.wav")
_OPUS = "encoding=opus&sample_rate=48000"
# A child begins within a second; on a machine with other work it may take some.
_BEGINS_S = 90.0


@asynccontextmanager
async def decoding(
    backplane: ScriptedBackplane, num_decoders: int = 1, **more: object
) -> AsyncIterator[tuple[Harness, Decoders]]:
    """The ports, and the decoders, none of which is left."""
    decoders = Decoders(num_decoders)
    async with listening(backplane, decoders=decoders, **more) as harness:
        yield harness, decoders
        await wait_until(lambda: decoders.running == 0)


def _wav(samples: bytes, channels: int, rate: int = 16_000) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(samples)
    return file.getvalue()


async def _finish(backplane: ScriptedBackplane) -> None:
    await wait_until(lambda: bool(backplane.links) and "final" in backplane.links[-1].log, _BEGINS_S)
    for link in backplane.links:
        link.listener.on_result(LineKind.FINAL, some_result(1, "done", final=True, acked=link.samples))


async def test_packets_of_opus_and_a_finalize_between_them() -> None:
    rate, pcm = read_pcm(RECORDING)
    packets = opus_packets(pcm, rate)
    half = len(packets) // 2
    backplane = ScriptedBackplane()
    async with decoding(backplane) as (harness, _), connect(url(harness, _OPUS)) as client:
        for packet in packets[:half]:
            await client.send(packet)
        await client.send('{"type":"Finalize"}')
        await wait_until(lambda: "finalize" in backplane.link.log, _BEGINS_S)
        link = backplane.link
        assert link.options is not None
        assert link.options.sample_rate == 48_000
        # A packet is 20 ms; the codec's own delay is taken from the first ones.
        assert half * 960 - 1000 < link.samples <= half * 960
        before = link.samples
        for packet in packets[half:]:
            await client.send(packet)
        await client.send('{"type":"CloseStream"}')
        await _finish(backplane)
        assert link.samples - before == (len(packets) - half) * 960
        *_, metadata = await heard(client)
        assert (metadata["type"], client.close_code) == ("Metadata", 1000)
        assert metadata["duration"] == pytest.approx(len(packets) * 0.02, abs=0.03)


async def test_a_finalize_waits_for_a_decoder_that_has_no_processor() -> None:
    rate, pcm = read_pcm(RECORDING)
    packets = opus_packets(pcm, rate)
    first, second = packets[:20], packets[20:60]
    backplane = ScriptedBackplane()
    async with decoding(backplane) as (harness, _), connect(url(harness, _OPUS)) as client:
        for packet in first:
            await client.send(packet)
        await wait_until(lambda: bool(backplane.links) and backplane.link.samples > 15 * 960, _BEGINS_S)
        (child,) = _decoding_children()
        os.kill(child, signal.SIGSTOP)
        for packet in second:
            await client.send(packet)
        await client.send('{"type":"Finalize"}')
        await asyncio.sleep(1.0)
        link = backplane.link
        assert "finalize" not in link.log
        os.kill(child, signal.SIGCONT)
        await wait_until(lambda: "finalize" in link.log, _BEGINS_S)
        assert 60 * 960 - 1000 < link.samples <= 60 * 960
        await client.send('{"type":"CloseStream"}')
        await _finish(backplane)


def _decoding_children() -> list[int]:
    """The decoding processes that this one has started and that run."""
    tasks = Path("/proc/self/task").iterdir()
    children = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
    return [pid for pid in children if b"media" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.parametrize("name", ["flac", "ogg", "webm", "mp3"])
async def test_containers_are_known_by_their_first_bytes(name: str, tmp_path: Path) -> None:
    rate, pcm = read_pcm(RECORDING)
    media = encode(pcm, rate, name, tmp_path).read_bytes()
    backplane = ScriptedBackplane()
    async with decoding(backplane) as (harness, _), connect(url(harness, "")) as client:
        await client.send(media[:7])  # not enough to know it by
        for at in range(7, len(media), 3000):
            await client.send(media[at : at + 3000])
        await client.send('{"type":"CloseStream"}')
        await _finish(backplane)
        link = backplane.link
        assert link.options is not None
        assert link.samples / (link.options.sample_rate or 0) == pytest.approx(len(pcm) / 2 / rate, abs=0.15)
        if name == "flac":
            assert bytes(link.payload) == pcm
        assert (await heard(client))[-1]["type"] == "Metadata"


async def test_channels_of_a_container_are_streams_or_are_mixed() -> None:
    # Two signals that are not alike, neither as they are nor upside down.
    left, right = ([20 * (at % period) for at in range(4000)] for period in (97, 61))
    samples = struct.pack("<8000h", *(value for both in zip(left, right, strict=True) for value in both))
    for query, expected in (
        ("channels=2&multichannel=true", [left, right]),
        ("", [[sum(both) // 2 for both in zip(left, right, strict=True)]]),
    ):
        backplane = ScriptedBackplane()
        async with decoding(backplane) as (harness, _), connect(url(harness, query)) as client:
            await client.send(_wav(samples, 2))
            await client.send('{"type":"CloseStream"}')
            await _finish(backplane)
            got = [list(struct.unpack("<4000h", bytes(link.payload))) for link in backplane.links]
            assert got == expected
            assert (await heard(client))[-1]["type"] == "Metadata"


@pytest.mark.parametrize(
    ("query", "data", "about"),
    [
        ("", b"this is no media at all, " * 10, "Without 'encoding'"),
        ("", b"\0\0\0\x20ftypM4A " + bytes(200), "Without 'encoding'"),  # its index stands at its end
        ("", b"RIFF\x24\0\0\0WAVEfmt " + bytes(300), "cannot be decoded"),
        ("channels=3&multichannel=true", _wav(bytes(8000), 2), "2 channels, and the query says 3"),
    ],
)
async def test_what_cannot_be_decoded_is_told(query: str, data: bytes, about: str) -> None:
    async with decoding(ScriptedBackplane()) as (harness, decoders):
        async with connect(url(harness, query)) as client:
            await client.send(data)
            await client.send('{"type":"CloseStream"}')
            *_, error = await heard(client)
            assert (error["type"], error["code"], client.close_code) == ("Error", "DATA-0000", 1008)
            assert about in error["description"]
        await wait_until(lambda: decoders.running == 0)


async def test_an_end_before_all_audio_is_an_end_in_order() -> None:
    backplane = ScriptedBackplane()
    async with decoding(backplane) as (harness, _), connect(url(harness, "")) as client:
        await client.send('{"type":"KeepAlive"}')
        await client.send('{"type":"Finalize"}')
        await client.send('{"type":"CloseStream"}')
        await _finish(backplane)
        assert backplane.link.log[:3] == ["begin", "finalize", "final"]
        assert (await heard(client))[-1]["type"] == "Metadata"


@pytest.mark.parametrize("audio_comes", [True, False])
async def test_messages_before_the_first_sample_begin_no_stream_of_another_rate(audio_comes: bool) -> None:
    backplane = ScriptedBackplane()
    async with decoding(backplane) as (harness, _), connect(url(harness, "")) as client:
        await client.send('{"type":"Configure","keyterms":["Zyrtec"]}')
        await client.send('{"type":"Finalize"}')
        if audio_comes:
            await client.send(_wav(bytes(24_000), 1, 48_000))
        await client.send('{"type":"CloseStream"}')
        await _finish(backplane)
        link = backplane.link
        assert link.options is not None
        assert link.options.sample_rate == (48_000 if audio_comes else None)
        assert link.log[:3] == ["begin", "phrases Zyrtec", "finalize"]
        assert (link.log[-1], link.samples) == ("release", 12_000 if audio_comes else 0)
        assert (await heard(client))[-1]["type"] == "Metadata"


@pytest.mark.parametrize("query", ["", _OPUS])
async def test_messages_that_begin_a_slot_anew_are_taken_in_order(query: str) -> None:
    backplane = ScriptedBackplane()
    async with (
        decoding(backplane, begin_timeout_s=0.1) as (harness, _),
        connect(url(harness, query)) as client,
    ):
        await wait_until(lambda: backplane.link.log == ["abandon"])
        for _ in range(2):
            await client.send('{"type":"Finalize"}')
        await client.send('{"type":"CloseStream"}')
        await _finish(backplane)
        assert backplane.link.log == ["begin", "finalize", "finalize", "final", "release"]


async def test_packets_have_one_rate_so_messages_need_not_wait_for_them() -> None:
    backplane = ScriptedBackplane()
    async with decoding(backplane) as (harness, _), connect(url(harness, _OPUS)) as client:
        await client.send('{"type":"Finalize"}')
        await wait_until(lambda: backplane.link.log == ["begin", "finalize"])
        assert backplane.link.options is not None
        assert backplane.link.options.sample_rate == 48_000
        await client.send('{"type":"CloseStream"}')
        await _finish(backplane)


async def test_messages_before_the_first_sample_are_bounded() -> None:
    backplane = ScriptedBackplane()
    async with decoding(backplane) as (harness, _), connect(url(harness, "")) as client:
        for _ in range(101):
            await client.send('{"type":"Finalize"}')
        (error,) = await heard(client)
        assert (error["type"], error["variant"], client.close_code) == ("Error", "too_much_audio", 1008)
        assert backplane.link.log == ["abandon"]


async def test_with_every_decoder_taken_a_request_is_refused() -> None:
    backplane = ScriptedBackplane()
    async with decoding(backplane) as (harness, decoders):
        async with connect(url(harness, _OPUS)):
            assert decoders.running == 1
            with pytest.raises(InvalidStatus) as caught:
                async with connect(url(harness, "")):
                    raise AssertionError("it was opened")
            assert caught.value.response.status_code == 503
            assert "decodes 1 inputs" in json.loads(caught.value.response.body)["err_msg"]
            async with connect(url(harness)):  # samples need none
                pass
        await wait_until(lambda: decoders.running == 0)
        assert len(backplane.links) == 2


async def test_a_client_that_leaves_ends_its_decoder() -> None:
    _, pcm = read_pcm(RECORDING)
    backplane = ScriptedBackplane()
    async with decoding(backplane) as (harness, decoders):
        settled = len(asyncio.all_tasks())
        for data in (b"", b"RIFF", _wav(pcm, 1)):
            client = await connect(url(harness, ""))
            if data:
                await client.send(data)
            assert decoders.running == 1
            client.transport.abort()
            await wait_until(lambda: decoders.running == 0)
        await wait_until(lambda: len(asyncio.all_tasks()) == settled)


async def test_media_that_come_too_fast_wait_in_front_of_their_decoder() -> None:
    backplane = ScriptedBackplane()
    minute = _wav(bytes(2 * 16_000 * 60), 1)
    async with (
        decoding(backplane, max_buffered_samples=160_000) as (harness, _),
        connect(url(harness, "")) as client,
    ):

        async def send() -> None:
            for at in range(0, len(minute), 60_000):
                await client.send(minute[at : at + 60_000])
            await client.send('{"type":"CloseStream"}')

        sending = asyncio.create_task(send())
        # Half of the bound is handed on, and no more while nothing is decoded.
        await wait_until(lambda: bool(backplane.links) and backplane.link.samples >= 80_000, _BEGINS_S)
        link = backplane.link
        await asyncio.sleep(0.3)
        num_samples = link.samples
        assert num_samples < 80_000 + 32_768
        async with asyncio.timeout(_BEGINS_S):
            while "final" not in link.log:
                link.listener.on_ack(link.samples)
                await asyncio.sleep(0.01)
        await sending
        num_samples = link.samples
        assert num_samples == 16_000 * 60
        await _finish(backplane)
        assert (await heard(client))[-1]["type"] == "Metadata"


async def test_a_client_that_sends_nothing_for_long_leaves_its_decoder_to_others() -> None:
    backplane = ScriptedBackplane()
    async with decoding(backplane, begin_timeout_s=0.1) as (harness, decoders):
        async with connect(url(harness, "")) as silent:
            await wait_until(lambda: backplane.link.log == ["abandon"])
            assert decoders.running == 0
            async with connect(url(harness, _OPUS)) as other:
                await other.send(b"\xf8\xff\xfe")  # 20 ms of silence
                await wait_until(lambda: "append" in backplane.link.log, _BEGINS_S)
                await silent.send(_wav(bytes(3200), 1))
                (error,) = await heard(silent)
                assert (error["type"], error["variant"], silent.close_code) == (
                    "Error",
                    "no_free_stream",
                    1013,
                )
        await wait_until(lambda: decoders.running == 0)
        async with connect(url(harness, "")) as late:
            await wait_until(lambda: backplane.link.log == ["abandon"])
            await late.send(_wav(bytes(3200), 1))
            await late.send('{"type":"CloseStream"}')
            await _finish(backplane)
            assert (await heard(late))[-1]["type"] == "Metadata"


async def test_a_client_that_leaves_while_the_cluster_refuses_it_leaves_its_decoder() -> None:
    backplane = ScriptedBackplane()
    async with decoding(backplane) as (harness, decoders):
        backplane.gate.clear()
        connecting = asyncio.create_task(connect(url(harness, "")).__aenter__())
        await wait_until(lambda: backplane.num_waiting == 1)
        assert decoders.running == 1
        for connection in list(harness.connections):
            connection.lost()
        backplane.refusal = NoFreeStream()
        backplane.gate.set()
        await wait_until(lambda: decoders.running == 0)
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)


async def test_an_inlet_that_is_closed_at_once_leaves_its_decoder() -> None:
    class Sink:
        """Hears nothing."""

        takes_audio = True

        def decodes_at(self, sample_rate: int) -> None:
            raise AssertionError("nothing was sent")

        received_decoded = received_fault = decodes_at

        def on_media_room(self) -> None:
            raise AssertionError("nothing was sent")

    decoders = Decoders(1)
    MediaInlet(decoders, MediaWanted(), Sink()).close()  # type: ignore[arg-type]  # it is called by nobody
    await asyncio.sleep(0)
    assert decoders.running == 0


async def test_messages_behind_audio_that_is_not_decoded_are_bounded() -> None:
    class Sink:
        num_rooms = 0

        def on_media_room(self) -> None:
            self.num_rooms += 1

    decoders, sink = Decoders(1), Sink()
    inlet = MediaInlet(decoders, MediaWanted(demuxer="ogg"), sink)  # type: ignore[arg-type]  # no samples come
    inlet.take(Media(b"OggS"), 4)
    for message in (Finalize(), Close()):
        for _ in range(1000):
            inlet.take(message, 0)
    assert inlet.is_full
    await asyncio.sleep(0)
    inlet.close()
    await wait_until(lambda: decoders.running == 0)
    assert (inlet.is_full, sink.num_rooms) == (False, 1)
