"""Garbage on the WebSocket port beside real streams: the cost of a refused head, and the streams' latency.

    python -m benchmarks.garbage_heads --streams 100 --seconds 30

Starts `serve --backend null` and measures four times: streams of `parakeet-server bench` alone, the same with
garbage beside them, with garbage whose sender waits for nobody, and garbage alone. Each connection of the
generator sends one head that asks for nothing which is here, reads the answer to its end and closes. A sender
that waits for nobody drops its oldest connection with a reset where none has an answer, and opens the next:
it uses all of a core that it can have.

Everything of the service runs on the first core of this process, the generators of garbage and of streams run
on its last, so that no side takes the other's core.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import resource
import select
import shlex
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any, Final

from benchmarks.command_line import command_line
from parakeet.bench.plan import Target
from parakeet.bench.report import surroundings
from parakeet.bench.server.fresh_server import fresh_server
from parakeet.bench.server.processes import ServerProcess, discover, usage

HOST: Final = "127.0.0.1"
RAMP_S: Final = 5.0
# Heads of port scanners, TLS clients and broken programs. Each of them is refused with 400 or 404.
HEADS: Final = (
    bytes.fromhex("1603010200010001fc0303") + bytes(range(256)) * 2,  # TLS
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /.env HTTP/1.1\r\nHost: example.org\r\nUser-Agent: scanner\r\nConnection: close\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: h\r\nbroken header\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"\x00\x00\x00\x0bHELP\r\nSTATS\r\n\r\n" * 4,
)
# A close with a reset: an orderly one would leave the ports of the generator in use for a minute.
_RESET: Final = struct.pack("ii", 1, 0)


class Generator:
    """Sends heads from one thread.

    in_flight: connections that are open at once.   patient: wait for answers where all of them are open.
    answered: connections that were read to their end.   statuses: of their answers.
    dropped: connections that were closed without an answer.
    """

    def __init__(self, port: int, in_flight: int, *, patient: bool = True) -> None:
        self._port = port
        self._in_flight = in_flight
        self._patient = patient
        self._heads = cycle(HEADS)
        self._sources = cycle(range(1, 200))
        self._open: dict[int, tuple[socket.socket, bytearray]] = {}
        self.answered = 0
        self.dropped = 0
        self.statuses: dict[str, int] = {}

    def run(self, seconds: float) -> None:
        """Send for this many seconds."""
        end = time.monotonic() + seconds
        with select.epoll() as ready:
            while time.monotonic() < end:
                while len(self._open) < self._in_flight:
                    self._begin(ready)
                events = ready.poll(1.0 if self._patient else 0.0)
                for number, event in events:
                    if event & select.EPOLLOUT and not event & select.EPOLLERR:
                        self._send(number, ready)
                    else:
                        self._read(number, ready)
                if not events and not self._patient:
                    self._close(next(iter(self._open)), ready)
                    self.dropped += 1
        for connection, _ in self._open.values():
            connection.close()
        self._open.clear()

    def _begin(self, ready: select.epoll) -> None:
        connection = socket.socket()
        # One address has too few ports for the connections of a minute.
        connection.bind((f"127.0.1.{next(self._sources)}", 0))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        connection.setblocking(False)
        code = connection.connect_ex((HOST, self._port))
        if code not in (0, errno.EINPROGRESS):
            connection.close()
            raise OSError(code, os.strerror(code))
        self._open[connection.fileno()] = (connection, bytearray())
        ready.register(connection.fileno(), select.EPOLLOUT)

    def _send(self, number: int, ready: select.epoll) -> None:
        connection, _ = self._open[number]
        try:
            connection.send(next(self._heads))  # much less than a socket's buffer
        except ConnectionError:
            self._close(number, ready)
            self.dropped += 1
        else:
            ready.modify(number, select.EPOLLIN)

    def _close(self, number: int, ready: select.epoll) -> None:
        ready.unregister(number)
        self._open.pop(number)[0].close()

    def _read(self, number: int, ready: select.epoll) -> None:
        connection, answer = self._open[number]
        try:
            part = connection.recv(4096)
        except ConnectionError:
            part = b""
        answer += part
        if part:
            return
        status = answer[9:12].decode("latin-1") if answer.startswith(b"HTTP/1.1 ") else "none"
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self.answered += 1
        self._close(number, ready)


def main() -> int:
    """Command line."""
    parser = command_line(__file__, __doc__)
    parser.add_argument("--streams", type=int, default=100, help="streams of the load")
    parser.add_argument("--seconds", type=float, default=30.0, help="audio a stream, and length of each part")
    parser.add_argument("--in-flight", type=int, default=64, help="garbage connections that are open at once")
    parser.add_argument("--port", type=int, default=9800, help="first port; the next two are taken too")
    parser.add_argument("--json", type=Path, help="append the figures to this file")
    given = parser.parse_args()
    serve = [
        *(sys.executable, "-m", "parakeet.cli", "serve", "--backend", "null", "--log-level", "warning"),
        *("--ws-port", str(given.port), "--port", "0", "--status-port", str(given.port + 1)),
        *("--max-num-streams", str(2 * given.streams + 8)),
    ]
    target = Target.parse(f"ws://{HOST}:{given.port}")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        parser.error("two cores are needed, one for the service and one for the generators")
    with (
        tempfile.TemporaryDirectory() as folder,
        _server_on(cores[0], shlex.join(serve), target),
    ):
        os.sched_setaffinity(0, cores[-1:])
        (ingress,) = [process for process in discover((target,)) if process.role == "ingress"]
        report = Path(folder, "alone.json")
        with _bench(given, report):
            pass
        alone = _figures(report)
        beside = {
            patient: _beside(given, ingress, Path(folder), patient=patient) for patient in (True, False)
        }
        generator = Generator(given.port, given.in_flight)
        with _measured(ingress, generator) as garbage:
            generator.run(given.seconds)
    told = {
        "streams": given.streams,
        "in_flight": given.in_flight,
        "streams alone": alone,
        "streams beside garbage": beside[True],
        "streams beside garbage that waits for nobody": beside[False],
        "garbage alone": garbage,
        "surroundings": surroundings(),
    }
    print(json.dumps(told, indent=1))
    if given.json is not None:
        with given.json.open("a") as file:
            file.write(json.dumps(told) + "\n")
    return 1 if any(part["late_chunks"] for part in beside.values()) else 0


def _beside(
    given: argparse.Namespace, ingress: ServerProcess, folder: Path, *, patient: bool
) -> dict[str, Any]:
    """Return the figures of garbage and of the streams beside it."""
    report, generator = (
        folder / f"beside-{patient}.json",
        Generator(given.port, given.in_flight, patient=patient),
    )
    with _bench(given, report):
        time.sleep(RAMP_S)
        with _measured(ingress, generator) as told:
            generator.run(given.seconds - RAMP_S)
    return told | _figures(report)


@contextmanager
def _server_on(core: int, command: str, target: Target) -> Iterator[None]:
    """Run a service whose processes are all on one core, as their children are."""
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, [core])
    with fresh_server(command, (target,), 120.0):
        os.sched_setaffinity(0, everywhere)
        yield


@contextmanager
def _measured(ingress: ServerProcess, generator: Generator) -> Iterator[dict[str, Any]]:
    """Yield the figures of the generator and its cost to the ingress, which are complete at the end."""
    told: dict[str, Any] = {}
    before, own, began = usage((ingress,))[ingress.pid], time.thread_time(), time.monotonic()
    yield told
    seconds = time.monotonic() - began
    after = usage((ingress,))[ingress.pid]
    cpu_s = after.cpu_s - before.cpu_s
    told |= {
        "heads": generator.answered,
        "dropped": generator.dropped,
        "heads_per_s": round(generator.answered / seconds),
        "statuses": generator.statuses,
        "generator_core": round((time.thread_time() - own) / seconds, 2),
        "ingress_core": round(cpu_s / seconds, 2),
        "ingress_us_per_head": round(1e6 * cpu_s / max(1, generator.answered + generator.dropped), 1),
        "ingress_mb_before": round(before.resident_bytes / 1e6, 1),
        "ingress_mb_after": round(after.resident_bytes / 1e6, 1),
    }


@contextmanager
def _bench(given: argparse.Namespace, report: Path) -> Iterator[None]:
    """Streams in processes of their own; `report` is there at the end."""
    command = [
        *(sys.executable, "-m", "parakeet.cli", "bench", f"ws://{HOST}:{given.port}", "--backend", "null"),
        *("--streams", str(given.streams), "--duration-s", str(given.seconds)),
        *("--ramp-s", str(RAMP_S), "--json", str(report)),
    ]
    bench = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield
        bench.wait(given.seconds + 60)
    finally:
        bench.kill()
        bench.wait()


def _figures(report: Path) -> dict[str, Any]:
    trial = json.loads(report.read_text())["trials"][-1]
    names = ("latency_all", "final", "late_chunks", "timed_chunks", "errors", "generator_lag_max_ms")
    return {name: trial[name] for name in names}


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    sys.exit(main())
