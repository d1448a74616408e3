"""Scripts for the use of API keys: on shard 0."""

from __future__ import annotations

from typing import Final

from common.auth.api_key import KeyId
from common.entries import IngressId
from common.redis.keys import ONCE_TTL_MS, Keys
from common.redis.scripts import Command, run

_STREAMS_TTL_MS: Final = 86_400_000
_MINUTE_TTL_MS: Final = 120_000
_DAY_TTL_MS: Final = 172_800_000
# A report is repeated as long as Redis is away.
_REPORT_TTL_MS: Final = 86_400_000


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
    once: str,
) -> Command:
    """Count new streams of a key beside those that the ingress has; 0, or the number of the bound reached.

    once: names the request, so that a repeat counts nothing.
    """
    return run(
        "usage/enter",
        (keys.key_streams(key), keys.ingresses, keys.key_minutes(key), keys.key_days(key), keys.once(once)),
        *(ingress, num_before, num_new, max_streams, new_per_minute, audio_s_per_day),
        *(_STREAMS_TTL_MS, _MINUTE_TTL_MS, ONCE_TTL_MS),
    )


def report(
    keys: Keys, *, key: KeyId, ingress: IngressId, num_streams: int, audio_s: float, once: str
) -> Command:
    """State how many streams of a key an ingress has, and add seconds of audio to the key's day.

    once: names these seconds, so that a repeat adds nothing as long as the ingress has reported no others.
    """
    return run(
        "usage/report",
        (keys.key_streams(key), keys.key_days(key), keys.key_report(key, ingress)),
        *(ingress, num_streams, f"{audio_s:.3f}", once, _STREAMS_TTL_MS, _DAY_TTL_MS, _REPORT_TTL_MS),
    )
