"""Causal grouped-query attention with QK-norm, rotary positions and a learned gain per query head.

Shapes: B batch, T time, D width, H query heads, K key/value heads, d head width, C = K d.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.kernels.attention import packed_attention
from model.network.adapters import ExecutionAdapters
from model.network.gates import HeadGate
from model.network.norm import rms_norm
from model.network.projection import Projection
from model.network.rotary import rotate
from model.network.sequence import SequenceLayout
from model.network.xsa import remove_own_value


class AttentionCall(NamedTuple):
    """What differs between the executions of one layer's attention."""

    q_gain: Tensor
    """[H]"""
    exclusive: bool
    """Exclusive self attention."""
    extra_value: Tensor | None
    """Value embedding added to v [B, T, C]."""
    first_value: Tensor | None
    """v of the first attention of this forward [B, T, C], for value residuals."""
    adapters: ExecutionAdapters


class Attention(nn.Module):
    """Multi-head causal self-attention (methods 1.5).

    q and k are RMS-normalized per head, rotated, and q is multiplied by the gain, so that a logit is
    `sqrt(d) * gain * cos(angle)`. Then, where configured: exclusive self attention, head gate, norm, output product.
    """

    def __init__(self, config: ModelConfig, *, mixes_values: bool = False) -> None:
        super().__init__()
        self.config = config
        if config.fused_qkv:
            self.qkv = Projection("qkv", config.model_dim, config.model_dim + 2 * config.kv_dim)
        else:
            self.q = Projection("q", config.model_dim, config.model_dim)
            self.k = Projection("k", config.model_dim, config.kv_dim)
            self.v = Projection("v", config.model_dim, config.kv_dim)
        self.out = Projection("attn_out", config.model_dim, config.model_dim)
        if not config.recurrence.per_execution_scalars:
            self.q_gain = nn.Parameter(torch.empty(config.num_heads))
        gated = config.head_gate.kind != "none"
        self.gate = HeadGate(config.head_gate, config.num_heads, config.model_dim) if gated else None
        self.value_mix = nn.Parameter(torch.empty(2)) if mixes_values else None

    def forward(self, x: Tensor, layout: SequenceLayout, call: AttentionCall) -> tuple[Tensor, Tensor]:
        """x [B, T, D], the normalized block input -> (output [B, T, D], the values before mixing [B, T, C])."""
        config, (batch, time, _) = self.config, x.shape
        heads = (batch, time, -1, config.head_dim)
        query, k, own_v = self._project(x, call.adapters)
        if call.extra_value is not None:
            own_v = own_v + call.extra_value
        v = own_v
        if self.value_mix is not None and call.first_value is not None:
            mix = self.value_mix.to(v.dtype)
            v = mix[0] * call.first_value + mix[1] * v
        q = rotate(rms_norm(query.view(heads), config.norm_epsilon), layout.cos, layout.sin)
        k = rotate(rms_norm(k.view(heads), config.norm_epsilon), layout.cos, layout.sin)
        v = v.view(heads)
        keys, values = (k, v) if layout.history is None else layout.history.extend(k, v)
        y = causal_attention(q * call.q_gain.to(q.dtype)[:, None], keys, values, layout)
        if call.exclusive:
            y = remove_own_value(y, v)
        if self.gate is not None:
            y = y * self.gate(x, query)
        y = y.reshape(batch, time, -1)
        if config.output_norm:
            y = rms_norm(y, config.norm_epsilon)
        out = self.out(y)
        parallel = call.adapters.get("attention")
        return (out if parallel is None else out + parallel(x)), own_v

    def _project(self, x: Tensor, adapters: ExecutionAdapters) -> tuple[Tensor, Tensor, Tensor]:
        """q [B, T, D], k and v [B, T, C]."""
        if not self.config.fused_qkv:
            return self.q(x, adapters.get("q")), self.k(x, adapters.get("k")), self.v(x, adapters.get("v"))
        sizes = (self.config.model_dim, self.config.kv_dim, self.config.kv_dim)
        parts = []
        for site, part in zip(("q", "k", "v"), self.qkv(x).split(sizes, dim=-1), strict=True):
            adapter = adapters.get(site)  # type: ignore[call-overload]
            parts.append(part if adapter is None else part + adapter(x))
        return parts[0], parts[1], parts[2]


def causal_attention(q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout) -> Tensor:
    """softmax(q kᵀ / sqrt(d)) v over the earlier positions that the layout allows.

    q [B, T, H, d], k and v [B, T, K, d] (in decoding, of more positions than q) -> [B, T, H, d].
    """
    if layout.packed is not None:
        return packed_attention(q[0], k[0], v[0], *layout.packed)[None]
    mask = layout.attention_mask
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)
    return y.transpose(1, 2)
