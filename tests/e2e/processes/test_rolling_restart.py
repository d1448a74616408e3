"""All processes are restarted, one after the other, under streams with keys and TLS: no word is lost."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest

from common.auth.api_key import KeyId
from common.auth.keys_file import KeyRecord, create_key
from parakeet.serve.embedded_redis import EmbeddedRedis
from tests.certificates import Authority
from tests.ingress_process import IngressProcess
from tests.media_files import read_pcm
from tests.paced_streams import PacedStreams, texts_of
from tests.ports import HOST
from tests.servers import make_server, raw_client
from tests.service_process import ROOT, ServiceProcess
from tests.worker_process import WorkerProcess

RECORDING: Final = ROOT / "parakeet" / "recordings" / "sense_and_sensibility_01_austen_64kb-0880.wav"
_NUM_STREAMS: Final = 10
_WORKER: Final[dict[str, Any]] = {
    "backend": "native",
    "model_size": "tiny",
    "device": "cpu",
    "num_threads": 1,
    "worker_max_streams": _NUM_STREAMS,
    # So short that streams are still running when it is over, and have to be handed over.
    "drain_timeout_s": 1,
}


@pytest.fixture
def server() -> EmbeddedRedis:
    return make_server("embedded")


@pytest.mark.slow
async def test_no_word_is_lost_when_all_processes_are_replaced(
    server: EmbeddedRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    files = authority.sign("localhost")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    keys = tmp_path / "keys.json"
    _, key = create_key(keys, KeyRecord(key_id=KeyId(""), digest="", name="desk"))
    access: dict[str, Any] = {"auth_keys_file": keys, "tls_cert": files.certificate, "tls_key": files.key}
    rate, pcm = read_pcm(RECORDING)
    assert rate == 16_000

    with ExitStack() as stack:
        stack.enter_context(server)
        client = raw_client(server.url)
        stack.callback(client.close)

        def start(process: ServiceProcess) -> ServiceProcess:
            return stack.enter_context(process).ready(client)

        def worker(name: str) -> ServiceProcess:
            return start(WorkerProcess(server.url, name, tmp_path / f"{name}.log", **_WORKER))

        def ingress(name: str, **ports: Any) -> IngressProcess:
            made = IngressProcess(server.url, name, tmp_path / f"{name}.log", **access, **ports)
            start(made)
            return made

        workers = [worker("w-1"), worker("w-2")]
        ingresses = [ingress("i-1"), ingress("i-2"), ingress("i-3")]
        urls = [f"wss://{HOST}:{one.ws_port}" for one in ingresses[:2]]
        urls.append(f"tcps://{HOST}:{ingresses[2].port}")
        began = time.monotonic()
        async with PacedStreams(urls, pcm, _NUM_STREAMS, key) as streams:
            # In threads, so that the clients speak and hear on meanwhile.
            for index, old in enumerate(ingresses):
                old.send(signal.SIGTERM)
                assert await asyncio.to_thread(old.wait) == 0
                ports = {"port": old.port, "ws_port": old.ws_port, "status_port": old.status_port}
                await asyncio.to_thread(ingress, f"i-{index + 1}-new", **ports)
                await streams.go_on()
            for index, stopping in enumerate(workers):
                stopping.send(signal.SIGTERM)
                assert await asyncio.to_thread(stopping.wait) == 0
                await asyncio.to_thread(worker, f"w-{index + 1}-new")
                await streams.go_on()
            heard = await streams.finish()
        took_s = time.monotonic() - began
        assert [one.text for one in heard] == await texts_of(urls, pcm, heard, key)
    resumed = sum(one.num_resumptions for one in heard)
    assert resumed >= _NUM_STREAMS
    said = sum(one.num_said for one in heard)
    print(f"{len(heard)} streams, {took_s:.0f} s, {resumed} resumptions, the recording said {said} times")
