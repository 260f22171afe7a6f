"""A transformer block: residual mix, attention branch, MLP branch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.network.adapters import ExecutionAdapters
from model.network.attention import Attention
from model.network.mlp import MLP
from model.network.norm import rms_norm


class Block(nn.Module):
    """`u = m₀ ⊙ x + m₁ ⊙ x0;  y = u + a ⊙ Attention(rms(u));  out = y + b ⊙ MLP(rms(y))` (methods 1.4)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm_epsilon = config.norm_epsilon
        self.residual_mix = nn.Parameter(torch.empty(2, config.model_dim))
        self.attention = Attention(config)
        self.attention_scale = nn.Parameter(torch.empty(config.model_dim))
        self.mlp = MLP(config)
        self.mlp_scale = nn.Parameter(torch.empty(config.model_dim))

    def forward(
        self,
        x: Tensor,
        x0: Tensor,
        rotary: tuple[Tensor, Tensor],
        document_mask: Tensor | None,
        adapters: ExecutionAdapters,
    ) -> Tensor:
        """x and x0 (the stream as it entered the first block) [B, T, D] -> [B, T, D]."""
        mix = self.residual_mix.to(x.dtype)
        u = mix[0] * x + mix[1] * x0
        attended = self.attention(rms_norm(u, self.norm_epsilon), rotary, document_mask, adapters)
        y = u + self.attention_scale.to(x.dtype) * attended
        return y + self.mlp_scale.to(x.dtype) * self.mlp(rms_norm(y, self.norm_epsilon), adapters)
