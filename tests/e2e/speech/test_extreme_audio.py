"""Audio that no microphone gives, through the whole service: decoded, or its stream alone refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest

from common.messages import Encoding, Result
from parakeet.audio.source import read_recording
from parakeet.client import ClientTimeouts, ServerError, connect
from tests.e2e.serve_process import ServeProcess
from tests.service_process import ROOT

RATE = 16_000
RECORDING = read_recording(ROOT / "parakeet" / "recordings" / "goforward.wav")
TEXT = "go forward ten meters"
_TIMEOUTS = ClientTimeouts(connect_s=20, silence_s=60, final_s=90, resume_s=30, send_s=90)


@asynccontextmanager
async def service(*flags: str) -> AsyncIterator[str]:
    """The service with the tiny model; return the address of its WebSocket, and ends in order."""
    with ServeProcess("--backend", "native", "--model-size", "tiny", *flags) as serve:
        await asyncio.to_thread(serve.wait_until_ready)
        yield f"ws://127.0.0.1:{serve.ws_port}"
        assert await asyncio.to_thread(serve.stop) == 0


async def say(url: str, audio: bytes, encoding: Encoding) -> list[Result]:
    """Stream audio as fast as it is taken; return all results."""
    async with await connect(url, timeouts=_TIMEOUTS) as stream:

        async def send() -> None:
            size = RATE * encoding.sample_bytes
            for at in range(0, len(audio), size):
                await stream.send(audio[at : at + size], encoding)
            await stream.finish()

        async with asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(send())
            results = [result async for result in stream.results()]
            await sending
            return results


def whole(results: list[Result], num_samples: int) -> bool:
    """Whether every sample was decoded, and everything said is finite."""
    confidences = [confidence for result in results for confidence in result.confidence_scores or ()]
    return (
        results[-1].is_final
        and results[-1].audio_ack_samples == num_samples
        and bool(np.isfinite(confidences).all())
    )


@pytest.mark.slow
async def test_extreme_audio_ends_no_process_and_no_neighbour() -> None:
    """NaN, infinities, denormals, noise at full scale and far beyond, beside a stream that just speaks."""
    random = np.random.default_rng(0)
    seconds = 3 * RATE
    denormal = random.uniform(-1e-42, 1e-42, seconds).astype("<f4")
    assert np.any(denormal != 0)
    taken = {
        "denormals": (denormal.tobytes(), Encoding.F32),
        "full-scale noise": (random.choice((-32768, 32767), seconds).astype("<i2").tobytes(), Encoding.PCM16),
        "a constant": (np.full(seconds, -32768, "<i2").tobytes(), Encoding.PCM16),
        "greatest float32": (
            (random.choice((-1, 1), seconds) * np.finfo(np.float32).max).astype("<f4").tobytes(),
            Encoding.F32,
        ),
    }
    refused = {}
    for name, value in (("nan", np.nan), ("inf", np.inf), ("-inf", -np.inf)):
        bad = np.zeros(2 * RATE, "<f4")
        bad[RATE : RATE + 9] = value
        refused[name] = bad.tobytes()
    async with service() as url:
        alone = await say(url, RECORDING.pcm, Encoding.PCM16)
        assert alone[-1].text == TEXT
        async with asyncio.TaskGroup() as tasks:
            neighbour = tasks.create_task(say(url, RECORDING.pcm, Encoding.PCM16))
            runs = {name: tasks.create_task(say(url, *audio)) for name, audio in taken.items()}
            errors = {
                name: tasks.create_task(_refusal(url, audio, Encoding.F32)) for name, audio in refused.items()
            }
        for name, run in runs.items():
            assert whole(run.result(), seconds), name
        assert {name: error.result() for name, error in errors.items()} == dict.fromkeys(
            refused, "bad_samples"
        )
        assert neighbour.result()[-1].text == TEXT
        after = await say(url, RECORDING.pcm, Encoding.PCM16)
        assert [result.text for result in after] == [result.text for result in alone]


@pytest.mark.slow
async def test_long_silence_is_decoded_to_the_last_sample() -> None:
    """As fast as the model takes it: the state of a stream without words neither drifts nor grows."""
    num_samples = 2 * 60 * RATE
    async with service() as url:
        results = await say(url, bytes(2 * num_samples), Encoding.PCM16)
        assert whole(results, num_samples)
        assert results[-1].text == ""


async def _refusal(url: str, audio: bytes, encoding: Encoding) -> str:
    """The code with which a stream is refused."""
    with pytest.raises((ServerError, ExceptionGroup)) as raised:
        await say(url, audio, encoding)
    error: BaseException = raised.value
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, ServerError), error
    return error.code
