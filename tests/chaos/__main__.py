"""Many seeded runs: ``python -m tests.chaos --seeds 0:200 [--report FILE] [--minutes M]``.

Exit status 1 for a broken promise.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.chaos.client import make_clips
from tests.chaos.fleet import LEASE_MS, Fleet
from tests.chaos.run import Chaos, RunReport
from tests.chaos.schedule import make_plan

NUM_CLIPS = 12


async def run_seeds(seeds: range, minutes: float, folder: Path) -> tuple[list[RunReport], list[str]]:
    """Run plan after plan against one fleet; gives the reports, and keys that were left."""
    reports: list[RunReport] = []
    deadline = time.monotonic() + 60 * minutes
    async with Fleet(folder) as fleet:
        chaos = Chaos(fleet, make_clips(NUM_CLIPS))
        await chaos.prepare()
        for seed in seeds:
            if time.monotonic() > deadline:
                break
            report = await chaos.run(make_plan(seed, NUM_CLIPS, len(fleet.urls)))
            reports.append(report)
            print(f"{'FAILED' if report.violations else 'ok'} {report.describe()}", flush=True)
        left = await chaos.no_keys_left()
    return reports, left


def summary(reports: list[RunReport], left: list[str], command: str) -> str:
    """The report as Markdown."""
    logs = [log for report in reports for log in report.logs]
    faults = Counter(planned.fault.value for report in reports for planned in report.plan.faults)
    broken = sum(bool(report.violations) for report in reports)
    lines = [
        f"# Chaos: {len(reports)} seeded runs",
        "",
        f"`{command}`, {time.strftime('%Y-%m-%d')}; tiny model in float32 on CPU, 3 workers, 2 ingresses,",
        f"Valkey with its append-only file, `--lease-ms {LEASE_MS}`.",
        "",
        "| | |",
        "|---|---|",
        f"| runs, with a broken promise | {len(reports)}, {broken} |",
        f"| streams | {len(logs)} |",
        f"| audio | {sum(log.clip.num_samples for log in logs) / 16_000 / 60:.1f} minutes |",
        f"| resumptions by clients | {sum(log.num_resumptions for log in logs)} |",
        f"| promises broken | {sum(len(report.violations) for report in reports)} |",
        f"| keys left | {len(left)} |",
        f"| time | {sum(report.seconds for report in reports) / 60:.1f} minutes |",
        "",
        "| fault | times |",
        "|---|---|",
        *(f"| {name} | {count} |" for name, count in faults.most_common()),
        "",
    ]
    for report in reports:
        if report.violations:
            lines += ["```", report.describe(), "```"]
    return "\n".join(lines + [f"left: {name}" for name in left]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--seeds", default="0:20", help="FIRST:END")
    parser.add_argument("--minutes", type=float, default=600.0, help="begin no run after so long")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--folder", type=Path, help="where logs stay")
    arguments = parser.parse_args()
    first, end = (int(text) for text in arguments.seeds.split(":"))
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    reports, left = asyncio.run(run_seeds(range(first, end), arguments.minutes, folder))
    text = summary(reports, left, " ".join(["python -m tests.chaos", *sys.argv[1:]]))
    print(text)
    if arguments.report is not None:
        arguments.report.write_text(text)
    return int(bool(left) or any(report.violations for report in reports))


if __name__ == "__main__":
    sys.exit(main())
