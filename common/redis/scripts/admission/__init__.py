"""Scripts for admissions, and for the settings that all processes share: on shard 0."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from common.entries import StreamId
from common.redis.keys import COUNTER_TTL_MS, ONCE_TTL_MS, REGISTER_TTL_MS, Keys
from common.redis.scripts import Command, run

# Part of --redis-maxmemory-mb from which no new stream is admitted, so that those that run have room:
# at the limit itself Redis refuses their audio.
MEMORY_LIMIT: Final = 0.9
# Streams that a server may have admitted in its last moments and forgotten, and many more.
_FORGOTTEN_STREAMS: Final = 100_000
# A worker whose lease lapsed longer ago than this is not expected back.
_MAY_COME_BACK_MS: Final = 30_000


def admit(
    keys: Keys, *, max_num_streams: int, ttl_ms: int, once: str, stream: StreamId | None, shard: int | None
) -> Command:
    """Admit one more stream. Replies {1, stream id}, or {0, b"full" or b"no_worker", just lapsed leases}.

    once: id of the request, so that a repeat gets the same stream.
    stream: the id to admit, None for a new one, which is on `shard` if one is named.
    """
    return run(
        "admission/admit",
        (keys.stream_counter, keys.admissions, keys.workers, keys.once(once), keys.counter_run),
        *(max_num_streams, ttl_ms, keys.worker_hash_stem, ONCE_TTL_MS, COUNTER_TTL_MS),
        *(REGISTER_TTL_MS, stream or 0, MEMORY_LIMIT, _FORGOTTEN_STREAMS, _MAY_COME_BACK_MS),
        *(keys.shards, -1 if shard is None else shard),
    )


def renew(keys: Keys, *, ttl_ms: int, streams: Iterable[StreamId]) -> Command:
    """Renew the expiry of admissions; some thousands at most, the limit of a script's stack."""
    return run("admission/renew", (keys.admissions,), ttl_ms, REGISTER_TTL_MS, *streams)


def agree(keys: Keys, *, ttl_ms: int, settings: Iterable[str | int]) -> Command:
    """Set settings, names and values flat. Replies {}, or {name, the cluster's value} of a difference."""
    return run("admission/agree", (keys.settings,), ttl_ms, *settings)
