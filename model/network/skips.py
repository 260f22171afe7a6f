"""U-Net skips (methods 1.9)."""

from __future__ import annotations

import torch
from torch import Tensor


def add_skip(x: Tensor, skip: Tensor, weight: Tensor) -> Tensor:
    """`x + w ⊙ s`; x, s [B, T, D], w [D]."""
    return x + weight.to(x.dtype) * skip


def blend_skip(x: Tensor, skip: Tensor, weight: Tensor, gate: Tensor) -> Tensor:
    """`γ ⊙ x + (1-γ) ⊙ w ⊙ s`, γ = σ(gate); x, s [B, T, D], w, gate [D]."""
    return torch.lerp(weight.to(x.dtype) * skip, x, torch.sigmoid(gate.to(x.dtype)))
