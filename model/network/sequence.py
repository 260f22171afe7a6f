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
from model.kernels.attention import Backend, chosen_backend
from model.network.decoding import History
from model.network.rotary import rotary_tables


class PackedDocuments(NamedTuple):
    """What a variable-length attention kernel is told, in place of a mask."""

    cu_seqlens: Tensor
    """int32 [N + 1], as in `GPT.forward`."""
    longest: int
    """At least the tokens of the longest document."""
    window: int
    backend: Backend


class SequenceLayout(NamedTuple):
    cos: Tensor
    """float32 [T, rotated dims / 2], with `sin` as `rotary_tables` makes them."""
    sin: Tensor
    attention_mask: Tensor | None
    """bool [T, T], true where attention is allowed; None: plain causal attention, or `packed`."""
    packed: PackedDocuments | None
    """Documents of a packed row where a kernel can attend to them; else they are in the mask."""
    document_starts: Tensor | None
    """int64 [T], the position where each position's document begins in a packed row; None: rows are not packed."""
    history: History | None = None
    """Keys and values of the positions before the one that the forward is for, in decoding."""


def sequence_layout(
    config: ModelConfig,
    num_tokens: int,
    cu_seqlens: Tensor | None,
    longest_document: int | None,
    device: torch.device,
    dtype: torch.dtype,
) -> SequenceLayout:
    """The layout of rows of `num_tokens` tokens; cu_seqlens and longest_document as in `GPT.forward`."""
    cos, sin = rotary_tables(
        num_tokens, config.rope_dims or config.head_dim, config.rope_base, device, config.rope_scaling
    )
    starts = None if cu_seqlens is None else document_starts(cu_seqlens, num_tokens)
    window = config.attention_window
    packed = mask = None
    backend = chosen_backend(device, dtype)
    if cu_seqlens is not None and backend is not None:
        packed = PackedDocuments(cu_seqlens, longest_document or num_tokens, window, backend)
    elif starts is not None or window:
        mask = attention_mask(num_tokens, starts, window, device)
    return SequenceLayout(cos, sin, mask, packed, starts)


def next_position_layout(config: ModelConfig, history: History, device: torch.device) -> SequenceLayout:
    """The layout of rows of one token, that which follows `history`; the history counts it in."""
    history.begin()
    cos, sin = rotary_tables(
        history.num_tokens, config.rope_dims or config.head_dim, config.rope_base, device, config.rope_scaling
    )
    mask = history.attention_mask(config.attention_window, device)
    return SequenceLayout(cos[-1:], sin[-1:], mask, None, None, history)


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
