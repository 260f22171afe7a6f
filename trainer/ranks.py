"""The processes of a run: who we are, which device is ours, and the few collectives the trainer needs."""

from __future__ import annotations

import datetime
import os
import resource
import sys
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class Pending(Protocol):
    """A collective under way."""

    def wait(self) -> object: ...


# Newer torch names, older ones where they don't exist yet.
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_reduce_scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that train together."""

    rank: int
    size: int
    device: torch.device
    control: dist.ProcessGroup | None = None
    """For numbers on the CPU: a gloo group, so that exchanging them does not wait for the GPU. None: the default."""

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

    def start_reduce_scatter(self, tensor: Tensor) -> tuple[Tensor, Pending | None]:
        """Begin to sum [size * P, ...] over ranks; returns where part `rank`, [P, ...], will be after waiting.

        None instead of something to wait for: there is only one rank, and the result is the tensor itself.
        """
        if self.size == 1:
            return tensor, None
        part = torch.empty_like(tensor[: len(tensor) // self.size])
        return part, _reduce_scatter(part, tensor, async_op=True)

    def start_all_gather(self, part: Tensor) -> tuple[Tensor, Pending | None]:
        """Begin to put the [P, ...] of all ranks together; returns where [size * P, ...] will be after waiting."""
        if self.size == 1:
            return part, None
        full = torch.empty(self.size * len(part), *part.shape[1:], dtype=part.dtype, device=part.device)
        return full, _all_gather(full, part.contiguous(), async_op=True)

    def from_first(self, values: list[float]) -> list[float]:
        """Rank 0's numbers, on every rank."""
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.broadcast(tensor, src=0, group=self.control)
        return tensor.tolist()

    def gather_bytes(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's uint8 tensor (all of one length), in rank order, on the CPU."""
        tensor = tensor.cpu()
        if self.size == 1:
            return [tensor]
        gathered = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(gathered, tensor, group=self.control)
        return gathered

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier(group=self.control)


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory this process has held: allocated on its GPU, or resident where it computes on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


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
    control = dist.new_group(backend="gloo") if device.type == "cuda" and size > 1 else None
    return Ranks(rank, size, device, control)
