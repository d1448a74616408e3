"""A Redis Cluster of three masters on loopback, from the machine's redis-server."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from parakeet.child import start_tied

NUM_NODES = 3
NUM_SLOTS = 16384


@dataclass(frozen=True, slots=True)
class RedisCluster:
    """ports: of the nodes, in the order of their slot ranges at the start."""

    ports: tuple[int, ...]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in self.ports)

    def client(self, node: int) -> Any:
        return redis.Redis(port=self.ports[node], protocol=2, decode_responses=True)

    def move_slot(self, slot: int, source: int, target: int) -> None:
        """Move a slot and its keys, as `redis-cli --cluster reshard` does."""
        with contextlib.ExitStack() as stack:
            nodes = [stack.enter_context(contextlib.closing(self.client(n))) for n in range(NUM_NODES)]
            ids = [node.execute_command("CLUSTER MYID") for node in nodes]
            nodes[target].execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
            nodes[source].execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
            while keys := nodes[source].execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
                nodes[source].execute_command(
                    "MIGRATE", "127.0.0.1", self.ports[target], "", 0, 5000, "KEYS", *keys
                )
            for node in (nodes[target], nodes[source], *nodes):
                node.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[target])


def _free_port() -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port < 55_000:  # the cluster bus takes port + 10000
            return port


@contextlib.contextmanager
def redis_cluster() -> Iterator[RedisCluster]:
    """Start three nodes and give each a third of the slots."""
    binary = shutil.which("redis-server")
    assert binary is not None
    with tempfile.TemporaryDirectory(prefix="redis-cluster-") as directory:
        ports: list[int] = []
        processes: list[subprocess.Popen[bytes]] = []
        try:
            while len(ports) < NUM_NODES:
                port = _free_port()
                folder = Path(directory, str(port))
                folder.mkdir()
                processes.append(
                    start_tied(
                        [
                            *(binary, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)),
                            *("--save", "", "--appendonly", "no", "--cluster-enabled", "yes"),
                            *("--cluster-node-timeout", "2000", "--logfile", str(folder / "log")),
                        ]
                    )
                )
                ports.append(port)
            cluster = RedisCluster(tuple(ports))
            _join(cluster)
            yield cluster
        finally:
            for process in processes:
                process.kill()
                process.wait()


def _join(cluster: RedisCluster) -> None:
    deadline = time.monotonic() + 20
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(contextlib.closing(cluster.client(n))) for n in range(NUM_NODES)]
        for number, node in enumerate(nodes):
            _until(deadline, lambda node=node: bool(node.ping()))
            first, end = NUM_SLOTS * number // NUM_NODES, NUM_SLOTS * (number + 1) // NUM_NODES
            node.execute_command("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
        for number, node in enumerate(nodes):
            node.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for port in cluster.ports[1:]:
            nodes[0].execute_command("CLUSTER", "MEET", "127.0.0.1", port)
        for node in nodes:
            _until(deadline, lambda node=node: node.cluster("INFO")["cluster_state"] == "ok")


def _until(deadline: float, condition: object) -> None:
    assert callable(condition)
    while True:
        with contextlib.suppress(redis.RedisError):
            if condition():
                return
        assert time.monotonic() < deadline, "the cluster did not come up"
        time.sleep(0.05)  # there is nothing to wait on: the nodes gossip
