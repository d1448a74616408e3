"""OpenAI's realtime protocol over a real Redis: what is heard, and what a full cluster says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from common.options import StreamOptions, encode_options
from ingress.dialects.openai.session import Session
from tests.clients.checker import shape
from tests.clients.conversation import TEXT, Conversation, Frame
from tests.clients.live_checks import realtime_order
from tests.media_files import read_pcm
from tests.realtime_talk import TRANSCRIPTION, append, update
from tests.service_process import ROOT
from tests.stack import Stack
from tests.stream_client import noise

pytestmark = pytest.mark.one_server

Events = list[dict[str, Any]]

_TINY: dict[str, Any] = {"backend": "native", "model_size": "tiny", "device": "cpu", "num_threads": 1}
_COMMIT = {"type": "input_audio_buffer.commit"}
_CLEAR = {"type": "input_audio_buffer.clear"}
_16_KHZ = {"type": "audio/pcm", "rate": 16000}
_EVENT_BYTES = 3200
_TEXT = "go forward ten meters"


def _recording() -> bytes:
    rate, pcm = read_pcm(ROOT / "parakeet" / "recordings" / "goforward.wav")
    assert rate == 16000
    return pcm


def _silence(seconds: float) -> bytes:
    return b"\0\0" * round(16000 * seconds)


def _audio(pcm: bytes) -> Events:
    return [append(pcm[at : at + _EVENT_BYTES]) for at in range(0, len(pcm), _EVENT_BYTES)]


async def _talk(url: str, events: Events, is_over: Callable[[Events], bool]) -> Events:
    """Say all, hear until it is enough, and leave as one should. What came is as strict clients want it."""
    said = [json.dumps(event).encode() for event in events]
    heard: Events = []
    async with asyncio.timeout(120), connect(f"{url}/v1/realtime?intent=transcription") as client:
        for event in said:
            await client.send(event, text=True)
        while not is_over(heard):
            heard.append(json.loads(await client.recv()))
    assert client.close_code == 1000
    talk = Conversation((), tuple(Frame(0.0, TEXT, event) for event in said), ())
    wrong = [text for event in heard for text in shape("openai_realtime", event["type"], event)]
    # How an item's format is shown follows the rate, which is OpenAI's own in the checker.
    assert [text for text in wrong if "session.audio.input.format" not in text] == []
    assert list(realtime_order(talk, heard)) == []
    return heard


def _transcripts(events: Events) -> list[str]:
    return [event["transcript"] for event in events if event["type"] == f"{TRANSCRIPTION}.completed"]


def _completed(count: int) -> Callable[[Events], bool]:
    return lambda events: len(_transcripts(events)) == count


async def _utterances(url: str, pcm: bytes, options: StreamOptions) -> list[str]:
    """The finals that our own protocol gives for the same audio, cut alike."""
    config = {**json.loads(encode_options(options)), "type": "config", "sample_rate": 16000}
    texts: list[str] = []
    async with asyncio.timeout(120), connect(url) as client:
        await client.send(json.dumps(config))
        await client.send(pcm)
        await client.send('{"type":"close"}')
        async for message in client:
            texts += [one["text"] for one in json.loads(message).get("utterances", ())]
    return texts


@pytest.mark.slow
async def test_speech_is_cut_by_silence_by_meaning_and_by_the_client(stack: Stack) -> None:
    stack.worker(**_TINY)
    url = stack.ingress().ws_url
    twice = _recording() + _silence(1.5) + _recording() + _silence(1.5)
    for turns in ({"type": "server_vad"}, {"type": "semantic_vad", "eagerness": "high"}):
        settings = update(format=_16_KHZ, turn_detection=turns)
        heard = await _talk(url, [settings, *_audio(twice)], _completed(2))
        own = await _utterances(url, twice, Session().updated(settings["session"]).options)
        assert _transcripts(heard) == own
        assert own[0] == _TEXT
        starts = [event["audio_start_ms"] for event in heard if event["type"].endswith("speech_started")]
        stops = [event["audio_end_ms"] for event in heard if event["type"].endswith("speech_stopped")]
        assert 0 <= starts[0] < 500 < 2000 < stops[0] < 3500
        assert stops[0] <= starts[1] < 5000
        deltas = [event for event in heard if event["type"] == f"{TRANSCRIPTION}.delta"]
        assert len(deltas) > 4
    once = [*_audio(_recording()), _COMMIT]
    heard = await _talk(
        url,
        [
            # Audio that comes before its format.
            *once[:3],
            update(format=_16_KHZ, turn_detection=None),
            *once[3:],
            *_audio(_recording()),
            _CLEAR,
            *once,
        ],
        _completed(2),
    )
    assert _transcripts(heard) == [_TEXT, _TEXT]
    await stack.empty()


async def test_items_of_one_stream_join_to_its_transcript(stack: Stack) -> None:
    stack.worker()
    url = stack.ingress().ws_url
    pcm = noise(4.0, seed=3)
    cuts = [0, 16000, 16000 + 4800, 48000, 128000]
    said: Events = [update(format=_16_KHZ, turn_detection=None)]
    for begin, end in pairwise(cuts):
        said += [*_audio(pcm[begin:end]), _COMMIT]
    heard = await _talk(url, said, _completed(4))
    seconds = [event["usage"]["seconds"] for event in heard if "usage" in event]
    assert seconds == [(end - begin) / 32000 for begin, end in pairwise(cuts)]
    assert all(_transcripts(heard)[at] for at in (0, 2, 3))
    await stack.empty()


async def test_a_full_cluster_closes_the_connection_and_says_no_error(stack: Stack) -> None:
    stack.worker()
    ingress = stack.ingress(max_num_streams=1)
    async with connect(f"{ingress.ws_url}/v1/realtime") as first:
        assert json.loads(await first.recv())["type"] == "session.created"
        async with connect(f"{ingress.ws_url}/v1/realtime") as second:
            with pytest.raises(ConnectionClosed):
                await second.recv()
        assert (second.close_code, second.close_reason) == (1013, "no_free_stream")
    await stack.empty()
