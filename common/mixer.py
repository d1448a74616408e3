"""Mixing of several channels to one, in plain Python: neither an ingress nor a client has numpy."""

from __future__ import annotations

import array
import math
import operator
from collections.abc import Iterable
from typing import Any, Final, TypeAlias

Samples: TypeAlias = "array.array[int]"
"""16-bit samples in this machine's byte order, `array("h")`."""
AnySamples: TypeAlias = "array.array[Any]"
"""The same, or samples from -1 to 1, `array("f")`."""

_FLOAT: Final = "f"
_FULL_SCALE: Final = 32768.0


class Mixer:
    """Mixes interleaved channels to one, each with the same weight.

    A channel that is the first one with inverted sign, as from a microphone with swapped wires, would cancel
    it. So the first loud passage decides for each channel whether it is inverted.
    """

    # One frame in this many is compared: enough to tell a copy from another signal.
    _STRIDE: Final = 7
    _LOUD: Final = 16.0
    """Mean square from which a passage is not silence."""
    _MAX_LOOKS: Final = 200
    # Sums that are made together: each waits for the one before on the interpreter's stack, which a damaged
    # WAV file of 65,535 channels would overflow.
    _MOST_SUMS: Final = 256

    def __init__(self, channels: int) -> None:
        self._channels = channels
        self._signs: list[int] = [0] * channels
        """The sign of each channel, 1 or -1; 0 while it is not decided, which counts as 1."""
        self._looks = 0

    @property
    def is_decided(self) -> bool:
        """Whether no later passage changes how the channels are mixed."""
        return self._looks >= self._MAX_LOOKS or all(self._signs[1:])

    def mix(self, samples: AnySamples) -> AnySamples:
        """Return one sample for each whole frame of a passage, of the same kind."""
        if self._channels == 1:
            return samples
        planes = self._planes(samples)
        if not self.is_decided:
            self._look(planes)
        return self._mixed(planes)

    def mix_part(self, samples: AnySamples) -> AnySamples:
        """Mix samples that are too few to decide about a channel."""
        return samples if self._channels == 1 else self._mixed(self._planes(samples))

    def _planes(self, samples: AnySamples) -> list[AnySamples]:
        return [samples[channel :: self._channels] for channel in range(self._channels)]

    def _mixed(self, planes: list[AnySamples]) -> AnySamples:
        totals: Iterable[Any] = planes[0]
        for number, (plane, sign) in enumerate(zip(planes[1:], self._signs[1:], strict=True), 1):
            totals = map(operator.sub if sign < 0 else operator.add, totals, plane)
            if number % self._MOST_SUMS == 0:
                totals = list(totals)
        if planes[0].typecode == _FLOAT:
            return array.array(_FLOAT, (total / self._channels for total in totals))
        # The lowest value, inverted, is one too high; the first channel, which is never inverted, makes up
        # for that.
        return array.array("h", (total // self._channels for total in totals))

    def _look(self, planes: list[AnySamples]) -> None:
        first = _about_zero(planes[0][:: self._STRIDE])
        energy = sum(map(operator.mul, first, first))
        loud = self._LOUD / _FULL_SCALE**2 if planes[0].typecode == _FLOAT else self._LOUD
        if energy <= loud * len(first):
            return
        self._looks += 1
        for channel in range(1, self._channels):
            other = _about_zero(planes[channel][:: self._STRIDE])
            both = math.sqrt(energy * sum(map(operator.mul, other, other)))
            likeness = sum(map(operator.mul, first, other)) / both if both else 0.0
            if not self._signs[channel] and abs(likeness) > 0.9:
                self._signs[channel] = 1 if likeness > 0 else -1


def _about_zero(samples: AnySamples) -> list[float]:
    """Return the samples less their mean: offsets of two channels are no likeness."""
    mean = sum(samples) / max(1, len(samples))
    return [sample - mean for sample in samples]


class PassageMixer:
    """A `Mixer` with passages of one length, however many samples each call has.

    While the mixer has not decided, the beginning of a passage is kept until the passage is whole.
    """

    # 64 ms at 16 kHz: long enough to tell two voices apart, with little delay.
    PASSAGE_FRAMES: Final = 1024

    def __init__(self, channels: int) -> None:
        self._mixer = Mixer(channels)
        self._passage_samples = self.PASSAGE_FRAMES * channels
        self._kept: AnySamples | None = None

    def mix(self, samples: AnySamples) -> AnySamples:
        """Return one sample for each frame that is not kept. samples: whole frames, all of one kind."""
        if self._kept:
            samples = self._kept + samples
            self._kept = None
        made: AnySamples = array.array(samples.typecode)
        at = 0
        while not self._mixer.is_decided and len(samples) - at >= self._passage_samples:
            made += self._mixer.mix(samples[at : at + self._passage_samples])
            at += self._passage_samples
        if self._mixer.is_decided:
            return made + self._mixer.mix_part(samples[at:])
        self._kept = samples[at:]
        return made

    def end_passage(self) -> AnySamples | None:
        """Return one sample for each kept frame; None if no frame was kept."""
        kept, self._kept = self._kept, None
        return self._mixer.mix_part(kept) if kept else None
