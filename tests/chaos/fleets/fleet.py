"""The processes of a cluster under chaos: workers from the nursery, ingresses, one Redis behind proxies.

What dies is started again after a while under a new name, as the supervisor does it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parakeet.serve.child import start_tied
from parakeet.serve.embedded_redis import EmbeddedRedis
from tests.chaos.fleets.fault_proxy import FaultProxy
from tests.ports import HOST
from tests.servers import make_server, raw_client
from tests.service_process import ROOT
from tests.waiting import until

RESTART_AFTER_S = 0.5
LEASE_MS = 1500
MAX_STREAMS = 48
# A worker that is told to stop hands over what does not end within this.
DRAIN_S = 1.0
# Keys of a finished stream stay so long, those of an abandoned one until its time to live.
STREAM_TTL_S = 30
RESUME_GRACE_S = 30
# All workers may be dead at once, and so long on their way back on a busy machine.
CLAIM_TIMEOUT_MS = 120_000

TINY = {
    "model_size": "tiny",
    "device": "cpu",
    "num_threads": 1,
    "worker_max_streams": 24,
    "lease_ms": LEASE_MS,
    "drain_timeout_s": DRAIN_S,
    "replay_seconds": 8,
}


@dataclass(slots=True)
class Member:
    """One process of the cluster. pid is 0 while it is being started."""

    name: str
    pid: int = 0
    frozen: bool = False
    exits: list[int] = field(default_factory=list)

    def send(self, number: signal.Signals) -> bool:
        """Send a signal; False when there is no process to take it."""
        if not self.pid:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
            return True
        return False


class Nursery:
    """The nursery process, and what it says."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None
        self._starts: asyncio.Queue[int] = asyncio.Queue()
        self._ends: dict[int, asyncio.Future[int]] = {}
        self._early: dict[int, int] = {}
        self._lock = asyncio.Lock()
        self._reader: asyncio.Task[None] | None = None

    async def start(self) -> None:
        log = (self._folder / "nursery.log").open("ab")
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.chaos.fleets.nursery"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        log.close()
        self._reader = asyncio.create_task(self._read(), name="nursery")
        await asyncio.wait_for(self._starts.get(), 120)

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            said = json.loads(line)
            if "status" not in said:
                self._starts.put_nowait(said["pid"])
            elif said["pid"] in self._ends:
                self._ends.pop(said["pid"]).set_result(said["status"])
            else:
                self._early[said["pid"]] = said["status"]

    async def launch(self, argv: list[str], environment: dict[str, str], log: Path) -> int:
        """Start a worker; return its process id."""
        assert self._process is not None
        assert self._process.stdin is not None
        async with self._lock:
            order = {"argv": argv, "environment": environment, "log": str(log)}
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            await self._process.stdin.drain()
            return await asyncio.wait_for(self._starts.get(), 60)

    async def ended(self, pid: int) -> int:
        """Wait for a worker's end; return its exit status."""
        if pid in self._early:
            return self._early.pop(pid)
        future = self._ends.setdefault(pid, asyncio.get_running_loop().create_future())
        return await future

    async def stop(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
        if self._process is not None and self._process.returncode is None:
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._process.kill()
            await self._process.wait()


def _bound_port() -> socket.socket:
    """A port that only sockets with SO_REUSEPORT share, as those of an ingress are."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind((HOST, 0))
    return held


class Fleet:
    """A running cluster. `workers` and `ingresses` are the places; who fills them changes.

    groups, lanes: those of the workers that are groups of lanes, and lanes.
    """

    def __init__(
        self,
        folder: Path,
        *,
        num_workers: int = 3,
        num_ingresses: int = 2,
        persistent: bool = True,
        max_num_streams: int = MAX_STREAMS,
        **worker_flags: object,
    ) -> None:
        arguments = ("--appendonly", "yes", "--appendfsync", "everysec") if persistent else ()
        self.redis: EmbeddedRedis = make_server("embedded", *arguments)
        self._persistent = persistent
        self.folder = folder
        self.nursery = Nursery(folder)
        self.workers = [Member(f"w{number}") for number in range(num_workers)]
        self.groups: list[Member] = []
        self.lanes: list[Member] = []
        self.ingresses = [Member(f"i{number}") for number in range(num_ingresses)]
        # Held, without listening, as long as the fleet lives: while an ingress is down, nobody else on this
        # machine must be given its port.
        self._held = [_bound_port() for _ in range(3 * num_ingresses)]
        self._ports = [held.getsockname()[1] for held in self._held]
        # As `serve` has it with a server that forgets everything.
        self._loss_flags = {} if persistent else {"redis_loss_ms": 0}
        self._worker_flags = {**TINY, **self._loss_flags, **worker_flags}
        self._max_num_streams = max_num_streams
        self._serial = 0
        self._keepers: list[asyncio.Task[None]] = []
        self.client: Any = None
        self.worker_proxy = FaultProxy(folder / "w.sock", self.redis.socket_path)
        self.ingress_proxy = FaultProxy(folder / "i.sock", self.redis.socket_path)
        self.num_starts = 0

    @property
    def proxies(self) -> tuple[FaultProxy, FaultProxy]:
        return self.worker_proxy, self.ingress_proxy

    @property
    def urls(self) -> list[str]:
        """Where clients connect: TCP and WebSocket of each ingress."""
        urls = []
        for number in range(len(self.ingresses)):
            port, ws_port, _ = self._ports[3 * number : 3 * number + 3]
            urls += [f"tcp://{HOST}:{port}", f"ws://{HOST}:{ws_port}"]
        return urls

    async def __aenter__(self) -> Fleet:
        self.redis.start()
        self.client = raw_client(self.redis.url)
        for proxy in self.proxies:
            await proxy.start()
        self._keepers = await self._start_workers()
        self._keepers += [
            asyncio.create_task(self._keep_ingress(member, number))
            for number, member in enumerate(self.ingresses)
        ]
        await self.all_up()
        return self

    async def __aexit__(self, *_: object) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for member in self.workers:
            member.send(signal.SIGKILL)
        await self.nursery.stop()
        self.client.close()
        for proxy in self.proxies:
            await proxy.stop()
        self.redis.stop()
        for held in self._held:
            held.close()

    async def _start_workers(self) -> list[asyncio.Task[None]]:
        await self.nursery.start()
        return [asyncio.create_task(self._keep_worker(member)) for member in self.workers]

    @property
    def _serving(self) -> set[str]:
        """Names of all that serves, as workers, when everything is up."""
        return {member.name for member in self.workers}

    async def all_up(self, timeout_s: float = 180.0) -> None:
        """Wait until every place is filled by a process that serves."""

        def up() -> bool:
            live = {name.decode() for name in self.client.zrange("px:{0}:workers", 0, -1)}
            there = {name.decode() for name in self.client.zrange("px:{0}:ingresses", 0, -1)}
            return self._serving <= live and {member.name for member in self.ingresses} <= there

        await until(up, timeout_s, "the cluster")

    def may_meet(self, member: Member) -> bool:
        """Whether a fault may meet a process now."""
        return bool(member.pid) and not member.frozen

    def _next_name(self, prefix: str) -> str:
        self._serial += 1
        return f"{prefix}-{self._serial}"

    async def _keep_worker(self, member: Member) -> None:
        while True:
            member.name = self._next_name("w")
            argv = [
                *(f"--{name.replace('_', '-')}={value}" for name, value in self._worker_flags.items()),
                *("--worker-id", member.name, "--redis-timeout-ms", "1500"),
            ]
            environment = {"PARAKEET_REDIS_URL": self.worker_proxy.url}
            pid = await self.nursery.launch(argv, environment, self.folder / f"{member.name}.log")
            self.num_starts += 1
            member.frozen = False
            member.pid = pid
            member.exits.append(await self.nursery.ended(pid))
            member.pid = 0
            await asyncio.sleep(RESTART_AFTER_S)

    async def _keep_ingress(self, member: Member, number: int) -> None:
        port, ws_port, status_port = self._ports[3 * number : 3 * number + 3]
        while True:
            member.name = self._next_name("i")
            flags = {
                "port": port,
                "ws_port": ws_port,
                "status_port": status_port,
                "heartbeat_ms": 250,
                **self._loss_flags,
                "max_num_streams": self._max_num_streams,
                "stream_ttl_s": STREAM_TTL_S,
                "resume_grace_s": RESUME_GRACE_S,
                "claim_timeout_ms": CLAIM_TIMEOUT_MS,
                "drain_timeout_s": DRAIN_S,
                "redis_timeout_ms": 1500,
            }
            command = [
                *(sys.executable, "-m", "ingress", f"--ingress-id={member.name}"),
                *(f"--{name.replace('_', '-')}={value}" for name, value in flags.items()),
            ]
            environment = {
                **os.environ,
                "PARAKEET_REDIS_URL": self.ingress_proxy.url,
                "PYTHONPATH": str(ROOT),
            }
            with (self.folder / f"{member.name}.log").open("ab") as log:
                process = start_tied(command, environment, output=log.fileno())
            self.num_starts += 1
            member.frozen = False
            member.pid = process.pid
            try:
                await until(lambda of=process: of.poll() is not None, float("inf"))  # type: ignore[misc]
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
            member.pid = 0
            member.exits.append(process.returncode)
            await asyncio.sleep(RESTART_AFTER_S)

    async def restart_redis(self, number: signal.Signals) -> None:
        """End the server and start it again with what it had written down."""
        self.redis.send_signal(number)
        await until(lambda: self.redis.exited() is not None, what="the end of Redis")
        # Started from this thread: the kernel ties it to the thread. It answers within some 50 ms.
        self.redis.start()

    async def pause_redis(self, seconds: float) -> None:
        """Stop the server as a whole for a while."""
        self.redis.send_signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        self.redis.send_signal(signal.SIGCONT)

    def log_of(self, name: str) -> str:
        """What a process logged."""
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""
