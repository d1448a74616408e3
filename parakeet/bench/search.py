"""The search for C120, the largest number of streams that the server carries at service level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from parakeet.bench.figures import TrialFigures

SEARCH_TRIAL_S = 20.0
PROOF_TRIAL_S = 120.0


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The result of a search; ``streams`` is 0 if no trial passed."""

    streams: int
    trials: tuple[TrialFigures, ...]


def search(
    trial: Callable[[int, float], TrialFigures],
    *,
    first: int,
    most: int,
    resolution: float = 0.05,
) -> SearchResult:
    """Double, bisect, then prove the load by a long trial; reduce it while that fails.

    Args:
        trial: runs ``(streams, duration in seconds)`` on a fresh server.
        first: load of the first trial; halved while it fails.
        most: largest load to try.
        resolution: share of the load within which the borders are close enough.
    """
    trials: list[TrialFigures] = []

    def passes(streams: int, duration_s: float) -> bool:
        trials.append(trial(streams, duration_s))
        return trials[-1].passed

    low, high = 0, 0
    streams = first
    while streams >= 1:
        if passes(streams, SEARCH_TRIAL_S):
            low = streams
            break
        high = streams
        streams //= 2
    while low and not high and low < most:
        streams = min(2 * low, most)
        if passes(streams, SEARCH_TRIAL_S):
            low = streams
        else:
            high = streams
    while low and high and high - low > max(1, resolution * low):
        streams = (low + high) // 2
        if passes(streams, SEARCH_TRIAL_S):
            low = streams
        else:
            high = streams
    while low and not passes(low, PROOF_TRIAL_S):
        low = int(low * (1 - resolution))
    return SearchResult(low, tuple(trials))
