"""Bounds on the rate of events, by address or by key."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

# Names that are kept. The name that was idle longest is dropped first, with its debt.
_MAX_NAMES: Final = 10_000


class Throttle:
    """A token bucket for each name: `burst` at once, and `per_minute` on average.

    Times are monotonic seconds, which the caller passes in.
    """

    def __init__(self, max_names: int = _MAX_NAMES) -> None:
        self._max_names = max_names
        # By name: tokens left, and the time of that count; in the order of last use.
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def left(self, name: Hashable, per_minute: float, burst: float, now_s: float) -> float:
        """Return how many tokens the name has left now."""
        tokens, since_s = self._buckets.get(name, (burst, now_s))
        return min(burst, tokens + (now_s - since_s) * per_minute / 60)

    def take(self, name: Hashable, per_minute: float, burst: float, now_s: float) -> bool:
        """Take one token; return False, and take nothing, where the name has none left."""
        tokens = self.left(name, per_minute, burst, now_s)
        if tokens < 1:
            return False
        self._buckets[name] = (tokens - 1, now_s)
        self._buckets.move_to_end(name)
        if len(self._buckets) > self._max_names:
            self._buckets.popitem(last=False)
        return True

    def wait_s(self, name: Hashable, per_minute: float, burst: float, now_s: float) -> float:
        """Return the seconds until the name has a token again."""
        return max(0.0, (1 - self.left(name, per_minute, burst, now_s)) * 60 / per_minute)
