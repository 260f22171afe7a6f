"""The processes of one evaluation. Batches are fixed by the plan and shared out, so their number changes no result."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from eval.plan import Share


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that score together; the default is alone."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def share(self) -> Share:
        return Share(self.rank, self.size)

    def sum(self, tensor: torch.Tensor) -> None:
        """Replaces the tensor on every rank by its sum over ranks."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def sum_array(self, array: npt.NDArray[np.floating]) -> None:
        """Replaces an array on every rank by its sum over ranks."""
        if self.size > 1:
            tensor = torch.from_numpy(array).to(self.device)
            dist.all_reduce(tensor)
            array[:] = tensor.cpu().numpy()

    def largest(self, value: int) -> int:
        """The largest value of any rank."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return int(tensor.item())

    def all_agree(self, value: bool) -> bool:
        """Whether the value is true on every rank."""
        if self.size == 1:
            return value
        tensor = torch.tensor(int(value), device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
        return bool(tensor.item())
