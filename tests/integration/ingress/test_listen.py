"""Deepgram's protocol over a real Redis, an ingress and a worker with the tiny model."""

from __future__ import annotations

import asyncio
import json
from array import array
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import av
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from ingress.server import LISTEN_PATH
from tests.media_files import encode, opus_packets, read_pcm
from tests.ports import HOST
from tests.stack import Stack, transcribe
from tests.waiting import until

pytestmark = pytest.mark.one_server

RECORDING = Path("parakeet/recordings/goforward.wav")
_TINY: dict[str, Any] = {"backend": "native", "model_size": "tiny", "device": "cpu", "num_threads": 1}
_BLOCK_BYTES = 3200  # 100 ms
_CLOSE = '{"type":"CloseStream"}'


async def _listen(url: str, query: str, frames: list[bytes | str]) -> list[dict[str, Any]]:
    """Send all, then the end; the messages up to a close in order."""
    async with asyncio.timeout(120), connect(f"{url}{LISTEN_PATH}?{query}") as client:
        sending = asyncio.create_task(_send(client, [*frames, _CLOSE]))
        messages = [json.loads(message) async for message in client]
        await sending
        assert client.close_code == 1000
        return messages


async def _send(client: ClientConnection, frames: list[bytes | str]) -> None:
    for frame in frames:
        await client.send(frame)


def _finals(messages: list[dict[str, Any]], channel: int = 0) -> list[dict[str, Any]]:
    results = [message for message in messages if message["type"] == "Results"]
    return [one for one in results if one["is_final"] and one["channel_index"][0] == channel]


def _text(messages: list[dict[str, Any]], channel: int = 0) -> str:
    """The transcript of a channel: its finals, joined with a space; they tile the audio."""
    finals = _finals(messages, channel)
    ends = [round(one["start"] + one["duration"], 3) for one in finals]
    assert [one["start"] for one in finals] == [0.0, *ends[:-1]]
    texts = [one["channel"]["alternatives"][0]["transcript"] for one in finals]
    return " ".join(text for text in texts if text)


def _recording() -> bytes:
    return RECORDING.read_bytes()


def _flac(pcm: bytes, rate: int, folder: Path) -> bytes:
    return encode(pcm, rate, "flac", folder).read_bytes()


def _decoded(packets: list[bytes]) -> bytes:
    """16-bit samples of packets of Opus, 48 kHz."""
    codec: Any = av.CodecContext.create("opus", "r")
    codec.sample_rate = 48_000
    codec.layout = "mono"
    resampler = av.AudioResampler(format="s16", layout="mono", rate=48_000)
    samples = b""
    for packet in packets:
        for frame in codec.decode(av.Packet(packet)):
            for part in resampler.resample(frame):
                samples += bytes(part.planes[0])[: 2 * part.samples]
    return samples


def _blocks(data: bytes, num_bytes: int = _BLOCK_BYTES) -> list[bytes | str]:
    return [data[at : at + num_bytes] for at in range(0, len(data), num_bytes)]


@pytest.mark.slow
async def test_every_way_of_sending_a_recording_gets_the_text_of_our_own_protocol(
    stack: Stack, tmp_path: Path
) -> None:
    stack.worker(**_TINY)
    ingress = stack.ingress()
    rate, pcm = read_pcm(RECORDING)
    text = (await transcribe(ingress.ws_url, pcm))[-1].text
    assert text
    raw = f"encoding=linear16&sample_rate={rate}"
    stereo = b"".join(pcm[at : at + 2] * 2 for at in range(0, len(pcm), 2))

    messages = await _listen(ingress.ws_url, f"{raw}&interim_results=true&vad_events=true", _blocks(pcm))
    assert _text(messages) == text
    kinds = [message["type"] for message in messages]
    assert kinds.index("SpeechStarted") < kinds.index("Results")
    assert kinds[-1] == "Metadata"
    assert messages[-1]["duration"] == pytest.approx(len(pcm) / 2 / rate, abs=0.001)
    interims = [message for message in messages if message["type"] == "Results" and not message["is_final"]]
    assert interims
    words = [word for final in _finals(messages) for word in final["channel"]["alternatives"][0]["words"]]
    assert " ".join(word["punctuated_word"] for word in words) == text

    assert _text(await _listen(ingress.ws_url, f"{raw}&channels=2", _blocks(stereo))) == text
    # A channel that is the other upside down silences nothing, however the audio is cut.
    turned = array("h", [one for sample in array("h", pcm) for one in (sample, -max(sample, -32767))])
    for num_bytes in (_BLOCK_BYTES, 1234):
        blocks = _blocks(turned.tobytes(), num_bytes)
        assert _text(await _listen(ingress.ws_url, f"{raw}&channels=2", blocks)) == text
    apart = await _listen(ingress.ws_url, f"{raw}&channels=2&multichannel=true", _blocks(stereo))
    assert (_text(apart, 0), _text(apart, 1), apart[-1]["channels"]) == (text, text, 2)
    assert _text(await _listen(ingress.ws_url, "", _blocks(_recording()))) == text
    flac = _flac(pcm, rate, tmp_path)
    assert _text(await _listen(ingress.ws_url, "", _blocks(flac))) == text
    # Opus loses some of the sound, and of the words: its decoded samples have the same.
    packets = opus_packets(pcm, rate)
    heard = _text(await _listen(ingress.ws_url, "encoding=opus&sample_rate=48000", [*packets]))
    samples = _blocks(_decoded(packets))
    assert heard == _text(await _listen(ingress.ws_url, "encoding=linear16&sample_rate=48000", samples))
    assert heard.endswith("ten meters")
    await stack.empty()


async def test_finalizes_are_answered_in_order_and_the_stream_goes_on(stack: Stack) -> None:
    stack.worker(**_TINY)
    ingress = stack.ingress()
    rate, pcm = read_pcm(RECORDING)
    finalize = '{"type":"Finalize"}'
    frames: list[bytes | str] = ['{"type":"KeepAlive"}', *_blocks(pcm), finalize, finalize, *_blocks(pcm)]
    messages = await _listen(ingress.ws_url, f"encoding=linear16&sample_rate={rate}", frames)
    finals = _finals(messages)
    answers = [one for one in finals if one["from_finalize"]]
    assert len(answers) == 2
    first, second = answers
    assert first["start"] + first["duration"] == pytest.approx(len(pcm) / 2 / rate, abs=0.001)
    assert (second["duration"], second["channel"]["alternatives"][0]["transcript"]) == (0.0, "")
    half = _text(await _listen(ingress.ws_url, f"encoding=linear16&sample_rate={rate}", _blocks(pcm)))
    assert _text(messages) == f"{half} {half}"
    await stack.empty()


async def test_key_terms_that_the_model_cannot_write_are_left_out(stack: Stack) -> None:
    stack.worker(**_TINY)
    ingress = stack.ingress()
    rate, pcm = read_pcm(RECORDING)
    blocks = _blocks(pcm)
    configure = json.dumps({"type": "Configure", "keyterms": ["COVID-19", "Москва"]})
    frames = [*blocks[: len(blocks) // 2], configure, *blocks[len(blocks) // 2 :]]
    raw = f"encoding=linear16&sample_rate={rate}"
    messages = await _listen(ingress.ws_url, f"{raw}&keyterm=747&keywords=4:2", frames)
    assert [one["type"] for one in messages].count("ConfigureSuccess") == 1
    assert _text(messages) == _text(await _listen(ingress.ws_url, raw, blocks))
    await stack.empty()


async def test_a_language_that_the_model_does_not_have_is_refused(stack: Stack) -> None:
    ingress = stack.ingress()  # before the worker, so it learns of the model by a heartbeat
    stack.worker(**_TINY)
    http = HTTPConnection(HOST, ingress.ws_port, timeout=60)

    def languages() -> list[str] | None:
        http.request("GET", "/v1/models/parakeet")
        told: list[str] | None = json.loads(http.getresponse().read()).get("languages")
        return told

    await until(lambda: languages() == ["en"])
    http.close()
    url = f"{ingress.ws_url}{LISTEN_PATH}?encoding=linear16&sample_rate=16000&language="
    with pytest.raises(InvalidStatus) as refused:
        async with connect(f"{url}de"):
            pass
    assert refused.value.response.status_code == 400
    assert json.loads(refused.value.response.body or b"")["err_code"] == "INVALID_QUERY_PARAMETER"
    for tag in ("en-US", "multi"):
        async with connect(f"{url}{tag}"):
            pass
    await stack.empty()


async def test_a_full_cluster_is_told_before_the_upgrade(stack: Stack) -> None:
    stack.worker()
    ingress = stack.ingress(max_num_streams=2)
    url = f"{ingress.ws_url}{LISTEN_PATH}?encoding=linear16&sample_rate=16000"
    async with connect(url), connect(url):
        with pytest.raises(InvalidStatus) as caught:
            async with connect(url):
                raise AssertionError("it was opened")
        assert caught.value.response.status_code == 503
        assert caught.value.response.headers["Retry-After"] == "5"
        assert json.loads(caught.value.response.body)["err_code"] == "SERVICE_UNAVAILABLE"
    await stack.empty()
