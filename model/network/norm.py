"""RMSNorm without learned weights."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, epsilon: float) -> Tensor:
    """`x / sqrt(mean(x^2) + epsilon)` over the last axis, computed in float32, returned in x's type.

    The explicit epsilon and cast keep the result independent of the framework's version: the default epsilon has
    followed the input's type in some, and autocast has returned float32 in others.
    """
    wide = x if x.dtype == torch.float64 else x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)).to(x.dtype)
