"""The counters of Redis, read before and after the measured window."""

from __future__ import annotations

from dataclasses import dataclass

from common.redis.clients import CONNECTION_ERRORS, REDIS_ERROR, RedisServers, SyncRedis
from common.redis.requirements import read_info
from parakeet.bench.figures import RedisUsage

_TIMEOUT_MS = 2000


@dataclass(frozen=True, slots=True)
class RedisCounters:
    """Cumulative counters of one Redis server."""

    url: str
    commands: int
    network_in_bytes: int
    network_out_bytes: int
    used_memory_bytes: int
    calls: dict[str, tuple[int, int]]


class RedisWatch:
    """Reads the counters of some servers; a server that does not answer is left out."""

    def __init__(self, urls: tuple[str, ...]) -> None:
        self._servers = [(url, SyncRedis(RedisServers.parse((url,), timeout_ms=_TIMEOUT_MS))) for url in urls]

    def read(self) -> tuple[RedisCounters, ...]:
        """Return the counters in ``INFO`` of every server that answers."""
        found = []
        for url, server in self._servers:
            try:
                info = read_info(server.cluster.execute_command("INFO", "everything"))
            except (REDIS_ERROR, *CONNECTION_ERRORS):
                continue
            calls = {
                name.removeprefix("cmdstat_"): (int(stat["calls"]), int(stat["usec"]))
                for name, text in info.items()
                if name.startswith("cmdstat_")
                and (stat := dict(part.partition("=")[::2] for part in text.split(",")))
            }
            found.append(
                RedisCounters(
                    url,
                    int(info["total_commands_processed"]),
                    int(info["total_net_input_bytes"]),
                    int(info["total_net_output_bytes"]),
                    int(info["used_memory"]),
                    calls,
                )
            )
        return tuple(found)

    def close(self) -> None:
        """Close the connections."""
        for _, server in self._servers:
            server.close()


def redis_between(
    idle: tuple[RedisCounters, ...],
    before: tuple[RedisCounters, ...],
    after: tuple[RedisCounters, ...],
    window_s: float,
    streams: int,
) -> RedisUsage | None:
    """Return the difference of two readings, summed over the servers; None without readings."""
    if not before or len(before) != len(after) or window_s <= 0:
        return None
    calls: dict[str, tuple[int, int]] = {}
    for old, new in zip(before, after, strict=True):
        for name, (count, usec) in new.calls.items():
            old_count, old_usec = old.calls.get(name, (0, 0))
            have = calls.get(name, (0, 0))
            calls[name] = (have[0] + count - old_count, have[1] + usec - old_usec)
    commands = {
        name: (round(count / window_s, 1), round(usec / count, 2))
        for name, (count, usec) in sorted(calls.items(), key=lambda item: -item[1][1])
        if count
    }

    def rate(total: int) -> float:
        return round(total / window_s, 1)

    used = sum(c.used_memory_bytes for c in after)
    return RedisUsage(
        commands_per_s=rate(sum(n.commands - o.commands for o, n in zip(before, after, strict=True))),
        network_in_bytes_per_s=rate(
            sum(n.network_in_bytes - o.network_in_bytes for o, n in zip(before, after, strict=True))
        ),
        network_out_bytes_per_s=rate(
            sum(n.network_out_bytes - o.network_out_bytes for o, n in zip(before, after, strict=True))
        ),
        used_memory_bytes=used,
        used_memory_growth_per_stream=(used - sum(c.used_memory_bytes for c in idle)) // streams,
        commands=commands,
    )
