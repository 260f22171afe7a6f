"""Rotary position embedding over the first dimensions of each head (Su et al. 2021), half-split layout."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_tables(num_positions: int, rotated_dims: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines, float32 [T, rotated_dims/2]: position t turns pair j by `t * base^(-2j/rotated_dims)`."""
    frequencies = base ** (-torch.arange(0, rotated_dims, 2, device=device, dtype=torch.float32) / rotated_dims)
    angles = torch.outer(torch.arange(num_positions, device=device, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (j, j + R/2) of x [B, T, H, d], R = 2 * cos.shape[-1]; dimensions from R on pass unchanged."""
    half = cos.shape[-1]
    cos, sin = cos.to(x.dtype)[:, None, :], sin.to(x.dtype)[:, None, :]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos + second * sin, second * cos - first * sin, rest), dim=-1)
