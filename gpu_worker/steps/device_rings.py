"""Rings of audio in memory of the host that a CUDA device reads by itself.

Memory of this process is allocated pinned.  Memory that lanes write, too, is pinned where it is; where the
driver refuses that, rows are copied to pinned memory before each step, and the log says so.
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
    """See the module.

    Args:
        num_slots: and a spare one.
        num_samples: of a ring.
        device: what reads them.
        allocate: makes memory that others write, too; None for memory of this process.
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
        """Whether rows are copied, for the memory itself could not be pinned."""
        return self._beside is not None

    def bring(self, slots_B: NDArray[np.int32]) -> None:
        """Have the rings of these slots where the device reads them; before each launch of a step.

        A step that still runs may read a ring meanwhile: of what it reads, the same is written.
        """
        if self._beside is not None:
            self._beside[slots_B] = self.memory.float32_SC[slots_B]


def register(tensor: Tensor, device: torch.device) -> int:
    """Pin memory of the host where it is, for a device.  Returns 0, or CUDA's error."""
    # A thread's current device is the first one until it says otherwise, and memory is mapped for that one.
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
    """Take the error that the runtime keeps: PyTorch would raise it behind the next kernel's launch."""
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device=device).add_(1)
