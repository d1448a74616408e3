"""The report of a bench: one JSON file, and one picture if matplotlib is installed."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import orjson
import psutil

from parakeet.bench.figures import TrialFigures

PLOT_SUFFIXES: Final = (".png", ".svg", ".pdf")


def commit() -> str:
    """Return the commit of this checkout, or a substitute without git."""
    try:
        return subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
            cwd=Path(__file__).parent,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def surroundings() -> dict[str, Any]:
    """Return the machine and the commit of a measurement."""
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def write_json(path: Path, command: str, trials: Sequence[TrialFigures], **more: Any) -> None:
    """Write every figure of every trial, with the machine and the command of the measurement."""
    report = {
        "command": command,
        "surroundings": surroundings(),
        **more,
        "trials": [{**asdict(trial), "passed": trial.passed} for trial in trials],
    }
    path.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))


def plot(path: Path, title: str, trials: Sequence[TrialFigures]) -> bool:
    """Draw latency and CPU over the number of streams.

    Returns:
        False, without a file, if matplotlib (extra ``bench``) is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    ordered = sorted(trials, key=lambda trial: trial.streams)
    streams = [trial.streams for trial in ordered]
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in ("p50_ms", "p95_ms", "p99_ms", "p999_ms"):
        values = [getattr(trial.latency, name) for trial in ordered]
        left.plot(streams, values, marker="o", label=name.removesuffix("_ms").replace("p999", "p99.9"))
    left.set(
        xlabel="streams", ylabel="last sample sent to result received, ms", title="Latency", yscale="log"
    )
    left.grid(visible=True, which="both", alpha=0.3)
    left.legend()
    for role in sorted({part.role for trial in ordered for part in trial.parts}):
        points = [
            (trial.streams, part.cpu_us_per_stream_second)
            for trial in ordered
            for part in trial.parts
            if part.role == role
        ]
        right.plot([p[0] for p in points], [p[1] for p in points], marker="o", label=role)
    right.set(
        xlabel="streams",
        ylabel="CPU microseconds per stream and second of audio",
        title="CPU by part",
        ylim=(0, None),
    )
    right.grid(visible=True, alpha=0.3)
    right.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    return True
