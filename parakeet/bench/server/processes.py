"""The server's processes on this host, and their use of CPU and memory."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import psutil

from parakeet.bench.plan import Target

_REDIS_VARIABLE = "PARAKEET_REDIS_URL"
_ROLES = (
    ("ingress", ("-m ingress", "parakeet-server ingress", "baseline.ingress")),
    ("worker", ("-m gpu_worker", "parakeet-server worker", "baseline.worker")),
    ("redis", ("redis-server", "valkey-server")),
    ("serve", ("parakeet-server serve", "parakeet.cli serve", "-m parakeet serve")),
)


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """One process of the server under load."""

    pid: int
    role: str
    command: tuple[str, ...]
    redis_urls: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds so far (user + system) and resident bytes of one process."""

    cpu_s: float
    resident_bytes: int


def role_of(command: tuple[str, ...]) -> str | None:
    """Return the role of a command line's process, or None if it is not the server's."""
    if not command:
        return None
    line = " ".join(command)
    for role, marks in _ROLES:
        if role == "redis":
            # A Redis server writes its address after its name, into the same word.
            if command[0].split(" ", 1)[0].rsplit("/", 1)[-1] in marks:
                return role
        elif any(mark in line for mark in marks):
            return role
    return None


def discover(targets: tuple[Target, ...]) -> tuple[ServerProcess, ...]:
    """Return all local processes of the server that answers at ``targets``.

    If a target's listener is a descendant of a ``serve``, only processes under that ``serve`` are taken, so
    that two servers on one host stay apart. Otherwise every process with one of the server's command lines is
    taken. A server on another host has no local processes.
    """
    ports = {target.port for target in targets}
    listeners: set[int] = set()
    known: dict[int, ServerProcess] = {}
    for process in psutil.process_iter():
        try:
            command = tuple(process.cmdline())
            role = role_of(command)
            if role is None:
                continue
            urls = redis_urls(command, process.environ())
            known[process.pid] = ServerProcess(process.pid, role, command, urls)
            if any(
                connection.status == psutil.CONN_LISTEN and connection.laddr.port in ports
                for connection in process.net_connections("tcp")
            ):
                listeners.add(process.pid)
        except psutil.Error:
            continue
    if not listeners:
        return ()
    roots = {root for root in (_serve_above(pid, known) for pid in listeners) if root}
    if roots:
        family: set[int] = set(roots)
        for root in roots:
            try:
                family.update(child.pid for child in psutil.Process(root).children(recursive=True))
            except psutil.Error:
                continue
        return tuple(p for p in known.values() if p.pid in family)
    parts = _same_redis(known, listeners)
    return tuple(parts)


def _serve_above(pid: int, known: dict[int, ServerProcess]) -> int | None:
    try:
        for parent in psutil.Process(pid).parents():
            found = known.get(parent.pid)
            if found is not None and found.role == "serve":
                return parent.pid
    except psutil.Error:
        pass
    return None


def _same_redis(known: dict[int, ServerProcess], listeners: set[int]) -> list[ServerProcess]:
    """Return processes that were started by hand: those with the listeners' Redis, and that Redis."""
    urls = {url for pid in listeners for url in known[pid].redis_urls}
    marks = {_mark(url) for url in urls}
    chosen = []
    for process in known.values():
        if process.role == "redis":
            if not marks or any(mark in " ".join(process.command) for mark in marks):
                chosen.append(process)
        elif process.pid in listeners or set(process.redis_urls) & urls or not urls:
            chosen.append(process)
    return chosen


def _mark(url: str) -> str:
    """Return the socket or port that the command line of the Redis server at an address shows."""
    parts = urlsplit(url)
    return parts.path if parts.scheme == "unix" else f":{parts.port or 6379}"


def redis_urls(command: Sequence[str], environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the Redis addresses of a process, from its flag or else its environment."""
    given = [environ[_REDIS_VARIABLE]] if environ.get(_REDIS_VARIABLE) else []
    flags = []
    for position, word in enumerate(command):
        if word == "--redis-url" and position + 1 < len(command):
            flags.append(command[position + 1])
        elif word.startswith("--redis-url="):
            flags.append(word.partition("=")[2])
    return tuple(url for text in flags or given for url in re.split(r",(?=[a-z+]+://)", text))


def usage(processes: tuple[ServerProcess, ...]) -> dict[int, Usage]:
    """Return the usage so far of each process that still exists, without its reaped children."""
    found: dict[int, Usage] = {}
    for process in processes:
        try:
            handle = psutil.Process(process.pid)
            with handle.oneshot():
                times = handle.cpu_times()
                found[process.pid] = Usage(times.user + times.system, handle.memory_info().rss)
        except psutil.Error:
            continue
    return found
