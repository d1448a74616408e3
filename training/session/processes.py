"""The processes of a session, one for each GPU; a single process without `torchrun`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

_TIMEOUT = timedelta(minutes=5)
_DESCRIPTION = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among `world`; `rank` 0 reports and writes."""

    rank: int
    world: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process reports and writes."""
        return self.rank == 0

    def sum(self, x: Tensor) -> None:
        """Sum the tensors of all processes, in place."""
        if self.world > 1:
            dist.all_reduce(x)

    def share(self, x: Tensor) -> None:
        """Overwrite the tensor of every process with the leader's."""
        if self.world > 1:
            dist.broadcast(x, 0)

    def agree(self, wish: bool) -> bool:
        """Return the leader's wish: clocks differ, and all processes must leave a loop together."""
        said = torch.tensor(float(wish), device=self.device)
        self.share(said)
        return bool(said)

    def close(self) -> None:
        """Wait for the others and leave."""
        if self.world > 1:
            dist.barrier()
            dist.destroy_process_group()


def join_processes(*, grouped: bool = True) -> Processes:
    """Join the group that `torchrun` describes in the environment, or run alone.

    Without `grouped` the process has its number and its GPU, but does not communicate with others.
    """
    rank, world, local = (int(os.environ.get(name, default)) for name, default in _DESCRIPTION)
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    if world > 1 and grouped:
        dist.init_process_group("nccl" if cuda else "gloo", timeout=_TIMEOUT)
    return Processes(rank, world, device)
