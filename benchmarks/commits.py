"""The rate of ingresses' commits to each Redis server: ``python -m benchmarks.commits``.

Null streams in real time against `serve`; the figures are counters of the ingresses (`redis_commit_seconds`)
and of the servers (`INFO stats`, `cpu`), read twice under load.  Another checkout is measured with
``--tree FOLDER``, whose processes then run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import redis

from benchmarks.command_line import command_line
from common.redis.keys import Keys
from parakeet.serve.embedded_redis import EmbeddedRedis

_RAMP_S = 5
_SETTLED_S = 2
_PATIENCE_S = 60


def main() -> None:
    """Command line."""
    parser = command_line(__file__, __doc__)
    parser.add_argument("--streams", type=int, default=300, help="streams of the load")
    parser.add_argument("--ingresses", type=int, default=2, help="ingress processes")
    parser.add_argument("--servers", type=int, default=4, help="Redis servers")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="how long is measured, once all ingresses have beaten"
    )
    parser.add_argument("--port", type=int, default=9700, help="first port; the next ones are taken too")
    parser.add_argument("--tree", type=Path, default=Path(), help="the checkout whose processes run")
    given = parser.parse_args()
    servers = [EmbeddedRedis() for _ in range(given.servers)]
    with contextlib.ExitStack() as stack:
        for server in servers:
            server.start()
            stack.callback(server.stop)
        print(measure(given, servers), flush=True)


def measure(given: argparse.Namespace, servers: list[EmbeddedRedis]) -> str:
    """Run the load, and return a report of the counters."""
    clients = [redis.Redis.from_url(server.url) for server in servers]
    metrics = [given.port + 10 + number for number in range(given.ingresses)]
    tree, python = given.tree.resolve(), sys.executable
    serve = [
        *(python, "-m", "parakeet.cli", "serve", "--backend", "null", "--num-ingress", str(given.ingresses)),
        *("--ws-port", str(given.port), "--port", "0", "--status-port", str(given.port + 1)),
        *("--redis-url", ",".join(server.url for server in servers), "--metrics-port", str(metrics[0])),
        *("--max-num-streams", str(given.streams + 8), "--log-level", "warning", "--turn-detection", "off"),
    ]
    with tempfile.TemporaryFile() as log, _running(serve, tree, log):
        _until_ready(metrics)
        _until_divided(clients[0], given.ingresses)
        bench = [
            *(python, "-m", "parakeet.cli", "bench", f"ws://127.0.0.1:{given.port}", "--backend", "null"),
            *("--streams", str(given.streams), "--ramp-s", str(_RAMP_S)),
            *("--duration-s", str(_RAMP_S + _SETTLED_S + given.seconds + 5)),
        ]
        with _running(bench, tree, log):
            _until_streaming(metrics, given.streams)
            time.sleep(_SETTLED_S)
            before, began = _counters(metrics, clients), time.monotonic()
            time.sleep(given.seconds)
            after, took_s = _counters(metrics, clients), time.monotonic() - began
    rates = [(last - first) / took_s for first, last in zip(before, after, strict=True)]
    commits, reads = rates[: given.ingresses], rates[given.ingresses : given.ingresses + given.servers]
    cores = rates[given.ingresses + given.servers :]
    return (
        f"{given.streams} streams, {given.ingresses} ingresses, {given.servers} servers: commits a second of"
        f" each ingress {_said(commits, 0)}, all {sum(commits):.0f}; reads of sockets a second of each server"
        f" {_said(reads, 0)}; cores of each server {_said(cores, 3)}, all {sum(cores):.3f}"
    )


def _said(values: list[float], digits: int) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values)


@contextlib.contextmanager
def _running(command: list[str], tree: Path, log: object):  # type: ignore[no-untyped-def]
    # `python -m` looks into the folder in which it runs before all others, and its children inherit it.
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    process = subprocess.Popen(command, env=environment, cwd=tree, stdout=log, stderr=log)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until_ready(ports: list[int]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    for port in ports:
        while True:
            with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2):
                break
            if time.monotonic() > deadline:
                raise TimeoutError(f"no ingress at port {port}")
            time.sleep(0.1)


def _until_divided(client: redis.Redis, ingresses: int) -> None:
    """Wait until each ingress has sent two heartbeats beside all others and so knows its home servers."""
    deadline = time.monotonic() + _PATIENCE_S
    beats: list[dict[Any, float]] = []
    while len(beats) < 3:
        if time.monotonic() > deadline:
            raise TimeoutError(f"not all of {ingresses} ingresses beat")
        scored: Any = client.zrange(Keys().ingresses, 0, -1, withscores=True)
        alive = dict(scored)
        if len(alive) == ingresses and all(alive[name] != beats[-1].get(name) for name in alive if beats):
            beats.append(alive)
        time.sleep(0.1)


def _until_streaming(ports: list[int], streams: int) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while sum(_counter(port, r'\S*ingress_streams{state="decoding"}') for port in ports) < streams:
        if time.monotonic() > deadline:
            raise TimeoutError(f"not all of {streams} streams run")
        time.sleep(0.2)


def _counters(ports: list[int], clients: list[redis.Redis]) -> list[float]:
    """Return commits of each ingress, reads of each server, processor seconds of each server."""
    infos = [client.info("all") for client in clients]
    return [
        *(_counter(port, r"\S*redis_commit_seconds_count\S*") for port in ports),
        *(float(info["total_reads_processed"]) for info in infos),
        *(float(info["used_cpu_user"] + info["used_cpu_sys"]) for info in infos),
    ]


def _counter(port: int, name: str) -> float:
    """Return a metric of an ingress; 0 if there is none."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        found = re.search(rf"^{name} (\S+)$", answer.read().decode(), re.MULTILINE)
    return float(found[1]) if found else 0.0


if __name__ == "__main__":
    main()
