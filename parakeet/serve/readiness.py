"""Checks by Redis and sockets whether the processes that `serve` has started are ready."""

from __future__ import annotations

import contextlib
import errno
import socket
import sys

from common.addresses import host_and_port
from common.entries import IngressId, WorkerId
from common.errors import ServiceError, SettingsError
from common.redis.clients import CONNECTION_ERRORS, RedisServers, SyncRedis
from common.redis.grants import WORKER, Grants
from common.redis.keys import Keys
from common.redis.requirements import check_servers
from common.settings import HealthSettings, IngressSettings, RedisSettings, host_stem
from common.streams.admission import SharedSettings, check_cluster_agrees


class PortTaken(ServiceError):  # noqa: N818 - the name says it
    """Another program listens on a requested port."""


class Roster:
    """Reads which processes are alive in the cluster; its one Redis client is made on first use."""

    def __init__(self, settings: RedisSettings) -> None:
        self._servers = RedisServers.of(settings)
        self._keys = Keys(self._servers.shards)
        self._redis = SyncRedis(self._servers)

    @property
    def address(self) -> str:
        """The addresses of the servers, without passwords."""
        return ", ".join(str(address) for address in self._servers.addresses)

    def check_servers(self, grants: Grants) -> None:
        """Raise UnfitRedis for a server that does not fit the service, ServiceError for one that is away."""
        try:
            check_servers(self._servers.addresses, self._servers.timeout_ms / 1000, grants)
        except CONNECTION_ERRORS as error:
            raise ServiceError(str(error)) from error

    def check_agreement(self, settings: IngressSettings) -> None:
        """Raise SettingsMismatch if a running cluster has other values; do nothing without Redis."""
        shared = SharedSettings(settings.max_num_streams, settings.sample_rate, self._keys.shards)
        with contextlib.suppress(*CONNECTION_ERRORS):
            check_cluster_agrees(self._redis.cluster, self._keys, shared)

    def has_worker(self, worker_id: str) -> bool:
        """Return whether the worker holds a lease; False also while Redis is away."""
        return self._lives(self._keys.workers, WorkerId(worker_id))

    def has_ingress(self, ingress_id: str) -> bool:
        """Return whether the ingress has sent a heartbeat; False also while Redis is away."""
        return self._lives(self._keys.ingresses, IngressId(ingress_id))

    def _lives(self, register: bytes, member: str) -> bool:
        try:
            expiry_ms = self._redis.cluster.execute_command("ZSCORE", register, member)
            now_ms = self._now_ms()
        except CONNECTION_ERRORS:
            return False
        return expiry_ms is not None and float(expiry_ms) > now_ms

    def _now_ms(self) -> float:
        seconds, microseconds = self._redis.cluster.execute_command("TIME")
        return int(seconds) * 1000 + int(microseconds) / 1000

    def workers_of_this_host(self) -> list[str]:
        """Return the workers of this host that hold a lease; raises the client's errors."""
        alive = ("ZRANGEBYSCORE", self._keys.workers, f"({self._now_ms()}", "+inf")
        names = self._redis.cluster.execute_command(*alive)
        return [name for raw in names if (name := _text(raw)).startswith(host_stem("w"))]

    def close(self) -> None:
        self._redis.close()


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def check_port_free(host: str, port: int, flag: str) -> None:
    """Raise PortTaken if another program listens there, SettingsError for a host of another machine.

    Ingress processes share their ports by SO_REUSEPORT, so a second server of the same user would take half
    of the connections without an error. Hence the check before they start.
    """
    if not port:
        return
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise _no_host_of_ours(host, error) from None
    with socket.socket(family, kind, protocol) as probe:
        # Connections in TIME_WAIT from an earlier run do not hinder a listener, nor this check.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise _no_host_of_ours(host, error) from None
            raise PortTaken(
                f"{flag} got {port}, but {host_and_port(host, port)} is not free: {error.strerror}."
            ) from None


def _no_host_of_ours(host: str, error: Exception) -> SettingsError:
    reason = error.strerror if isinstance(error, OSError) else error
    return SettingsError(f"--host got {host!r}, but takes an address of this machine: {reason}.")


def show_health(settings: HealthSettings) -> int:
    """Print the workers of this host; return 0 if one holds its lease, which a hung engine loses."""
    roster = Roster(settings)
    try:
        roster.check_servers(WORKER)
        workers = roster.workers_of_this_host()
    finally:
        roster.close()
    sys.stdout.write("".join(f"{worker} holds its lease\n" for worker in workers))
    if not workers:
        raise ServiceError("No worker of this host holds a lease.")
    return 0
