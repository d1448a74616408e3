"""A failover by Sentinel under a running stream: one server program as master, replica and sentinel."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from parakeet.client import connect
from parakeet.serve.child import start_tied
from tests.ingress_process import IngressProcess
from tests.ports import HOST, free_ports
from tests.servers import any_server_binary
from tests.stack import TIMEOUTS
from tests.stream_client import expected_text, noise
from tests.waiting import until, wait_until
from tests.worker_process import WorkerProcess

_MASTER = "parakeet"


class _Watched:
    """A master, its replica, and the sentinel that watches them."""

    def __init__(self, folder: Path) -> None:
        self._binary = str(any_server_binary())
        self._folder = folder
        self.master_port, self.replica_port, self.sentinel_port = free_ports(3)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        common = ("--save", "", "--appendonly", "no", "--bind", HOST, "--dir", str(self._folder))
        self._start(self.master_port, *common)
        self._start(self.replica_port, *common, "--replicaof", f"{HOST} {self.master_port}")
        wait_until(
            lambda: self.client(self.replica_port).info()["master_link_status"] == "up", what="a replica"
        )
        configuration = self._folder / "sentinel.conf"
        configuration.write_text(
            f"port {self.sentinel_port}\nbind {HOST}\ndir {self._folder}\n"
            f"sentinel monitor {_MASTER} {HOST} {self.master_port} 1\n"
            f"sentinel down-after-milliseconds {_MASTER} 5000\nsentinel failover-timeout {_MASTER} 3000\n"
        )
        self._start(self.sentinel_port, configuration=configuration)
        wait_until(self._knows_the_replica, what="the sentinel")

    def _knows_the_replica(self) -> bool:
        flat = self.client(self.sentinel_port).execute_command("SENTINEL MASTER", _MASTER)
        state = flat if isinstance(flat, dict) else dict(zip(flat[::2], flat[1::2], strict=True))
        return int(state.get("num-slaves") or state[b"num-slaves"]) == 1

    def _start(self, port: int, *arguments: str, configuration: Path | None = None) -> None:
        command = [self._binary, "--port", str(port), *arguments]
        if configuration is not None:
            command = [self._binary, str(configuration), "--sentinel"]
        with (self._folder / f"{port}.log").open("ab") as log:
            self._processes[port] = start_tied(command, output=log.fileno())
        wait_until(lambda: self._answers(port), what=f"the server on port {port}")

    def _answers(self, port: int) -> bool:
        with contextlib.suppress(redis.ConnectionError):
            return bool(self.client(port).ping())
        return False

    def client(self, port: int) -> Any:
        return redis.Redis(HOST, port, protocol=2, socket_timeout=60)

    @property
    def url(self) -> str:
        return f"redis+sentinel://{HOST}:{self.sentinel_port}/{_MASTER}"

    def kill(self, port: int) -> None:
        process = self._processes.pop(port)
        process.kill()
        process.wait()

    def stop(self) -> None:
        for port in list(self._processes):
            self.kill(port)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[_Watched]:
    servers = _Watched(tmp_path)
    try:
        servers.start()
        yield servers
    finally:
        servers.stop()


async def test_a_stream_goes_on_after_a_failover(watched: _Watched, tmp_path: Path) -> None:
    pcm = noise(6.0)
    half = len(pcm) // 2
    master = watched.client(watched.master_port)
    with ExitStack() as stack:
        worker = stack.enter_context(WorkerProcess(watched.url, "w1", tmp_path / "w1.log"))
        worker.ready(master)
        ingress = stack.enter_context(
            IngressProcess(watched.url, "i1", tmp_path / "i1.log", redis_outage_s=120)
        )
        ingress.ready(master)
        async with await connect(ingress.tcp_url, timeouts=TIMEOUTS) as stream:
            await stream.send(pcm[:half])
            results = stream.results()
            seqs = [(await anext(results)).seq for _ in range(half // 5120)]
            # What the master has and the replica not is lost with it: replication is asynchronous.
            assert master.execute_command("WAIT", 1, 30_000) == 1
            watched.kill(watched.master_port)
            replica = watched.client(watched.replica_port)
            await until(lambda: replica.info()["role"] == "master", what="the failover")
            await stream.send(pcm[half:])
            await stream.finish()
            text = ""
            async for result in results:
                seqs.append(result.seq)
                text = result.text
            assert text == expected_text(pcm)
            assert seqs == list(range(1, len(seqs) + 1))
        assert worker.running
        assert ingress.running
