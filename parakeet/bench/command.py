"""``parakeet-server bench``: real-time load on any server that speaks the client protocol."""

from __future__ import annotations

import argparse
import math
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common.auth.api_key import fits_a_header
from common.process.standard_streams import complain
from common.process.version import package_version
from common.settings import PROGRAM
from parakeet.audio.errors import BadAudio
from parakeet.bench.figures import TrialFigures
from parakeet.bench.load.track import load_track
from parakeet.bench.plan import Access, Plan, Target
from parakeet.bench.report import PLOT_SUFFIXES, plot, write_json
from parakeet.bench.search import search
from parakeet.bench.server.fresh_server import ServerStartError, fresh_server
from parakeet.bench.table import LiveTable, markdown
from parakeet.bench.trial import TrialError, run_trial
from parakeet.check.clips import RECORDINGS

_PROGRAM = f"{PROGRAM} bench"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        allow_abbrev=False,
        description="Stream recordings in real time to a running server and measure it. Latency is the time "
        "from the write of the last sample that a result covers to the arrival of the result.",
    )
    add = parser.add_argument
    add("--version", action="version", version=f"{PROGRAM} {package_version()}")
    add("url", nargs="+", help="ws://host:port or tcp://host:port (wss, tcps); several share the streams")
    add(
        "--api-key",
        default=os.environ.get("PARAKEET_API_KEY", ""),
        metavar="KEY",
        help="API key, for a server that asks for one (default: PARAKEET_API_KEY)",
    )
    add("--tls-ca", type=Path, metavar="FILE", help="CA that signed the server's certificate, PEM")
    add(
        "--streams",
        default="100",
        metavar="N,...",
        help="number of streams, or several: 125,250,500 (default 100)",
    )
    add("--duration-s", type=float, default=20.0, metavar="S", help="audio of each stream (default 20)")
    add("--ramp-s", type=float, default=5.0, metavar="S", help="time over which streams start (default 5)")
    add("--message-ms", type=int, default=160, metavar="MS", help="audio of each message (default 160)")
    add(
        "--chunk-ms",
        type=int,
        default=160,
        metavar="MS",
        help="the model's chunk; a result that takes longer than this counts as late (default 160)",
    )
    add("--binary", action="store_true", help="send binary frames over WebSocket instead of JSON and base64")
    add(
        "--stream-s",
        type=float,
        default=0.0,
        metavar="S",
        help="mean length of a stream, after which another takes its place (default 0: no churn)",
    )
    add("--processes", type=int, default=1, metavar="N", help="processes that make the load (default 1)")
    add("--seed", type=int, default=0, metavar="N", help="seed of offsets and start times (default 0)")
    add(
        "--recordings",
        type=Path,
        nargs="*",
        metavar="FILE",
        help="recordings to send, all of one sample rate (default: the bundled ones)",
    )
    add(
        "--redis-url",
        action="append",
        default=[],
        metavar="URL",
        help="Redis server whose counters are read (default: those that the ingress uses)",
    )
    add(
        "--start",
        metavar="COMMAND",
        help="start a server by this command for each trial, and stop it afterwards",
    )
    add(
        "--start-timeout-s",
        type=float,
        default=120.0,
        metavar="S",
        help="longest wait for that server to be ready (default 120)",
    )
    add(
        "--backend",
        default="not stated",
        metavar="NAME",
        help="name of the engine or model for the report, such as null or tiny",
    )
    add(
        "--search",
        action="store_true",
        help="search the largest number of streams in real time (docs/scaling.md), beginning with --streams",
    )
    add("--search-max", type=int, default=100_000, metavar="N", help="most streams that --search tries")
    add("--json", type=Path, metavar="FILE", help="write all figures to this file")
    add(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw latency and CPU into this file (needs the [bench] extra)",
    )
    add("--title", default="", metavar="TEXT", help="title of the plot")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the bench.

    Return the exit status: 0 when every trial (with ``--search``: some trial) passed; 1 when one missed the
    service level, nothing could be measured, or a file could not be read or written; 2 for a wrong command
    line; 130 after Ctrl-C.
    """
    parser = _parser()
    given = parser.parse_args(argv)
    try:
        plan, counts = _plan(given)
        load_track(plan.recordings)  # an unreadable recording is reported before processes are started
    except BadAudio as error:
        complain(f"{_PROGRAM}: {error}")
        return 1
    except (ValueError, OSError) as error:
        parser.error(str(error))
    table = LiveTable(sys.stdout)

    def trial(streams: int, duration_s: float, ramp_s: float) -> TrialFigures:
        asked = replace(plan, streams=streams, duration_s=duration_s, ramp_s=ramp_s)
        table.begin(
            f"{streams} streams, {asked.message_ms} ms messages, backend {given.backend}, "
            f"{', '.join(map(str, asked.targets))}"
        )
        with fresh_server(given.start, asked.targets, given.start_timeout_s, asked.access):
            figures = run_trial(asked, redis=tuple(given.redis_url), backend=given.backend, show=table.second)
        table.end(figures)
        if not figures.messages_sent:
            where = ", ".join(map(str, asked.targets))
            raise TrialError(f"no stream could be opened at {where}: {'; '.join(figures.failures)}")
        return figures

    command = shlex.join(["parakeet-server", "bench", *_without_key(argv)])
    found: dict[str, int] = {}
    try:
        if given.search:
            result = search(
                lambda streams, duration_s: trial(streams, duration_s, 10.0),
                first=counts[0],
                most=given.search_max,
            )
            trials: Sequence[TrialFigures] = result.trials
            found["c120_service"] = result.streams
        else:
            trials = [trial(streams, plan.duration_s, plan.ramp_s) for streams in counts]
    except (TrialError, ServerStartError) as error:
        complain(f"{_PROGRAM}: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    sys.stdout.write("\n" + markdown(trials))
    if given.search:
        sys.stdout.write(f"\nC120 at service level, backend {given.backend}: {result.streams} streams\n")
    try:
        if given.json:
            write_json(given.json, command, trials, **found)
        if given.plot and not plot(given.plot, given.title or f"backend {given.backend}", trials):
            complain(f"{_PROGRAM}: no plot: install the extra 'bench' (matplotlib)")
    except OSError as error:
        complain(f"{_PROGRAM}: the figures cannot be written: {error.strerror}.")
        return 1
    if given.search:
        return 0 if result.streams else 1
    return 0 if all(figures.passed for figures in trials) else 1


def _without_key(argv: Sequence[str]) -> list[str]:
    """Return the arguments without secrets, for a report."""
    shown: list[str] = []
    for number, argument in enumerate(argv):
        if number and argv[number - 1] == "--api-key":
            shown.append("…")
        else:
            shown.append("--api-key=…" if argument.startswith("--api-key=") else argument)
    return shown


def _check_output(name: str, path: Path) -> None:
    """Raise ValueError if a file cannot be written, before a trial takes its minutes."""
    if not path.parent.is_dir():
        raise ValueError(f"{name} {path} cannot be written: there is no folder {path.parent}")
    if path.is_dir():
        raise ValueError(f"{name} {path} cannot be written: it is a folder")


def _plan(given: argparse.Namespace) -> tuple[Plan, list[int]]:
    if not re.fullmatch(r"\d+(,\d+)*", given.streams, re.ASCII):
        raise ValueError(f"--streams takes a number, or several such as 125,250,500, not {given.streams!r}")
    counts = [int(count) for count in given.streams.split(",")]
    recordings = tuple(given.recordings or sorted(RECORDINGS.glob("*.wav")))
    for name, seconds in (
        ("--duration-s", given.duration_s),
        ("--ramp-s", given.ramp_s),
        ("--stream-s", given.stream_s),
        ("--start-timeout-s", given.start_timeout_s),
    ):
        if not math.isfinite(seconds):
            raise ValueError(f"{name} must be a finite number, got {seconds}")
    for name, value in (
        ("--streams", min(counts)),
        ("--duration-s", given.duration_s),
        ("--message-ms", given.message_ms),
        ("--chunk-ms", given.chunk_ms),
        ("--processes", given.processes),
    ):
        if value <= 0:
            raise ValueError(f"{name} must be above 0, got {value}")
    if given.ramp_s < 0 or given.stream_s < 0:
        raise ValueError("--ramp-s and --stream-s must not be negative")
    if not recordings:
        raise ValueError("no recording to play: name some with --recordings")
    if not fits_a_header(given.api_key):
        raise ValueError("--api-key must be visible ASCII without spaces")
    for name, path in (("--json", given.json), ("--plot", given.plot)):
        if path is not None:
            _check_output(name, path)
    if given.plot and given.plot.suffix not in PLOT_SUFFIXES:
        raise ValueError(f"--plot takes a file that ends in {', '.join(PLOT_SUFFIXES)}, not {given.plot}")
    targets = tuple(Target.parse(url) for url in given.url)
    if given.binary and not all(target.websocket for target in targets):
        raise ValueError("--binary needs ws:// targets")
    access = Access(given.api_key, given.tls_ca)
    for target in targets:
        access.tls(target)  # an unreadable authority is reported before anything starts
    plan = Plan(
        access=access,
        targets=targets,
        recordings=recordings,
        streams=counts[0],
        duration_s=given.duration_s,
        ramp_s=given.ramp_s,
        message_ms=given.message_ms,
        chunk_ms=given.chunk_ms,
        binary=given.binary,
        stream_s=given.stream_s,
        processes=given.processes,
        seed=given.seed,
    )
    return plan, counts
