"""What the service asks of a Redis server, looked at once, when a process starts.

A server that lacks something would not fail at the start by itself: one without a command that workers need,
or one that drops keys, takes clients and leaves them without results.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final
from uuid import uuid4

import redis.exceptions

from common.errors import UnfitRedis
from common.redis.address import RedisAddress
from common.redis.connect import Argument, RefusedConnection, first_sentence, lost, pack
from common.redis.keys import Keys
from common.redis.pipelined_sync import SyncPipelinedConnection
from common.redis.scripts import status

LEAST_VERSION: Final = (7, 0)
_PROBE_TTL_MS: Final = 10_000
# Beyond the time-out of the connection itself, which has the better sentence.
_MARGIN_S: Final = 0.5
_LOOK_S: Final = 0.05
# How a refusal for want of rights reads: said of a command, or of one that a script calls.
_NO_RIGHTS: Final = ("NOPERM", "permission", "can't run this command", "can't access")


def check_servers(
    addresses: Sequence[RedisAddress], timeout_s: float, stopped: Callable[[], bool] = lambda: False
) -> None:
    """Check that every server is what the service needs.

    timeout_s: bound of the look at one server.   stopped: asked meanwhile; what follows is then left out.

    Raises UnfitRedis where waiting does not help, redis.exceptions.ConnectionError or TimeoutError where it
    may; both with one sentence that has the address and the cause.
    """
    for address in addresses:
        _in_time(address, timeout_s, stopped)


def _in_time(address: RedisAddress, timeout_s: float, stopped: Callable[[], bool]) -> None:
    """Have one server checked by a daemon thread: a resolver may take longer than anybody waits."""
    failures: list[Exception] = []

    def run() -> None:
        try:
            check_server(address, timeout_s)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="redis-check", daemon=True)
    thread.start()
    deadline = time.monotonic() + timeout_s + _MARGIN_S
    while thread.is_alive() and not stopped():
        if time.monotonic() > deadline:
            raise lost(address, TimeoutError())
        thread.join(_LOOK_S)
    if failures:
        raise failures[0]


def check_server(address: RedisAddress, timeout_s: float) -> None:
    """Check one server; see `check_servers`."""
    connection = SyncPipelinedConnection(address, timeout_s)
    try:
        _check(address, connection)
    except RefusedConnection as error:
        raise UnfitRedis(str(error)) from error
    finally:
        connection.close()


def _check(address: RedisAddress, connection: SyncPipelinedConnection) -> None:
    info = read_info(_ask(address, connection, "INFO")[0])
    if info.get("redis_mode") == "sentinel":
        raise UnfitRedis(
            f"{address} is a Sentinel: its address is given as redis+sentinel://host[:port]/master."
        )
    if info.get("cluster_enabled") == "1":
        raise UnfitRedis(
            f"Redis at {address} is a node of a Redis Cluster, which is not supported: a plain server is"
            " needed."
        )
    version = info.get("redis_version", "")
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < LEAST_VERSION:
        raise UnfitRedis(f"Redis at {address} is version {version or 'unknown'}: 7.0 or newer is needed.")
    if info.get("loading") == "1":
        raise redis.exceptions.ConnectionError(f"Redis at {address} is loading its data.")
    if info.get("role") != "master":
        if address.sentinels:  # a failover is under way
            raise redis.exceptions.ConnectionError(f"Redis at {address} is not the master yet.")
        raise UnfitRedis(f"Redis at {address} is a read-only replica: the address of its master is needed.")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise UnfitRedis(
            f"Redis at {address} has maxmemory-policy {policy}, which drops keys of running streams:"
            " noeviction is needed."
        )
    _check_rights(address, connection)


def _check_rights(address: RedisAddress, connection: SyncPipelinedConnection) -> None:
    keys = Keys()
    names = [keys.probe(f"{uuid4().hex}:{kind}") for kind in ("hash", "text", "list", "set", "stream")]
    (refused,) = _ask(
        address, connection, *status.probe(names, channel=keys.probe_channel, ttl_ms=_PROBE_TTL_MS)
    )
    if refused:
        command, reason = (item.decode() for item in refused)
        # A full server refuses writes too; that passes, and streams are told of it.
        if any(words in reason for words in _NO_RIGHTS):
            raise _without_rights(address, command, reason)
        if "unknown" in reason.lower():
            raise UnfitRedis(f"Redis at {address} cannot do what is needed: {first_sentence(reason)}")
    # Not allowed in a script. It ends with the connection.
    _ask(address, connection, "CLIENT", "ID")
    _ask(address, connection, "SUBSCRIBE", keys.probe_channel)


def _ask(address: RedisAddress, connection: SyncPipelinedConnection, *command: Argument) -> list[Any]:
    replies = connection.call((pack(*command),))
    if isinstance(replies[0], Exception):
        reason = str(replies[0])
        if any(words in reason for words in _NO_RIGHTS):
            raise _without_rights(address, str(command[0]), reason)
        if reason.startswith(("LOADING", "MASTERDOWN", "BUSY ", "OOM")):
            raise redis.exceptions.ConnectionError(
                f"Redis at {address} is not ready: {first_sentence(reason)}"
            )
        raise UnfitRedis(f"Redis at {address} refuses {command[0]!s}: {first_sentence(reason)}")
    return replies


def _without_rights(address: RedisAddress, command: str, reason: str) -> UnfitRedis:
    return UnfitRedis(
        f"Redis at {address} does not allow its user what the service needs"
        f" (keys px:*, channels px:*, all commands on them): {command}: {first_sentence(reason)}"
    )


def read_info(text: bytes) -> dict[str, str]:
    """The fields of INFO's reply."""
    lines = (line.partition(":") for line in text.decode(errors="replace").splitlines() if ":" in line)
    return {name: value.strip() for name, _, value in lines}
