"""How many streams one GPU carries: the C120 rule at engine level, and what stands around it.

    python -m benchmarks.engine --row small-160              # trials of 20 s, then one of 120 s
    python -m benchmarks.engine --row small-160 --start 12000 --trials 2
    python -m benchmarks.engine --table                      # all recorded rows as Markdown
    python -m benchmarks.engine --steps --row small-160      # step and stages by batch size
    python -m benchmarks.engine --churn 8 --row small-160    # minutes of streams that come and go
    python -m benchmarks.engine --row small-160 --simulate   # no GPU: steps that take a set time

A row may be run again: its trials are appended to `--results`, one JSON object a line, and the search
goes on from what passed and failed there.  Every trial is a fresh process.  Weights are random, at the
published models' dimensions, the joint network's blank biased to about three tokens a second a stream.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Final

from benchmarks.engine_trial import run_trial

RESULTS: Final = Path(__file__).parent / "results" / "engine_trials.jsonl"
SEARCH_S: Final = 20
FINAL_S: Final = 120
TRIAL_TIMEOUT_S: Final = 240


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a model, a chunk, sizes, and what to reach on an H100."""

    name: str
    model: str
    chunk_ms: int
    page_frames: int
    max_rows: int
    least: int
    aim: int


ROWS: Final = {
    row.name: row
    for row in (
        Row("small-160", "small", 160, 8, 4096, 8_000, 20_000),
        Row("large-80", "large", 80, 8, 4096, 1_500, 3_000),
        Row("large-160", "large", 160, 8, 4096, 3_000, 6_000),
        Row("large-1120", "large", 1120, 4, 1024, 7_000, 10_000),
    )
}


def main() -> int:
    """Command line."""
    given = _parser().parse_args()
    if given.table:
        print(table(read_results(given.results)))
        return 0
    row = ROWS[given.row]
    if given.one_trial:
        print(json.dumps(one_trial(row, given)), flush=True)
        return 0
    if given.steps:
        from benchmarks.step_times import step_table

        print(step_table(row.model, row.chunk_ms, row.page_frames, given.device, given.profile), flush=True)
        return 0
    if given.churn:
        from benchmarks.churn import run_churn

        print(json.dumps(run_churn(row, given)), flush=True)
        return 0
    return search(row, given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--row", choices=sorted(ROWS), default="small-160")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--start", type=int, default=0, help="streams of the first trial")
    parser.add_argument("--trials", type=int, default=6, help="most trials of the search")
    parser.add_argument("--search-s", type=float, default=SEARCH_S)
    parser.add_argument("--final-s", type=float, default=FINAL_S)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--steps", action="store_true")
    parser.add_argument("--profile", type=Path, help="with --steps: write a trace that a browser opens")
    parser.add_argument("--churn", type=float, default=0.0, metavar="MINUTES")
    parser.add_argument("--simulate", action="store_true", help="steps without a device")
    parser.add_argument("--simulated-ms", type=float, default=3.0)
    parser.add_argument("--simulated-row-us", type=float, default=2.0)
    parser.add_argument("--one-trial", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--streams", type=int, default=64, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=SEARCH_S, help=argparse.SUPPRESS)
    return parser


# ---------------------------------------------------------------------- one trial


def one_trial(row: Row, given: argparse.Namespace) -> dict[str, Any]:
    """Build an engine in this process, load it, say what came of it."""
    from benchmarks.engines import build, build_simulated, memory_bytes

    started = time.monotonic()
    if given.simulate:
        built = build_simulated(row, given.streams, given.simulated_ms, given.simulated_row_us)
    else:
        built = build(row, given.streams, given.device)
    ready_s = time.monotonic() - started
    result = run_trial(built.engine, given.streams, given.seconds)
    built.engine.check_integrity()
    return {
        "row": row.name,
        # JSON has no infinity: what never came has no time.
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


def commit() -> str:
    """The checkout's commit, or what stands for it where there is no git."""
    told = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return told.stdout.strip() or "unknown"


# ---------------------------------------------------------------------- search


def search(row: Row, given: argparse.Namespace) -> int:
    """Trials of `--search-s` until the best load is found, then one of `--final-s` at it.

    The load rises by a quarter while trials pass; after a failure it falls by as much, then closes in.
    """
    done = [told for told in read_results(given.results) if told["row"] == row.name]
    short = [told for told in done if told["seconds"] < given.final_s]
    passed = max((told["streams"] for told in short if told["passed"]), default=0)
    failed = min((told["streams"] for told in short if not told["passed"]), default=None)
    for number in range(given.trials):
        streams = given.start if number == 0 and given.start else _next_load(row, passed, failed)
        if failed is not None and failed - passed < max(32, passed // 20):
            break
        told = _trial(row, given, streams, given.search_s)
        if told["passed"]:
            passed = max(passed, streams)
        else:
            failed = streams if failed is None else min(failed, streams)
    streams = passed
    while streams > 0:
        if _trial(row, given, streams, given.final_s)["passed"]:
            return 0
        streams = streams * 9 // 10
    print(f"{row.name}: no load passed", flush=True)
    return 1


def _next_load(row: Row, passed: int, failed: int | None) -> int:
    if failed is None:
        return passed * 5 // 4 if passed else row.least
    return (passed + failed) // 2 if passed else failed * 3 // 4


def _trial(row: Row, given: argparse.Namespace, streams: int, seconds: float) -> dict[str, Any]:
    """One trial in a fresh process; its result is printed and appended to the results."""
    command = [
        *(sys.executable, "-m", "benchmarks.engine", "--one-trial", "--row", row.name),
        *("--streams", str(streams), "--seconds", str(seconds), "--device", given.device),
    ]
    if given.simulate:
        command += ["--simulate", "--simulated-ms", str(given.simulated_ms)]
        command += ["--simulated-row-us", str(given.simulated_row_us)]
    told: dict[str, Any] = {"row": row.name, "streams": streams, "seconds": seconds, "passed": False}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds + TRIAL_TIMEOUT_S, check=False
        )
        if done.returncode == 0:
            told = json.loads(done.stdout.strip().splitlines()[-1])
        else:
            told["error"] = done.stderr.strip()[-2000:]
    except subprocess.TimeoutExpired:
        told["error"] = "the trial hung"
    print(json.dumps(told), flush=True)
    given.results.parent.mkdir(parents=True, exist_ok=True)
    with given.results.open("a") as file:
        file.write(json.dumps(told) + "\n")
    return told


# ---------------------------------------------------------------------- results


def read_results(path: Path) -> list[dict[str, Any]]:
    """All recorded trials, oldest first."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def table(results: list[dict[str, Any]]) -> str:
    """The best passing trial of `FINAL_S` of each row, as Markdown."""
    lines = [
        (
            "| model, chunk | C120 | late | p95 final less a chunk | step p50 / p99 | rows a step "
            "| tokens/s | start-up | memory a stream | device, commit |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in ROWS.values():
        finals = [
            told
            for told in results
            if told["row"] == row.name and told["passed"] and told["seconds"] >= FINAL_S
        ]
        if not finals:
            continue
        best = max(finals, key=lambda told: int(told["streams"]))
        lines.append(
            f"| {row.model}, {row.chunk_ms} ms | {best['streams']:,} | {100 * best['late_share']:.3f} % "
            f"| {best['final_p95_ms']:.0f} ms | {best['step_p50_ms']:.1f} / {best['step_p99_ms']:.1f} ms "
            f"| {best['rows_per_step']:.0f} | {best['tokens_per_second']:.1f} | {best['start_up_s']:.0f} s "
            f"| {best['stream_bytes'] / 1e6:.2f} MB | {best['device']}, {best['commit']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
