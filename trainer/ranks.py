"""The processes of a run: who we are, which device is ours, and the few collectives the trainer needs."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that train together."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def average(self, tensor: Tensor) -> None:
        """Replace the tensor on every rank by its mean over ranks."""
        if self.size > 1:
            dist.all_reduce(tensor)
            tensor /= self.size

    def sum(self, tensor: Tensor) -> None:
        """Replace the tensor on every rank by its sum over ranks."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def from_first(self, values: list[float]) -> list[float]:
        """Rank 0's numbers, on every rank."""
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.broadcast(tensor, src=0)
        return tensor.tolist()

    def gather_bytes(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's uint8 tensor (all of one length), in rank order, on the CPU."""
        if self.size == 1:
            return [tensor.cpu()]
        gathered = [torch.empty_like(tensor, device=self.device) for _ in range(self.size)]
        dist.all_gather(gathered, tensor.to(self.device))
        return [t.cpu() for t in gathered]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


def join(timeout_seconds: float = 600.0) -> Ranks:
    """Join the processes that the launcher started (its RANK, WORLD_SIZE, LOCAL_RANK), or be the only one.

    NCCL with one GPU a process where there are GPUs, gloo on CPUs elsewhere.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        timeout = datetime.timedelta(seconds=timeout_seconds)
        if size > 1:
            dist.init_process_group(backend, rank=rank, world_size=size, timeout=timeout)
        else:
            dist.init_process_group(backend, rank=0, world_size=1, store=dist.HashStore(), timeout=timeout)
    return Ranks(rank, size, device)
