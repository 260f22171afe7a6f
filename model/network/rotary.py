"""Rotary position embedding over the first dimensions of each head (Su et al. 2021), half-split layout."""

from __future__ import annotations

import torch
from torch import Tensor

from model.config import RopeScalingConfig


def rotary_frequencies(
    rotated_dims: int, base: float, scaling: RopeScalingConfig, device: torch.device | None = None
) -> Tensor:
    """Radians per position of each pair, float32 [R/2]: `base^(-2j/R)`, stretched as configured; R = rotated_dims."""
    fraction = torch.arange(0, rotated_dims, 2, device=device, dtype=torch.float32) / rotated_dims
    if scaling.kind == "ntk" and rotated_dims > 2:
        base = ntk_base(base, rotated_dims, scaling.original_tokens, scaling.context_tokens)
    frequencies = base**-fraction
    if scaling.kind == "yarn":
        ramp = ((fraction - 0.25) / 0.75).clamp(0, 1)
        frequencies = frequencies / (ramp * (scaling.context_tokens / scaling.original_tokens - 1) + 1)
    return frequencies


def ntk_base(base: float, rotated_dims: int, original_tokens: int, num_tokens: int) -> float:
    """The rotary base for rows of `num_tokens`, longer than `original_tokens` (NTK-aware scaling; methods 1.5)."""
    return base * max(1.0, num_tokens / original_tokens) ** (rotated_dims / (rotated_dims - 2))


def rotary_tables(
    num_positions: int,
    rotated_dims: int,
    base: float,
    device: torch.device | None = None,
    scaling: RopeScalingConfig = RopeScalingConfig(),  # noqa: B008 (frozen)
) -> tuple[Tensor, Tensor]:
    """Cosines and sines, float32 [T, rotated_dims/2]: position t turns pair j by t times its frequency."""
    frequencies = rotary_frequencies(rotated_dims, base, scaling, device)
    angles = torch.outer(torch.arange(num_positions, device=device, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (j, j + R/2) of x [B, T, H, d], R = 2 * cos.shape[-1]; dimensions from R on pass unchanged."""
    half = cos.shape[-1]
    cos, sin = cos.to(x.dtype)[:, None, :], sin.to(x.dtype)[:, None, :]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos + second * sin, second * cos - first * sin, rest), dim=-1)
