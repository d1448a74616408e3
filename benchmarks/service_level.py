"""C120 at service level: WebSocket clients, ingresses, Redis and a worker on one host.

    python -m benchmarks.service_level --model small --start 1000 --num-ingress 6 --num-redis 2
    python -m benchmarks.service_level --model small --start 4000 --num-workers 4    # on one GPU
    python -m benchmarks.service_level --model small --lanes 4 --start 8000 --trials 0 --at-half
    python -m benchmarks.service_level --model large --lanes 4 --start 6500 --trials 0 --at-half
    python -m benchmarks.service_level --backend null --start 4000 --trials 1 --num-redis 2

Every trial is `parakeet-server bench` against a server started afresh over Redis servers of our own, emptied
between trials; the model has random weights at real dimensions (`benchmarks.export_random`, written once).
Trials are appended to `--results`, one JSON object a line, and the search goes on from them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import redis

from benchmarks.command_line import command_line
from benchmarks.engine import UNFINISHED, read_results
from benchmarks.trials.capacity import Budget, OutOfTime, Trial, search
from benchmarks.trials.random_model import CONFIGS
from parakeet.bench.report import commit
from parakeet.serve.embedded_redis import EmbeddedRedis

RESULTS: Final = Path(__file__).parent / "results" / "service_trials.jsonl"
RAMP_S: Final = 10
# Server up, model loaded and warm, clients connected, finals, server down.
AROUND_TRIAL_S: Final = 60


def main() -> int:
    """Command line."""
    parser = command_line(__file__, __doc__)
    parser.add_argument(
        "--backend",
        choices=("native", "null"),
        default="native",
        help="a model, or an engine that decodes nothing",
    )
    parser.add_argument("--model", choices=sorted(CONFIGS), default="small", help="dimensions of which model")
    parser.add_argument(
        "--models",
        type=Path,
        default=Path(tempfile.gettempdir()) / "random-models",
        help="folder for models with random weights",
    )
    parser.add_argument("--chunk-ms", type=int, default=160, help="audio of one model call")
    parser.add_argument("--device", default="auto", help="PyTorch device")
    parser.add_argument("--start", type=int, default=1000, help="streams of the first trial")
    parser.add_argument(
        "--trials", type=int, default=3, help="short trials at most; 0 proves --start at once"
    )
    parser.add_argument("--search-s", type=float, default=20, help="length of a short trial")
    parser.add_argument("--final-s", type=float, default=120, help="length of the trial that proves")
    parser.add_argument("--num-ingress", type=int, default=6, help="ingress processes")
    parser.add_argument("--num-redis", type=int, default=2, help="Redis servers")
    parser.add_argument("--num-workers", type=int, default=1, help="workers, which share the visible GPUs")
    parser.add_argument("--lanes", type=int, default=1, help="processes of each worker")
    parser.add_argument("--redis-mb", type=int, default=24_000, help="memory of each Redis server")
    parser.add_argument("--replay-seconds", type=int, default=60, help="snapshots are half of it apart")
    parser.add_argument("--turn-detection", choices=("on", "off"), default="on", help="as of a worker")
    parser.add_argument("--at-half", action="store_true", help="one more trial at half of what was proven")
    parser.add_argument("--bench-processes", type=int, default=4, help="processes that make the load")
    parser.add_argument(
        "--port", type=int, default=9800, help="WebSocket port; the next one is the status port"
    )
    parser.add_argument(
        "--budget-s", type=float, help="start no trial that does not fit into so many seconds"
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="file of trials: read first, then appended to"
    )
    given = parser.parse_args()
    budget = Budget.of(given.budget_s)
    row = f"null-{given.chunk_ms}" if given.backend == "null" else f"{given.model}-{given.chunk_ms}"
    if given.lanes > 1:
        row += f"-{given.lanes}-lanes"
    servers = [EmbeddedRedis(maxmemory_mb=given.redis_mb) for _ in range(given.num_redis)]
    try:
        for server in servers:
            server.start()
        folder = _model_folder(given, budget) if given.backend == "native" else None
        done = [
            Trial(told["streams"], told["seconds"], told["passed"])
            for told in read_results(given.results)
            if told["row"] == row
        ]

        def run(streams: int, seconds: float) -> bool:
            budget.take(seconds + RAMP_S + AROUND_TRIAL_S)
            return _trial(row, given, folder, servers, streams, seconds, budget)

        try:
            proven = search(
                run,
                done,
                least=given.start,
                start=given.start,
                trials=given.trials,
                search_s=given.search_s,
                final_s=given.final_s,
            )
            if proven and given.at_half:
                run(proven // 2, given.search_s)  # for its latencies
        except OutOfTime:
            print(f"{row}: no time for the next trial", flush=True)
            return UNFINISHED
    finally:
        for server in servers:
            server.stop()
    print(f"service level, {row}: {proven} streams", flush=True)
    return 0 if proven else 1


def _model_folder(given: argparse.Namespace, budget: Budget) -> Path:
    """Return the random model, written in a process of its own: its device memory goes with it."""
    folder: Path = given.models / f"{given.model}-{given.chunk_ms}"
    command = [sys.executable, "-m", "benchmarks.export_random", "--model", given.model, "--to", str(folder)]
    command += ["--chunk-ms", str(given.chunk_ms)]
    if given.device != "auto":
        command += ["--device", given.device]
    if not folder.is_dir():
        subprocess.run(command, check=True, timeout=min(300.0, budget.left_s))
    return folder


def _trial(
    row: str,
    given: argparse.Namespace,
    folder: Path | None,
    servers: list[EmbeddedRedis],
    streams: int,
    seconds: float,
    budget: Budget,
) -> bool:
    """One trial; its figures are printed and appended to the results."""
    for server in servers:
        with contextlib.closing(redis.Redis.from_url(server.url)) as client:
            client.flushall()
    urls = ",".join(server.url for server in servers)
    serve = [
        *(sys.executable, "-m", "parakeet.cli", "serve", "--backend", given.backend),
        *("--ws-port", str(given.port), "--port", "0", "--status-port", str(given.port + 1)),
        *("--redis-url", urls, "--redis-shards", str(len(servers)), "--num-ingress", str(given.num_ingress)),
        *("--num-workers", str(given.num_workers), "--max-num-streams", str(streams + streams // 10 + 8)),
        *("--chunk-ms", str(given.chunk_ms), "--turn-detection", given.turn_detection),
        *("--log-level", "warning"),
    ]
    serve += ["--lanes", str(given.lanes)]
    if given.num_workers * given.lanes > 1:
        # Each takes streams while it has free slots; with a quarter to spare none of them has to be full.
        serve += ["--worker-max-streams", str(streams * 5 // (4 * given.num_workers) + 8 * given.lanes)]
    if folder is not None:
        serve += ["--model", str(folder), "--device", given.device]
        serve += ["--eou-reset", "on", "--replay-seconds", str(given.replay_seconds)]
    told: dict[str, Any] = {"row": row, "level": "service", "streams": streams, "seconds": seconds}
    told |= {"passed": False, "num_ingress": given.num_ingress, "num_redis": given.num_redis}
    told |= {"num_workers": given.num_workers, "replay_seconds": given.replay_seconds, "commit": commit()}
    told |= {"turn_detection": given.turn_detection, "lanes": given.lanes}
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch, "report.json")
        bench = [
            *(sys.executable, "-m", "parakeet.cli", "bench", f"ws://127.0.0.1:{given.port}"),
            *("--streams", str(streams), "--duration-s", str(seconds), "--ramp-s", str(RAMP_S)),
            *("--chunk-ms", str(given.chunk_ms), "--processes", str(given.bench_processes)),
            *("--backend", f"random {given.model}" if folder is not None else "null"),
            *("--start", shlex.join(serve), "--start-timeout-s", "120", "--json", str(report)),
            *(part for server in servers for part in ("--redis-url", server.url)),
        ]
        limit_s = min(seconds + RAMP_S + 2 * AROUND_TRIAL_S, budget.left_s)
        status, output = run_group(bench, limit_s)
        if report.is_file():
            figures = json.loads(report.read_text())
            told |= figures["trials"][-1] | {"surroundings": figures["surroundings"], "seconds": seconds}
        else:
            told["error"] = output[-3000:]
        told["passed"] = status == 0
    print(json.dumps({name: told[name] for name in ("row", "streams", "seconds", "passed")}), flush=True)
    if not told["passed"]:
        print(output[-3000:], flush=True)
    given.results.parent.mkdir(parents=True, exist_ok=True)
    with given.results.open("a") as file:
        file.write(json.dumps(told) + "\n")
    return bool(told["passed"])


def run_group(command: list[str], limit_s: float, **more: Any) -> tuple[int | None, str]:
    """Run a command and all that it starts; exit status (None: stopped at the limit) and what it printed."""
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            **more,
        )
        status: int | None = None
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            # Whatever it left running would disturb what comes next.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        return status, log.read()


if __name__ == "__main__":
    sys.exit(main())
