"""How long hundreds of suspects take: ``python -m tests.chaos.suspects --streams 200 [--poison 1]``.

Poison hangs the engine of two workers, one after the other, and each has audio of all other streams in hand
by then: so all are suspects. It prints the times from the poison to each innocent stream's next results,
and to the poison's error.
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
from typing import Any

from tests.chaos.faulty.crashing_worker import HANGING
from tests.chaos.fleets.respawning import Respawning, say, stack
from tests.servers import make_server, raw_client
from tests.stream_client import ClientStream, IngressSide, noise
from tests.waiting import until

# A worker whose engine hangs ends after so long: by then its successor has taken all streams over.
FLAGS: dict[str, int] = {"null_step_ms": 20, "step_timeout_ms": 2_000}
_SPOKEN_S = 1.6
_SERVED_S = 180.0


@dataclass(frozen=True, slots=True)
class Served:
    """num_suspects: streams that were given to quarantine. Times in seconds from the poison.

    results_s: of each innocent stream's next result. errors_s: of the poison's errors.
    """

    innocent: list[ClientStream]
    poison: list[ClientStream]
    num_suspects: int
    results_s: list[float]
    errors_s: list[float]


async def serve_suspects(
    workers: Respawning, ingress: IngressSide, client: Any, pcm: bytes, num_streams: int, num_poison: int
) -> Served:
    """Make suspects of all streams, and wait until each innocent one has got on and each poison has ended.

    The innocent streams have been sent the first _SPOKEN_S seconds of the audio, and a second more.
    """
    # The poison comes first everywhere: in its first step, a successor has decoded nothing of the others.
    opened = [await ingress.open(max_num_streams=num_streams) for _ in range(num_streams)]
    poison, innocent = opened[:num_poison], opened[num_poison:]
    spoken = int(_SPOKEN_S * 16_000) * 2
    for stream in opened:
        say(stream, pcm[:spoken])
    await until(lambda: all(stream.seq >= 10 for stream in opened), 60.0, "results")
    began = time.monotonic()
    before = {stream.stream: stream.seq for stream in innocent}
    for stream in poison:
        say(stream, HANGING + pcm[spoken : spoken + 32_000])
    await until(lambda: all(in_hand(client, stream) for stream in poison), what="the poison in hand")
    for stream in innocent:
        say(stream, pcm[spoken : spoken + 32_000])
    times: dict[int, float] = {}

    def all_served() -> bool:
        now = time.monotonic() - began
        deaths = len(workers.statuses)
        for stream in innocent:
            # What the dying workers may still have said is no proof that a stream got on.
            if deaths >= 2 and stream.seq >= before[stream.stream] + 6:
                times.setdefault(stream.stream, now)
        for stream in poison:
            if stream.ended:
                times.setdefault(stream.stream, now)
        return len(times) == num_streams

    await until(all_served, _SERVED_S, "all streams to be served")
    suspects = workers.logs().count("suspect goes to quarantine")
    return Served(
        innocent,
        poison,
        suspects,
        [times[stream.stream] for stream in innocent],
        [times[stream.stream] for stream in poison],
    )


def in_hand(client: Any, stream: ClientStream) -> bool:
    """Whether a worker has read audio of the stream that it has not decoded."""
    groups = client.xinfo_groups(stream.keys.audio)
    return any(group["pending"] > 0 for group in groups)


async def measure(num_streams: int, num_poison: int, folder: Path) -> list[str]:
    """Run it with the null engine; return a report's lines."""
    server = make_server("embedded")
    server.start()
    try:
        async with stack(server.url, folder, worker_max_streams=num_streams, **FLAGS) as (workers, ingress):
            client = raw_client(server.url)
            served = await serve_suspects(workers, ingress, client, noise(4.0), num_streams, num_poison)
            deaths = workers.ends_in_quarantine()
    finally:
        server.stop()
    return [
        f"- {num_streams} streams, {num_poison} of them poison; {served.num_suspects} gifts to quarantine",
        f"- processes that died: {len(workers.statuses)} ordinary workers, {len(deaths)} in quarantine",
        f"- from the poison to an innocent stream's next results: {_spread(served.results_s)}",
        f"- to the poison's error: {', '.join(f'{at:.1f} s' for at in sorted(served.errors_s))}",
        f"- errors to innocent streams: {sum(stream.ended for stream in served.innocent)}",
    ]


def _spread(seconds: list[float]) -> str:
    p95 = statistics.quantiles(seconds, n=20)[-1]
    return f"median {statistics.median(seconds):.1f} s, p95 {p95:.1f} s, most {max(seconds):.1f} s"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.suspects",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--streams", type=int, default=200, help="streams of the two workers (default: 200)")
    parser.add_argument("--poison", type=int, default=1, help="streams that end their worker (default: 1)")
    parser.add_argument("--report", type=Path, help="file to write the table to, too")
    arguments = parser.parse_args()
    command = " ".join(["python -m tests.chaos.suspects", *sys.argv[1:]])
    folder = Path(tempfile.mkdtemp(prefix="suspects-"))
    lines = asyncio.run(measure(arguments.streams, arguments.poison, folder))
    text = "\n".join(
        [
            *("# Suspects", ""),
            f"`{command}`, {time.strftime('%Y-%m-%d')}; null engine, steps of {FLAGS['null_step_ms']} ms,",
            f"`--step-timeout-ms {FLAGS['step_timeout_ms']}`, 2 workers.",
            *("", *lines, ""),
        ]
    )
    print(text)
    if arguments.report is not None:
        arguments.report.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
