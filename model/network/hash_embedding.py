"""BigramHash: an embedding of hashed token pairs (methods 2.1).

Shapes: B batch, T time, D width, N buckets, E table width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import HashEmbeddingConfig
from model.network.projection import Projection
from model.network.sequence import SequenceLayout, has_predecessor, shift

XOR_FACTORS = (36_313, 27_191, 51_497)
"""Multipliers of the token, its predecessor and the one before."""
LINEAR_FACTOR = 92_821


def xor_buckets(ids: Tensor, num_buckets: int, order: int, reachable: Tensor) -> Tensor:
    """`(36313 t_i xor 27191 t_{i-1} [xor 51497 t_{i-2}]) mod (num_buckets-1)` in 32-bit arithmetic, int64 [B, T].

    Args:
        ids: [B, T].
        order: 2 for pairs, 3 for triples.
        reachable: bool [T], whether the whole n-gram lies within the document; the last bucket serves the others.
    """
    tokens = ids.to(torch.int32)
    hashed = tokens * XOR_FACTORS[0]
    for distance in range(1, order):
        hashed = hashed ^ (shift(tokens, distance) * XOR_FACTORS[distance])
    return torch.where(reachable, torch.remainder(hashed, num_buckets - 1), num_buckets - 1).long()


def linear_buckets(ids: Tensor, num_buckets: int, reachable: Tensor) -> Tensor:
    """`(92821 t_{i-1} + t_i) mod num_buckets`, int64 [B, T]; the predecessor of a first position is 0."""
    previous = torch.where(reachable, shift(ids), 0)
    return torch.remainder(LINEAR_FACTOR * previous.long() + ids.long(), num_buckets)


class HashEmbedding(nn.Module):
    """`s P E[bucket]`; without the projection P where the table is as wide as the model."""

    def __init__(self, config: HashEmbeddingConfig, model_dim: int) -> None:
        super().__init__()
        self.config = config
        self.table = nn.Parameter(torch.empty(config.num_buckets, config.dim))
        self.projection = Projection("hash_projection", config.dim, model_dim) if config.dim != model_dim else None
        self.scale = nn.Parameter(torch.empty(1)) if config.learned_scale else None

    def forward(self, ids: Tensor, layout: SequenceLayout, dtype: torch.dtype) -> Tensor:
        """ids [B, T] -> [B, T, D] in `dtype`."""
        rows = self._rows(self._buckets(ids, 2, layout), dtype)
        if self.config.trigram:
            rows = rows + self._rows(self._buckets(ids, 3, layout), dtype)
        if self.projection is not None:
            rows = self.projection(rows)
        return rows if self.scale is None else self.scale.to(dtype) * rows

    def _buckets(self, ids: Tensor, order: int, layout: SequenceLayout) -> Tensor:
        reachable = has_predecessor(layout, ids.shape[1], order - 1, ids.device)
        if self.config.hash == "linear":
            return linear_buckets(ids, self.config.num_buckets, reachable)
        return xor_buckets(ids, self.config.num_buckets, order, reachable)

    def _rows(self, buckets: Tensor, dtype: torch.dtype) -> Tensor:
        return F.embedding(buckets, self.table).to(dtype)
