"""The capacity of one GPU by the C120 rule at engine level, and related measurements.

    python -m benchmarks.engine --row small-160              # trials of 20 s, then one of 120 s
    python -m benchmarks.engine --row small-160 --start 12000 --trials 2 --budget-s 500
    python -m benchmarks.engine --row small-160 --at-share 0.8   # one trial at 80 % of what passed
    python -m benchmarks.engine --table                      # rows of all results here, as Markdown
    python -m benchmarks.engine --steps --row small-160      # step and stages by batch size
    python -m benchmarks.engine --churn 8 --row small-160    # minutes of streams that come and go
    python -m benchmarks.engine --row small-160 --simulate   # no GPU: steps that take a set time
    python -m benchmarks.engine --row small-160 --lanes 6 --start 18000 --trials 0   # fed by six processes

A row may be run again: its trials are appended to `--results`, one JSON object a line, and the search
goes on from what passed and failed there.  Every trial is a fresh process.  Weights are random, at the
published models' dimensions, the joint network's blank biased to about three tokens a second a stream.
Only for `small` it was measured that this rate stays over minutes (docs/performance.md); a trial reports its
rate.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import product
from math import isfinite
from pathlib import Path
from typing import Any, Final

from benchmarks.command_line import command_line
from benchmarks.trials.capacity import Budget, OutOfTime, Trial, search
from benchmarks.trials.clocks import Clock, RealClock, ThreadClock
from benchmarks.trials.engine_trial import ARRIVAL_S, run_trial
from benchmarks.trials.phrase_load import PhraseLoad
from parakeet.bench.report import commit

RESULTS: Final = Path(__file__).parent / "results" / "engine_trials.jsonl"
SEARCH_S: Final = 20
FINAL_S: Final = 120
TRIAL_TIMEOUT_S: Final = 240
# Seconds from a process's start until its engine is ready, with the first compilation of kernels.
TRIAL_START_S: Final = 30
# Memory for a list of 100 phrases for each of some thousand streams.
_BOOSTED_MB: Final = 256
# Exit status of a search that ran out of time; the same command goes on with it.
UNFINISHED: Final = 3


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a model, a chunk, sizes, and the load from which a search begins."""

    name: str
    model: str
    chunk_ms: int
    page_frames: int
    max_rows: int
    least: int


ROWS: Final = {
    row.name: row
    for row in (
        Row("small-160", "small", 160, 8, 4096, 8_000),
        Row("large-80", "large", 80, 8, 4096, 1_500),
        Row("large-160", "large", 160, 8, 4096, 3_000),
        Row("large-1120", "large", 1120, 4, 1024, 7_000),
        # To try the harness without a GPU: `--device cpu`.
        Row("mini-160", "mini", 160, 8, 32, 8),
    )
}


def main() -> int:
    """Command line."""
    parser = _parser()
    given = parser.parse_args()
    if given.lanes > 1 and (given.boosted or given.phrase_lists):
        parser.error("lanes are measured without phrases")
    if given.table:
        print(table(recorded(given.results)))
        return 0
    row = ROWS[given.row]
    if given.one_trial:
        told = one_trial(row, given)
        print(json.dumps(told), flush=True)
        return 0 if told["passed"] or not given.must_pass else 1
    if given.steps:
        from benchmarks.trials.step_times import step_table

        print(step_table(row.model, row.chunk_ms, row.page_frames, given.device, given.profile), flush=True)
        return 0
    if given.churn:
        from benchmarks.trials.churn import run_churn

        print(json.dumps(run_churn(row, given)), flush=True)
        return 0
    if given.at_share:
        return trial_at_share(row, given)
    return search_row(row, given)


def _parser() -> argparse.ArgumentParser:
    parser = command_line(__file__, __doc__)
    parser.add_argument(
        "--row", choices=sorted(ROWS), default="small-160", help="model and chunk length in ms"
    )
    parser.add_argument("--device", default="cuda:0", help="PyTorch device")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="file of trials: read first, then appended to"
    )
    parser.add_argument("--start", type=int, default=0, help="streams of the first trial")
    parser.add_argument(
        "--trials", type=int, default=6, help="most trials of the search, recorded ones included"
    )
    parser.add_argument(
        "--no-turn-detection",
        dest="turn_detection",
        action="store_false",
        help="run without turn detection",
    )
    parser.add_argument(
        "--replay-seconds",
        type=float,
        default=60.0,
        help="take snapshots as a worker with this --replay-seconds does; 0 takes none",
    )
    parser.add_argument(
        "--snapshots", choices=("audio", "state"), default="audio", help="kind of the snapshots"
    )
    parser.add_argument("--pace-ms", type=float, default=20.0, help="as --step-pace-ms of a worker")
    parser.add_argument(
        "--boosted",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the streams that have 100 phrases each",
    )
    parser.add_argument(
        "--phrase-lists",
        type=float,
        default=0.0,
        metavar="PER_SECOND",
        help="lists of phrases replaced in a second",
    )
    parser.add_argument("--search-s", type=float, default=SEARCH_S, help="length of a trial of the search")
    parser.add_argument("--final-s", type=float, default=FINAL_S, help="length of the trial that proves")
    parser.add_argument(
        "--budget-s", type=float, help="start no trial that does not fit into so many seconds"
    )
    parser.add_argument("--at-share", type=float, default=0.0, help="one trial at this share of what passed")
    parser.add_argument("--table", action="store_true", help="print the rows of all results, measure nothing")
    parser.add_argument("--steps", action="store_true", help="time steps by batch size, no trial")
    parser.add_argument("--profile", type=Path, help="with --steps: write a trace that a browser opens")
    parser.add_argument(
        "--lanes",
        type=int,
        default=1,
        help="processes that feed one device, without Redis (gpu_worker/lanes)",
    )
    parser.add_argument(
        "--churn",
        type=float,
        default=0.0,
        metavar="MINUTES",
        help="run --streams that come and go for so many minutes",
    )
    parser.add_argument("--simulate", action="store_true", help="steps without a device")
    parser.add_argument(
        "--simulated-ms", type=float, default=3.0, help="with --simulate: milliseconds of a step"
    )
    parser.add_argument(
        "--simulated-row-us",
        type=float,
        default=2.0,
        help="with --simulate: microseconds of each row of a step",
    )
    parser.add_argument("--one-trial", action="store_true", help="one trial in this process, not recorded")
    parser.add_argument("--must-pass", action="store_true", help="exit with status 1 if the trial failed")
    parser.add_argument("--streams", type=int, default=64, help="streams of --one-trial and of --churn")
    parser.add_argument("--seconds", type=float, default=SEARCH_S, help="length of --one-trial")
    parser.add_argument(
        "--arrival-s", type=float, default=ARRIVAL_S, help="time over which the streams of --one-trial start"
    )
    return parser


# ---------------------------------------------------------------------- one trial


def one_trial(row: Row, given: argparse.Namespace) -> dict[str, Any]:
    """Build an engine in this process, load it, and return the result."""
    from benchmarks.trials.engines import Switches, build, build_simulated, memory_bytes

    # With a simulated device only the thread's work is measured: other work of the machine must not count,
    # except for the thread that makes trees of phrases.
    clock: Clock = ThreadClock() if given.simulate and not given.boosted else RealClock()
    phrase_mb = _BOOSTED_MB if given.boosted else Switches().phrase_mb
    switches = Switches(given.turn_detection, given.snapshots == "audio", given.pace_ms, phrase_mb)
    if given.lanes > 1:
        from benchmarks.trials.engine_lanes import run_lanes

        return {"row": row.name, **_switches(given), **run_lanes(row, given, switches), "commit": commit()}
    started = time.monotonic()
    if given.simulate:
        built = build_simulated(
            row,
            given.streams,
            given.simulated_ms,
            given.simulated_row_us,
            switches,
            clock,
        )
    else:
        built = build(row, given.streams, given.device, switches)
    ready_s = time.monotonic() - started
    result = run_trial(
        built.engine,
        given.streams,
        given.seconds,
        arrival_s=given.arrival_s,
        replay_s=given.replay_seconds,
        time_of=clock,
        phrases=PhraseLoad(given.boosted, given.phrase_lists),
    )
    built.engine.check_integrity()
    return {
        "row": row.name,
        **_switches(given),
        # JSON has no infinity: an output that never came has no time.
        **{
            name: None if isinstance(value, float) and not isfinite(value) else value
            for name, value in result.as_dict().items()
        },
        "device": built.device,
        "commit": commit(),
        "precision": built.precision,
        "start_up_s": round(ready_s, 2),
        "capture_s": round(built.capture_s, 2),
        "calibrated_tokens_per_second": round(built.tokens_per_second, 2),
        "memory_bytes": memory_bytes(given.device),
        "stream_bytes": built.stream_bytes,
        "level": "engine",
    }


def _switches(given: argparse.Namespace) -> dict[str, Any]:
    """Return a trial's parts besides the recognizer; results before 2026-11-29 have neither."""
    return {
        "turn_detection": given.turn_detection,
        "replay_seconds": given.replay_seconds,
        "snapshot_of": given.snapshots,
        "pace_ms": given.pace_ms,
        "boosted": given.boosted,
        "phrase_lists": given.phrase_lists,
        **({"lanes": given.lanes} if given.lanes > 1 else {}),
    }


def _is_of(told: dict[str, Any], given: argparse.Namespace) -> bool:
    """Whether a recorded trial ran with the same switches."""
    same = all(told.get(name, 0) == value for name, value in _switches(given).items())
    return same and told.get("lanes", 1) == given.lanes


# ---------------------------------------------------------------------- search


def search_row(row: Row, given: argparse.Namespace) -> int:
    """Apply the C120 rule to one row.

    Returns 0 when a load was proven, 1 when none was, UNFINISHED when time ran out.
    """
    budget = Budget.of(given.budget_s)
    done = [
        Trial(told["streams"], told["seconds"], told["passed"])
        for told in read_results(given.results)
        if told["row"] == row.name and _is_of(told, given)
    ]

    def run(streams: int, seconds: float) -> bool:
        budget.take(seconds + ARRIVAL_S + TRIAL_START_S)
        limit_s = min(seconds + TRIAL_TIMEOUT_S, budget.left_s)
        return bool(trial(row, given, streams, seconds, limit_s)["passed"])

    try:
        proven = search(
            run,
            done,
            least=row.least,
            start=given.start,
            trials=given.trials,
            search_s=given.search_s,
            final_s=given.final_s,
        )
    except OutOfTime:
        print(f"{row.name}: no time for the next trial", flush=True)
        return UNFINISHED
    print(f"{row.name}: {proven} streams" if proven else f"{row.name}: no load passed", flush=True)
    return 0 if proven else 1


def trial_at_share(row: Row, given: argparse.Namespace) -> int:
    """Run one short trial at a share of the best load that passed."""
    passed = [
        told
        for told in read_results(given.results)
        if told["row"] == row.name and told["passed"] and _is_of(told, given)
    ]
    if not passed:
        print(f"{row.name}: no load has passed yet", flush=True)
        return UNFINISHED
    longest = max(told["seconds"] for told in passed)
    best = max(told["streams"] for told in passed if told["seconds"] == longest)
    streams = max(1, int(given.at_share * best))
    told = trial(row, given, streams, given.search_s, given.search_s + TRIAL_TIMEOUT_S)
    return 0 if told["passed"] else 1


def trial(
    row: Row, given: argparse.Namespace, streams: int, seconds: float, limit_s: float
) -> dict[str, Any]:
    """Run one trial in a fresh process; print its result and append it to the results."""
    command = [
        *(sys.executable, "-m", "benchmarks.engine", "--one-trial", "--row", row.name),
        *("--streams", str(streams), "--seconds", str(seconds), "--device", given.device),
        *("--replay-seconds", str(given.replay_seconds), "--snapshots", given.snapshots),
        *("--pace-ms", str(given.pace_ms), "--lanes", str(given.lanes)),
        *("--boosted", str(given.boosted), "--phrase-lists", str(given.phrase_lists)),
    ]
    if not given.turn_detection:
        command.append("--no-turn-detection")
    if given.simulate:
        command += ["--simulate", "--simulated-ms", str(given.simulated_ms)]
        command += ["--simulated-row-us", str(given.simulated_row_us)]
    told: dict[str, Any] = {
        "row": row.name,
        "streams": streams,
        "seconds": seconds,
        "passed": False,
        **_switches(given),
    }
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
        if done.returncode == 0:
            told = json.loads(done.stdout.strip().splitlines()[-1])
        else:
            told["error"] = done.stderr.strip()[-2000:]
    except subprocess.TimeoutExpired:
        told["error"] = f"the trial was not over after {limit_s:.0f} s"
    print(json.dumps(told), flush=True)
    given.results.parent.mkdir(parents=True, exist_ok=True)
    with given.results.open("a") as file:
        file.write(json.dumps(told) + "\n")
    return told


# ---------------------------------------------------------------------- results


def recorded(path: Path) -> list[dict[str, Any]]:
    """Return the trials of `path`; if it is the default, of every file of engine trials beside it."""
    paths = sorted(path.parent.glob("engine_*.jsonl")) if path == RESULTS else [path]
    return [told for one in paths for told in read_results(one)]


def read_results(path: Path) -> list[dict[str, Any]]:
    """Return all recorded trials, oldest first."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def table(results: list[dict[str, Any]]) -> str:
    """Return the best passing trials of `FINAL_S` of each row, with turn detection first, as Markdown."""
    lines = [
        (
            "| model, chunk | lanes | turn detection, snapshots | C120 | late | p95 final less a chunk "
            "| step p50 / p99 | rows a step | tokens/s | start-up | memory a stream | device, commit |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    kinds = [(turns, snapshots) for turns in (True, False) for snapshots in (True, False)]
    for row, (turns, snapshots) in product(ROWS.values(), kinds):
        finals = [
            told
            for told in results
            if told["row"] == row.name
            and told["passed"]
            and told["seconds"] >= FINAL_S
            and told.get("turn_detection", False) == turns
            and bool(told.get("replay_seconds", 0)) == snapshots
            and not told.get("boosted", 0)
        ]
        if not finals:
            continue
        best = max(finals, key=lambda told: int(told["streams"]))
        lanes = best.get("lanes", 1)
        # The processes of lanes start together: only the capture of graphs is told.
        start_up_s = best["capture_s"] if lanes > 1 else best["start_up_s"]
        lines.append(
            f"| {row.model}, {row.chunk_ms} ms | {lanes if lanes > 1 else 'none'} "
            f"| {'on' if turns else 'off'}, {'on' if snapshots else 'off'} "
            f"| {best['streams']:,} | {100 * best['late_share']:.3f} % "
            f"| {best['final_p95_ms']:.0f} ms | {best['step_p50_ms']:.1f} / {best['step_p99_ms']:.1f} ms "
            f"| {best['rows_per_step']:.0f} | {best['tokens_per_second']:.1f} | {start_up_s:.0f} s "
            f"| {best['stream_bytes'] / 1e6:.2f} MB | {best['device']}, {best['commit']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
