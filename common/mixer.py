"""Several channels of 16-bit samples to one. Plain Python: neither an ingress nor a client has numpy."""

from __future__ import annotations

import array
import math
import operator
from collections.abc import Iterable
from typing import Final, TypeAlias

Samples: TypeAlias = "array.array[int]"
"""16-bit samples in this machine's byte order, `array("h")`."""


class Mixer:
    """Mixes interleaved channels to one, each with the same weight.

    A channel that is the first one upside down, as a microphone wired the wrong way makes it, would cancel
    it. So the first loud passage decides for each channel whether it is turned over.
    """

    # Every so-many-eth frame is looked at: enough to tell a copy from another signal.
    _STRIDE: Final = 7
    _LOUD: Final = 16.0
    """Mean square of a passage that is no silence."""
    _MAX_LOOKS: Final = 200

    def __init__(self, channels: int) -> None:
        self._channels = channels
        self._signs: list[int] = [0] * channels
        """1 or -1, and 0 where it is not decided yet, which counts as 1."""
        self._looks = 0

    def mix(self, samples: Samples) -> Samples:
        """Return one sample for each whole frame."""
        if self._channels == 1:
            return samples
        planes = [samples[channel :: self._channels] for channel in range(self._channels)]
        if self._looks < self._MAX_LOOKS and not all(self._signs[1:]):
            self._look(planes)
        totals: Iterable[int] = planes[0]
        for plane, sign in zip(planes[1:], self._signs[1:], strict=True):
            totals = map(operator.sub if sign < 0 else operator.add, totals, plane)
        # The lowest value, turned over, is one too high; the first channel, never turned, makes up for that.
        return array.array("h", (total // self._channels for total in totals))

    def _look(self, planes: list[Samples]) -> None:
        first = planes[0][:: self._STRIDE]
        energy = sum(map(operator.mul, first, first))
        if energy <= self._LOUD * len(first):
            return
        self._looks += 1
        for channel in range(1, self._channels):
            other = planes[channel][:: self._STRIDE]
            both = math.sqrt(energy * sum(map(operator.mul, other, other)))
            likeness = sum(map(operator.mul, first, other)) / both if both else 0.0
            if not self._signs[channel] and abs(likeness) > 0.9:
                self._signs[channel] = 1 if likeness > 0 else -1
