"""Real Redis servers for tests: the embedded Valkey, and the redis-server of the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import orjson
import redis

from parakeet.serve.embedded_redis import EmbeddedRedis, find_redis_server, find_server, find_valkey
from tests.optional_programs import in_ci, is_wanted

ServerKind = Literal["embedded", "debian"]
SERVER_KINDS: tuple[ServerKind, ...] = ("embedded", "debian") if is_wanted("redis-server") else ("embedded",)


def any_server_binary() -> Path:
    """The machine's redis-server, or the embedded server's binary; in CI the first of them alone."""
    return server_binary("debian") if in_ci() else find_redis_server() or find_server()


def server_binary(kind: ServerKind) -> Path:
    """The binary of a kind of server; a kind that is wanted and missing fails the test."""
    binary = find_valkey() if kind == "embedded" else find_redis_server()
    assert binary is not None, f"there is no {kind} Redis server on this machine"
    return binary


def make_server(kind: ServerKind, *arguments: str, maxmemory_mb: int = 512) -> EmbeddedRedis:
    """A server of its own for a test that stops it, fills it or cuts its connections."""
    return EmbeddedRedis(binary=server_binary(kind), maxmemory_mb=maxmemory_mb, arguments=arguments)


def raw_client(url: str) -> Any:
    """A plain client for looking at keys."""
    return redis.Redis.from_url(url, protocol=2, socket_timeout=60)


def keys_without_expiry(client: Any) -> list[str]:
    """Keys that would stay for ever. Every key of ours has a time to live, whoever owns it."""
    names = sorted(client.scan_iter(count=1000))
    return [name.decode() for name in names if client.pttl(name) == -1]


def keys_of_streams(client: Any) -> list[str]:
    """Keys that belong to single streams."""
    return sorted(name.decode() for name in client.scan_iter(match="px:{*}:*:[marst]", count=1000))


def kept_for_clients(client: Any) -> list[str]:
    """What finished streams have left for clients that may come back for it: record and results."""
    kept = []
    for name in keys_of_streams(client):
        if not name.endswith(":m"):
            continue
        finished, options = client.hmget(name, "finished", "options")
        if finished and orjson.loads(options).get("resume"):
            kept += [name, f"{name[:-1]}r", f"{name[:-1]}t"]
    return kept
