"""Causal grouped-query attention with QK-norm, rotary positions and a learned gain per query head.

Shapes: B batch, T time, D width, H query heads, K key/value heads, d head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.network.adapters import ExecutionAdapters
from model.network.norm import rms_norm
from model.network.projection import Projection
from model.network.rotary import rotate


class Attention(nn.Module):
    """Multi-head causal self-attention (methods 1.5).

    q and k are RMS-normalized per head, rotated, and q is multiplied by `q_gain[h]`, so that a logit is
    `sqrt(d) * q_gain * cos(angle)`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.q = Projection("q", config.model_dim, config.model_dim)
        self.k = Projection("k", config.model_dim, config.kv_dim)
        self.v = Projection("v", config.model_dim, config.kv_dim)
        self.out = Projection("attn_out", config.model_dim, config.model_dim)
        self.q_gain = nn.Parameter(torch.empty(config.num_heads))

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        document_mask: Tensor | None,
        adapters: ExecutionAdapters,
    ) -> Tensor:
        """x [B, T, D], the normalized block input -> [B, T, D].

        Args:
            rotary: cosines and sines of `rotary_tables`.
            document_mask: bool [T, T], true where attention is allowed; None: plain causal attention.
            adapters: low-rank corrections of this execution.
        """
        batch, time, _ = x.shape
        heads = (batch, time, -1, self.config.head_dim)
        q = self.q(x, adapters.get("q")).view(heads)
        k = self.k(x, adapters.get("k")).view(heads)
        v = self.v(x, adapters.get("v")).view(heads)
        q = rotate(rms_norm(q, self.config.norm_epsilon), *rotary) * self.q_gain.to(q.dtype)[:, None]
        k = rotate(rms_norm(k, self.config.norm_epsilon), *rotary)
        y = causal_attention(q, k, v, document_mask)
        out = self.out(y.reshape(batch, time, -1))
        parallel = adapters.get("attention")
        return out if parallel is None else out + parallel(x)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, document_mask: Tensor | None) -> Tensor:
    """softmax(q kᵀ / sqrt(d)) v over earlier positions; q [B, T, H, d], k and v [B, T, K, d] -> [B, T, H, d]."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    y = F.scaled_dot_product_attention(
        q, k, v, attn_mask=document_mask, is_causal=document_mask is None, enable_gqa=q.shape[1] != k.shape[1]
    )
    return y.transpose(1, 2)


def packed_document_mask(cu_seqlens: Tensor, num_tokens: int) -> Tensor:
    """Where attention is allowed in a packed row: bool [T, T], causal and within a document.

    Args:
        cu_seqlens: int32 [N + 1], document starts in ascending order followed by the total length; may be padded
            with the total length to a fixed size.
    """
    positions = torch.arange(num_tokens, device=cu_seqlens.device)
    document = torch.searchsorted(cu_seqlens, positions.to(cu_seqlens.dtype), right=True)
    causal = positions[:, None] >= positions[None, :]
    return causal & (document[:, None] == document[None, :])
