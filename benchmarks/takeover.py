"""The wait of streams whose worker is killed: ``python -m benchmarks.takeover --kill group``.

All streams are one worker's, or one group's of lanes; another stands by with room for all.  The victim gets
SIGKILL, and for each of its streams the time is taken until its next result is published, which is the result
of a replay from its checkpoint.  Null engine, default lease; clients are `parakeet-server bench`.

Whoever takes over has `--live` streams of its own, and theirs are looked at meanwhile: how far apart the
results of each were, at most and at the 99th percentile, which is a chunk's duration where nothing is late.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any, Final
from urllib.request import urlopen

import redis

from benchmarks.command_line import command_line
from common.entries import IngressId, LineKind, decode_lines
from common.redis.keys import Keys
from common.settings import lane_ids
from parakeet.serve.embedded_redis import EmbeddedRedis

_KEYS: Final = Keys()
_INGRESS: Final = IngressId("i-bench")
_RESULTS: Final = {LineKind.PARTIAL, LineKind.TURN, LineKind.FINALIZED, LineKind.FINAL}
_PATIENCE_S: Final = 180.0
_SETTLED_S: Final = 4.0


class Cluster:
    """Redis, an ingress, and workers, which are started one after the other."""

    def __init__(self, given: argparse.Namespace, stack: contextlib.ExitStack) -> None:
        self._given, self._stack = given, stack
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self._server = EmbeddedRedis(maxmemory_mb=8_000)
        self._server.start()
        stack.callback(self._server.stop)
        self.client: Any = redis.Redis.from_url(self._server.url)
        most = ["--max-num-streams", str(2 * given.streams)]
        ports = ["--ws-port", str(given.port), "--port", "0", "--status-port", str(given.port + 1)]
        ports += ["--metrics-port", str(given.port + 2)]
        self._run("ingress", "-m", "ingress", "--ingress-id", _INGRESS, *most, *ports)

    def _run(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PARAKEET_REDIS_URL": self._server.url}
        with (self._folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen([sys.executable, *arguments], env=environment, stdout=log, stderr=log)
        self._stack.callback(_end, process)
        return process

    def worker(self, name: str, lanes: int, room: int) -> subprocess.Popen[bytes]:
        """Start a worker with room for so many streams, or a group of lanes, and wait until it serves."""
        given = self._given
        process = self._run(
            *(name, "-m", "gpu_worker", "--backend", "null", "--worker-id", name, "--lanes", str(lanes)),
            *("--worker-max-streams", str(room), "--measure-capacity-s", "0"),
            *("--chunk-ms", str(given.chunk_ms), "--turn-detection", "off"),
        )
        for one in lane_ids(name, lanes):
            _until(lambda one=one: self.client.zscore(_KEYS.workers, one), f"{one} to serve")
        return process

    def streams_run(self, streams: int) -> bool:
        """Whether so many streams are decoded."""
        try:
            with urlopen(f"http://127.0.0.1:{self._given.port + 2}/metrics", timeout=5) as answer:
                text = answer.read().decode()
        except OSError:
            return False
        found = re.search(r'ingress_streams{state="decoding"} (\S+)', text)
        return found is not None and float(found[1]) >= streams

    def load(self, streams: int) -> None:
        """Let clients stream in real time until all is over."""
        given = self._given
        self._run(
            *("bench", "-m", "parakeet.cli", "bench", f"ws://127.0.0.1:{given.port}", "--backend", "null"),
            *("--streams", str(streams), "--ramp-s", "10", "--duration-s", "400", "--binary"),
            *("--message-ms", str(given.chunk_ms), "--chunk-ms", str(given.chunk_ms)),
        )

    def owners(self) -> dict[int, tuple[str, int]]:
        """Owner and epoch of each stream."""
        streams = [fields[b"sid"].decode() for _, fields in self.client.xrange(_KEYS.assignments(0))]
        pipe = self.client.pipeline(transaction=False)
        for stream in streams:
            pipe.hmget(f"px:{{0}}:{stream}:m", "owner", "epoch")
        return {
            int(stream): (owner.decode(), int(epoch))
            for stream, (owner, epoch) in zip(streams, pipe.execute(), strict=True)
            if owner is not None
        }


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Kill the victim; return the waits of its streams, and of the heir's own streams."""
    with contextlib.ExitStack() as stack:
        cluster = Cluster(given, stack)
        lanes = 1 if given.kill == "worker" else given.lanes
        streams = given.streams
        # A lane's streams go to its sister as well.
        room = streams + streams // 4 if given.kill == "lane" else streams + 2 * lanes
        victim = cluster.worker("first", lanes, room)
        cluster.load(streams)
        _until(lambda: cluster.streams_run(streams), f"{streams} streams")
        cluster.worker("second", lanes, streams + streams // 4 + given.live)
        if given.live:
            cluster.load(given.live)
            _until(lambda: cluster.streams_run(streams + given.live), f"{given.live} live streams")
        time.sleep(_SETTLED_S)
        owners = cluster.owners()
        pid = _child(victim.pid, "first-l0") if given.kill == "lane" else victim.pid
        theirs = {"first-l0"} if given.kill == "lane" else set(lane_ids("first", lanes))
        epochs = {stream: epoch for stream, (owner, epoch) in owners.items() if owner in theirs}
        live = owners.keys() - epochs.keys()
        waited, gaps = _next_results(cluster.client, epochs, live, pid)
    cuts = statistics.quantiles(waited, n=20)
    return {
        "kill": given.kill,
        "lanes": lanes,
        "streams": len(epochs),
        "live": len(live),
        "chunk_ms": given.chunk_ms,
        "p50_s": round(statistics.median(waited), 2),
        "p95_s": round(cuts[-1], 2),
        "max_s": round(max(waited), 2),
        "first_s": round(min(waited), 2),
        "live_gap_p50_ms": round(1000 * statistics.median(gaps)) if gaps else None,
        "live_gap_p99_ms": round(1000 * statistics.quantiles(gaps, n=100)[-1]) if gaps else None,
        "live_gap_max_ms": round(1000 * max(gaps)) if gaps else None,
    }


def _next_results(
    client: Any, epochs: dict[int, int], live: Set[int], pid: int
) -> tuple[list[float], list[float]]:
    """Kill a process.  Returns two lists of seconds.

    Until the next result of each of its streams, under a later epoch; and between any two results of each
    live stream until then.
    """
    subscription = client.pubsub(ignore_subscribe_messages=True)
    subscription.subscribe(_KEYS.channel(_INGRESS))
    left, waited = dict(epochs), []
    last: dict[int, float] = {}
    gaps: list[float] = []
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    while left:
        message = subscription.get_message(timeout=1.0)
        now = time.monotonic()
        if now - killed > _PATIENCE_S:
            raise TimeoutError(f"{len(left)} streams had no result for {_PATIENCE_S:.0f} s")
        for line in decode_lines(message["data"]) if message is not None else ():
            if line.kind not in _RESULTS:
                continue
            if line.epoch > left.get(line.stream, line.epoch):
                del left[line.stream]
                waited.append(now - killed)
            elif line.stream in live:
                if line.stream in last:
                    gaps.append(now - last[line.stream])
                last[line.stream] = now
    subscription.close()
    return waited, gaps


def _child(pid: int, worker_id: str) -> int:
    """Return the process id of a lane."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if f"--worker-id={worker_id}" in Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0"):
            return int(child)
    raise LookupError(worker_id)


def _until(is_so: Any, what: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited in vain for {what}")
        time.sleep(0.1)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _loads() -> Iterator[str]:
    yield from (f"{value:.1f}" for value in os.getloadavg())


def main() -> None:
    """Command line."""
    parser = command_line(__file__, __doc__)
    parser.add_argument(
        "--kill", choices=("worker", "lane", "group"), default="worker", help="what gets SIGKILL"
    )
    parser.add_argument("--streams", type=int, default=1_000, help="streams of the victim")
    parser.add_argument("--live", type=int, default=100, help="streams of whoever takes over")
    parser.add_argument("--lanes", type=int, default=2, help="lanes of each group")
    parser.add_argument("--chunk-ms", type=int, default=320, help="audio of one model call")
    parser.add_argument("--port", type=int, default=9720, help="first port; the next two are taken too")
    given = parser.parse_args()
    print(json.dumps(measure(given) | {"load": " ".join(_loads())}), flush=True)


if __name__ == "__main__":
    main()
