"""Steps without a device: they take a set time, emit random symbols and simulate talk.

Drives the real engine's host side (slots, rings, plans, transcripts, turns) at loads that a CPU's model could
not follow, to test the harness and to measure what a step costs the host.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.trials.clocks import Clock
from gpu_worker.boosting.tree import PhraseTree
from gpu_worker.engine.interface import EngineStats
from gpu_worker.engine.phrases.tree_memory import NO_TREE
from gpu_worker.engine.steps import (
    AllocateRings,
    Export,
    Field,
    Flight,
    KeptFrames,
    RingMemory,
    StepFindings,
    StepShape,
    max_windows,
)

TOKENS_PER_FRAME = 3.0 / 12.5
# Seconds of speech and of the pause behind it: one that ends no utterance, and one that does.
_PAUSES_S = ((3.4, 0.5), (2.2, 1.4))
_WINDOWS_PER_S = 31.25
# Of a snapshot: as with `large`, without keys and values and with them.
_SLOT_BYTES = 15_000
_WHOLE_BYTES = 7_300_000


def talk(num_windows: int) -> NDArray[np.float32]:
    """Probabilities of speech of so many windows, over and over the same."""
    parts = [
        np.full(round(_WINDOWS_PER_S * seconds), probability, dtype=np.float32)
        for pair in _PAUSES_S
        for seconds, probability in zip(pair, (0.95, 0.02), strict=True)
    ]
    return np.resize(np.concatenate(parts), num_windows)


@dataclass(frozen=True, slots=True)
class _Simulated:
    ready_at: float
    findings: StepFindings


class SimulatedTrees:
    """A `TreeMemory` that holds nothing: it knows what stands where, and that nothing else is used."""

    def __init__(self, num_words: int) -> None:
        self.num_words = num_words
        self._nodes_at: dict[int, int] = {}

    def prepare(self, tree: PhraseTree) -> object:
        """Return the argument of `put`."""
        return tree.num_nodes

    def put(self, at: int, prepared: object) -> None:
        """See `TreeMemory`."""
        assert isinstance(prepared, int)
        self._nodes_at[at] = prepared

    def drop(self, at: int) -> None:
        """See `TreeMemory`."""
        del self._nodes_at[at]

    def use(self, slot: int, at: int, num_nodes: int, *, anew: bool) -> None:
        """See `TreeMemory`."""
        assert at == NO_TREE or self._nodes_at[at] == num_nodes, "another tree than was put there"

    def use_for_all(self, at: int) -> None:
        """See `TreeMemory`."""
        assert at in self._nodes_at, "no tree stands there"


class SimulatedSteps:
    """Every step takes `fixed_ms` and `row_us` for each of its rows, one step after the other."""

    def __init__(
        self,
        shape: StepShape,
        *,
        ring_samples: int,
        vocab_size: int,
        fixed_ms: float,
        row_us: float,
        clock: Clock,
        phrase_words: int = 0,
        rings: AllocateRings = RingMemory.allocate,
    ) -> None:
        self.shape = shape
        self.stats = EngineStats()
        self.trees = SimulatedTrees(phrase_words)
        self.rings = rings(shape.num_slots, ring_samples)
        self._vocab_size = vocab_size
        self._fixed_s, self._row_s = fixed_ms / 1e3, row_us / 1e6
        self._rng = np.random.default_rng(0)
        self._windows = max_windows(shape.clock.chunk_samples) + 1
        self._talk = talk(1 << 16)
        self._heard_S = self._rng.integers(0, 1 << 14, shape.num_slots)
        self._free_at = 0.0
        self._clock = clock
        # Processor time that no device's steps would have cost the thread.
        self.made_up_s = 0.0

    def reset(self, slots: Sequence[int], prompts: Sequence[int]) -> None:
        """Nothing is kept."""

    def export(self, slot: int, kept: KeptFrames | None) -> Export:
        return lambda: {"state": memoryview(bytes(_SLOT_BYTES if kept is None else _WHOLE_BYTES))}

    def load(self, slot: int, kept: KeptFrames | None, state: Mapping[str, memoryview]) -> None:
        """Nothing is kept."""

    def launch(self, rows_FB: NDArray[np.int32], table_BM: NDArray[np.int32]) -> Flight:
        began_s = time.thread_time()
        num_rows, rng, most = rows_FB.shape[1], self._rng, 4 * self.shape.clock.chunk_frames
        count = np.minimum(rng.poisson(TOKENS_PER_FRAME * rows_FB[Field.FRAMES]), most).astype(np.int32)
        slots = rows_FB[Field.SLOT]
        first_B = self._heard_S[slots]
        self._heard_S[slots] += max_windows(self.shape.clock.chunk_samples)
        window_BW = (first_B[:, None] + np.arange(self._windows)) % len(self._talk)
        findings = StepFindings(
            num_symbols_B=count,
            symbols_BK=rng.integers(0, self._vocab_size, (num_rows, most), dtype=np.int32),
            frames_BK=np.zeros((num_rows, most), dtype=np.int32),
            confidences_BK=np.full((num_rows, most), 0.5, dtype=np.float32),
            speech_BW=self._talk[window_BW],
        )
        step_s = self._fixed_s + num_rows * self._row_s
        self._free_at = max(self._free_at, self._clock.now()) + step_s
        self.stats.encode.busy_s += step_s
        self.made_up_s += time.thread_time() - began_s
        return Flight(num_rows, _Simulated(self._free_at, findings))

    def is_over(self, flight: Flight) -> bool:
        token = flight.token
        assert isinstance(token, _Simulated)
        return self._clock.now() >= token.ready_at

    def wait(self, flight: Flight) -> StepFindings:
        token = flight.token
        assert isinstance(token, _Simulated)
        self._clock.sleep(max(0.0, token.ready_at - self._clock.now()))
        self.stats.encode.calls += 1
        return token.findings
