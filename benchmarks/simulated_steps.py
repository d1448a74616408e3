"""Steps without a device: they take the time that they are told and emit random symbols.

Drives the real engine's host side (slots, rings, plans, transcripts) at loads that a CPU's model could
not follow, to test the harness and to measure what a step costs the host.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from gpu_worker.engine.clock import ChunkClock
from gpu_worker.engine.interface import EngineStats
from gpu_worker.engine.steps import Field, Flight, StepFindings
from gpu_worker.model.state import KVPages, PredictorStart, SlotState
from gpu_worker.turn.vad import SileroVad

TOKENS_PER_FRAME = 3.0 / 12.5


@dataclass(frozen=True, slots=True)
class _Simulated:
    ready_at: float
    findings: StepFindings


class SimulatedSteps:
    """Every step takes `fixed_ms` and `row_us` for each of its rows, one step after the other."""

    def __init__(
        self,
        clock: ChunkClock,
        *,
        num_slots: int,
        num_pages: int,
        page_frames: int,
        ring_samples: int,
        max_rows: int,
        vocab_size: int,
        fixed_ms: float,
        row_us: float,
        stats: EngineStats,
    ) -> None:
        rows = num_slots + 1
        self.max_rows = max_rows
        self.vad: SileroVad | None = None
        self.ring_SC: NDArray[np.float32] = np.zeros((rows, ring_samples), dtype=np.float32)
        self.state = SlotState(
            tail_SZ=torch.zeros(rows, 1),
            mel_SF=torch.zeros(rows, 1),
            levels_SGC=(),
            conv_LSKD=torch.zeros(1, rows, 1, 1),
            hidden_PSU=torch.zeros(1, rows, 1),
            cell_PSU=torch.zeros(1, rows, 1),
            output_SJ=torch.zeros(rows, 1),
            prompt_S=torch.zeros(rows, dtype=torch.int64),
            start=PredictorStart(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1)),
            default_prompt=0,
        )
        self.pages = KVPages.allocate(
            num_layers=1,
            num_pages=num_pages,
            page_frames=page_frames,
            num_heads=1,
            head_dim=1,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
        self._chunk_frames = clock.chunk_frames
        self._vocab_size = vocab_size
        self._fixed_s, self._row_s = fixed_ms / 1e3, row_us / 1e6
        self._stats = stats
        self._rng = np.random.default_rng(0)
        self._free_at = 0.0

    def reset(self, slots: Sequence[int]) -> None:
        """Nothing is kept."""

    def launch(self, rows_FB: NDArray[np.int32], table_BM: NDArray[np.int32]) -> Flight:
        num_rows, rng, most = rows_FB.shape[1], self._rng, 4 * self._chunk_frames
        count = np.minimum(rng.poisson(TOKENS_PER_FRAME * rows_FB[Field.FRAMES]), most).astype(np.int32)
        findings = StepFindings(
            num_symbols_B=count,
            symbols_BK=rng.integers(0, self._vocab_size, (num_rows, most), dtype=np.int32),
            frames_BK=np.zeros((num_rows, most), dtype=np.int32),
            confidences_BK=np.full((num_rows, most), 0.5, dtype=np.float32),
            speech_BW=np.zeros((num_rows, 0), dtype=np.float32),
            num_windows_B=np.zeros(num_rows, dtype=np.int32),
        )
        self._free_at = max(self._free_at, time.perf_counter()) + self._fixed_s + num_rows * self._row_s
        return Flight(num_rows, _Simulated(self._free_at, findings))

    def wait(self, flight: Flight) -> StepFindings:
        token = flight.token
        assert isinstance(token, _Simulated)
        time.sleep(max(0.0, token.ready_at - time.perf_counter()))
        self._stats.encode.calls += 1
        return token.findings
