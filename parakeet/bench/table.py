"""The bench's output for people: one line a second while a trial runs, tables at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from parakeet.bench.figures import TrialFigures
from parakeet.bench.trial import Second

_HEAD = (
    f"{'time':>6} {'live':>6} {'sent/s':>7} {'res/s':>7} {'p50 ms':>7} {'p99 ms':>7} "
    f"{'max ms':>7} {'late':>5} {'err':>4}  cores in use"
)

_LEGEND = (
    "CPU: user + system microseconds per second of audio of a stream. "
    "Memory: growth since before the first stream, KiB a stream."
)


class LiveTable:
    """The live output: one line a second, with a head for each trial."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def begin(self, title: str) -> None:
        self._out.write(f"\n{title}\n{_HEAD}\n")
        self._out.flush()

    def end(self, trial: TrialFigures) -> None:
        verdict = "pass" if trial.passed else "; ".join(trial.failures)
        self._out.write(f"{trial.streams} streams for {trial.duration_s:g} s: {verdict}\n")
        self._out.flush()

    def second(self, second: Second) -> None:
        latency = second.latency
        cores = "  ".join(f"{role} {value:.2f}" for role, value in second.cpu_cores.items())
        self._out.write(
            f"{second.at_s:6.1f} {second.live:6d} {second.sent:7d} {second.results:7d} "
            f"{latency.p50_ms:7.1f} {latency.p99_ms:7.1f} {latency.max_ms:7.1f} "
            f"{second.late:5d} {second.errors:4d}  {cores}\n"
        )
        self._out.flush()


def markdown(trials: Sequence[TrialFigures]) -> str:
    """Return the trials as two tables: latency and verdict, then CPU and memory by part."""
    roles = sorted({part.role for trial in trials for part in trial.parts})
    lines = [
        "| streams | p50 ms | p99 ms | p99.9 ms | max ms | final p95 ms | late | errors | verdict |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for trial in trials:
        share = 100 * trial.late_chunks / trial.timed_chunks if trial.timed_chunks else 0.0
        lines.append(
            f"| {trial.streams} | {trial.latency.p50_ms:.1f} | {trial.latency.p99_ms:.1f} "
            f"| {trial.latency.p999_ms:.1f} | {trial.latency.max_ms:.1f} "
            f"| {trial.final.p95_ms:.0f} | {share:.3f} % | {sum(trial.errors.values())} "
            f"| {'pass' if trial.passed else '; '.join(trial.failures)} |"
        )
    lines += [
        "",
        _LEGEND,
        "",
        "| streams | " + " | ".join(f"{role} us" for role in roles) + " | sum without bench | "
        "redis commands/s | "
        + " | ".join(f"{role} KiB" for role in roles if role != "bench")
        + " | redis data KiB |",
        "|---" * (len(roles) * 2 + 3) + "|",
    ]
    for trial in trials:
        parts = {part.role: part for part in trial.parts}
        total = sum(p.cpu_us_per_stream_second for p in trial.parts if p.role != "bench")
        cells = [str(trial.streams)]
        cells += [f"{parts[role].cpu_us_per_stream_second:.0f}" if role in parts else "" for role in roles]
        cells.append(f"{total:.0f}")
        cells.append(f"{trial.redis.commands_per_s:.0f}" if trial.redis else "")
        cells += [
            f"{parts[role].resident_growth_per_stream / 1024:.0f}" if role in parts else ""
            for role in roles
            if role != "bench"
        ]
        cells.append(f"{trial.redis.used_memory_growth_per_stream / 1024:.0f}" if trial.redis else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
