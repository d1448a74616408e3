"""Many seeded runs: ``python -m tests.chaos --seeds 0:200 [--report FILE] [--minutes M] [--folder DIR]``.

Each run is written down in DIR/runs.jsonl as it ends, and a seed that stands there is not run again: what was
stopped goes on when it is called again, and two processes with a folder each share the seeds. The report is
made of all that the folders given by --with hold too. Exit status 1 for a broken promise.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import orjson

from tests.chaos.client import make_clips
from tests.chaos.fleets.fleet import LEASE_MS, Fleet
from tests.chaos.fleets.lane_fleet import LaneFleet
from tests.chaos.run import Chaos, RunReport
from tests.chaos.schedule import make_plan

NUM_CLIPS: Final = 12
_RUNS: Final = "runs.jsonl"


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What is kept of a run. faults: how often each; violations: promises broken, in words."""

    seed: int
    num_streams: int
    num_samples: int
    num_resumptions: int
    seconds: float
    faults: dict[str, int]
    violations: list[str]
    description: str


def record_of(report: RunReport) -> RunRecord:
    """What is kept of a run."""
    return RunRecord(
        report.plan.seed,
        len(report.logs),
        report.num_samples,
        report.num_resumptions,
        report.seconds,
        dict(Counter(planned.fault.value for planned in report.plan.faults)),
        [f"stream {stream}: {what}" for stream, what in report.violations],
        report.describe(),
    )


def read_records(folder: Path) -> list[RunRecord]:
    """The runs that a folder holds; a line that was cut off is left out."""
    path = folder / _RUNS
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    return [RunRecord(**orjson.loads(line)) for line in lines[:-1]]


async def run_seeds(
    seeds: Sequence[int], minutes: float, folder: Path, make_fleet: Callable[[Path], Fleet] = Fleet
) -> list[str]:
    """Run plan after plan against one fleet, and write each down; returns keys that were left at the end."""
    deadline = time.monotonic() + 60 * minutes
    path = folder / _RUNS
    if path.exists():  # without a line that was cut off
        whole = path.read_bytes()
        path.write_bytes(whole[: whole.rfind(b"\n") + 1])
    async with make_fleet(folder) as fleet:
        chaos = Chaos(fleet, make_clips(NUM_CLIPS))
        await chaos.prepare()
        for seed in seeds:
            if time.monotonic() > deadline:
                break
            plan = make_plan(seed, NUM_CLIPS, len(fleet.urls), lanes=bool(fleet.lanes))
            report = await chaos.run(plan)
            with path.open("ab") as file:
                file.write(orjson.dumps(asdict(record_of(report))) + b"\n")
            print(f"{'FAILED' if report.violations else 'ok'} {report.describe()}", flush=True)
        return await chaos.no_keys_left()


def summary(records: Sequence[RunRecord], left: Sequence[str], command: str, workers: str) -> str:
    """The report as Markdown."""
    faults: Counter[str] = Counter()
    for record in records:
        faults.update(record.faults)
    broken = [record for record in records if record.violations]
    lines = [
        f"# Chaos: {len(records)} seeded runs",
        "",
        f"`{command}`, {time.strftime('%Y-%m-%d')}; tiny model in float32 on CPU, {workers}, 2 ingresses,",
        f"Valkey with its append-only file, `--lease-ms {LEASE_MS}`.",
        "",
        "| | |",
        "|---|---|",
        f"| runs, with a broken promise | {len(records)}, {len(broken)} |",
        f"| streams | {sum(record.num_streams for record in records)} |",
        f"| audio | {sum(record.num_samples for record in records) / 16_000 / 60:.1f} minutes |",
        f"| resumptions by clients | {sum(record.num_resumptions for record in records)} |",
        f"| promises broken | {sum(len(record.violations) for record in records)} |",
        f"| keys left | {len(left)} |",
        f"| time of all runs together | {sum(record.seconds for record in records) / 60:.1f} minutes |",
        "",
        "| fault | times |",
        "|---|---|",
        *(f"| {name} | {count} |" for name, count in faults.most_common()),
        "",
    ]
    for record in broken:
        lines += ["```", record.description, "```"]
    return "\n".join(lines + [f"left: {name}" for name in left]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", default="0:20", help="FIRST:END")
    parser.add_argument("--minutes", type=float, default=600.0, help="begin no run after so long")
    parser.add_argument("--report", type=Path, help="file to write the table to, too")
    parser.add_argument("--folder", type=Path, help="where logs and runs stay")
    parser.add_argument("--with", dest="others", type=Path, nargs="*", default=[], help="further folders")
    parser.add_argument("--lanes", action="store_true", help="groups of lanes in place of workers")
    arguments = parser.parse_args()
    make_fleet: Callable[[Path], Fleet] = LaneFleet if arguments.lanes else Fleet
    first, end = (int(text) for text in arguments.seeds.split(":"))
    folder = (arguments.folder or Path(tempfile.mkdtemp(prefix="chaos-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    done = {record.seed for record in read_records(folder)}
    todo = [seed for seed in range(first, end) if seed not in done]
    left = asyncio.run(run_seeds(todo, arguments.minutes, folder, make_fleet)) if todo else []
    records = [record for one in (folder, *arguments.others) for record in read_records(one)]
    workers = "2 groups of 2 lanes" if arguments.lanes else "3 workers"
    text = summary(records, left, " ".join(["python -m tests.chaos", *sys.argv[1:]]), workers)
    print(text)
    if arguments.report is not None:
        arguments.report.write_text(text)
    return int(bool(left) or any(record.violations for record in records))


if __name__ == "__main__":
    sys.exit(main())
