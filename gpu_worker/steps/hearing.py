"""The speech detector of steps on CPU, which reads rows from the rings of audio.

Shape suffixes: B rows, N samples of a row, W windows.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from numpy.typing import NDArray

from gpu_worker.engine.interface import EngineStats
from gpu_worker.engine.slots.clock import ChunkClock
from gpu_worker.engine.steps import Field, RingMemory, max_windows
from gpu_worker.turn.vad import SileroVad


def first_samples(rows_FB: NDArray[np.int32], clock: ChunkClock) -> NDArray[np.int64]:
    """Return the sample at which each row's window begins; negative at the start of a stream."""
    start_B: NDArray[np.int64] = rows_FB[Field.START].astype(np.int64)
    return clock.frame_samples * (start_B - 1) + clock.lookahead_samples


def gather_rows(
    rings: RingMemory, rows_FB: NDArray[np.int32], first_B: NDArray[np.int64], num_columns: int
) -> NDArray[np.float32]:
    """Return samples from `first_B` on of each row's stream; zeros before its start and after its end."""
    sample_BN = first_B[:, None] + np.arange(num_columns)
    audio = rings.gather(rows_FB[Field.SLOT], rows_FB[Field.FLOAT] != 0, sample_BN)
    # Not by a product: bits of pcm16 in a ring that is read as float32 may be no number.
    audio[(sample_BN < 0) | (sample_BN >= rows_FB[Field.TOTAL][:, None])] = 0.0
    return audio


def hear(
    vad: SileroVad | None,
    rows_FB: NDArray[np.int32],
    first_B: NDArray[np.int64],
    audio_BN: torch.Tensor,
    stats: EngineStats,
) -> NDArray[np.float32]:
    """Return the speech probabilities [B, W] of the windows that the rows' HEARD samples complete."""
    num_rows, num_columns = audio_BN.shape
    heard = rows_FB[Field.HEARD]
    if vad is None or not heard.any():
        return np.zeros((num_rows, max_windows(num_columns)), dtype=np.float32)
    started = time.perf_counter()
    # A stream's own samples begin after the silence in front of it.
    lead = torch.from_numpy(np.maximum(0, -first_B))
    index = torch.arange(num_columns) + lead.unsqueeze(1)
    audio = audio_BN.gather(1, index.clamp_(max=num_columns - 1))
    slots = torch.from_numpy(rows_FB[Field.SLOT].astype(np.int64))
    probs_BW, _ = vad.run(audio, torch.from_numpy(heard.astype(np.int64)), slots)
    stats.turn_detection.calls += 1
    stats.turn_detection.busy_s += time.perf_counter() - started
    return probs_BW.numpy()
