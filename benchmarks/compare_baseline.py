"""Compares the server with the plain redis-py implementation, one after the other in one run.

    python -m benchmarks.compare_baseline --streams 125,250,500 --json out.json

Each trial starts its processes afresh on a Redis server of the same binary. Beside the CPU for each stream it
reports the CPU for each result: a server that cannot keep up does less work, and so looks cheap by the
stream.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.command_line import command_line
from parakeet.bench.figures import TrialFigures
from parakeet.bench.plan import Plan, Target
from parakeet.bench.report import write_json
from parakeet.bench.server.probe import probe
from parakeet.bench.table import LiveTable, markdown
from parakeet.bench.trial import run_trial
from parakeet.serve.embedded_redis import EmbeddedRedis

PORT = 9810
RECORDINGS = tuple(sorted((Path(__file__).parent.parent / "parakeet" / "recordings").glob("*.wav")))


@contextlib.contextmanager
def processes(*commands: list[str]) -> Iterator[None]:
    """Run processes for the length of a `with` block."""
    with contextlib.ExitStack() as stack:
        for command in commands:
            process = stack.enter_context(subprocess.Popen(command, stderr=subprocess.DEVNULL))
            stack.callback(process.kill)
        target = Target.parse(f"ws://127.0.0.1:{PORT}")
        deadline = time.monotonic() + 20
        while probe(target, 2.0)[0] is None:
            if time.monotonic() > deadline:
                raise SystemExit("the processes did not get ready")
            time.sleep(0.1)
        yield


def baseline(url: str) -> contextlib.AbstractContextManager[None]:
    python = [sys.executable, "-m"]
    return processes(
        [*python, "benchmarks.baseline.worker", "--redis-url", url],
        [*python, "benchmarks.baseline.ingress", "--redis-url", url, "--ws-port", str(PORT)],
    )


def server(url: str) -> contextlib.AbstractContextManager[None]:
    python = [sys.executable, "-m"]
    limits = ["--max-num-streams", "5000", "--redis-url", url, "--log-level", "error"]
    return processes(
        [*python, "gpu_worker", "--backend", "null", "--worker-max-streams", "5000", "--redis-url", url,
         "--log-level", "error"],
        [*python, "ingress", *limits, "--ws-port", str(PORT), "--port", "0", "--status-port", "0"],
    )  # fmt: skip


def cpu_us(trial: TrialFigures) -> float:
    """Return the CPU of the server's parts for a second of audio of a stream."""
    return sum(part.cpu_us_per_stream_second for part in trial.parts if part.role != "bench")


def main() -> None:
    parser = command_line(__file__, __doc__)
    parser.add_argument(
        "--streams", default="125,250,500", help="numbers of streams, with commas between them"
    )
    parser.add_argument("--duration-s", type=float, default=15.0, help="audio of each stream")
    parser.add_argument("--json", type=Path, help="file to write all figures to")
    given = parser.parse_args()
    live = LiveTable(sys.stdout)
    pairs: list[tuple[TrialFigures, TrialFigures]] = []
    for streams in map(int, given.streams.split(",")):
        found = []
        for name, start in (("plain redis-py", baseline), ("server", server)):
            plan = Plan(
                targets=(Target.parse(f"ws://127.0.0.1:{PORT}"),),
                recordings=RECORDINGS,
                streams=streams,
                duration_s=given.duration_s,
                ramp_s=4.0,
            )
            with EmbeddedRedis(maxmemory_mb=6000) as redis, start(redis.url):
                live.begin(f"{name}, {streams} streams")
                found.append(run_trial(plan, redis=(redis.url,), backend=f"null, {name}", show=live.second))
        pairs.append((found[0], found[1]))
    trials = [trial for pair in pairs for trial in pair]
    print()
    print(markdown(trials))
    print(
        "| streams | plain: us a stream | us a result | server: us a stream | us a result | ratio a result |"
    )
    print("|---|---|---|---|---|---|")
    for plain, ours in pairs:
        rates = [trial.latency.count / trial.window_s for trial in (plain, ours)]
        a_result = [
            cpu_us(trial) * trial.streams / rate for trial, rate in zip((plain, ours), rates, strict=True)
        ]
        print(
            f"| {plain.streams} | {cpu_us(plain):.0f} | {a_result[0]:.0f} | {cpu_us(ours):.0f} "
            f"| {a_result[1]:.0f} | {a_result[1] / a_result[0]:.2f} |"
        )
    if given.json:
        write_json(given.json, "python -m benchmarks.compare_baseline " + " ".join(sys.argv[1:]), trials)


if __name__ == "__main__":
    main()
