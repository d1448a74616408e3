"""The metrics ports of `serve`: each child has its own, counted up from --metrics-port."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from common.errors import SettingsError
from common.settings import ServeSettings, WorkerSettings
from parakeet.serve.readiness import check_port_free

_LAST_PORT: Final = 65_535


class MetricsPorts:
    """The metrics ports of the ingresses, followed by those of the workers; all are 0 without --metrics-port.

    A group of lanes has a port for itself, and behind it one for each lane.
    """

    def __init__(self, settings: ServeSettings, workers: Sequence[WorkerSettings]) -> None:
        self._settings = settings.ingress
        self._first = settings.ingress.metrics_port
        lanes = workers[0].lanes if workers else 1
        self._of_a_worker = 1 if lanes == 1 else 1 + lanes
        self._num_ingress = settings.num_ingress
        self._num_ports = settings.num_ingress + len(workers) * self._of_a_worker

    def of_ingress(self, index: int) -> int:
        """Return the port of an ingress, counted from 0."""
        return self._first and self._first + index

    def of_worker(self, index: int) -> int:
        """Return the port of a worker, counted from 0."""
        return self._first and self._first + self._num_ingress + index * self._of_a_worker

    def check(self) -> None:
        """Check that there are so many ports, and that they are free.

        Raises SettingsError, or PortTaken where another program listens.
        """
        first, settings = self._first, self._settings
        if not first:
            return
        last = first + self._num_ports - 1
        if last > _LAST_PORT:
            raise SettingsError(
                f"--metrics-port got {first}, but takes at most {_LAST_PORT - self._num_ports + 1}: "
                f"{self._num_ports} ports are counted up from it, one for each process."
            )
        for flag, port in (
            ("--port", settings.port),
            ("--ws-port", settings.ws_port),
            ("--status-port", settings.status_port),
        ):
            if first <= port <= last:
                raise SettingsError(
                    f"{flag} got {port}, but takes none of {first} to {last}, the ports of --metrics-port."
                )
        for port in range(first, last + 1):
            check_port_free(settings.metrics_host, port, f"--metrics-port {first} (counted up)")
