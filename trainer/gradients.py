"""What happens to gradients between backward and the optimizer: average over ranks, finite check, clipping."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from trainer.ranks import Ranks


class NonFiniteGradient(Exception):
    """The averaged gradient holds NaN or infinity; no weight was touched."""


def average_gradients(parameters: Sequence[Parameter], ranks: Ranks) -> None:
    """Replace every gradient by its mean over ranks, through one flat float32 buffer."""
    if ranks.size == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    ranks.average(flat)
    torch._foreach_copy_(
        gradients, [f.view_as(g) for f, g in zip(flat.split([g.numel() for g in gradients]), gradients, strict=True)]
    )


def clip_gradients(parameters: Sequence[Parameter], max_norm: float) -> Tensor:
    """Scale the gradients so that their global L2 norm is at most `max_norm` (0: leave them); returns the norm before.

    Called after averaging, so every rank sees the same global norm (published entries with sharded Muon clipped each
    rank's local gradient).
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if max_norm:
        torch._foreach_mul_(gradients, torch.clamp(max_norm / (norm + 1e-6), max=1.0))
    return norm
