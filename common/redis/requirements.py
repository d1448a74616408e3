"""The requirements on a Redis server, which are checked once, when a process starts.

A server that lacks something would not fail at the start by itself: one without a command that workers need,
or one that drops keys, takes clients and leaves them without results.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import redis.exceptions

from common.errors import UnfitRedis
from common.redis.address import RedisAddress
from common.redis.connect import Argument, RefusedConnection, first_sentence, lost, pack
from common.redis.grants import Grants
from common.redis.pipelined import SyncPipelinedConnection
from common.redis.scripts import status

LEAST_VERSION: Final = (7, 0)
# Longer than the time-out of the connection itself, whose error sentence is better.
_MARGIN_S: Final = 0.5
_LOOK_S: Final = 0.05
# Most missing rights in a sentence; a user with other keys lacks them all.
_MOST_NAMED: Final = 8
# Texts of a refusal for missing rights: of a command, or of one that a script calls.
_NO_RIGHTS: Final = ("NOPERM", "permission", "can't run this command", "can't access")


def check_servers(
    addresses: Sequence[RedisAddress],
    timeout_s: float,
    grants: Grants,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Check that every server meets the requirements, and that this process's user has the needed rights.

    timeout_s: bound of the check of one server.   stopped: returns whether to leave out the remaining checks.

    Raises UnfitRedis where waiting does not help, redis.exceptions.ConnectionError or TimeoutError where it
    may; both with one sentence that has the address and the cause.
    """
    for address in addresses:
        _in_time(address, timeout_s, grants, stopped)


def _in_time(address: RedisAddress, timeout_s: float, grants: Grants, stopped: Callable[[], bool]) -> None:
    """Check one server in a daemon thread: a resolver may take longer than the time-out."""
    failures: list[Exception] = []

    def run() -> None:
        try:
            check_server(address, timeout_s, grants)
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


def check_server(address: RedisAddress, timeout_s: float, grants: Grants) -> None:
    """Check one server; see `check_servers`."""
    connection = SyncPipelinedConnection(address, timeout_s)
    try:
        _check(_Look(address, connection, grants))
    except RefusedConnection as error:
        raise UnfitRedis(str(error)) from error
    finally:
        connection.close()


@dataclass(frozen=True, slots=True)
class _Look:
    """The connection of a check, for a user who needs some rights."""

    address: RedisAddress
    connection: SyncPipelinedConnection
    grants: Grants

    def ask(self, *command: Argument) -> Any:
        """Return the reply to a command. Raises UnfitRedis, or ConnectionError where that may pass."""
        (reply,) = self.connection.call((pack(*command),))
        if isinstance(reply, Exception):
            reason = str(reply)
            if any(words in reason for words in _NO_RIGHTS):
                raise self.without_rights(str(command[0]))
            if reason.startswith(("LOADING", "MASTERDOWN", "BUSY ", "OOM")):
                raise redis.exceptions.ConnectionError(
                    f"Redis at {self.address} cannot be used yet: {first_sentence(reason)}"
                )
            raise UnfitRedis(f"Redis at {self.address} refuses {command[0]!s}: {first_sentence(reason)}")
        return reply

    def without_rights(self, lacking: str) -> UnfitRedis:
        """Return the error for a user who lacks rights."""
        return UnfitRedis(
            f"Redis at {self.address} does not allow its user what {self.grants.user} needs: {lacking}."
            " `parakeet-server redis-users` makes the rules."
        )


def _check(look: _Look) -> None:
    address = look.address
    info = read_info(look.ask("INFO"))
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
    _check_rights(look)


def _check_rights(look: _Look) -> None:
    calls = look.grants.calls
    names = list(calls)
    denied, unknown = look.ask(*status.refused(list(calls.values())))
    if unknown:
        missing = ", ".join(names[number - 1] for number in unknown)
        raise UnfitRedis(f"Redis at {look.address} cannot do what is needed: it has no {missing}.")
    if denied:
        lacking = [names[number - 1] for number in denied]
        more = f" and {len(lacking) - _MOST_NAMED} more" if len(lacking) > _MOST_NAMED else ""
        raise look.without_rights(", ".join(lacking[:_MOST_NAMED]) + more)


def read_info(text: bytes) -> dict[str, str]:
    """Return the fields of INFO's reply."""
    lines = (line.partition(":") for line in text.decode(errors="replace").splitlines() if ":" in line)
    return {name: value.strip() for name, _, value in lines}


def memory_share(info: bytes) -> float:
    """Return the part of its memory that a server uses, by its reply to INFO; 0 where it has no limit."""
    fields = read_info(info)
    most = int(fields.get("maxmemory", 0))
    return int(fields.get("used_memory", 0)) / most if most else 0.0
