"""`finalize`: the text of all audio so far while the stream goes on, also over a takeover."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import websockets

from tests.ports import HOST
from tests.stack import Stack
from tests.stream_client import expected_text, noise
from tests.waiting import until

pytestmark = pytest.mark.one_server

Results = list[dict[str, Any]]
_FINALIZE = b'{"type":"finalize"}'


def _audio(pcm: bytes, **more: object) -> bytes:
    return json.dumps({"type": "audio", "data": base64.b64encode(pcm).decode(), **more}).encode()


def _said(pcm: bytes, cuts: Sequence[int]) -> list[bytes]:
    """Messages of a client that finalizes after so many samples, and ends."""
    messages = []
    at = 0
    for cut in cuts:
        messages += [_audio(pcm[2 * at : 2 * cut]), _FINALIZE]
        at = cut
    return [*messages, _audio(pcm[2 * at :], final=True)]


def _texts(pcm: bytes, cuts: Sequence[int]) -> list[str]:
    """The text at each cut and at the end: each part of the audio is heard by itself."""
    bounds = [0, *cuts, len(pcm) // 2]
    parts = [expected_text(pcm[2 * begin : 2 * end]) for begin, end in pairwise(bounds)]
    return [" ".join(part for part in parts[: at + 1] if part) for at in range(len(parts))]


async def _results(url: str, messages: Sequence[bytes]) -> Results:
    """Say all, and hear to the end."""
    received = []
    async with asyncio.timeout(120):
        if url.startswith("ws:"):
            async with websockets.connect(url) as client:
                for message in messages:
                    await client.send(message, text=True)
                received = [json.loads(message) async for message in client]
        else:
            reader, writer = await asyncio.open_connection(HOST, int(url.rpartition(":")[2]))
            writer.write(b"\n".join([*messages, b""]))
            received = [json.loads(line) for line in (await reader.read()).splitlines()]
            writer.close()
            await writer.wait_closed()
    return [message for message in received if message["type"] == "result"]


def _check(results: Results, pcm: bytes, cuts: Sequence[int]) -> None:
    """Every finalize has one answer, and all that is said later begins with it."""
    assert [result["seq"] for result in results] == list(range(1, len(results) + 1))
    answers = [result for result in results if result.get("from_finalize")]
    texts = _texts(pcm, cuts)
    assert [answer["text"] for answer in answers] == texts[:-1]
    assert [answer["audio_ack_samples"] for answer in answers] == list(cuts)
    assert not any(answer["is_final"] for answer in answers)
    for answer in answers:
        assert all(later["text"].startswith(answer["text"]) for later in results[answer["seq"] :])
    final = results[-1]
    assert final["is_final"] is True
    assert final["text"] == texts[-1]
    assert final["audio_ack_samples"] == len(pcm) // 2
    assert "from_finalize" not in final


@pytest.mark.parametrize("cuts", [(0,), (4000, 4000, 5120, 20000, 40001, 48000), (2560, 5120, 7680)])
async def test_each_finalize_is_answered_with_the_text_of_all_audio_so_far(
    stack: Stack, cuts: tuple[int, ...]
) -> None:
    stack.worker()
    ingress = stack.ingress()
    pcm = noise(3.0, seed=5)
    for url in (ingress.tcp_url, ingress.ws_url):
        results = await _results(url, _said(pcm, cuts))
        _check(results, pcm, cuts)
    await stack.empty()


async def test_words_and_their_times_go_on_over_a_finalize(stack: Stack) -> None:
    stack.worker()
    ingress = stack.ingress()
    pcm = noise(3.0, seed=6)
    config = b'{"type":"config","words":true}'
    results = await _results(ingress.tcp_url, [config, *_said(pcm, (16000, 32000))])
    words = [word for result in results for word in result["words"]]
    assert words == sorted(words, key=lambda word: word["start_s"])
    assert words[-1]["end_s"] > 2.0
    await stack.empty()


async def test_resampled_audio_is_finalized_to_its_last_sample(stack: Stack) -> None:
    stack.worker()
    ingress = stack.ingress()
    pcm = noise(3.0, seed=7, rate=8000)
    config = b'{"type":"config","sample_rate":8000}'
    cuts = (8000, 8000, 12345)
    results = await _results(ingress.tcp_url, [config, *_said(pcm, cuts)])
    answers = [result for result in results if result.get("from_finalize")]
    assert len(answers) == len(cuts)
    for answer, cut in zip(answers, cuts, strict=True):
        assert answer["audio_ack_samples"] == cut
        assert all(later["text"].startswith(answer["text"]) for later in results[answer["seq"] :])
    assert results[-1]["audio_ack_samples"] == 24000
    for answer, cut in zip(answers[::2], cuts[::2], strict=True):
        closed = await _results(ingress.tcp_url, [config, *_said(pcm[: 2 * cut], cuts[: cuts.index(cut)])])
        assert answer["text"] == closed[-1]["text"]
    await stack.empty()


@pytest.mark.parametrize("rate", [16000, 8000])
async def test_a_takeover_repeats_no_answer_and_loses_none(stack: Stack, rate: int) -> None:
    """The place of a finalize is in the audio: another worker cuts where the first one did."""
    first = stack.worker("w-1", replay_seconds=2, lease_ms=2000)
    ingress = stack.ingress()
    pcm = noise(12.0, seed=8, rate=rate)
    cuts = tuple(range(rate, 12 * rate, rate + rate // 3))
    undisturbed = await _results(
        ingress.tcp_url, [b'{"type":"config","sample_rate":%d}' % rate, *_said(pcm, cuts)]
    )
    messages = _said(pcm, cuts)
    reader, writer = await asyncio.open_connection(HOST, ingress.port)
    writer.write(b'{"type":"config","sample_rate":%d}\n' % rate)
    for number, message in enumerate(messages):
        writer.write(message + b"\n")
        await asyncio.sleep(0.05)
        if number == len(messages) // 2:
            stack.worker("w-2", replay_seconds=2)
            first.send(signal.SIGKILL)
    async with asyncio.timeout(120):
        received = [json.loads(line) for line in (await reader.read()).splitlines()]
    writer.close()
    await writer.wait_closed()
    results = [message for message in received if message["type"] == "result"]
    fields = ("seq", "text", "from_finalize", "is_final", "token_ids", "audio_ack_samples")
    assert [[result.get(field) for field in fields] for result in results] == [
        [result.get(field) for field in fields] for result in undisturbed
    ]
    await stack.empty()


async def test_a_stream_that_is_finalized_all_the_time_keeps_bounded_audio(stack: Stack) -> None:
    """No chunk is ever whole: checkpoints come all the same, and another worker goes on from them."""
    rate = 8000
    first = stack.worker("w-1", replay_seconds=2, lease_ms=2000)
    ingress = stack.ingress()
    pcm = noise(12.0, seed=9, rate=rate)
    cuts = tuple(range(rate // 10, 12 * rate, rate // 10))
    config = b'{"type":"config","sample_rate":%d}' % rate
    undisturbed = await _results(ingress.tcp_url, [config, *_said(pcm, cuts)])
    messages = _said(pcm, cuts)
    reader, writer = await asyncio.open_connection(HOST, ingress.port)
    writer.write(config + b"\n")
    received: Results = []
    async with asyncio.timeout(500):
        for number, message in enumerate(messages):
            writer.write(message + b"\n")
            while message == _FINALIZE and not (received and received[-1].get("from_finalize")):
                received.append(json.loads(await reader.readline()))
            received.append({})
            if number == len(messages) * 3 // 4:
                # 180 entries were written: two for each 0.1 s of audio.
                await until(lambda: _num_kept(stack) <= 80, what="the end of old audio")
                stack.worker("w-2", replay_seconds=2)
                first.send(signal.SIGKILL)
        received += [json.loads(line) for line in (await reader.read()).splitlines()]
    writer.close()
    await writer.wait_closed()
    results = [message for message in received if message.get("type") == "result"]
    fields = ("seq", "text", "from_finalize", "is_final", "token_ids", "audio_ack_samples")
    assert [[result.get(field) for field in fields] for result in results] == [
        [result.get(field) for field in fields] for result in undisturbed
    ]
    await stack.empty()


def _num_kept(stack: Stack) -> int:
    """Entries of audio that are kept of all streams."""
    return sum(stack.client.xlen(key) for key in stack.client.keys("px:{0}:[0-9]*:a"))


async def test_many_finalizes_are_bounded_and_answered(stack: Stack) -> None:
    stack.worker()
    ingress = stack.ingress()
    results = await _results(ingress.tcp_url, [_FINALIZE] * 500 + [b'{"type":"close"}'])
    assert len([result for result in results if result.get("from_finalize")]) == 500
    assert results[-1]["is_final"] is True
    await until(lambda: not stack.client.keys("px:{0}:[0-9]*:a"), what="the end of the stream")
    await stack.empty()
