"""Soft caps on the logits (methods 1.12, 2.7)."""

from __future__ import annotations

import torch
from torch import Tensor


def tanh_softcap(logits: Tensor, cap: float) -> Tensor:
    """`c tanh(z/c)` (Gemma 2)."""
    return cap * torch.tanh(logits / cap)


def polynomial_softcap(logits: Tensor, cap: float) -> Tensor:
    """`c clamp(u (1 - u²/3 + u⁴/15), -1, 1)`, u = clamp(z/c, -2, 2) (ternary U-Net)."""
    u = (logits / cap).clamp(-2, 2)
    square = u * u
    return cap * (u * (1 - square / 3 + square * square / 15)).clamp(-1, 1)
