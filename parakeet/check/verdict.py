"""The bounds that a model has to meet on the bundled recordings, and the comparison with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import Final

from parakeet.check.trial import Reading

# Word errors of the bundled model in all recordings together, by the chunk's milliseconds, measured on a CPU.
# On another device the arithmetic may change a few more words.
_TINY_ERRORS: Final = {80: 27, 160: 22, 560: 21, 1120: 22}
_SPARE_ERRORS: Final = 3
# Bound of published models, as a share of the words. Their cards state 7 to 10 % for much harder speech;
# "mister" and "ten" may be spelled otherwise.
_PUBLISHED_RATE: Final = 0.15
# How much later than a chunk's duration results and finals may come.
_LATENCY_S: Final = 0.25
_FINAL_S: Final = 1.0
# Reserve for other streams, and for audio that waits after a takeover.
_REAL_TIME_FACTOR: Final = 0.5


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number with its bound.

    decimals: decimals to show.   at_most: whether the bound is the largest good value, else the smallest.
    """

    name: str
    value: float
    bound: float
    unit: str = ""
    decimals: int = 0
    at_most: bool = True

    @property
    def passed(self) -> bool:
        """Whether the value is within its bound."""
        return self.value <= self.bound if self.at_most else self.value >= self.bound


def word_error_bound(model_size: str, model: str, chunk_ms: int, num_words: int) -> int:
    """Return the largest good number of word errors; `model` overrides `model_size`, as for a worker."""
    if model_size == "tiny" and not model and chunk_ms in _TINY_ERRORS:
        return _TINY_ERRORS[chunk_ms] + _SPARE_ERRORS
    return int(_PUBLISHED_RATE * num_words)


def judged(
    readings: Sequence[Reading],
    *,
    most_errors: int,
    real_time_factor: float,
    chunk_ms: int,
    num_streams: int | None,
) -> list[Figure]:
    """Return the figures that decide.

    real_time_factor: seconds that a second of audio takes.
    num_streams: streams that the worker carries; None where it did not measure.
    """
    latencies = sorted(1000 * seconds for reading in readings for seconds in reading.latency_s)
    latest_ms = chunk_ms + 1000 * _LATENCY_S
    final_ms = 1000 * max(one.final_s for one in readings)
    figures = [
        Figure("word errors", sum(one.errors for one in readings), most_errors),
        Figure("latency of results, p50", percentile(latencies, 50), latest_ms, "ms"),
        Figure("latency of results, p95", percentile(latencies, 95), latest_ms, "ms"),
        Figure("latency of the final result, worst", final_ms, chunk_ms + 1000 * _FINAL_S, "ms"),
        Figure("time for a second of audio", real_time_factor, _REAL_TIME_FACTOR, "s", 3),
    ]
    if num_streams is not None:
        figures.append(Figure("streams in real time", num_streams, 1, at_most=False))
    return figures


def percentile(sorted_values: Sequence[float], percent: int) -> float:
    """Return a percentile; infinity of nothing, which is within no bound."""
    if not sorted_values:
        return float("inf")
    if len(sorted_values) == 1:
        return sorted_values[0]
    return quantiles(sorted_values, n=100, method="inclusive")[percent - 1]
