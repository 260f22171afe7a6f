"""Muon (Jordan et al. 2024) as pure functions of tensors; sharding over ranks is the trainer's business.

One step of a matrix (methods 3.2): `m ← μ m + g;  u = g + μ m;  W ← (1 - lr wd) W - lr step_scale direction(u)`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model.optimizers.orthogonalize import Coefficients, normalize_rows, orthogonalize


def nesterov(gradient: Tensor, momentum_buffer: Tensor, momentum: float) -> Tensor:
    """Heavy ball without a factor 1 - μ, looking ahead: updates the buffer m in place, returns `u = g + μ m`.

    The buffer's type (float32, bfloat16) is the type of the arithmetic and of u.
    """
    gradient = gradient.to(momentum_buffer.dtype)
    momentum_buffer.mul_(momentum).add_(gradient)
    return torch.add(gradient, momentum_buffer, alpha=momentum)


def direction(
    update: Tensor, tuples: Coefficients, *, row_normalize: bool = False, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """Each matrix u in [..., R, C] orthogonalized, in `dtype`; a step adds it times `-learning_rate * step_scale`.

    Args:
        tuples: the iterations, see `model.optimizers.orthogonalize.coefficients`.
        row_normalize: divide each row by its norm first (MuonEq-R; with three classic iterations NeoMuon).
    """
    return orthogonalize(normalize_rows(update) if row_normalize else update, tuples, dtype)


def step_scale(num_rows: int, num_columns: int) -> float:
    """`sqrt(max(1, R/C))`: keeps the root-mean-square change of the outputs the same for tall matrices."""
    return math.sqrt(max(1.0, num_rows / num_columns))
