"""CPU a stream with TLS beside without, and with metrics beside without, in alternated pairs.

    python -m benchmarks.paired_cpu tls --json out.jsonl
    python -m benchmarks.paired_cpu metrics --json out.jsonl

Each half of a pair is a `serve --backend null` of its own under `parakeet-server bench`'s load; which half
is first alternates from pair to pair, so that what else the machine does falls on both alike. With metrics,
the ports of all processes are read every five seconds meanwhile. The output has the medians of both, and the
median and the quartiles of the differences within the pairs.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final
from urllib.request import urlopen

from benchmarks.command_line import command_line
from parakeet.bench.plan import Access, Plan, Target
from parakeet.bench.report import surroundings
from parakeet.bench.server.fresh_server import fresh_server
from parakeet.bench.trial import run_trial

HOST: Final = "127.0.0.1"
RECORDINGS: Final = tuple(sorted((Path(__file__).parents[1] / "parakeet" / "recordings").glob("*.wav")))
RAMP_S: Final = 3.0
SCRAPE_S: Final = 5.0
_START_TIMEOUT_S: Final = 120.0


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Make a certificate for this host, which is its own authority, and its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-subj", "/CN=bench", "-addext", f"subjectAltName=IP:{HOST}", "-days", "2"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


@contextmanager
def scraped(ports: tuple[int, ...]) -> Iterator[None]:
    """Read the metrics of all ports every few seconds."""
    stop = threading.Event()

    def scrape() -> None:
        while not stop.wait(SCRAPE_S):
            for port in ports:
                with urlopen(f"http://{HOST}:{port}/metrics", timeout=5) as answer:
                    answer.read()

    thread = threading.Thread(target=scrape, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class Trials:
    """Runs halves of pairs. port: of the WebSockets; the three behind it are for status and metrics."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self._given = given
        self._port: int = given.port
        self._certificate, self._key = make_certificate(folder)

    def cpu_us(self, *, tls: bool, metrics: bool) -> dict[str, float]:
        """Microseconds of CPU a second of a stream's audio: of the ingress, and of all of the service."""
        given, port = self._given, self._port
        command = [
            *(sys.executable, "-m", "parakeet.cli", "serve", "--backend", "null", "--log-level", "warning"),
            *("--num-workers", "1", "--ws-port", str(port), "--port", "0", "--status-port", str(port + 1)),
            *("--max-num-streams", str(given.streams + 8)),
        ]
        if tls:
            command += ["--tls-cert", str(self._certificate), "--tls-key", str(self._key)]
        if metrics:
            command += ["--metrics-port", str(port + 2)]
        target = Target.parse(f"{'wss' if tls else 'ws'}://{HOST}:{port}")
        access = Access(ca=self._certificate if tls else None)
        plan = Plan(
            targets=(target,),
            recordings=RECORDINGS,
            streams=given.streams,
            duration_s=given.seconds,
            ramp_s=RAMP_S,
            access=access,
        )
        with (
            fresh_server(shlex.join(command), (target,), _START_TIMEOUT_S, access),
            scraped((port + 2, port + 3)) if metrics else nullcontext(),
        ):
            figures = run_trial(plan, backend="null")
        if figures.errors:
            raise SystemExit(f"the load had errors: {figures.errors}")
        parts = [part for part in figures.parts if part.role != "bench"]
        ingress = sum(part.cpu_us_per_stream_second for part in parts if part.role == "ingress")
        return {"ingress": ingress, "service": sum(part.cpu_us_per_stream_second for part in parts)}


def compared(pairs: list[tuple[dict[str, float], dict[str, float]]], part: str) -> dict[str, Any]:
    """Medians without and with, and how far apart the halves of a pair are, in per cent."""
    without, with_it = ([pair[half][part] for pair in pairs] for half in (0, 1))
    apart = [100 * (b - a) / a for a, b in zip(without, with_it, strict=True)]
    quartiles = statistics.quantiles(apart, n=4)
    return {
        "without_us": round(statistics.median(without), 1),
        "with_us": round(statistics.median(with_it), 1),
        "apart_percent": round(statistics.median(apart), 1),
        "quartiles_percent": [round(quartiles[0], 1), round(quartiles[2], 1)],
        "least_and_most_percent": [round(min(apart), 1), round(max(apart), 1)],
    }


def main() -> None:
    """Command line."""
    parser = command_line(__file__, __doc__)
    parser.add_argument(
        "what", choices=("tls", "metrics"), help="what one half of a pair has and the other has not"
    )
    parser.add_argument("--pairs", type=int, default=10, help="pairs of runs")
    parser.add_argument("--streams", type=int, default=200, help="streams of the load")
    parser.add_argument("--seconds", type=float, default=12.0, help="audio a stream")
    parser.add_argument("--port", type=int, default=9820, help="first port; the next three are taken too")
    parser.add_argument("--json", type=Path, help="append the figures to this file")
    given = parser.parse_args()
    if given.pairs < 2:
        parser.error("--pairs takes at least two")
    with tempfile.TemporaryDirectory() as folder:
        trials = Trials(given, Path(folder))
        pairs = []
        for number in range(given.pairs):
            halves: dict[bool, dict[str, float]] = {}
            for has_it in (False, True) if number % 2 == 0 else (True, False):
                halves[has_it] = trials.cpu_us(**{"tls": False, "metrics": False, given.what: has_it})
            pairs.append((halves[False], halves[True]))
            print(
                f"pair {number + 1}: {halves[False]['service']:.0f}, {halves[True]['service']:.0f} µs",
                flush=True,
            )
    told = {
        "what": given.what,
        "pairs": given.pairs,
        "streams": given.streams,
        "seconds": given.seconds,
        "ingress": compared(pairs, "ingress"),
        "service": compared(pairs, "service"),
        "each_pair_us": pairs,
        "surroundings": surroundings(),
    }
    print(json.dumps(told, indent=1))
    if given.json is not None:
        with given.json.open("a") as file:
            file.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
