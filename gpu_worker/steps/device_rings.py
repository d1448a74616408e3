"""Rings of audio in host memory that a CUDA device reads directly.

Memory of this process is allocated pinned. Memory that lanes write, too, is pinned in place; if the driver
refuses that, rows are copied to pinned memory before each step, and a line of the log reports it.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpu_worker.engine.steps import AllocateRings, RingMemory

logger = logging.getLogger(__name__)

# cudaHostRegisterPortable and cudaHostRegisterMapped.
_MAPPED: Final = 1 | 2


class DeviceRings:
    """The rings, readable by the device.

    Args:
        num_slots: number of slots; a spare one is added.
        num_samples: samples of a ring.
        device: the device that reads them.
        allocate: allocates memory that other processes write, too; None for memory of this process.
    """

    def __init__(
        self, num_slots: int, num_samples: int, device: torch.device, allocate: AllocateRings | None
    ) -> None:
        self._beside: NDArray[np.float32] | None = None
        if allocate is None:
            self.on_device = torch.zeros(num_slots + 1, num_samples, pin_memory=True)
            self.memory = RingMemory(self.on_device.numpy())
            return
        self.memory = allocate(num_slots, num_samples)
        self.on_device = torch.from_numpy(self.memory.float32_SC)
        status = register(self.on_device, device)
        if not status:
            return
        logger.warning(
            "audio of lanes cannot be pinned (CUDA error %d): its rows are copied before each step",
            status,
        )
        self.on_device = torch.zeros(num_slots + 1, num_samples, pin_memory=True)
        self._beside = self.on_device.numpy()

    @property
    def copies(self) -> bool:
        """Whether rows are copied, since the memory itself could not be pinned."""
        return self._beside is not None

    def bring(self, slots_B: NDArray[np.int32]) -> None:
        """Make the rings of these slots readable by the device; called before each launch of a step.

        A running step may read a ring meanwhile: the samples that it reads are overwritten by the same
        values.
        """
        if self._beside is not None:
            self._beside[slots_B] = self.memory.float32_SC[slots_B]


def register(tensor: Tensor, device: torch.device) -> int:
    """Pin host memory in place, for a device. Return 0, or CUDA's error."""
    # A thread's current device is the first one unless it is set, and memory is mapped for that device.
    with torch.cuda.device(device):
        status = int(
            torch.cuda.cudart().cudaHostRegister(  # type: ignore[no-untyped-call]
                tensor.data_ptr(), tensor.nbytes, _MAPPED
            )
        )
        if status:
            _forget_last_error(device)
    return status


def _forget_last_error(device: torch.device) -> None:
    """Clear the error that the runtime keeps: PyTorch would raise it after the next kernel's launch."""
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device=device).add_(1)
