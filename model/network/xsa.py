"""Exclusive self attention (methods 1.6)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def remove_own_value(y: Tensor, v: Tensor) -> Tensor:
    """From each head's output, its component along the token's own value: `y - <y, v̂> v̂`, v̂ = v / max(|v|, 1e-12).

    y [B, T, H, d]; v [B, T, K, d], as attention used it. The H/K query heads of a value head share v̂ by broadcasting;
    v is not repeated in memory. The first token of a document attends to itself alone: its output becomes zero.
    """
    direction = F.normalize(v, dim=-1, eps=1e-12)[..., None, :]
    grouped = y.unflatten(2, (v.shape[2], -1))
    return (grouped - (grouped * direction).sum(-1, keepdim=True) * direction).flatten(2, 3)
