"""The token table."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.projection import WeightTransform


class TokenEmbedding(nn.Module):
    """A table [V, E], read by rows at the input and, tied, as the head's matrix at the output.

    `transform`, None at first, stands between the master weight and both uses: set it for fake quantization.
    """

    def __init__(self, vocab_size: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, dim))
        self.transform: WeightTransform | None = None

    def forward(self, ids: Tensor) -> Tensor:
        """ids [B, T] -> rows [B, T, E], in the table's type."""
        return F.embedding(ids, self.table())

    def table(self) -> Tensor:
        """The table as the forward sees it [V, E]."""
        return self.weight if self.transform is None else self.transform(self.weight)
