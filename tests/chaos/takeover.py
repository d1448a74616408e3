"""Takeovers measured: ``python -m tests.chaos.takeover --kills 20`` and ``... --long-minutes 10``.

The first kills a worker under streams that are fed in real time, and takes the time to each stream's
next result. The second feeds one long speech without a pause, kills its owner twice, and compares the
text with that of the undisturbed run, watching how much audio is kept for a replay. A report is added to
what its file holds. Exit status 1 for a broken promise.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

from common.options import StreamOptions
from tests.chaos.client import RATE, Clip, StreamLog, make_clips, run_stream
from tests.chaos.fleets.fleet import LEASE_MS, TINY, Fleet, Member
from tests.chaos.invariants import violations
from tests.waiting import until

_STREAMS = 6


@dataclass(frozen=True, slots=True)
class Resumed:
    """Times in seconds from the SIGKILL: until the stream's epoch rose, until its next result came."""

    taken_s: float
    result_s: float


def owner_of(fleet: Fleet, stream: int) -> Member | None:
    """The running worker that owns a stream."""
    owner = fleet.client.hget(f"px:{{0}}:{stream}:m", "owner")
    return next((member for member in fleet.workers if owner and member.name == owner.decode()), None)


async def measure_kills(kills: int, folder: Path) -> list[Resumed]:
    """Kill one worker at a time; return the times of all its streams."""
    found: list[Resumed] = []
    speech = b"".join(clip.pcm for clip in make_clips(12))
    clip = Clip(0, speech * 20, StreamOptions())
    async with Fleet(folder, num_workers=2) as fleet:
        logs = [StreamLog(clip) for _ in range(_STREAMS)]
        tasks = [
            asyncio.create_task(run_stream(clip, fleet.urls, Random(number), 1.0, 0.1 * number, log))
            for number, log in enumerate(logs)
        ]
        await until(lambda: all(len(log.results) > 3 for log in logs), 60.0, "results")
        for number in range(kills):
            await fleet.all_up()
            victim = fleet.workers[number % len(fleet.workers)]
            mine = [log for log in logs if owner_of(fleet, log.stream_id) is victim]
            if not mine:
                continue
            epochs = {log.stream_id: _epoch(fleet, log) for log in mine}
            victim.send(signal.SIGKILL)
            killed = time.monotonic()
            found += await asyncio.gather(
                *(_resumed(fleet, log, epochs[log.stream_id], killed) for log in mine)
            )
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return found


def _epoch(fleet: Fleet, log: StreamLog) -> int:
    return int(fleet.client.hget(f"px:{{0}}:{log.stream_id}:m", "epoch"))


async def _resumed(fleet: Fleet, log: StreamLog, epoch: int, killed: float) -> Resumed:
    await until(lambda: _epoch(fleet, log) > epoch, 60.0, "the takeover")
    taken = time.monotonic()
    count = len(log.results)
    await until(lambda: len(log.results) > count, 60.0, "a result")
    return Resumed(taken - killed, time.monotonic() - killed)


async def long_speech(minutes: float, speed: float, folder: Path) -> tuple[list[str], bool]:
    """One stream of so much speech, twice: undisturbed, and through two deaths.

    Returns a report's lines, and whether every promise was kept.
    """
    words = [clip.pcm for clip in make_clips(12, seed=1)]
    random = Random(2)
    parts: list[bytes] = []
    while sum(map(len, parts)) < minutes * 60 * RATE * 2:
        parts.append(random.choice(words).rstrip(b"\0"))
    clip = Clip(0, b"".join(part[: len(part) // 2 * 2] for part in parts), StreamOptions())
    replay_s = float(str(TINY["replay_seconds"]))
    async with Fleet(folder, num_workers=2) as fleet:
        started = time.monotonic()
        undisturbed = await run_stream(clip, fleet.urls, Random(0), speed, 0.0)
        took = time.monotonic() - started
        assert undisturbed.failure is None, undisturbed.failure
        print(f"undisturbed: {took / 60:.1f} minutes", flush=True)
        log = StreamLog(clip)
        task = asyncio.create_task(run_stream(clip, fleet.urls, Random(1), speed, 0.0, log))
        kept: list[float] = []
        deaths = 0
        while not task.done():
            await asyncio.sleep(0.1)
            if not log.stream_id:
                continue
            kept.append(_kept_s(fleet, log))
            done = log.results[-1]["audio_ack_samples"] / clip.num_samples if log.results else 0.0
            if deaths < 2 and done > (deaths + 1) / 3:
                victim = owner_of(fleet, log.stream_id)
                if victim is not None and victim.send(signal.SIGKILL):
                    deaths += 1
                    print(f"death {deaths} after {done:.0%} of the audio", flush=True)
        broken = violations(await task, undisturbed)
    kept.sort()
    lines = [
        (
            f"- audio: {clip.num_samples / RATE / 60:.1f} minutes, fed at {speed:g} times real time; the "
            f"undisturbed run took {took / 60:.1f} minutes"
        ),
        (
            f"- deaths of its owner: {deaths}; results: {len(log.results)}; promises broken: "
            f"{len(broken)} {broken[:3]}"
        ),
        (
            f"- decoded audio kept for a replay (`--replay-seconds {replay_s:g}`): median "
            f"{kept[len(kept) // 2]:.1f} s, most {kept[-1]:.1f} s"
        ),
    ]
    return lines, not broken and deaths == 2


def _kept_s(fleet: Fleet, log: StreamLog) -> float:
    """Audio in Redis that is decoded already: kept only for a replay."""
    key = f"px:{{0}}:{log.stream_id}:a"
    first = fleet.client.xrange(key, count=1)
    if not first or not log.results:
        return 0.0
    acked = log.results[-1]["audio_ack_samples"]
    return max(0.0, (int(acked) - int(first[0][1][b"o"])) / RATE)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.takeover",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=0, help="workers to kill, one after the other")
    parser.add_argument("--long-minutes", type=float, default=0.0, help="minutes of one long stream, beside")
    parser.add_argument("--speed", type=float, default=20.0, help="of the long speech, times real time")
    parser.add_argument("--report", type=Path, help="file to write the table to, too")
    arguments = parser.parse_args()
    command = " ".join(["python -m tests.chaos.takeover", *sys.argv[1:]])
    lines = ["# Takeover", "", f"`{command}`, {time.strftime('%Y-%m-%d')}; tiny model on CPU.", ""]
    folder = Path(tempfile.mkdtemp(prefix="takeover-"))
    kept = True
    if arguments.kills:
        found = asyncio.run(measure_kills(arguments.kills, folder))
        lines += [
            (
                f"SIGKILL of a worker under {_STREAMS} streams fed in real time, `--lease-ms {LEASE_MS}`, "
                f"{len(found)} streams taken over:"
            ),
            "",
            "| from the SIGKILL to | p50 | p95 | most |",
            "|---|---|---|---|",
            _row("the takeover", [one.taken_s for one in found]),
            _row("the stream's next result", [one.result_s for one in found]),
            "",
        ]
    if arguments.long_minutes:
        found_long, kept = asyncio.run(long_speech(arguments.long_minutes, arguments.speed, folder))
        lines += found_long
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.report is not None:
        with arguments.report.open("a") as report:
            report.write(text)
    return int(not kept)


def _row(name: str, seconds: list[float]) -> str:
    cuts = statistics.quantiles(seconds, n=20)
    return f"| {name} | {statistics.median(seconds):.2f} s | {cuts[-1]:.2f} s | {max(seconds):.2f} s |"


if __name__ == "__main__":
    sys.exit(main())
