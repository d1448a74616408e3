"""The path of a chunk in ARCHITECTURE.md: the files that it names are those that a chunk passes."""

from __future__ import annotations

import re
import signal
from functools import partial
from pathlib import Path

import pytest

from parakeet.client import connect
from tests.altered.traced import BEGUN, PASSED, ROOT
from tests.service_process import ServiceProcess
from tests.stack import TIMEOUTS, Stack
from tests.stream_client import noise
from tests.waiting import wait_until

pytestmark = pytest.mark.one_server

# The null engine stands for a device.
NOT_HERE = {"gpu_worker/steps/cuda_graphs.py"}
NUMBERS = {26: "twenty-six", 25: "twenty-five", 24: "twenty-four", 23: "twenty-three", 22: "twenty-two"}


def listed() -> set[str]:
    """The files that the document names; those without a folder of their own belong to their process."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    section = text.partition("## The path of a chunk\n")[2].partition("\n## ")[0]
    files: set[str] = set()
    for part in re.split(r"^(?=Up,|In the worker,|Down,)", section, flags=re.MULTILINE)[1:]:
        folder = "gpu_worker" if part.startswith("In the worker") else "ingress"
        for name in re.findall(r"`([\w/]+\.py)`", part):
            files.add(name if name.startswith("common/") else f"{folder}/{name}")
    assert NUMBERS[len(files)] in section
    return files


def is_counting(process: ServiceProcess) -> bool:
    return BEGUN in process.log_text()


def entered(process: ServiceProcess) -> set[str]:
    process.send(signal.SIGUSR2)
    wait_until(lambda: PASSED in process.log_text(), what="the files")
    (line,) = [line for line in process.log_text().splitlines() if line.startswith(PASSED)]
    return set(line.removeprefix(PASSED).split())


async def test_a_chunk_passes_the_files_that_are_listed(redis_url: str, tmp_path: Path) -> None:
    stack = Stack(redis_url, tmp_path)
    try:
        worker = stack.worker(module="tests.altered.traced")
        ingress = stack.ingress(module="tests.altered.traced")
        async with await connect(ingress.ws_url, timeouts=TIMEOUTS) as stream:
            results = aiter(stream.results())
            await stream.send(noise(1.0))
            await anext(results)
            for process in (worker, ingress):
                process.send(signal.SIGUSR1)
                wait_until(partial(is_counting, process), what="the count")
            await stream.send(noise(1.0))
            while (await anext(results)).audio_ack_samples < 24_000:
                pass
            passed = entered(worker) | entered(ingress)
            await stream.finish()
        assert listed() - passed == NOT_HERE
    finally:
        stack.close()
