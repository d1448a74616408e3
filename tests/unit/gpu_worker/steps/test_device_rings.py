"""Audio that lanes write reaches the device, also where their memory cannot be pinned."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from gpu_worker.engine.steps import RingMemory
from gpu_worker.steps import device_rings
from gpu_worker.steps.device_rings import DeviceRings

DEVICE = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_pinning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinned memory needs a device."""
    zeros = torch.zeros

    def unpinned(*sizes: int, pin_memory: bool = False) -> torch.Tensor:
        del pin_memory
        return zeros(*sizes)

    monkeypatch.setattr(torch, "zeros", unpinned)


def test_memory_that_is_pinned_where_it_is_is_read_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_rings, "register", lambda *_: 0)
    rings = DeviceRings(3, 8, DEVICE, RingMemory.allocate)
    assert not rings.copies
    rings.memory.float32_SC[1] = 5
    assert rings.on_device[1].tolist() == [5] * 8


def test_memory_that_cannot_be_pinned_is_copied_for_the_slots_of_a_step_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(device_rings, "register", lambda *_: 801)
    with caplog.at_level(logging.WARNING):
        rings = DeviceRings(3, 8, DEVICE, RingMemory.allocate)
    assert rings.copies
    assert "cannot be pinned (CUDA error 801)" in caplog.text
    rings.memory.float32_SC[:] = np.arange(4, dtype=np.float32)[:, None] + 1
    rings.bring(np.array([2, 0], dtype=np.int32))
    assert rings.on_device[:, 0].tolist() == [1, 0, 3, 0]
    rings.memory.float32_SC[2, 3] = 9
    rings.bring(np.array([2], dtype=np.int32))
    assert rings.on_device[2].tolist() == [3, 3, 3, 9, 3, 3, 3, 3]


def test_memory_of_this_process_needs_neither() -> None:
    rings = DeviceRings(3, 8, DEVICE, None)
    rings.memory.pcm16[2] = 7
    assert rings.on_device.view(torch.int16)[2, :8].tolist() == [7] * 8
    rings.bring(np.array([2], dtype=np.int32))
    assert not rings.copies
