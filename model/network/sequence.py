"""What every block needs to know about the positions of a batch: rotary tables, who may attend to whom, and where
documents begin.

Shapes: B batch, T time, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import ModelConfig
from model.network.rotary import rotary_tables


class SequenceLayout(NamedTuple):
    cos: Tensor
    """float32 [T, rotated dims / 2], with `sin` as `rotary_tables` makes them."""
    sin: Tensor
    attention_mask: Tensor | None
    """bool [T, T], true where attention is allowed; None: plain causal attention."""
    document_starts: Tensor | None
    """int64 [T], the position where each position's document begins in a packed row; None: rows are not packed."""


def sequence_layout(
    config: ModelConfig, num_tokens: int, cu_seqlens: Tensor | None, device: torch.device
) -> SequenceLayout:
    """The layout of rows of `num_tokens` tokens; cu_seqlens as in `GPT.forward`."""
    cos, sin = rotary_tables(
        num_tokens, config.rope_dims or config.head_dim, config.rope_base, device, config.rope_scaling
    )
    starts = None if cu_seqlens is None else document_starts(cu_seqlens, num_tokens)
    mask = None
    if starts is not None or config.attention_window:
        mask = attention_mask(num_tokens, starts, config.attention_window, device)
    return SequenceLayout(cos, sin, mask, starts)


def document_starts(cu_seqlens: Tensor, num_tokens: int) -> Tensor:
    """Where the document of each position of a packed row begins, int64 [T].

    Args:
        cu_seqlens: int32 [N + 1], document starts in ascending order followed by the total length; may be padded with
            the total length to a fixed size.
    """
    positions = torch.arange(num_tokens, device=cu_seqlens.device)
    document = torch.searchsorted(cu_seqlens, positions.to(cu_seqlens.dtype), right=True) - 1
    return cu_seqlens[document].long()


def attention_mask(num_tokens: int, starts: Tensor | None, window: int, device: torch.device) -> Tensor:
    """Where attention is allowed, bool [T, T]: causal, within a document, the last `window` positions (0: all)."""
    positions = torch.arange(num_tokens, device=device)
    first = torch.zeros_like(positions) if starts is None else starts
    if window:
        first = torch.maximum(first, positions - window + 1)
    keys = positions[None, :]
    return (keys <= positions[:, None]) & (keys >= first[:, None])


def has_predecessor(layout: SequenceLayout, num_tokens: int, distance: int, device: torch.device) -> Tensor:
    """Whether the position `distance` back is in the same document (or row), bool [T]."""
    positions = torch.arange(num_tokens, device=device)
    first = 0 if layout.document_starts is None else layout.document_starts
    return positions - first >= distance


def shift(x: Tensor, distance: int = 1) -> Tensor:
    """x [B, T] or [B, T, D] moved `distance` positions later, zeros coming in."""
    padding = (0, 0, distance, 0) if x.dim() == 3 else (distance, 0)
    return F.pad(x[:, :-distance], padding)
