"""What API keys use: on shard 0."""

from __future__ import annotations

from typing import Final

from common.auth.api_key import KeyId
from common.entries import IngressId
from common.redis.keys import Keys
from common.redis.scripts import Command, run

_STREAMS_TTL_MS: Final = 86_400_000
_MINUTE_TTL_MS: Final = 120_000
_DAY_TTL_MS: Final = 172_800_000


def enter(
    keys: Keys,
    *,
    key: KeyId,
    ingress: IngressId,
    num_before: int,
    num_new: int,
    max_streams: int,
    new_per_minute: int,
    audio_s_per_day: int,
) -> Command:
    """Count new streams of a key beside those that the ingress has; 0, or the number of the bound reached."""
    return run(
        "usage/enter",
        (keys.key_streams(key), keys.ingresses, keys.key_minutes(key), keys.key_days(key)),
        *(ingress, num_before, num_new, max_streams, new_per_minute, audio_s_per_day),
        *(_STREAMS_TTL_MS, _MINUTE_TTL_MS),
    )


def report(keys: Keys, *, key: KeyId, ingress: IngressId, num_streams: int, audio_s: float) -> Command:
    """State how many streams of a key an ingress has, and add seconds of audio to the key's day."""
    return run(
        "usage/report",
        (keys.key_streams(key), keys.key_days(key)),
        *(ingress, num_streams, f"{audio_s:.3f}", _STREAMS_TTL_MS, _DAY_TTL_MS),
    )
