"""A worker with `--backend nemo` in its place in the service: what a client gets is what ours gives."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from common.messages import Result
from common.options import StreamOptions
from parakeet.audio.source import read_recording
from parakeet.client import ClientTimeouts, connect
from tests.golden.cache import CACHE
from tests.ingress_process import IngressProcess
from tests.servers import raw_client
from tests.service_process import ROOT
from tests.worker_process import WorkerProcess

pytestmark = [pytest.mark.golden, pytest.mark.timeout(300)]

NEMO_PYTHON = Path(os.environ.get("PARAKEET_NEMO_PYTHON") or ROOT / ".venv-nemo" / "bin" / "python")
START_TIMEOUT_S = 120.0
RECORDING = ROOT / "parakeet" / "recordings" / "goforward.wav"
MESSAGE_BYTES = 3001


class NemoWorkerProcess(WorkerProcess):
    """A worker in the environment that has NeMo."""

    python = str(NEMO_PYTHON)


async def transcribe(url: str) -> list[Result]:
    """All results of the recording."""
    pcm = read_recording(RECORDING).pcm
    timeouts = ClientTimeouts(final_s=120)
    async with await connect(url, options=StreamOptions(words=True), timeouts=timeouts) as stream:
        for at in range(0, len(pcm), MESSAGE_BYTES):
            await stream.send(pcm[at : at + MESSAGE_BYTES])
        await stream.finish()
        return [result async for result in stream.results()]


def exact(result: Result) -> Result:
    """All of a result but its confidences, which differ in the last digits."""
    words = tuple(replace(word, confidence=0.0) for word in result.words or ())
    return replace(result, confidence_scores=(), words=words)


@pytest.mark.one_server
async def test_a_client_gets_from_nemo_what_it_gets_from_ours(redis_url: str, tmp_path: Path) -> None:
    client = raw_client(redis_url)
    found: dict[str, list[Result]] = {}
    with IngressProcess(redis_url, "i-1", tmp_path / "ingress.log") as ingress:
        ingress.ready(client)
        for backend, process in (("nemo", NemoWorkerProcess), ("native", WorkerProcess)):
            with process(
                redis_url,
                f"w-{backend}",
                tmp_path / f"{backend}.log",
                backend=backend,
                model=CACHE / "tiny" / "tiny.nemo",
                device="cpu",
                chunk_ms=160,
                num_threads=1,
                worker_max_streams=4,
                lease_ms=3000,
            ) as worker:
                worker.ready(client, START_TIMEOUT_S)
                loaded = client.hget(f"px:{{0}}:w:w-{backend}", "model")
                assert loaded.endswith(b"(NeMo)") is (backend == "nemo")
                found[backend] = await transcribe(ingress.ws_url)
                worker.send(signal.SIGTERM)
                assert worker.wait() == 0
    client.close()
    assert found["native"][-1].text == "go forward ten meters"
    assert [exact(result) for result in found["nemo"]] == [exact(result) for result in found["native"]]
    for nemo, native in zip(found["nemo"], found["native"], strict=True):
        assert nemo.confidence_scores == pytest.approx(native.confidence_scores, abs=1e-4)
