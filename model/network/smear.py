"""SmearGate in its three forms: the previous position leaks into the current one on purpose (methods 1.2, 2.2).

Shapes: B batch, T time, D width, W window.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import BOS_ID
from model.network.sequence import SequenceLayout, has_predecessor, shift


class TokenSmear(nn.Module):
    """`e_t + λ σ(w · e_t[:W]) 1[t is not BOS] e_{t-1}`: transparent at the start, where λ = 0 (ranks 1-3; 8 without
    the BOS factor, so that it leaks across the documents of packed rows)."""

    def __init__(self, window: int, bos_mask: bool) -> None:
        super().__init__()
        self.bos_mask = bos_mask
        self.weight = nn.Parameter(torch.empty(window))
        self.strength = nn.Parameter(torch.empty(1))

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        """x [B, T, D], the token embedding; ids [B, T]."""
        gate = torch.sigmoid(F.linear(x[..., : self.weight.shape[0]], self.weight.to(x.dtype)[None]))
        gate = self.strength.to(x.dtype) * gate
        if self.bos_mask:
            gate = gate * (ids != BOS_ID).to(x.dtype)[..., None]
        return x + gate * shift(x)


class ChannelSmear(nn.Module):
    """`(1-g) ⊙ x_t + g ⊙ x_{t-1}`, g = σ(γ), with 0 before the first position of a row or packed document (ranks 21-29,
    31, 44). The documents of a plain row leak into one another, as published."""

    def __init__(self, model_dim: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.empty(model_dim))

    def forward(self, x: Tensor, layout: SequenceLayout) -> Tensor:
        """x [B, T, D]."""
        gate = torch.sigmoid(self.gate.to(x.dtype))
        previous = shift(x)
        if layout.document_starts is not None:
            inside = has_predecessor(layout, x.shape[1], 1, x.device)
            previous = torch.where(inside[:, None], previous, 0)
        return (1 - gate) * x + gate * previous


class MeanSmear(nn.Module):
    """`x + tanh(γ) ⊙ (x̄ - x)`, x̄ the mean of the positions up to and with the current one, of its row or packed
    document: transparent at the start, where γ = 0 (binary U-Net). The running sum is float32."""

    def __init__(self, model_dim: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.empty(model_dim))

    def forward(self, x: Tensor, layout: SequenceLayout) -> Tensor:
        """x [B, T, D]."""
        wide = x if x.dtype == torch.float64 else x.float()
        count = torch.arange(1, x.shape[1] + 1, device=x.device)
        if layout.document_starts is None:
            total = wide.cumsum(1)
        else:
            total = document_cumsum(wide, layout)
            count = count - layout.document_starts
        mean = (total / count[:, None]).to(x.dtype)
        return x + torch.tanh(self.gate.to(x.dtype)) * (mean - x)


def document_cumsum(x: Tensor, layout: SequenceLayout) -> Tensor:
    """Running sums of x [B, T, D] that begin anew with every document of a packed row (Hillis & Steele 1986).

    No sum ever includes another document's values, not even to subtract them again: that would leak their rounding.
    """
    distance = 1
    while distance < x.shape[1]:
        inside = has_predecessor(layout, x.shape[1], distance, x.device)
        x = x + torch.where(inside[:, None], shift(x, distance), 0)
        distance *= 2
    return x
