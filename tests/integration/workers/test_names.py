"""Two processes with one --worker-id: one of them serves, and the other one ends with a sentence."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from parakeet.client import connect
from tests.stack import TIMEOUTS, Stack, check_gapless, collect, transcribe
from tests.stream_client import expected_text, noise
from tests.waiting import until
from tests.worker_process import WorkerProcess

_SENTENCE = "Another process of this cluster is the worker w-1: --worker-id must be unique"


async def test_one_of_two_processes_with_one_name_ends(stack: Stack, tmp_path: Path) -> None:
    first = stack.worker("w-1")
    ingress = stack.ingress()
    with WorkerProcess(stack.url, "w-1", tmp_path / "second.log") as second:
        # Nearly always the second; the first one where the machine stalls it for seconds.
        await until(lambda: not (first.running and second.running), what="the end of one of them")
        loser = second if first.running else first
        assert await asyncio.to_thread(loser.wait) == 2
        assert _SENTENCE in loser.log_text()
        pcm = noise(1.0)
        results = await transcribe(ingress.tcp_url, pcm)
        assert results[-1].text == expected_text(pcm)


async def test_a_frozen_process_whose_name_was_taken_ends_when_it_wakes(stack: Stack, tmp_path: Path) -> None:
    first = stack.worker("w-1", lease_ms=600_000)
    ingress = stack.ingress()
    pcm = noise(4.0)
    async with await connect(ingress.tcp_url, timeouts=TIMEOUTS) as stream:
        results = asyncio.create_task(collect(stream))
        await stream.send(pcm[: len(pcm) // 2])
        await until(lambda: stack.client.exists(f"px:{{0}}:{stream.stream_id}:r"), what="a result")
        first.send(signal.SIGSTOP)
        # Its lease holds for minutes, but is not renewed any more.
        with WorkerProcess(stack.url, "w-1", tmp_path / "second.log", lease_ms=600_000) as second:
            await until(lambda: "worker ready" in second.log_text(), what="the second process")
            first.send(signal.SIGCONT)
            assert await asyncio.to_thread(first.wait) == 2
            assert _SENTENCE in first.log_text()
            await stream.send(pcm[len(pcm) // 2 :])
            await stream.finish()
            told = await results
            check_gapless(told)
            assert told[-1].text == expected_text(pcm)
            assert second.running
