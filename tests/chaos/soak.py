"""A soak: ``python -m tests.chaos.soak --minutes 30``: streams come and go, and everything is watched.

Every few seconds: memory and open files of each process, memory and keys of Redis, and how long after
its last sample a stream had its final result. Exit status 1 when a stream was not served as promised, or
when the memory of a process, or the number of its files or of keys, grows from the second quarter to the
last. A report is added to what its file holds.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import psutil

from tests.chaos.client import make_clips, run_stream
from tests.chaos.fleets.fleet import MAX_STREAMS, Fleet
from tests.chaos.invariants import violations
from tests.chaos.run import Chaos

# Growth of a quarter's median over that of an earlier one: allocators and caches settle slowly.
_MAX_GROWTH = 1.10
_MARGIN_BYTES = 16 << 20
_MARGIN_COUNT = 20
# Looks between two lines of progress.
_TELL_EVERY = 6


@dataclass(frozen=True, slots=True)
class Sample:
    """One look. memory_bytes, num_files: by process. num_ended: streams so far."""

    at_s: float
    memory_bytes: dict[str, int]
    num_files: dict[str, int]
    redis_bytes: int
    num_keys: int
    num_ended: int


def look(fleet: Fleet, at_s: float, num_ended: int) -> Sample:
    """Look at every process of the fleet."""
    pids = {f"worker {n}": member.pid for n, member in enumerate(fleet.workers)}
    pids |= {f"ingress {n}": member.pid for n, member in enumerate(fleet.ingresses)}
    processes = {name: psutil.Process(pid) for name, pid in pids.items()}
    return Sample(
        at_s,
        {name: process.memory_info().rss for name, process in processes.items()},
        {name: process.num_fds() for name, process in processes.items()},
        int(fleet.client.info("memory")["used_memory"]),
        int(fleet.client.dbsize()),
        num_ended,
    )


async def soak(minutes: float, num_streams: int, period_s: float, folder: Path) -> tuple[str, list[str]]:
    """Run; return the report's body, and what is wrong."""
    problems: list[str] = []
    samples: list[Sample] = []
    durations: list[tuple[float, float]] = []
    # Room for streams whose predecessors are just ending, wherever they are.
    room = max(MAX_STREAMS, 2 * num_streams)
    async with Fleet(folder, num_workers=2, max_num_streams=room, worker_max_streams=room // 2) as fleet:
        clips = make_clips(12)
        chaos = Chaos(fleet, clips)
        await chaos.prepare()
        started = time.monotonic()
        end = started + 60 * minutes

        async def client(number: int) -> None:
            random = Random(number)
            while time.monotonic() < end:
                clip = random.choice(clips)
                urls = fleet.urls
                at = random.randrange(len(urls))
                log = await run_stream(clip, urls[at:] + urls[:at], random, 1.0, random.uniform(0, 0.5))
                problems.extend(violations(log, chaos.undisturbed[clip.number]))
                late_s = log.ended_at - log.began_at - clip.num_samples / 16_000
                durations.append((log.ended_at - started, late_s))

        async with asyncio.TaskGroup() as tasks:
            for number in range(num_streams):
                tasks.create_task(client(number))
            while time.monotonic() < end:
                samples.append(look(fleet, time.monotonic() - started, len(durations)))
                if len(samples) % _TELL_EVERY == 0:
                    print(_told(samples[-1], durations), flush=True)
                await asyncio.sleep(period_s)
        left = await chaos.no_keys_left()
        problems += [f"left: {name}" for name in left]
    problems += growth(samples)
    return _body(samples, durations, num_streams), problems


def _told(sample: Sample, durations: list[tuple[float, float]]) -> str:
    """One line for somebody who waits."""
    late = [late_s for _, late_s in durations[-50:]]
    behind = f"{statistics.median(late):.2f} s, most {max(late):.2f} s" if late else "none yet"
    memory = ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in sample.memory_bytes.items())
    return (
        f"{sample.at_s / 60:.1f} minutes: {sample.num_ended} streams ended, finals behind {behind}; {memory}"
    )


def growth(samples: list[Sample]) -> list[str]:
    """What was more in the last quarter than in the second."""
    quarter = len(samples) // 4
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    if not quarter:
        return ["too short to tell anything"]
    found = []
    for name in samples[0].memory_bytes:
        found += _grew(
            f"memory of {name}",
            [sample.memory_bytes[name] for sample in early],
            [sample.memory_bytes[name] for sample in late],
            _MARGIN_BYTES,
        )
        found += _grew(
            f"files of {name}",
            [sample.num_files[name] for sample in early],
            [sample.num_files[name] for sample in late],
            _MARGIN_COUNT,
        )
    found += _grew(
        "memory of Redis", [s.redis_bytes for s in early], [s.redis_bytes for s in late], _MARGIN_BYTES
    )
    found += _grew("keys", [s.num_keys for s in early], [s.num_keys for s in late], _MARGIN_COUNT)
    return found


def _grew(what: str, early: list[int], late: list[int], margin: int) -> list[str]:
    before, after = statistics.median(early), statistics.median(late)
    if after > before * _MAX_GROWTH and after > before + margin:
        return [f"{what} grew from {before:g} to {after:g}"]
    return []


def _body(samples: list[Sample], durations: list[tuple[float, float]], num_streams: int) -> str:
    names = list(samples[0].memory_bytes)
    rows = [
        (
            f"| minute | {' | '.join(f'{name} MB / files' for name in names)} | Redis MB | keys | "
            "streams ended | final behind the last sample, median |"
        ),
        "|---" * (len(names) + 5) + "|",
    ]
    last = 0.0
    for sample in samples[:: max(1, len(samples) // 12)]:
        late = [late_s for at, late_s in durations if last < at <= sample.at_s]
        last = sample.at_s
        cells = [f"{sample.memory_bytes[name] / 1e6:.0f} / {sample.num_files[name]}" for name in names]
        behind = f"{statistics.median(late):.2f} s" if late else ""
        cells += [f"{sample.redis_bytes / 1e6:.1f}", str(sample.num_keys), str(sample.num_ended), behind]
        rows.append(f"| {sample.at_s / 60:.1f} | {' | '.join(cells)} |")
    return "\n".join([f"{num_streams} streams at a time, fed in real time, with churn.", "", *rows]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="how long the load runs (default: 30)")
    parser.add_argument("--streams", type=int, default=8, help="streams at a time (default: 8)")
    parser.add_argument("--period-s", type=float, default=5.0, help="seconds between two looks (default: 5)")
    parser.add_argument("--report", type=Path, help="file to write the table to, too")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    body, problems = asyncio.run(soak(arguments.minutes, arguments.streams, arguments.period_s, folder))
    command = " ".join(["python -m tests.chaos.soak", *sys.argv[1:]])
    text = (
        f"# Soak\n\n`{command}`, {time.strftime('%Y-%m-%d')}; tiny model on CPU, 2 workers, 2 ingresses.\n\n"
    )
    text += body + "\nProblems: " + ("; ".join(problems) or "none") + "\n"
    print(text)
    if arguments.report is not None:
        with arguments.report.open("a") as report:
            report.write(text)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
