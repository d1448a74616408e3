"""Many streams at once with the bundled model: each reads its recording as if it were alone."""

from __future__ import annotations

import asyncio
import random

import pytest

from common.messages import Result
from parakeet.audio.source import Recording, read_recording
from parakeet.client import ClientTimeouts, connect
from tests.e2e.serve_process import ServeProcess
from tests.service_process import ROOT

RECORDINGS = sorted((ROOT / "parakeet" / "recordings").glob("*.wav"))
NUM_STREAMS = 20
_TIMEOUTS = ClientTimeouts(connect_s=20, silence_s=60, final_s=120, resume_s=30, send_s=120)


async def _read_aloud(url: str, recording: Recording, sizes_ms: random.Random | None) -> list[Result]:
    """Stream a recording in messages of random length from 10 ms to 2 s, or of 160 ms."""
    async with await connect(url, timeouts=_TIMEOUTS) as stream:
        assert stream.sample_rate == recording.rate

        async def send() -> None:
            at = 0
            while at < len(recording.pcm):
                size_ms = 160 if sizes_ms is None else sizes_ms.randint(10, 2000)
                size = recording.rate * size_ms // 1000 * 2
                await stream.send(recording.pcm[at : at + size])
                at += size
                await asyncio.sleep(0 if sizes_ms is None else sizes_ms.uniform(0, 0.05))
            await stream.finish()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send())
            return [result async for result in stream.results()]


def _said(results: list[Result]) -> tuple[str, tuple[int, ...]]:
    """The final text and all tokens, each of which stands in exactly one result."""
    return results[-1].text, tuple(token for result in results for token in result.token_ids)


@pytest.mark.slow
async def test_twenty_streams_at_once_read_what_each_reads_alone() -> None:
    recordings = [read_recording(path) for path in RECORDINGS]
    assert len(recordings) >= 4
    with ServeProcess("--backend", "native", "--model-size", "tiny", "--num-ingress", "2") as serve:
        await asyncio.to_thread(serve.wait_until_ready)
        urls = (f"ws://127.0.0.1:{serve.ws_port}", f"tcp://127.0.0.1:{serve.tcp_port}")
        alone = [_said(await _read_aloud(urls[0], recording, None)) for recording in recordings]
        assert len({text for text, _ in alone}) == len(recordings)
        async with asyncio.TaskGroup() as tasks:
            runs = [
                tasks.create_task(
                    _read_aloud(
                        urls[index % 2], recordings[index // 2 % len(recordings)], random.Random(index)
                    )
                )
                for index in range(NUM_STREAMS)
            ]
        for index, run in enumerate(runs):
            results = run.result()
            assert _said(results) == alone[index // 2 % len(recordings)], f"stream {index}"
            assert [result.is_final for result in results].count(True) == 1
        assert await asyncio.to_thread(serve.stop) == 0
