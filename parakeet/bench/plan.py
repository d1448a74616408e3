"""The plan of a trial, and the reports of a load process."""

from __future__ import annotations

import ssl
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from common.addresses import host_and_port
from parakeet.bench.load.wire import Decoder, LineDecoder, WebSocketDecoder

GENERATOR_LAG_ALLOWED_S = 0.050


@dataclass(frozen=True, slots=True)
class Target:
    """One address of the server under load."""

    websocket: bool
    host: str
    port: int
    path: str
    tls: bool = False

    @classmethod
    def parse(cls, url: str) -> Target:
        """Parse ``ws://host:port/path`` or ``tcp://host:port``; ``wss`` and ``tcps`` are with TLS.

        Raises:
            ValueError: another scheme, or no port.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("ws", "wss", "tcp", "tcps") or not parts.hostname or not parts.port:
            raise ValueError(f"{url!r}: expected ws://host:port or tcp://host:port (wss, tcps with TLS)")
        websocket, tls = parts.scheme in ("ws", "wss"), parts.scheme in ("wss", "tcps")
        return cls(websocket, parts.hostname, parts.port, parts.path or "/", tls)

    def __str__(self) -> str:
        scheme = ("ws" if self.websocket else "tcp") + ("s" if self.tls else "")
        return f"{scheme}://{host_and_port(self.host, self.port)}{self.path if self.websocket else ''}"


@dataclass(frozen=True, slots=True)
class Access:
    """The load's access to the server. api_key: is never reported. ca: a further certificate authority."""

    api_key: str = field(default="", repr=False)
    ca: Path | None = None

    def tls(self, target: Target) -> ssl.SSLContext | None:
        """Return the TLS context of a connection to a target; None without TLS.

        Raises:
            OSError: the authority's file cannot be read.
        """
        return ssl.create_default_context(cafile=self.ca) if target.tls else None

    def decoder(self, target: Target) -> Decoder:
        """Return the client's decoder of a connection to a target, which sends the API key."""
        if target.websocket:
            return WebSocketDecoder(target.host, target.port, target.path, self.api_key)
        return LineDecoder(self.api_key)


STRANGER: Final = Access()
"""Access without a key."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One trial.

    Each stream has ``duration_s`` of audio. Starts are spread evenly over ``ramp_s``, so all streams are live
    from ``ramp_s`` to ``duration_s``: the measured window. With ``stream_s``, each stream ends after that
    much audio (uniform between half and one and a half times as much), and a new one follows until
    ``duration_s`` is over.
    """

    targets: tuple[Target, ...]
    recordings: tuple[Path, ...]
    streams: int
    duration_s: float = 20.0
    ramp_s: float = 5.0
    message_ms: int = 160
    chunk_ms: int = 160
    binary: bool = False
    stream_s: float = 0.0
    processes: int = 1
    seed: int = 0
    access: Access = STRANGER
    final_timeout_s: float = 30.0
    connect_timeout_s: float = 15.0


@dataclass(slots=True)
class Sample:
    """The figures of one load process since its last report; times in seconds.

    Attributes:
        at_s: time since the trial's start.
        live: number of streams that are open now.
        sent, results, finals, finished: counts since the last report.
        latency_s: last sample that a result covers written -> result received.
        final_s: last sample of a stream written -> its final result received.
        lag_s: largest delay of a write behind its due time; lagging: writes more than
            ``GENERATOR_LAG_ALLOWED_S`` behind it.
        errors: count by code: the server's codes, and the bench's own ``connect``, ``wire``, ``closed``,
        ``no_final``, ``sequence``.
        cpu_s: user + system time of the load process so far.
        done: whether the process has finished its share.
    """

    at_s: float
    live: int = 0
    sent: int = 0
    results: int = 0
    finals: int = 0
    latency_s: array[float] = field(default_factory=lambda: array("f"))
    final_s: array[float] = field(default_factory=lambda: array("f"))
    lag_s: float = 0.0
    lagging: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    cpu_s: float = 0.0
    done: bool = False
