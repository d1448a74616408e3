"""Steps that say of themselves that a device works beside the host: what a GPU does, for any machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gpu_worker.engine.steps import Export, Flight, KeptFrames, StepFindings, Steps


class OverlappingSteps:
    """Those that it wraps, under way until they are waited for; it checks the order of the calls."""

    def __init__(self, steps: Steps) -> None:
        self.inner = steps
        self.shape = replace(steps.shape, overlaps=True)
        self.stats, self.rings, self.trees = steps.stats, steps.rings, steps.trees
        self._under_way: list[Flight] = []

    def reset(self, slots: Sequence[int], prompts: Sequence[int]) -> None:
        self.inner.reset(slots, prompts)

    def launch(self, rows_FB: NDArray[np.int32], table_BM: NDArray[np.int32]) -> Flight:
        assert len(self._under_way) < 2, "more steps are under way than there are buffers"
        flight = self.inner.launch(rows_FB, table_BM)
        self._under_way.append(flight)
        return flight

    def is_over(self, flight: Flight) -> bool:
        return self.inner.is_over(flight)

    def wait(self, flight: Flight) -> StepFindings:
        assert self._under_way.pop(0) is flight, "steps are waited for in another order"
        return self.inner.wait(flight)

    def export(self, slot: int, kept: KeptFrames | None) -> Export:
        return self.inner.export(slot, kept)

    def load(self, slot: int, kept: KeptFrames | None, state: Mapping[str, memoryview]) -> None:
        self.inner.load(slot, kept, state)
