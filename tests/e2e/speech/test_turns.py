"""Turns through the whole service, with smart-turn loaded: as a voice agent reads them."""

from __future__ import annotations

import asyncio

import pytest

from common.messages import Result
from common.options import StreamOptions
from parakeet.audio.source import Recording, read_recording
from parakeet.client import ClientTimeouts, connect
from tests.e2e.serve_process import ServeProcess
from tests.service_process import ROOT

_TIMEOUTS = ClientTimeouts(connect_s=20, silence_s=60, final_s=120, resume_s=30, send_s=120)
_SILENCE_S = 2.5


async def _results(url: str, recording: Recording, size_ms: int, options: StreamOptions) -> list[Result]:
    """The recording twice, silence behind each, in messages of one size."""
    turn = recording.pcm + bytes(2 * int(_SILENCE_S * recording.rate))
    size = recording.rate * size_ms // 1000 * 2
    async with await connect(url, options=options, timeouts=_TIMEOUTS) as stream:

        async def send() -> None:
            pcm = turn + turn
            for at in range(0, len(pcm), size):
                await stream.send(pcm[at : at + size])
            await stream.finish()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send())
            return [result async for result in stream.results()]


def _turns(results: list[Result]) -> list[tuple[object, ...]]:
    return [
        (result.audio_ack_samples, result.turn_detection, result.utterances)
        for result in results
        if result.turn_detection in ("start_of_utterance", "end_of_utterance") or result.utterances
    ]


@pytest.mark.slow
async def test_turns_of_a_service_with_smart_turn() -> None:
    recording = read_recording(ROOT / "parakeet" / "recordings" / "goforward.wav")
    options = StreamOptions(auto_finalize=True, turn_silence_ms=600, turn_max_pause_ms=900)
    flags = (
        "--backend",
        "native",
        "--model-size",
        "tiny",
        "--smart-turn",
        "--smart-turn-timeout-ms",
        "10000",
    )
    with ServeProcess(*flags) as serve:
        await asyncio.to_thread(serve.wait_until_ready)
        url = f"ws://127.0.0.1:{serve.ws_port}"
        async with asyncio.TaskGroup() as tasks:
            runs = [
                tasks.create_task(_results(url, recording, size_ms, options)) for size_ms in (50, 320, 5_000)
            ]
            off = tasks.create_task(_results(url, recording, 320, StreamOptions(turn_detection=False)))
        results = runs[0].result()
        assert [result.is_final for result in results].count(True) == 1
        names = [result.turn_detection for result in results if result.turn_detection.endswith("_utterance")]
        assert names == ["start_of_utterance", "end_of_utterance"] * 2
        utterances = [one for result in results for one in result.utterances]
        assert [one.number for one in utterances] == [1, 2]
        assert " ".join(one.text for one in utterances) == results[-1].text
        assert utterances[0].end_s < utterances[1].start_s
        for run in runs[1:]:
            assert _turns(run.result()) == _turns(results)
        assert {(one.last_state, one.turn_detection) for one in off.result()} == {(None, "running")}
        assert off.result()[-1].text == results[-1].text
        assert await asyncio.to_thread(serve.stop) == 0
