"""Value embeddings: a second token table that feeds the values of a few layers (methods 2.3).

Shapes: B batch, T time, E table width, C = K d width of all value heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ValueEmbeddingConfig
from model.network.projection import Projection


class ValueEmbedding(nn.Module):
    """`α_l s P E[ids]`, one table for all layers and one scale α_l for each; P is absent where E = C."""

    def __init__(self, config: ValueEmbeddingConfig, vocab_size: int, kv_dim: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(vocab_size, config.dim))
        self.projection = Projection("value_projection", config.dim, kv_dim) if config.dim != kv_dim else None
        self.scale = nn.Parameter(torch.empty(1))
        self.layer_scales = nn.Parameter(torch.empty(len(config.layers)))

    def forward(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """ids [B, T] -> the part that all layers share [B, T, C] in `dtype`; multiply by `layer_scales[l]`."""
        rows = F.embedding(ids, self.table).to(dtype)
        if self.projection is not None:
            rows = self.projection(rows)
        return self.scale.to(dtype) * rows
