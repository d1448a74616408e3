"""The Python client against an ingress with the backplane in memory."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator

import pytest
from websockets.asyncio.server import ServerConnection, serve

from common.errors import ErrorCode, NoFreeStream, Unavailable
from common.messages import Audio, Encoding
from common.options import StreamOptions
from common.phrases import Phrase
from parakeet.client import (
    ClientBug,
    ClientTimeouts,
    ConnectionLost,
    ServerError,
    ServerSilent,
    connect,
)
from parakeet.client.channel import ChannelLost, open_channel
from tests.fake_backplane import ScriptedBackplane
from tests.ingress_harness import Harness, serving, wait_until
from tests.ports import free_ports

_TIMEOUTS = ClientTimeouts(connect_s=60, silence_s=60, final_s=60, resume_s=60, send_s=60)


@pytest.fixture(params=["tcp", "ws"])
async def echo(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Harness, str]]:
    """An echoing server, and its address over each kind of socket."""
    async with serving(ScriptedBackplane(echo=True)) as harness:
        yield harness, harness.tcp_url if request.param == "tcp" else harness.ws_url


async def test_audio_cut_anywhere_arrives_whole(echo: tuple[Harness, str]) -> None:
    harness, url = echo
    audio = bytes(range(256)) * 40
    async with await connect(url, timeouts=_TIMEOUTS) as stream:
        assert stream.sample_rate == 16000
        at = 0
        for size in (1, 2, 3, 1001, 0, 4096, 10_000):
            await stream.send(audio[at : at + size])
            at += size
        await stream.finish()
        texts = [result.text async for result in stream.results()]
    assert texts[-1] == f"{len(audio) // 2} samples"
    assert bytes(harness.backplane.link.payload) == audio
    assert harness.backplane.link.log[-1] == "release"


async def test_float_samples(echo: tuple[Harness, str]) -> None:
    harness, url = echo
    payload = struct.pack("<4f", 0.0, 0.5, -0.5, 1.0)
    async with await connect(url, timeouts=_TIMEOUTS) as stream:
        await stream.send(payload, Encoding.F32)
        await stream.finish()
        assert (await stream.final()).text == "4 samples"
    assert bytes(harness.backplane.link.payload) == payload


async def test_a_final_without_audio(echo: tuple[Harness, str]) -> None:
    async with await connect(echo[1], timeouts=_TIMEOUTS) as stream:
        await stream.finish()
        assert (await stream.final()).is_final


async def test_misuse_is_refused_before_it_is_sent(echo: tuple[Harness, str]) -> None:
    async with await connect(echo[1], timeouts=_TIMEOUTS) as stream:
        await stream.send(b"\0")
        with pytest.raises(ValueError, match="within a sample"):
            await stream.finish()
        await stream.send(b"\0")
        await stream.finish()
        with pytest.raises(ValueError, match="after finish"):
            await stream.send(b"\0\0")
    with pytest.raises(ValueError, match="ws://"):
        await connect("http://127.0.0.1:1")


async def test_leaving_without_finish_finalizes_the_stream(echo: tuple[Harness, str]) -> None:
    harness, url = echo
    async with await connect(url, timeouts=_TIMEOUTS) as stream:
        await stream.send(b"\0\0" * 10)
        await anext(stream.results())
    await wait_until(lambda: harness.backplane.link.finals == 1)


async def test_a_full_cluster_is_a_typed_error() -> None:
    backplane = ScriptedBackplane()
    backplane.refusal = NoFreeStream()
    async with serving(backplane) as harness:
        with pytest.raises(ServerError) as caught:
            await connect(harness.ws_url, timeouts=_TIMEOUTS)
        assert caught.value.code == "no_free_stream"


async def test_nobody_there_is_a_typed_error() -> None:
    for url in ("tcp://127.0.0.1:1", "ws://127.0.0.1:1"):
        with pytest.raises(ConnectionLost):
            await connect(url, timeouts=_TIMEOUTS)


async def test_a_server_that_says_nothing_is_a_typed_error() -> None:
    async def ignore(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(ignore, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ServerSilent, match=f"tcp://127.0.0.1:{port} did not answer within"):
            await connect(f"tcp://127.0.0.1:{port}", timeouts=ClientTimeouts(connect_s=0.2))


async def test_an_error_of_the_server_ends_results_and_sends() -> None:
    async with (
        serving(ScriptedBackplane()) as harness,
        await connect(harness.ws_url, timeouts=_TIMEOUTS) as stream,
    ):
        await stream.send(b"\0\0")
        await wait_until(lambda: "append" in harness.backplane.link.log)
        harness.backplane.link.listener.on_failure(Unavailable(ErrorCode.WORKER_FAILED, "It broke."))
        with pytest.raises(ServerError) as caught:
            await stream.final()
        assert caught.value.code == "worker_failed"
        with pytest.raises(ServerError):
            await stream.send(b"\0\0")


async def test_no_progress_after_finish_is_a_typed_error() -> None:
    async with serving(ScriptedBackplane()) as harness:
        timeouts = ClientTimeouts(final_s=0.3)
        async with await connect(harness.tcp_url, timeouts=timeouts) as stream:
            await stream.send(b"\0\0")
            await stream.finish()
            with pytest.raises(ServerSilent):
                await stream.final()


async def test_sending_waits_for_the_decoder() -> None:
    async with (
        serving(ScriptedBackplane()) as harness,
        await connect(harness.tcp_url, window_s=1.0, timeouts=_TIMEOUTS) as stream,
    ):
        sending = asyncio.create_task(stream.send(b"\0\0" * 16000 * 10))
        await wait_until(lambda: bool(harness.backplane.links))
        link = harness.backplane.link
        await wait_until(lambda: link.samples > 16000)
        for _ in range(50):
            await asyncio.sleep(0)
        assert not sending.done()
        assert link.samples < 16000 * 6
        while not sending.done():
            link.listener.on_ack(link.samples)
            await asyncio.sleep(0.01)
        await sending
        await wait_until(lambda: link.samples == 160000)


async def test_sending_gives_up_on_a_decoder_that_stands_still() -> None:
    async with serving(ScriptedBackplane()) as harness:
        timeouts = ClientTimeouts(send_s=0.2)
        async with await connect(harness.tcp_url, window_s=1.0, timeouts=timeouts) as stream:
            with pytest.raises(ServerSilent):
                await stream.send(b"\0\0" * 16000 * 10)


async def test_the_final_result_is_there_as_often_as_it_is_asked_for(echo: tuple[Harness, str]) -> None:
    async with await connect(echo[1], timeouts=_TIMEOUTS) as stream:
        await stream.send(b"\0\0" * 10)
        await stream.finish()
        seen = [result async for result in stream.results()]
        async with asyncio.timeout(60):
            assert await stream.final() == seen[-1]
            assert [result async for result in stream.results()] == []
            assert await stream.final() == seen[-1]
    async with asyncio.timeout(60):
        assert (await stream.final()).text == "10 samples"


async def test_a_failure_is_told_as_often_as_results_are_asked_for() -> None:
    async with (
        serving(ScriptedBackplane()) as harness,
        await connect(harness.ws_url, timeouts=_TIMEOUTS) as stream,
    ):
        await stream.send(b"\0\0")
        await wait_until(lambda: "append" in harness.backplane.link.log)
        harness.backplane.link.listener.on_failure(Unavailable(ErrorCode.WORKER_FAILED, "It broke."))
        async with asyncio.timeout(60):
            for _ in range(2):
                with pytest.raises(ServerError, match="worker_failed"):
                    await stream.final()
                with pytest.raises(ServerError, match="worker_failed"):
                    await anext(stream.results())


@pytest.mark.parametrize("place", ["read", "write", "watch"])
async def test_what_nobody_expected_fails_the_stream(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a field of a newer server")

    monkeypatch.setattr(
        {
            "read": "parakeet.client.stream.decode_server_message",
            "write": "parakeet.client.sent_audio.SentAudio.next_block",
            "watch": "parakeet.client.stream.Stream._owes_progress",
        }[place],
        broken,
    )
    timeouts = ClientTimeouts(silence_s=0.2)
    async with (
        serving(ScriptedBackplane(echo=True)) as harness,
        await connect(harness.ws_url, timeouts=timeouts) as stream,
    ):
        async with asyncio.timeout(60):
            await stream.send(b"\0\0")
            with pytest.raises(ClientBug, match="a field of a newer server") as caught:
                await stream.final()
            assert isinstance(caught.value.__cause__, KeyError)
            with pytest.raises(ClientBug):
                await stream.send(b"\0\0")


async def test_closing_ends_every_wait() -> None:
    async with serving(ScriptedBackplane()) as harness:
        timeouts = ClientTimeouts(silence_s=60)
        stream = await connect(harness.tcp_url, window_s=1.0, timeouts=timeouts)
        reading = asyncio.create_task(stream.final())
        sending = asyncio.create_task(stream.send(b"\0\0" * 16000 * 10))
        await wait_until(lambda: bool(harness.backplane.links) and harness.backplane.link.samples > 0)
        await stream.close()
        async with asyncio.timeout(60):
            for waiting in (reading, sending):
                with pytest.raises(ConnectionLost, match="The stream was closed before its final result"):
                    await waiting
            with pytest.raises(ConnectionLost):
                await stream.send(b"\0\0")
            with pytest.raises(ConnectionLost):
                await stream.final()


async def test_results_that_nobody_reads_yet_do_not_stop_the_audio() -> None:
    async with (
        serving(ScriptedBackplane(echo=True)) as harness,
        await connect(harness.tcp_url, window_s=1.0, timeouts=_TIMEOUTS) as stream,
    ):
        for _ in range(1500):
            await stream.send(b"\0\0" * 160)
        await stream.finish()
        await wait_until(lambda: harness.backplane.link.finals == 1)
        seen = [result async for result in stream.results()]
    at = 0
    for result in seen:
        assert (result.seq_first or result.seq) == at + 1
        at = result.seq
    assert seen[-1].is_final
    assert seen[-1].text == "240000 samples"


async def test_a_server_that_decodes_nothing_is_given_up_before_the_end_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("parakeet.client.stream._UNANSWERED_S", 1.0)
    timeouts = ClientTimeouts(silence_s=2, final_s=1)
    async with serving(ScriptedBackplane()) as harness:
        async with await connect(harness.tcp_url, timeouts=timeouts) as stream:
            await stream.send(b"\0\0" * 16001)
            async with asyncio.timeout(60):
                with pytest.raises(ServerSilent, match="decoded nothing for 1 s"):
                    await stream.final()
        # Less than what a chunk may hold is no reason: a client may send slowly, or pause.
        async with await connect(harness.tcp_url, timeouts=timeouts) as stream:
            await stream.send(b"\0\0" * 16000)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(5):
                    await stream.final()


async def test_a_socket_whose_peer_does_not_read_closes_all_the_same() -> None:
    peers: list[asyncio.StreamWriter] = []

    async def ignore(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        peers.append(writer)

    server = await asyncio.start_server(ignore, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        channel = await open_channel(f"tcp://127.0.0.1:{port}", 2.0)
        await wait_until(lambda: bool(peers))
        sending = asyncio.create_task(channel.send(b"x" * (32 << 20)))
        await asyncio.sleep(0)
        async with asyncio.timeout(60):
            await channel.close()
            await sending
            with pytest.raises(ChannelLost):
                await channel.receive()
        for peer in peers:
            peer.transport.abort()


async def test_a_websocket_whose_peer_does_not_read_closes_all_the_same() -> None:
    over = asyncio.Event()

    async def ignore(connection: ServerConnection) -> None:
        connection.transport.pause_reading()
        await over.wait()
        connection.transport.abort()

    async with serve(ignore, "127.0.0.1", 0) as server:
        channel = await open_channel(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", 2.0)
        sending = asyncio.create_task(channel.send_audio(Audio(bytes(16 << 20)), Encoding.PCM16))
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(60):
                await channel.close()
                await asyncio.gather(sending, return_exceptions=True)
                with pytest.raises(ChannelLost):
                    await channel.receive()
        finally:
            over.set()


async def test_a_host_name_that_cannot_be_one_is_a_typed_error() -> None:
    for url in ("tcp://a..b:1", "ws://a..b:1"):
        with pytest.raises(ConnectionLost, match="cannot be reached"):
            await connect(url, timeouts=_TIMEOUTS)


@pytest.mark.parametrize("scheme", ["tcp", "ws"])
async def test_an_address_without_a_server_has_the_systems_words(scheme: str) -> None:
    (port,) = free_ports(1)
    with pytest.raises(ConnectionLost, match=r"cannot be reached: Connection refused\.$"):
        await connect(f"{scheme}://127.0.0.1:{port}", timeouts=_TIMEOUTS)


async def test_a_final_before_an_error_is_no_end_in_good_order() -> None:
    """A fault of the client ends the audio; the final result of what came before is sent before the error."""
    async with serving(ScriptedBackplane(echo=True), max_buffered_samples=100) as harness:
        for url in (harness.ws_url, harness.tcp_url):
            async with await connect(url, timeouts=_TIMEOUTS) as stream:
                harness.backplane.link.echo = False
                await stream.send(b"\0\0" * 80)
                await wait_until(lambda: "append" in harness.backplane.link.log)
                harness.backplane.link.echo = True
                await stream.send(b"\0\0" * 80)
                await stream.finish()
                result = await anext(stream.results())
                assert (result.text, result.is_final) == ("80 samples", False)
                with pytest.raises(ServerError) as caught:
                    await stream.final()
                assert caught.value.code == "too_much_audio"


async def test_a_stream_has_the_rate_and_the_encoding_of_its_options() -> None:
    async with serving(ScriptedBackplane(echo=True)) as harness:
        for url in (harness.ws_url, harness.tcp_url):
            options = StreamOptions(sample_rate=8000, encoding="f32")
            async with await connect(url, options=options, resume=False, timeouts=_TIMEOUTS) as stream:
                assert stream.sample_rate == 8000
                await stream.send(b"\0\0\0\x3f\0")  # 0.5, and a part of the next
                await stream.send(b"\0\0\x3f")
                await stream.finish()
                assert (await stream.final()).text == "2 samples"
                assert bytes(harness.backplane.link.payload) == b"\0\0\0\x3f" * 2
                assert harness.backplane.link.options == options


async def test_a_warning_of_the_server_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with (
        serving(ScriptedBackplane(echo=True)) as harness,
        await connect(harness.tcp_url, timeouts=_TIMEOUTS) as stream,
    ):
        await stream.send(struct.pack("<f", 20000.0) * 2000, Encoding.F32)
        await stream.finish()
        assert (await stream.final()).is_final
    (record,) = [record for record in caplog.records if record.name == "parakeet.client"]
    assert record.getMessage().startswith("integer_scale: ")
    assert [warning.code for warning in stream.warnings] == ["integer_scale"]


async def test_finalize_goes_out_behind_the_audio_before_it() -> None:
    async with serving(ScriptedBackplane(echo=True)) as harness:
        for url in (harness.ws_url, harness.tcp_url):
            async with await connect(url, timeouts=_TIMEOUTS) as stream:
                await stream.send(b"\0\0" * 10)
                stream.finalize()
                await stream.send(b"\0\0" * 10)
                await stream.finish()
                await stream.final()
                log = [entry for entry in harness.backplane.link.log if entry != "begin"]
                assert log[:4] == ["append", "finalize", "append", "final"]
                with pytest.raises(ValueError, match="after finish"):
                    stream.finalize()


async def test_phrases_go_out_behind_the_audio_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingress.clients.streams.CAPABILITIES", ("config", "resume", "finalize", "phrases"))
    async with serving(ScriptedBackplane(echo=True)) as harness:
        options = StreamOptions(phrases=(Phrase("first"),))
        async with await connect(harness.ws_url, options=options, timeouts=_TIMEOUTS) as stream:
            await stream.send(b"\0\0" * 10)
            stream.set_phrases([Phrase("Parakeet", 2.0), "go on"])
            await stream.send(b"\0\0" * 10)
            await stream.finish()
            await stream.final()
            link = harness.backplane.link
            assert link.options is not None
            assert link.options.phrases == options.phrases
            log = [entry for entry in link.log if entry != "begin"]
            assert log[:3] == ["append", "phrases Parakeet, go on", "append"]


async def test_a_server_that_takes_no_phrases_is_not_sent_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingress.clients.streams.CAPABILITIES", ("config", "resume"))
    async with (
        serving(ScriptedBackplane(echo=True)) as harness,
        await connect(harness.ws_url, timeouts=_TIMEOUTS) as stream,
    ):
        for ask in (stream.finalize, lambda: stream.set_phrases([Phrase("on")])):
            with pytest.raises(ServerError) as caught:
                ask()
            assert caught.value.code == "unknown_type"
