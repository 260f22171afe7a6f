"""The feed-forward branch of a block."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.network.adapters import ExecutionAdapters
from model.network.norm import rms_norm
from model.network.projection import Projection


def relu_squared(x: Tensor) -> Tensor:
    """`relu(x)²` (So et al. 2021, Primer)."""
    return F.relu(x).square()


def leaky_relu_squared(x: Tensor, slope: float) -> Tensor:
    """`x²` for x > 0, else `(slope x)²`: never negative, with a gradient on both sides (methods 1.8)."""
    return F.leaky_relu(x, slope).square()


class MLP(nn.Module):
    """`f(x Upᵀ) Downᵀ`, f a squared ReLU; with SwiGLU `(silu(x Gateᵀ) ⊙ x Upᵀ) Downᵀ` (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.up = Projection("mlp_up", config.model_dim, config.mlp_dim)
        if config.activation == "swiglu":
            self.gate = Projection("mlp_gate", config.model_dim, config.mlp_dim)
        self.down = Projection("mlp_down", config.mlp_dim, config.model_dim)

    def forward(self, x: Tensor, adapters: ExecutionAdapters) -> Tensor:
        """x [B, T, D], the normalized block input -> [B, T, D]."""
        hidden = self._activate(x)
        if self.config.output_norm:
            hidden = rms_norm(hidden, self.config.norm_epsilon)
        out = self.down(hidden)
        parallel = adapters.get("mlp")
        return out if parallel is None else out + parallel(x)

    def _activate(self, x: Tensor) -> Tensor:
        up = self.up(x)
        if self.config.activation == "swiglu":
            return F.silu(self.gate(x)) * up
        if self.config.activation == "leaky_relu_squared":
            return leaky_relu_squared(up, self.config.leaky_slope)
        return relu_squared(up)
