"""Gates on the output of each attention head (methods 1.7).

Shapes: B batch, T time, D width, H query heads, d head width, W window.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import HeadGateConfig

BIASED_INIT = 4.0


class HeadGate(nn.Module):
    """A factor per head and position, between 0 and 1 (0 and 2 for kind `output`).

    sparse `σ(s W n[:W])`, dense `σ(W n)`, output `2 σ(W src[:W])`, biased `σ(W n + b)`; n is the normalized input of
    attention, src either n or the query projection before its norm. Zero weights start sparse at 1/2, output at 1.
    """

    def __init__(self, config: HeadGateConfig, num_heads: int, model_dim: int) -> None:
        super().__init__()
        self.config = config
        num_inputs = config.window if config.kind in ("sparse", "output") else model_dim
        self.weight = nn.Parameter(torch.empty(num_heads, num_inputs))
        self.bias = nn.Parameter(torch.empty(num_heads)) if config.kind == "biased" else None

    def forward(self, x: Tensor, query: Tensor) -> Tensor:
        """x, query [B, T, D] -> [B, T, H, 1]."""
        source = query if self.config.source == "query" else x
        bias = None if self.bias is None else self.bias.to(x.dtype)
        logits = F.linear(source[..., : self.weight.shape[1]], self.weight.to(x.dtype), bias)
        gate = torch.sigmoid(self.config.scale * logits)
        return (2 * gate if self.config.kind == "output" else gate)[..., None]
