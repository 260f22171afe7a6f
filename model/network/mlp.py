"""The feed-forward branch of a block."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.network.adapters import ExecutionAdapters
from model.network.projection import Projection


class MLP(nn.Module):
    """`relu(x Upᵀ)² Downᵀ` (So et al. 2021, Primer; the baseline entry's MLP)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = Projection("mlp_up", config.model_dim, config.mlp_dim)
        self.down = Projection("mlp_down", config.mlp_dim, config.model_dim)

    def forward(self, x: Tensor, adapters: ExecutionAdapters) -> Tensor:
        """x [B, T, D], the normalized block input -> [B, T, D]."""
        out = self.down(F.relu(self.up(x)).square())
        parallel = adapters.get("mlp")
        return out if parallel is None else out + parallel(x)
